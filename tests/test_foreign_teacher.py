"""A teacher that is any function: what it is asked, what a cache keeps of it, and a student of that cache alone."""

import io
from collections import defaultdict
from contextlib import redirect_stdout
from types import SimpleNamespace
from unittest import mock

import commands
import jax.numpy as jnp
import numpy as np
import own_teachers
import pytest
from absl import flags
from pages import config_of
from test_build import digits

from sdd_jax import data, sealed
from sdd_jax.build import build, check, load_data
from sdd_jax.build_shapes import trace
from sdd_jax.commands import cache as cache_command
from sdd_jax.configs import quickstart
from sdd_jax.data.augment import num_views
from sdd_jax.regions import Regions
from sdd_jax.sdd import complementary_mask
from sdd_jax.training.foreign import ForeignTeacher, answer
from sdd_jax.training.loop import train
from sdd_jax.training.teacher_cache import Cache, read_header, unpack
from sdd_jax.training.views import run_keys


def student(method="sdd_kd", **overrides):
    return digits(method=method, model__teacher="cache", model__student="resnet8", **overrides)


def fill(folder, function, method="sdd_kd", *, store="float32", verify=False, **overrides):
    """What the command prints."""
    given = SimpleNamespace(config=student(method, **overrides), workdir=folder, store=store, verify=verify)
    given.teacher = function and f"own_teachers:{function}"
    with mock.patch.object(flags, "FLAGS", given), redirect_stdout(io.StringIO()) as out:
        cache_command.main()
    return out.getvalue()


def augmented(dataset, index, view):
    """The pixels of a view, by the words of the documentation: padded, cut out, turned over."""
    side = 2 * dataset.pad + 1
    padded = np.pad(dataset.train.images, ((0, 0), *[(dataset.pad, dataset.pad)] * 2, (0, 0)))
    height, width, _ = dataset.image_shape
    rows = {number: row for row, number in enumerate(dataset.train.index)}
    cut = []
    for number, which in zip(index, view, strict=True):
        dy, dx = divmod(which % side**2, side)
        picture = padded[rows[number], dy : dy + height, dx : dx + width]
        cut.append(picture[:, ::-1] if which >= side**2 else picture)
    return np.stack(cut)


def normalised(dataset, pixels):
    return (pixels / 255 - np.array(dataset.mean)) / np.array(dataset.std)


def views_of(dataset, order=np.asarray):
    keys = order(run_keys(dataset, seed=0, epochs=1, batch_size=64))
    return np.divmod(keys, num_views(dataset.pad, dataset.flip))


# ---------------------------------------------------------------------- what it is asked, and what is kept


@pytest.mark.parametrize("function", ["patches", "patches_of_pixels"])
def test_it_is_given_the_views_of_the_run_normalised_or_as_they_are(tmp_path, function):
    own_teachers.ASKED.clear()
    fill(tmp_path / "cache", function)
    built = build(student(teacher__cache=str(tmp_path / "cache")))
    expected = augmented(built.dataset, *views_of(built.dataset, np.unique))
    assert all(len(images) == cache_command.BATCH and images.flags.writeable for images in own_teachers.ASKED)
    images = own_teachers.ASKED[-1][: len(expected)]
    if function == "patches":
        assert images.dtype == np.float32
        np.testing.assert_allclose(images, normalised(built.dataset, expected), rtol=1e-5, atol=1e-6)
    else:
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("function", ["patches", "by_region", "whole"])
def test_a_run_reads_what_the_function_says_of_its_pictures(tmp_path, function):
    fill(tmp_path / "cache", function, "kd")
    built = build(student("kd" if function == "whole" else "sdd_kd", teacher__cache=str(tmp_path / "cache")))
    data = built.dataset
    index, view = (column[:64].astype(np.int32) for column in views_of(data))
    batch = {"index": index, "view": view, "position": np.arange(64, dtype=np.int32)}
    outputs = built.teacher.apply(built.teacher.arrays, batch)
    logit_map = own_teachers.patch_logits(np.float32(normalised(data, augmented(data, index, view))), 10)
    np.testing.assert_allclose(outputs.logits, logit_map.mean((1, 2)), rtol=1e-4, atol=1e-4)
    assert outputs.logit_map is None and outputs.feature_maps == {}
    if function == "whole":
        assert outputs.region_logits is None
    else:
        expected = own_teachers.region_means(logit_map, built.objective.regions)
        np.testing.assert_allclose(outputs.region_logits, expected, rtol=1e-4, atol=1e-4)
        assert np.ptp(expected, axis=1).max() > 0.1  # the regions differ


