"""Own arrays in one .npz file: what is written is read again, other people's files, and files that lie."""

import io
import re
import zipfile

import numpy as np
import pytest
from commands import call

import sdd_jax
from sdd_jax import data, saved
from sdd_jax.data import arrays
from sdd_jax.serving.network import open_network
from sdd_jax.training import run_dir

RNG = np.random.default_rng(0)


def content(train=20, test=6, classes=3, shape=(8, 8, 3)):
    return {
        "train_images": RNG.integers(0, 256, (train, *shape), np.uint8),
        "train_labels": np.arange(train) % classes,
        "test_images": RNG.integers(0, 256, (test, *shape), np.uint8),
        "test_labels": np.arange(test) % classes,
    }


def save(path, **given):
    np.savez(path, **given)
    return path


@pytest.mark.parametrize("select_on", ["validation", "test"])
@pytest.mark.parametrize("shape", [(8, 8, 3), (5, 7)])
def test_what_is_written_is_read_again(tmp_path, select_on, shape):
    own = {"class_names": ("a", "b", "c"), "pad": 1, "flip": False, "select_on": select_on, "train_examples": 12}
    dataset = data.from_arrays(*content(shape=shape).values(), mean=[0.5] * (3 if len(shape) == 3 else 1), **own)
    arrays.write(tmp_path / "a" / "own.npz", dataset)
    again = data.load("arrays", path=tmp_path / "a" / "own.npz", select_on=select_on)
    assert again.fingerprint() == dataset.fingerprint()  # images, labels and numbers
    for name in ("class_names", "mean", "std", "pad", "flip", "select_on", "image_shape"):
        assert getattr(again, name) == getattr(dataset, name)
    info = data.describe("arrays", path=tmp_path / "a" / "own.npz")
    assert (info.num_classes, info.image_shape, info.train_examples) == (
        3,
        dataset.image_shape,
        12 + (3 if select_on == "validation" else 0),
    )
    assert data.class_names("arrays", tmp_path / "a" / "own.npz") == ("a", "b", "c")


def test_a_file_of_arrays_alone_is_what_from_arrays_makes_of_them(tmp_path):
    given = content()
    dataset = data.load("arrays", path=save(tmp_path / "own.npz", **given), train_examples=9)
    assert dataset.fingerprint() == data.from_arrays(*given.values(), train_examples=9).fingerprint()


def test_validation_images_of_the_file_choose_the_best_epoch(tmp_path):
    given = content()
    held = {"val_images": RNG.integers(0, 256, (4, 8, 8, 3), np.uint8), "val_labels": np.array([[0], [1], [2], [0]])}
    given = {name: array[:, None] if name.endswith("labels") else array for name, array in given.items()}  # MedMNIST's
    path = save(tmp_path / "own.npz", **given, **held)
    dataset = data.load("arrays", path=path)
    np.testing.assert_array_equal(dataset.selection.images, held["val_images"])
    np.testing.assert_array_equal(dataset.train.images, given["train_images"])  # none is held out of them
    assert not set(dataset.selection.index) & set(dataset.train.index)
    on_test = data.load("arrays", path=path, select_on="test")
    assert on_test.selection is on_test.test and len(on_test.train.index) == 20


def lying(path):
    """A file whose array says that it is larger than it is."""
    given = content()
    save(path, **given)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8, 3)})
    parts["train_images.npy"] = header.getvalue() + bytes(100)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


