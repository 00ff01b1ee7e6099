"""The readers of files, on files that the tests write themselves."""

import gzip
import hashlib
import io
import pickle
import struct
import sys
import tarfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from sdd_jax import data
from sdd_jax.data import cifar, mnist
from sdd_jax.data.cifar import Layout, read_cifar
from sdd_jax.data.mnist import read_idx, read_mnist

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
Raw = namedtuple("Raw", "train_images train_labels test_images test_labels")


def same(first, second):
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)


# IDX


def idx_bytes(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, zipped, train=5, test=3):
    rng = np.random.default_rng(0)
    arrays = []
    folder.mkdir(parents=True)
    for file, count in zip(mnist.FILES, (train, train, test, test), strict=True):
        high, shape = (256, (count, 28, 28)) if "images" in file else (10, (count,))
        arrays.append(rng.integers(0, high, shape, dtype=np.uint8))
        content = idx_bytes(arrays[-1])
        (folder / (file + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return arrays


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("where", [".", "FashionMNIST/raw", "raw"])
def test_idx_folders_are_found_and_padded(tmp_path, zipped, where):
    root = tmp_path / "set"
    images, labels, test_images, test_labels = write_mnist(root / where, zipped)
    got = Raw(*read_mnist("fashion_mnist", root))
    np.testing.assert_array_equal(got.train_images[:, 2:30, 2:30, 0], images)
    np.testing.assert_array_equal(got.test_images[:, 2:30, 2:30, 0], test_images)
    assert got.train_images.shape == (5, 32, 32, 1) and got.train_images.sum() == images.sum(dtype=np.int64)
    np.testing.assert_array_equal(got.train_labels, labels)
    np.testing.assert_array_equal(got.test_labels, test_labels)


def test_the_default_place_is_where_the_commands_put_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data" / "MNIST" / "raw", True)
    loaded = data.load("mnist", select_on="test")
    same(Raw(loaded.train.images, loaded.train.labels, loaded.test.images, loaded.test.labels), read_mnist("mnist"))
    assert not loaded.flip and loaded.mean == data.INFO["mnist"].mean


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c[:-1], "must have 55 bytes for the shape .*, got 54"),
        (lambda c: c + b"x", "must have 55 bytes .*, got 56"),
        (lambda c: b"\0\0\x0d\x03" + c[4:], "must begin with 00000803 .*, got 00000d03"),
        (lambda c: b"\0\0\x08\x01" + c[4:], "got 00000801"),
        (lambda c: c[:10], "must begin with 00000803 and 3 sizes .*, got 00000803000000030000$"),
        (lambda c: b"", "got nothing"),
        (lambda c: c[:4] + b"\xff" * 12 + c[16:], "must have .* bytes for the shape"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, damage, message):
    content = idx_bytes(np.zeros((3, 13, 1), np.uint8))
    path = tmp_path / "images"
    path.write_bytes(content)
    assert read_idx(path, 3).shape == (3, 13, 1)
    path.write_bytes(damage(content))
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


def test_a_damaged_gzip_file_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    whole = gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8)))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x55
    for content in (whole[:-9], b"no gzip", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a whole gzip file"):
            read_idx(path, 1)


def test_idx_sets_that_do_not_fit_together_are_refused(tmp_path):
    write_mnist(tmp_path / "a", False)
    (tmp_path / "a" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match="a label for each of the 5 images, got 4"):
        read_mnist("mnist", tmp_path / "a")
    (tmp_path / "a" / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte.gz"):
        read_mnist("mnist", tmp_path / "a")
    (tmp_path / "a" / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((5, 32, 32), np.uint8)))
    with pytest.raises(ValueError, match="images of 28x28, got 32x32"):
        read_mnist("mnist", tmp_path / "a")


def test_a_label_that_is_none_is_refused_with_the_sets_place(tmp_path):
    write_mnist(tmp_path / "a", True)
    (tmp_path / "a" / "t10k-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(idx_bytes(np.array([1, 200, 3], np.uint8)))
    )
    with pytest.raises(
        ValueError, match=rf"^mnist in {tmp_path}/a: test_labels must be in 0 .. 9 .*got 200 at position 1"
    ):
        data.load("mnist", path=tmp_path / "a", select_on="test")


def test_a_set_without_an_image_is_refused(tmp_path):
    write_mnist(tmp_path / "a", False, train=0)
    with pytest.raises(ValueError, match=rf"^mnist in {tmp_path}/a: train_images must "):
        data.load("mnist", path=tmp_path / "a", select_on="test")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    loaded = data.load("fashion_mnist", path=DEBIAN, train_examples=20_000)
    info = data.INFO["fashion_mnist"]
    assert np.bincount(loaded.train.labels).tolist() == [2000] * 10
    assert np.bincount(loaded.selection.labels).tolist() == [600] * 10
    assert np.bincount(loaded.test.labels).tolist() == [1000] * 10
    whole = Raw(*read_mnist("fashion_mnist", DEBIAN))
    assert (len(whole.train_labels), len(whole.test_labels)) == (info.train_examples, info.test_examples)
    pixels = whole.train_images[:, 2:30, 2:30] / np.float32(255)
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [*info.mean, *info.std], atol=1e-4)