@pytest.mark.parametrize("dtype, given", [("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64")])
def test_a_teacher_may_answer_in_any_floating_numbers(dtype, given):
    logits = np.linspace(-3, 3, 2 * 2 * 2 * 10).reshape(2, 2, 2, 10).astype(jnp.dtype(dtype))
    dataset = data.load("digits")
    teacher = ForeignTeacher(lambda images: logits, "one", "1")
    answered = answer(teacher, dataset.test.images[:2], dataset, Regions())
    assert answered.dtype == given
    np.testing.assert_array_equal(answered, logits.astype(given))


def test_of_the_largest_logits_alone_every_region_keeps_its_class(tmp_path):
    fill(tmp_path / "cache", "patches", store="top3")
    built = build(student(teacher__cache=str(tmp_path / "cache")))
    assert built.teacher.stores == "top3"
    data = built.dataset
    index, view = (column[:64].astype(np.int32) for column in views_of(data))
    outputs = built.teacher.apply(built.teacher.arrays, {"index": index, "view": view, "position": np.arange(64)})
    logit_map = own_teachers.patch_logits(np.float32(normalised(data, augmented(data, index, view))), 10)
    expected = own_teachers.region_means(logit_map, built.objective.regions)
    labels = data.train.labels[np.searchsorted(data.train.index, index)]
    np.testing.assert_array_equal(outputs.region_logits.argmax(-1), expected.argmax(-1))
    verdicts = [complementary_mask(logits, labels) for logits in (outputs.region_logits, expected)]
    np.testing.assert_array_equal(*verdicts)
    assert 0.1 < np.mean(verdicts[0]) < 0.9
    np.testing.assert_allclose(np.sort(outputs.region_logits)[..., -3:], np.sort(expected)[..., -3:], atol=1e-4)


def test_logits_of_whole_images_serve_the_one_region_that_is_the_image(tmp_path):
    fill(tmp_path / "cache", "whole", "sdd_kd", sdd__scales=(1,))
    built = build(student(sdd__scales=(1,), teacher__cache=str(tmp_path / "cache")))
    index, view = (column[:8].astype(np.int32) for column in views_of(built.dataset))
    outputs = built.teacher.apply(built.teacher.arrays, {"index": index, "view": view, "position": np.arange(8)})
    np.testing.assert_array_equal(outputs.region_logits[:, 0], outputs.logits)
    assert outputs.region_logits.shape == (8, 1, 10)


def test_the_test_accuracy_is_measured_once_noted_and_held_against_what_is_stated(tmp_path):
    printed = fill(tmp_path / "cache", "patches")
    built = build(student(teacher__cache=str(tmp_path / "cache")))
    test = built.dataset.test
    logits = own_teachers.patch_logits(np.float32(normalised(built.dataset, test.images)), 10).mean((1, 2))
    share = float((logits.argmax(-1) == test.labels).mean())
    assert built.teacher_accuracy == pytest.approx(share) and built.teacher.name == "patches"
    assert f"patches: {100 * share:.2f}% on the test set" in printed and 0 < share < 0.5
    own_teachers.ASKED.clear()
    fill(tmp_path / "cache", "patches")
    assert len(own_teachers.ASKED) == 1  # to see what it gives
    with pytest.raises(ValueError, match="the teacher's test accuracy is .* stated is"):
        build(student(teacher__cache=str(tmp_path / "cache"), teacher__accuracy=100 * share + 0.2))