WRONG = {
    "lacks the test images": (lambda given: given.pop("test_images"), "it lacks test_images: got train_images"),
    "holds something else": (lambda given: given.update(other=np.zeros(3)), "it holds other: known are train_images"),
    "has validation images alone": (lambda given: given.update(val_images=given["test_images"]), "go together"),
    "has images of float": (
        lambda given: given.update(train_images=np.zeros((20, 8, 8, 3))), "train_images must be uint8 .* got float64",
    ),
    "has a label of no class": (
        lambda given: given.update(test_labels=np.array([0, 1, 2, 3, 0, 1])), r"test_labels must be in 0 \.\. 2",
    ),
    "has validation images of another size": (
        lambda given: given.update(val_images=np.zeros((3, 4, 4, 3), np.uint8), val_labels=np.arange(3)),
        r"val_images are \(4, 4, 3\), train_images \(8, 8, 3\)",
    ),
    "has grey validation images beside others": (
        lambda given: given.update(val_images=np.zeros((3, 8, 8), np.uint8), val_labels=np.arange(3)),
        r"val_images are \(8, 8, 1\), train_images \(8, 8, 3\)",
    ),
    "has a validation label of no class": (
        lambda given: given.update(val_images=given["test_images"], val_labels=np.array([0, 1, 2, 3, 0, 1])),
        r"val_labels must be in 0 \.\. 2",
    ),
    "has validation images of float": (
        lambda given: given.update(val_images=np.zeros((6, 8, 8, 3)), val_labels=np.arange(6) % 3),
        "val_images must be uint8 .* got float64",
    ),
    "has a flip of text": (lambda given: given.update(flip="False"), r"flip must be True or False, got <U5 \[\]"),
    "has half a pixel": (lambda given: given.update(pad=3.9), r"pad must be an integer, got float64 \[\]"),
    "has one name": (lambda given: given.update(class_names="a"), r"class_names must be a list of names, got <U1 \[\]"),
    "has a table of means": (lambda given: given.update(mean=np.zeros((3, 3))), "mean must be a number for each chan"),
    "has a number twice": (lambda given: given.update(train_index=np.zeros(20, int)), "must be numbers that differ"),
    "has a number below 0": (lambda given: given.update(train_index=np.arange(-1, 19)), "must be numbers that differ"),
    "has too few numbers": (lambda given: given.update(train_index=np.arange(3)), "train_index must be an integer for"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_none_is_named_with_the_reason(tmp_path, case):
    change, message = WRONG[case]
    given = content()
    change(given)
    path = save(tmp_path / "own.npz", **given)
    with pytest.raises(ValueError, match=f"own.npz.*: .*{message}"):
        data.load("arrays", path=path)


def test_damaged_and_hostile_files_are_refused(tmp_path, monkeypatch):
    path, made = tmp_path / "own.npz", tmp_path / "made"
    lying(path)
    with pytest.raises(ValueError, match=r"own.npz is not a file of arrays: train_images.npy has .* does not fill"):
        data.load("arrays", path=path)
    np.savez(path, **{**content(), "class_names": np.array([Runs(made)], object)}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"own.npz is not a file of arrays: "):
        data.load("arrays", path=path)
    assert not made.exists()
    save(path, **content())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"own.npz is not a file of arrays: "):
        data.load("arrays", path=path)
    np.savez_compressed(path, **content())
    whole, expected, refused = path.read_bytes(), data.load("arrays", path=path).fingerprint(), 0
    for place in range(0, len(whole), len(whole) // 100):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            assert data.load("arrays", path=path).fingerprint() == expected  # such as a file's date in the archive
        except ValueError as error:
            refused += "own.npz" in str(error)
    assert refused > 50
    save(path, **content(shape=(8, 8)), mean=0.5, std=0.25)  # of grey images: a number
    assert data.load("arrays", path=path).mean == (0.5,)
    save(path, **content())
    monkeypatch.setattr(arrays, "memory_bytes", lambda: 1000)
    with pytest.raises(ValueError, match=r"it takes \d.\d\d MB, and the memory has 0.00 MB"):
        data.load("arrays", path=path)


def test_what_is_not_there_or_cannot_be_chosen_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no data set "arrays" found; looked in\n.*own.npz'):
        data.load("arrays", path=tmp_path / "own.npz")
    path = save(tmp_path / "own.npz", **content())
    with pytest.raises(ValueError, match="arrays has 3 classes, data.num_classes says 4"):
        data.describe("arrays", path=path, num_classes=4)
    with pytest.raises(ValueError, match="arrays is held in memory as it is: data.image_size"):
        data.load("arrays", path=path, image_size=16)


@pytest.mark.slow
def test_a_run_of_a_file_of_arrays_is_measured_and_predicts(tmp_path):
    path = save(tmp_path / "own.npz", **content(40, 12, shape=(24, 24)))
    given = ("--config=arrays:teacher=none,student=resnet8", f"--config.data.path={path}", "--config.epochs=1")
    trained = call("train", *given, "--config.batch_size=8", f"--workdir={tmp_path}/run")
    assert trained.code == 0, trained.err
    accuracy = re.search(r"last (\d+\.\d+)%", trained.out)[1]
    assert f"{accuracy}" in call("evaluate", f"--workdir={tmp_path}/run").out
    moved = path.rename(tmp_path / "moved.npz")
    gone = call("evaluate", f"--workdir={tmp_path}/run")
    assert gone.code == 2 and f'no data set "arrays" found; looked in\n  {path}' in gone.err
    assert accuracy in call("evaluate", f"--workdir={tmp_path}/run", f"--data_path={moved}").out
    open_network(tmp_path / "run")  # which needs no data
    assert saved.read(tmp_path / "run").image_size == 24


def test_what_a_run_learned_does_not_change_with_the_file(tmp_path):
    """Mean and std are measured on training images: of other ones they would be others."""
    given = content(40, 12)
    path = save(tmp_path / "own.npz", **given)
    begun = sdd_jax.train("resnet8", data=path, folder=tmp_path / "run", epochs=1, fields={"batch_size": 8})
    images = given["test_images"]
    expected, accuracy = begun.predict(images), f"{100 * begun.results['last']['accuracy']:.2f}"
    save(path, **given | {"train_images": given["train_images"] // 3}, class_names=np.array([*"abc"]))
    again = sdd_jax.load_run(tmp_path / "run")
    np.testing.assert_array_equal(again.predict(images), expected)
    assert again.class_names == begun.class_names
    assert accuracy in call("evaluate", f"--workdir={tmp_path}/run").out
    with pytest.raises(ValueError, match="image_size"):  # arrays have the one that they have
        open_network(tmp_path / "run", image_size=16)


@pytest.mark.parametrize("wrong", [{"mean": ["0.5"]}, {"std": []}, {"image_shape": [8, 8]}, {"class_names": [1]}])
def test_a_note_of_other_values_is_named(tmp_path, wrong):
    about = {"class_names": ["a"], "image_shape": [8, 8, 1], "mean": [0.5], "std": [0.25]}
    (tmp_path / "config.json").write_text('{"seed": 0}')
    run_dir.write_sealed(tmp_path, run_dir.DATA, about | wrong)
    with pytest.raises(ValueError, match="data.json holds other values"):
        run_dir.read_data(tmp_path)


def test_a_run_does_not_go_on_with_images_that_are_treated_otherwise(tmp_path):
    about = {"class_names": ["a", "b"], "image_shape": [8, 8, 1], "mean": [0.5], "std": [0.25], "pad": 4, "flip": True}
    (tmp_path / "config.json").write_text('{"seed": 0}')
    run_dir.keep_data(tmp_path, about)
    run_dir.keep_data(tmp_path, {**about, "class_names": ["apple", "bee"]})  # other words for the same
    assert run_dir.read_data(tmp_path).items() >= about.items()
    with pytest.raises(ValueError, match="images were treated otherwise .pad was 4, now 2.: put the data back"):
        run_dir.keep_data(tmp_path, {**about, "pad": 2})