# CIFAR


def tiny_set(name, train=10, test=4):
    rng = np.random.default_rng(1)
    classes = 10 if name == "cifar10" else 100
    draw = [rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8) for count in (train, test)]
    return Raw(draw[0], rng.integers(0, classes, train), draw[1], rng.integers(0, classes, test))


def planes(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def python2_pickle(pixels, labels, label_key):
    """Protocol 2 with 8-bit strings, opcode by opcode, as Python 2 and NumPy 1 wrote the official files."""

    def text(value):
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value):
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + text("u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text("|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text("b") + b"tR"
    shape = b"(" + number(pixels.shape[0]) + number(pixels.shape[1]) + b"t"
    array += b"(" + number(1) + shape + dtype + b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    numbers = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text("data") + array + text(label_key) + numbers + b"u."


def members_of(kind, name, raw):
    """``{member: content}`` of the train and of the test part, as the official layouts have them."""
    parts = 5 if name == "cifar10" else 1
    stems = [f"data_batch_{n}" for n in range(1, 6)] if name == "cifar10" else ["train"]
    result = []
    for stem_list, images, labels, count in (
        (stems, raw.train_images, raw.train_labels, parts),
        (["test_batch" if name == "cifar10" else "test"], raw.test_images, raw.test_labels, 1),
    ):
        contents = {}
        pairs = zip(np.split(planes(images), count), np.split(labels, count), strict=True)
        for stem, (pixels, some) in zip(stem_list, pairs, strict=True):
            if kind == "python":
                key = "labels" if name == "cifar10" else "fine_labels"
                contents[stem] = python2_pickle(pixels, some, key)
            else:
                coarse = [] if name == "cifar10" else [np.full((len(some), 1), 19)]
                contents[stem + ".bin"] = np.hstack([*coarse, some[:, None], pixels]).astype(np.uint8).tobytes()
        result.append(contents)
    return result


def tar_bytes(folder, members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def make_layout(kind, name, train, test):
    """The tiny members as a :class:`Layout` with their own checks, and the archive's content."""
    official = cifar.LAYOUTS[name][0 if kind == "python" else 1]
    members = {**train, **test}
    assert list(official.members) == list(members)

    def check(content):
        return hashlib.md5(content).hexdigest() if kind == "python" else len(content)

    content = tar_bytes(official.folder, members)
    checks = {member: check(c) for member, c in members.items()}
    return Layout(official.archive, hashlib.md5(content).hexdigest(), official.folder, checks), content


def write_folder(folder, *parts):
    folder.mkdir(parents=True)
    for part in parts:
        for member, content in part.items():
            (folder / member).write_bytes(content)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_every_layout_given_in_every_way_is_the_same_set(tmp_path, name, kind):
    raw = tiny_set(name)
    train, test = members_of(kind, name, raw)
    layout, archive = make_layout(kind, name, train, test)
    layouts = {name: (layout,)}
    write_folder(tmp_path / "extracted" / layout.folder, train, test)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / layout.archive).write_bytes(archive)
    (tmp_path / "renamed.tgz").write_bytes(archive)
    for path in (
        tmp_path / "extracted",
        tmp_path / "extracted" / layout.folder,
        tmp_path / "packed",
        tmp_path / "packed" / layout.archive,
        str(tmp_path / "renamed.tgz"),
    ):
        got = Raw(*read_cifar(name, path, layouts))
        same(got, raw)
        assert got.train_images.dtype == np.uint8 and got.train_images.flags.c_contiguous


def test_load_knows_the_classes(tmp_path, monkeypatch):
    raw = tiny_set("cifar100", train=400)
    train, test = members_of("binary", "cifar100", raw)
    layout, _ = make_layout("binary", "cifar100", train, test)
    write_folder(tmp_path / layout.folder, train, test)
    monkeypatch.setattr(cifar.read_cifar, "__defaults__", (None, {"cifar100": (layout,)}))
    loaded = data.load("cifar100", path=tmp_path, train_examples=100)
    assert loaded.num_classes == 100 and loaded.class_names[0] == "apple" and loaded.class_names[99] == "worm"
    assert len(set(cifar.CIFAR100_CLASSES)) == 100 and list(cifar.CIFAR100_CLASSES) == sorted(cifar.CIFAR100_CLASSES)
    assert len(loaded.train.labels) == 100 and loaded.std == (0.2675, 0.2565, 0.2761)


def test_wrong_checksums_and_sizes_are_refused(tmp_path):
    raw = tiny_set("cifar10")
    for kind in ("python", "binary"):
        train, test = members_of(kind, "cifar10", raw)
        layout, archive = make_layout(kind, "cifar10", train, test)
        layouts = {"cifar10": (layout,)}
        packed = tmp_path / layout.archive
        damaged = bytearray(archive)
        damaged[len(archive) // 2] ^= 1
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"MD5 sum must be {layout.md5}.*, got .*download it again"):
            read_cifar("cifar10", packed, layouts)
        last = list(train)[-1]
        broken = train[last][:-1] if kind == "binary" else train[last][:-1] + b"!"
        write_folder(tmp_path / kind / layout.folder, {**train, last: broken}, test)
        with pytest.raises(ValueError, match=f"{last} must have .*got"):
            read_cifar("cifar10", tmp_path / kind, layouts)
        (tmp_path / kind / layout.folder / last).unlink()
        with pytest.raises(FileNotFoundError, match=f"{last} is missing"):
            read_cifar("cifar10", tmp_path / kind, layouts)


def bomb(path):
    """A pickle that would create ``path``, were it unpickled."""

    class Touch:
        def __reduce__(self):
            return (open, (str(path), "w"))

    return pickle.dumps({"data": Touch(), "labels": []})


@pytest.mark.parametrize("matching", [True, False])
def test_a_malicious_pickle_is_refused_unread(tmp_path, matching):
    raw, mark = tiny_set("cifar100"), tmp_path / "it ran"
    train, test = members_of("python", "cifar100", raw)
    honest, _ = make_layout("python", "cifar100", train, test)
    forged, archive = make_layout("python", "cifar100", {"train": bomb(mark)}, test)
    write_folder(tmp_path / honest.folder, {"train": bomb(mark)}, test)
    # Even when the published sum were that of the bomb, the unpickler must not call what it names.
    layouts = {"cifar100": (forged if matching else honest,)}
    message = r"the pickle asks for (io|_io|builtins).open.*refused" if matching else "not read, since it is a pickle"
    with pytest.raises(ValueError, match=message):
        read_cifar("cifar100", tmp_path, layouts)
    if matching:
        (tmp_path / "archive.tar.gz").write_bytes(archive)
        with pytest.raises(ValueError, match=message):
            read_cifar("cifar100", tmp_path / "archive.tar.gz", layouts)
    assert not mark.exists()
    pickle.loads(bomb(mark))["data"].close()
    assert mark.exists()  # the bomb is a real one


def test_pickles_of_today_are_read_too():
    pixels = planes(tiny_set("cifar10").train_images)
    content = pickle.dumps({"data": pixels, "labels": [1] * 10}, protocol=4)
    got, labels = cifar._decode_pickle(content, hashlib.md5(content).hexdigest(), "it")
    np.testing.assert_array_equal(got, pixels)
    assert labels.tolist() == [1] * 10


def test_the_published_checks_describe_the_official_files():
    for name, label_bytes, files in (("cifar10", 1, 5), ("cifar100", 2, 1)):
        python, binary = cifar.LAYOUTS[name]
        *train, test = binary.members.values()
        assert sum(train) == 50_000 * (label_bytes + 3072) and test == 10_000 * (label_bytes + 3072)
        assert len(python.members) == len(binary.members) == files + 1
        sums = [python.md5, binary.md5, *python.members.values()]
        assert all(len(value) == 32 and int(value, 16) for value in sums) and len(set(sums)) == len(sums)


# TFDS


def write_tfds(name, data_dir, raw, as_png):
    """The tiny set as TFDS writes it, but without TensorFlow: as Tensor features, or PNG images under another name."""
    import tensorflow_datasets as tfds

    parts = {"train": (raw.train_images, raw.train_labels), "test": (raw.test_images, raw.test_labels)}
    tensor, text = tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8), tfds.features.Text()
    others = {"id": text, "label": tfds.features.ClassLabel(num_classes=100)}
    written = tfds.features.FeaturesDict({"image": text if as_png else tensor, **others})

    def examples(self, part):
        for number, (image, label) in enumerate(zip(*parts[part], strict=True)):
            yield number, {"id": f"{part}_{number:05d}", "image": png(image) if as_png else image, "label": int(label)}

    members = {
        "VERSION": tfds.core.Version("3.0.2"),
        "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=written),
        "_split_generators": lambda self, _: {part: self._generate_examples(part) for part in parts},
        "_generate_examples": examples,
    }
    with tfds.core.registered.skip_registration():
        builder = type(name.capitalize(), (tfds.core.GeneratorBasedBuilder,), members)
    builder(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    if as_png:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(32, 32, 3)), **others})
        features.save_config(str(data_dir / name / "3.0.2"))