def test_a_teacher_that_is_refused_leaves_nothing_and_is_taken_once_it_is_mended(tmp_path):
    printed = fill(tmp_path / "right", "patches")
    share = float(printed.partition("patches: ")[2].partition("%")[0])
    with (
        mock.patch.object(own_teachers, "patch_logits", lambda images, classes: np.ones((len(images), 4, 4, classes))),
        pytest.raises(ValueError, match=f"the teacher's test accuracy is .* stated is {share:.2f} %"),
    ):
        fill(tmp_path / "cache", "patches", teacher__accuracy=share)
    assert not (tmp_path / "cache").exists()
    assert f"patches: {share:.2f}% on the test set" in fill(tmp_path / "cache", "patches", teacher__accuracy=share)


def test_verify_asks_it_again(tmp_path):
    fill(tmp_path / "cache", "patches")
    assert "asked again, equal bit for bit" in fill(tmp_path / "cache", "patches", verify=True)
    with mock.patch.object(
        own_teachers, "patch_logits", lambda images, classes: np.zeros((len(images), 4, 4, classes))
    ):
        with pytest.raises(sealed.Damaged, match="is not this teacher's"):
            fill(tmp_path / "cache", "patches", verify=True)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fewer_classes", r"must give floating logits: a map \[256,h,w,10\].*got float32 \[256, 4, 4, 9\]"),
        ("fewer_images", r"got float32 \[255, 4, 4, 10\]"),
        ("fewer_regions", r"regions \[256,21,10\].*got float32 \[256, 4, 10\]"),
        ("five_axes", r"got float32 \[1, 256, 4, 4, 10\]"),
        ("integers", r"got int64 \[256, 4, 4, 10\]"),
        ("nothing", r"got object \[\]"),
        ("changing", r"gave \[4, 4, 10\] for an image first, and now \[2, 4, 10\]"),
        (
            "raising",
            r"asking wrong for images \(256, 32, 32, 1\) failed with RuntimeError: out of luck \(.*teachers.py",
        ),
        (
            "unmade",
            r"teacher 'own_teachers:unmade': calling it failed with KeyError: 'weights' \(.*own_teachers.py:\d+\)",
        ),
        ("without_a_name", "must state its name, a text that is not empty; got ''"),
        ("without_a_digest", "must state its digest.*got None"),
        ("of_other_images", "must be one of normalized, uint8; got 'float16'"),
        ("no_teacher", "gives a function, expected a ForeignTeacher"),
        ("of_nothing", "must be a function of num_classes, regions in .*own_teachers.py"),
        ("not_there", "must be a function of .*; got None"),
        (None, "go together: the config's teacher is 'cache', --teacher is not given"),
    ],
)
def test_a_function_that_is_no_teacher_is_refused(tmp_path, function, message):
    with pytest.raises(ValueError, match=message):
        fill(tmp_path / "cache", function)
    assert not (tmp_path / "cache").exists() or not [*(tmp_path / "cache").glob("0*")]


def test_logits_that_are_not_finite_are_not_kept(tmp_path):
    with pytest.raises(FloatingPointError, match="logits are not finite, of test image 0 first"):
        fill(tmp_path / "cache", "not_numbers")
    with pytest.raises(FloatingPointError, match="logits are not finite, of test image 3 first"):
        fill(tmp_path / "cache", "not_numbers_of_the_fourth")
    unmeasured = mock.patch.object(cache_command, "foreign_accuracies", lambda *_: defaultdict(float))
    with unmeasured, pytest.raises(FloatingPointError, match="none of them is kept"):
        fill(tmp_path / "cache", "not_numbers")


def test_another_digest_or_other_images_are_another_teacher(tmp_path):
    fill(tmp_path / "cache", "patches")
    for function, field in (("patches_of_another_file", "digest"), ("patches_of_pixels", "images"), ("whole", "name")):
        with pytest.raises(ValueError, match=f"is another's.*teacher.{field}"):
            fill(tmp_path / "cache", function, "kd")