def png(image):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "as_png"), [("cifar10", False), ("cifar100", True)])
def test_a_tfds_directory_is_the_same_set_in_the_same_order(tmp_path, name, as_png):
    pytest.importorskip("tensorflow_datasets")
    if as_png:
        pytest.importorskip("PIL")
    raw = tiny_set(name)
    write_tfds(name, tmp_path, raw, as_png)
    same(read_cifar(name, tmp_path), raw)


def test_a_tfds_directory_in_another_format_is_refused(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(ValueError, match="no ArrayRecord files.*\n.*file_format='array_record'.*needs TensorFlow"):
        read_cifar("cifar10", tmp_path)


# Names, and what is missing


def test_digits():
    info, loaded = data.INFO["digits"], data.load("digits", select_on="test")
    assert (len(loaded.train.labels), len(loaded.test.labels)) == (info.train_examples, info.test_examples)
    images = np.concatenate([loaded.train.images, loaded.test.images])
    blocks = images.reshape(-1, 8, 4, 8, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    labels = np.concatenate([loaded.train.labels, loaded.test.labels])
    shares = np.bincount(loaded.test.labels) / np.bincount(labels)
    assert np.abs(shares - 0.2).max() < 0.003
    pixels = loaded.train.images / 255
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [*info.mean, *info.std], atol=5e-5)
    assert not loaded.flip and loaded.num_classes == 10


def test_digits_are_those_of_scikit_learn():
    source = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits()
    with np.load(Path(data.__file__).with_name("digits.npz")) as stored:
        assert (stored["images"] == source.images).all() and (stored["labels"] == source.target).all()


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("mnist", ["curl -fL", "torchvision.datasets import MNIST", "data/MNIST/raw"]),
        ("fashion_mnist", ["apt-get install dataset-fashion-mnist", "curl -fL", "import FashionMNIST"]),
        ("cifar10", ["kriz/cifar-10-python.tar.gz", "import CIFAR10", "tfds.builder('cifar10'", "needs TensorFlow"]),
        ("cifar100", ["kriz/cifar-100-python.tar.gz", "import CIFAR100", "tfds.builder('cifar100'"]),
    ],
)
def test_a_missing_set_says_where_it_looked_and_how_to_get_it(tmp_path, name, commands):
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, path=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    for command in commands:
        assert command in str(caught.value)


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("cifar1000", None, "called 'cifar1000': known are digits, mnist, .*, cifar100, "),
        ("xyzzy", None, r"imagenet, arrays, image_folder and tfds:NAME$"),
        ("tfds:", None, "no data set is called 'tfds:'"),
        ("digits", "somewhere", "have no path, got 'somewhere'"),
    ],
)
def test_names_that_cannot_be_loaded(name, path, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, path=path)


def test_a_missing_package_names_its_pip_command(tmp_path, monkeypatch):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        data.load("cifar10", path=tmp_path)


def test_descriptions_agree_with_themselves():
    for name, info in data.INFO.items():
        assert data.describe(name) == info
        assert len(info.mean) == len(info.std) == info.image_shape[2]
    assert data.INFO["imagenet"][:4] == (1000, (224, 224, 3), 1_281_167, 50_000)
    with pytest.raises(ValueError, match="'imagnet': known are .*, imagenet, tiny_imagenet, arrays, image_folder and"):
        data.describe("imagnet")