def test_methods_that_read_what_it_does_not_give_are_refused_by_name(tmp_path):
    for method in ("sdd_kd", "sdd_dkd"):
        with pytest.raises(ValueError, match=f"'{method}' reads the teacher's region_logits, and it gives logits of"):
            fill(tmp_path / "whole", "whole", method)
    assert not (tmp_path / "whole").exists()
    fill(tmp_path / "whole", "whole", "kd")
    with pytest.raises(ValueError, match="'sdd_kd' reads the teacher's region_logits, and it gives logits of whole"):
        build(student(teacher__cache=str(tmp_path / "whole")))
    with pytest.raises(ValueError, match="'sp' reads the teacher's feature_maps: no cache holds that"):
        build(student("sp", teacher__cache=str(tmp_path / "whole")))
    with pytest.raises(ValueError, match="wkd: reads the head of the teacher, and teacher 'cache' has none"):
        check(commands_config("wkd"))


def commands_config(method):
    return quickstart.get_config(f"method={method},teacher=cache")


def test_regions_are_the_configs(tmp_path):
    fill(tmp_path / "cache", "by_region")
    with pytest.raises(ValueError, match=r"another's.*rows.scales was \[1, 2, 4\], now \[1, 2\]"):
        build(student(teacher__cache=str(tmp_path / "cache"), sdd__scales=(1, 2)))
    fill(tmp_path / "map", "patches", sdd__pooling="direct")
    with pytest.raises(ValueError, match="another's.*rows.grid was 4, now 2"):
        build(student(teacher__cache=str(tmp_path / "map"), sdd__scales=(1, 2), sdd__pooling="direct"))
    build(student(teacher__cache=str(tmp_path / "map"), sdd__scales=(1, 4), sdd__pooling="nested"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"teacher__run": "runs/a"}, "whoever filled teacher.cache: leave teacher.run out, got 'runs/a'"),
        ({"teacher__dtype": "bfloat16"}, "leave teacher.dtype out"),
        ({}, "teacher.cache must name a folder that cache --teacher=... filled"),
        ({"teacher__cache": "no/such"}, "no/such holds no cache"),
    ],
)
def test_a_cache_alone_needs_a_cache_and_nothing_else(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(student(**overrides))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"variables": "a", "dtype": "float32"}, "was filled by the network of a run: name both"),
        ({"name": 3}, "must have teacher.name, of type str; got 3"),
        ({"name": "a", "digest": "b", "images": "uint8", "shape": [2, 2, 2, 2]}, r"must be \[h,w,K\], \[R,K\] or"),
        ({"name": "a", "digest": "b", "images": "uint8", "shape": ["x"]}, "teacher.shape must be"),
        (None, "must have teacher.name"),
    ],
)
def test_a_cache_that_does_not_say_whose_it_is_is_refused(tmp_path, teacher, message):
    header = {"teacher": teacher, "store": "float32"}
    sealed.write(tmp_path / "cache.json", "cache", sealed.digest(header), {"header": header})
    with pytest.raises(ValueError, match=message):
        build(student(teacher__cache=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["cache", "ensemble"])
def test_a_step_is_traced_without_the_cache(teacher):
    state, metrics = trace(quickstart.get_config(f"method=sdd_kd,teacher={teacher}"))
    assert "complementary_share" in metrics and state.step.shape == ()


# ---------------------------------------------------------------------- from the file to the student

TORCH = """
import hashlib
import pathlib
import torch
from torch import nn
from sdd_jax.training.foreign import ForeignTeacher

FILE = pathlib.Path(__file__).with_name("weights.pt")


def network(num_classes):
    layers = [nn.Conv2d(1, 12, 5, 4, 2), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(24, num_classes, 1))


def teacher(num_classes, regions):
    model = network(num_classes)
    model.load_state_dict(torch.load(FILE, weights_only=True))
    model.eval()

    @torch.inference_mode()
    def ask(images):
        return model(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    return ForeignTeacher(ask, "convolutions", hashlib.sha256(FILE.read_bytes()).hexdigest())
"""
ONNX = """
import hashlib
import pathlib
import onnxruntime
from sdd_jax.training.foreign import ForeignTeacher

FILE = pathlib.Path(__file__).with_name("teacher.onnx")


def teacher(num_classes, regions):
    session = onnxruntime.InferenceSession(str(FILE), providers=["CPUExecutionProvider"])
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    return ForeignTeacher(lambda images: session.run(["logits"], {"images": images})[0], "onnx", digest, "uint8")
"""


def kept(folder):
    cache = Cache(folder, read_header(folder))
    return cache.keys(), unpack(cache.read(np.arange(len(cache.keys()))), cache.classes)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that Python was started in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def command(name, *arguments):
    done = commands.call(name, *arguments)
    assert done.code == 0, done.err
    return done.out


@pytest.mark.slow
def test_a_network_of_pytorch_from_its_file_to_a_student(place):
    import torch

    (place / "in_torch.py").write_text(TORCH)
    import in_torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(in_torch.network(10).state_dict(), place / "weights.pt")
    config = [f"--config={commands.ROOT}/configs/quickstart.py:method=sdd_kd,teacher=cache", "--config.epochs=2"]
    fill = ["cache", *config, "--teacher=in_torch:teacher", f"--workdir={place}/cache"]
    assert "convolutions: " in command(*fill)
    built = build(config_of([*config, f"--config.teacher.cache={place}/cache"])[0])
    assert built.teacher.name == "convolutions" and 0 <= built.teacher_accuracy <= 1

    data = load_data(check(commands_config("sdd_kd")))
    keys, rows = kept(place / "cache")
    index, view = np.divmod(keys, num_views(data.pad, data.flip))
    images = np.float32(normalised(data, augmented(data, index, view)))
    direct = np.asarray(in_torch.teacher(10, None).ask(images))
    np.testing.assert_allclose(rows[:, 0], direct.mean((1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows[:, 1:].reshape(direct.shape), direct, rtol=1e-4, atol=1e-5)

    torch.save(in_torch.network(10).state_dict(), place / "weights.pt")  # other weights
    refused = commands.call(*fill)
    assert refused.code == 2 and "teacher.digest was" in refused.err


@pytest.mark.slow
def test_an_onnx_file_teaches_as_the_network_that_it_was_written_of(place):
    quickstart = f"--config={commands.ROOT}/configs/quickstart.py"
    (place / "in_onnx.py").write_text(ONNX)
    train(build(digits(model__student="resnet14")), place / "jax")
    command("export", f"--workdir={place}/jax", "--format=onnx", f"--output={place}/teacher.onnx")
    asked = {
        "onnx": [f"{quickstart}:method=kd,teacher=cache", "--config.epochs=2"],
        "jax": [f"{quickstart}:method=kd", "--config.epochs=2", f"--config.teacher.run={place}/jax"],
    }
    command("cache", *asked["onnx"], "--teacher=in_onnx:teacher", f"--workdir={place}/of_onnx")
    command("cache", *asked["jax"], f"--workdir={place}/of_jax")
    (keys, rows), (other_keys, other_rows) = kept(place / "of_onnx"), kept(place / "of_jax")
    np.testing.assert_array_equal(keys, other_keys)
    np.testing.assert_allclose(rows[:, 0], other_rows[:, 0], rtol=1e-4, atol=1e-4)
    assert rows.shape[1] == 1  # logits of the image alone
    built = [
        build(config_of([*given, f"--config.teacher.cache={place}/of_{name}"])[0]) for name, given in asked.items()
    ]
    assert built[0].teacher_accuracy == pytest.approx(built[1].teacher_accuracy, abs=0.003)
