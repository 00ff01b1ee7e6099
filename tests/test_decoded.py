"""Sets on disk that are decoded once into arrays: what is in them, when they are made again, and what is refused."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import sets
from PIL import Image
from test_end_to_end import ENVIRONMENT, run

import sdd_jax
from sdd_jax import data
from sdd_jax.build import build, build_together, check
from sdd_jax.commands import train
from sdd_jax.configs import common, image_folder, tiny_imagenet
from sdd_jax.data import decoded, images
from sdd_jax.data.dataset import Dataset
from sdd_jax.data.folders import Files
from sdd_jax.data.streamed import StreamedDataset
from sdd_jax.training import run_dir
from sdd_jax.training.run_dir import lock_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where decoded images are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    return tmp_path / "kept" / "sdd_jax" / "decoded"


@pytest.fixture
def folder(tmp_path):
    sets.write_folder(tmp_path / "set", classes=("a", "b", "c"), train=20, test=3)
    return tmp_path / "set"


def load(path, name="image_folder", **options):
    return data.load(name, path=path, **{"image_size": 16, "select_on": "test", "in_memory": True} | options)


def content(cache):
    """Every file that is kept, but for locks."""
    return {path.name: path.read_bytes() for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}


def boxed(image, size):
    """The mean of the pixels whose centres a new pixel covers, in float64, for any sizes that are not smaller."""
    values = np.asarray(image, np.float64)
    for axis in (0, 1):
        length = values.shape[axis]
        centres = (np.arange(length) + 0.5) * size / length
        weights = (np.floor(centres) == np.arange(size)[:, None]).astype(float)
        values = np.moveaxis(np.tensordot(weights / weights.sum(1, keepdims=True), values, (1, axis)), 0, axis)
    return values


# ---- the box filter


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 32), (64, 64, 16), (64, 64, 64), (96, 64, 32)])
def test_the_box_filter_is_the_mean_of_whole_blocks(height, width, size):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    got = images.whole_image(Image.fromarray(pixels), size)
    blocks = pixels.reshape(size, height // size, size, width // size, 3).mean((1, 3))
    assert got.dtype == np.uint8 and got.shape == (size, size, 3)
    assert np.abs(got - blocks).max() <= 1  # two passes, each rounded
    np.testing.assert_array_equal(got, np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX)))
    if size == height == width:
        np.testing.assert_array_equal(got, pixels)


def test_the_whole_image_counts_whatever_its_proportions():
    pixels = np.zeros((100, 30, 3), np.uint8)
    pixels[:50] = 255
    got = images.whole_image(Image.fromarray(pixels), 8)
    assert (got[:4] == 255).all() and (got[4:] == 0).all()
    large = images.whole_image(Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)), 4)
    np.testing.assert_array_equal(large[::2, ::2].reshape(-1), np.arange(12))  # smaller images become blocks


# ---- what is in the arrays


def test_arrays_are_the_images_in_their_order(folder):
    size = 15  # odd: no centre of a pixel lies between two others
    dataset = load(folder, image_size=size)
    assert isinstance(dataset, Dataset) and (dataset.pad, dataset.flip) == (4, True)
    assert dataset.mean == data.INFO["imagenet"].mean and dataset.class_names == ("a", "b", "c")
    streamed = load(folder, image_size=size, in_memory=False)
    for split in ("train", "test"):
        here, there = getattr(dataset, split), getattr(streamed, split)
        np.testing.assert_array_equal(here.labels, there.labels)
        for row, number in enumerate(there.index):
            with Image.open(there.records.name(number)) as image:
                assert np.abs(here.images[row] - boxed(image.convert("RGB"), size)).max() <= 1


def test_held_out_images_are_those_of_the_same_set_read_from_disk(folder):
    here, there = (load(folder, select_on="validation", train_examples=30, in_memory=how) for how in (True, False))
    for split in ("train", "selection", "test"):
        np.testing.assert_array_equal(getattr(here, split).index, getattr(there, split).index)
        np.testing.assert_array_equal(getattr(here, split).labels, getattr(there, split).labels)


def test_tiny_imagenet_from_its_zip_at_its_own_size_and_the_small_one(tmp_path):
    files = sets.tiny_imagenet(train=3, val=1, grey=(0, 3))
    path = sets.write_zip(tmp_path / "a.zip", files)
    large, small = (load(path, "tiny_imagenet", image_size=size) for size in (None, 32))
    assert large.image_shape == (64, 64, 3) and small.image_shape == (32, 32, 3)
    grey = large.train.images[0]
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    blocks = large.train.images.reshape(-1, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(small.train.images - blocks).max() <= 1
    assert large.mean == data.INFO["tiny_imagenet"].mean == small.mean


def test_tfds_sets_have_their_labels_and_a_tenth_of_each_class_held_out(tmp_path):
    sets.write_tfds(tmp_path, "birds", train=10, test=2)
    dataset = load(tmp_path, "tfds:birds", select_on="validation")
    assert np.bincount(dataset.selection.labels).tolist() == [1, 1, 1]
    assert np.bincount(dataset.test.labels).tolist() == [2, 2, 2]
    listed = data._read_listed("tfds:birds", tmp_path)
    for number in (0, 7, 29):
        pixels, label = listed.train.read(number)
        row = int(np.flatnonzero(np.concatenate([dataset.train.index, dataset.selection.index]) == number)[0])
        kept = np.concatenate([dataset.train.images, dataset.selection.images])[row]
        assert np.concatenate([dataset.train.labels, dataset.selection.labels])[row] == label
        np.testing.assert_array_equal(kept, images.whole_image(images.decode(pixels, "a record"), 16))


def test_cub200_and_a_part_of_imagenet_go_the_same_way(tmp_path):
    sets.write_cub200(tmp_path / "CUB_200_2011", train=2, test=1)
    sets.write_folder(tmp_path / "imagenet", classes=("n01", "n02"), train=2, test=1, test_name="val")
    assert load(tmp_path, "cub200").train.images.shape == (6, 16, 16, 3)
    assert load(tmp_path / "imagenet", "imagenet").test.images.shape == (2, 16, 16, 3)


# ---- made once, and again


def count_made(monkeypatch):
    made = []
    decoder = decoded.Decoder
    monkeypatch.setattr(decoded, "Decoder", lambda *arguments: made.append(1) or decoder(*arguments))
    return made


def test_later_starts_map_what_is_there(folder, cache, monkeypatch, capsys):
    made = count_made(monkeypatch)
    first = load(folder)
    before, said = content(cache), capsys.readouterr().err
    assert f"image_folder: 69 images of 16x16 take 0.05 MB decoded, in {cache}" in said
    again = load(folder)
    assert len(made) == 1 and not capsys.readouterr().err and content(cache) == before
    assert first.fingerprint() == again.fingerprint()
    owner = again.train.images
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    load(folder, image_size=8)
    load(folder)
    assert len(made) == 2 and len(set(cache.glob("*/MANIFEST.json"))) == 2  # each size has its own


def touched(folder):
    path = folder / "train" / "a" / "0.png"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


STALE = {
    "a file touched": touched,
    "a test file touched": lambda folder: os.utime(folder / "test" / "c" / "2.png", ns=(1, 1)),
    "a file more": lambda folder: (folder / "train" / "a" / "x.png").write_bytes(
        (folder / "train" / "a" / "0.png").read_bytes()
    ),
    "a file less": lambda folder: (folder / "train" / "b" / "19.png").unlink(),
    "a file of another class": lambda folder: (folder / "train" / "b" / "19.png").rename(
        folder / "train" / "c" / "y.png"
    ),
}


@pytest.mark.parametrize("case", STALE)
def test_files_that_changed_are_decoded_again(folder, cache, monkeypatch, capsys, case):
    made = count_made(monkeypatch)
    load(folder)
    before = content(cache)
    capsys.readouterr()
    STALE[case](folder)
    load(folder)
    assert len(made) == 2 and "or have changed: it is made again" in capsys.readouterr().err
    after = content(cache)
    assert after["MANIFEST.json"] != before["MANIFEST.json"] and len(list(cache.glob("*/MANIFEST.json"))) == 1
    assert (after["train.npy"] == before["train.npy"]) == ("touched" in case)
    load(folder)
    assert len(made) == 2


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGED = {
    "a pixel": lambda kept: flip(kept / "train.npy"),
    "a label": lambda kept: flip(kept / "test_labels.npy"),
    "a file gone": lambda kept: (kept / "test.npy").unlink(),
    "a file cut": lambda kept: os.truncate(kept / "train.npy", 1000),
    "no manifest": lambda kept: (kept / "MANIFEST.json").unlink(),
    "another manifest": lambda kept: (kept / "MANIFEST.json").write_text("{}"),
    "a file more": lambda kept: (kept / "extra").write_text("x"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_arrays_are_made_again_and_it_is_said(folder, cache, capsys, case):
    load(folder)
    before = content(cache)
    (kept,) = cache.glob("*-16-*/")
    DAMAGED[case](kept)
    capsys.readouterr()
    load(folder)
    assert str(kept) in (said := capsys.readouterr().err) and "it is made again" in said
    assert content(cache) == before


def test_what_an_interrupted_start_left_is_no_part_of_the_next(folder, cache, monkeypatch):
    load(folder)
    whole = content(cache)
    (kept,) = cache.glob("*-16-*/")
    kept.rename(kept.with_name(f"{kept.name}.tmp"))  # as a kill leaves it, with more in it
    (kept.with_name(f"{kept.name}.tmp") / "rest").write_text("x")
    load(folder)
    assert content(cache) == whole
    touched(folder)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(images, "whole_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    assert content(cache) == whole  # those of before are there until the new ones are
    load(folder)
    assert content(cache)["train.npy"] == whole["train.npy"]


def test_a_system_that_reserves_no_space_makes_the_same(folder, cache, monkeypatch):
    load(folder)
    before = content(cache)
    touched(folder)
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    load(folder)
    after = content(cache)
    assert after["train.npy"] == before["train.npy"] and after["MANIFEST.json"] != before["MANIFEST.json"]


# ---- what is refused


@pytest.mark.parametrize("part", ["train/b/7.png", "test/c/1.png"])
def test_a_bad_image_is_named_and_nothing_is_left(folder, cache, part):
    (folder / part).write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{part} cannot be read as an image"):
        load(folder)
    assert not content(cache)


def test_what_does_not_fit_is_refused_before_anything_is_decoded(folder, cache, monkeypatch):
    made = count_made(monkeypatch)
    needed = 69 * 16 * 16 * 3
    with monkeypatch.context() as patch:
        patch.setattr(decoded, "memory_bytes", lambda: 2 * needed - 1)
        with pytest.raises(
            ValueError, match="69 images of 16x16 take 0.05 MB decoded and twice that in memory, which is 0.11 MB"
        ):
            load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(decoded.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
        with pytest.raises(ValueError, match=f"and {cache} has 0.05 MB free .XDG_CACHE_HOME says where."):
            load(folder)
    assert not made and not content(cache)
    load(folder)
    monkeypatch.setattr(decoded, "memory_bytes", lambda: 2 * needed - 1)
    with pytest.raises(ValueError, match="twice that in memory"):  # made where there was more
        load(folder)


@pytest.mark.parametrize("stale", [True, False])
def test_what_does_not_serve_makes_room(folder, cache, monkeypatch, stale):
    """Of a disk that holds the arrays once."""
    load(folder)
    whole = content(cache)
    (kept,) = cache.glob("*-16-*/")
    if stale:
        touched(folder)
    else:
        kept.rename(kept.with_name(f"{kept.name}.tmp"))  # as a kill leaves it
    room = sum(map(len, whole.values())) + 100

    def usage(path):
        return SimpleNamespace(free=room - sum(map(len, content(path).values())))

    monkeypatch.setattr(decoded.shutil, "disk_usage", usage)
    load(folder)
    assert content(cache)["train.npy"] == whole["train.npy"]


def test_arrays_of_which_a_file_cannot_be_removed_give_way(folder, cache, monkeypatch):
    """On NFS one that another process has mapped stays, under another name, until that ends."""
    load(folder)
    for _ in range(2):
        touched(folder)
        before = content(cache)["MANIFEST.json"]
        with monkeypatch.context() as patch:
            patch.setattr(decoded.shutil, "rmtree", lambda *given, **options: None)
            load(folder)
        (kept,) = cache.glob("*-16-????????????/MANIFEST.json")
        assert kept.read_bytes() != before
    load(folder, image_size=8)
    touched(folder)
    load(folder)
    assert len(list(cache.glob("*-16-*/"))) == 1  # what was left is gone


def test_a_start_says_that_it_waits_for_another(folder, cache, monkeypatch, capsys):
    waited, real = [], decoded.FileLock

    class Held(real):
        def acquire(self, timeout=None, **options):
            if timeout == 0:
                raise decoded.Timeout(self.lock_file)
            waited.append(self.lock_file)
            return super().acquire(timeout, **options)

    monkeypatch.setattr(decoded, "FileLock", Held)
    load(folder)
    load(folder)
    assert len(waited) == 2
    assert capsys.readouterr().err.count(f"image_folder: waiting for another process, which makes {cache}") == 2


def test_a_limit_of_the_file_system_names_the_file(folder, cache, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", mock.Mock(side_effect=OSError(122, "Disk quota exceeded")))
    with pytest.raises(OSError, match=f"Disk quota exceeded: '{cache}.*train.npy'"):
        load(folder)
    assert not content(cache)


def test_a_folder_that_cannot_be_written_is_named(folder, cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        load(folder)


def test_an_image_that_may_not_be_read_is_named_and_not_the_cache(folder, cache, monkeypatch):
    path = str(folder / "train" / "b" / "1.png")
    monkeypatch.setattr(Files, "read", mock.Mock(side_effect=PermissionError(13, "Permission denied", path)))
    with pytest.raises(PermissionError, match="b/1.png"):
        load(folder)
    monkeypatch.setattr(
        Path, "mkdir", mock.Mock(side_effect=PermissionError(13, "Permission denied", str(cache.parent)))
    )
    with pytest.raises(PermissionError, match="cannot be written .XDG_CACHE_HOME says where"):
        load(folder)


@pytest.mark.parametrize("option", [{"augment": "resize_crop"}, {"on_bad_image": "skip"}, {"randaugment": (2, 9)}])
def test_options_of_images_read_from_disk_do_not_go_with_it(folder, option):
    with pytest.raises(ValueError, match="cannot be chosen with data.in_memory: it is for images read from disk"):
        load(folder, **option)


# ---- which sets are in memory if nobody says


def test_small_images_that_fit_are_held_in_memory_if_nobody_says(folder, monkeypatch):
    def kind(**options):
        return type(load(folder, **{"in_memory": None} | options))

    limit = 4 * 69 * 64 * 64 * 3
    monkeypatch.setattr(data, "memory_bytes", lambda: limit)
    assert kind(image_size=64) is Dataset
    assert kind(image_size=65) is kind(image_size=None) is StreamedDataset  # the latter are of 224
    assert kind(augment="resize_crop") is kind(on_bad_image="skip") is StreamedDataset
    monkeypatch.setattr(data, "memory_bytes", lambda: limit - 1)
    assert kind(image_size=64) is StreamedDataset and kind(image_size=63) is Dataset
    assert data.decides_in_memory("imagenet", None, image_size=64) is False  # 16 GB
    assert data.decides_in_memory("cifar10", None) is None
    absent = {"path": folder / "nowhere"}  # for the pictures of an imported network
    assert data.decides_in_memory("image_folder", None, **absent, image_size=64) is True
    assert data.decides_in_memory("image_folder", None, **absent, image_size=65) is False


def config(module, argument="teacher=none,student=resnet8", **changes):
    """A config of a file of ``configs``, with fields changed."""
    made = module.get_config(argument)
    for name, value in changes.items():
        common.put(made, name.replace("__", "."), value)
    return made


def test_a_config_says_what_was_decided(folder):
    own = {"data__path": str(folder), "model__stem": "cifar", "data__image_size": 16}
    assert check(config(image_folder, **own))["data.in_memory"] is True
    settings = check(config(image_folder, **own | {"data__image_size": 65}))
    assert settings["data.in_memory"] is False and check(settings.nested()) == settings
    settings = check(config(image_folder, **own | {"data__in_memory": False}))
    assert settings["data.in_memory"] is False and check(settings.nested()) == settings
    with pytest.raises(ValueError, match="data.in_memory must be True or False, got 1"):
        check(
            config(image_folder, **own).to_dict()
            | {"data": config(image_folder, **own).data.to_dict() | {"in_memory": 1}}
        )
    check(config(image_folder, **own, steps_per_call=5))  # as of CIFAR


def test_a_begun_run_goes_on_where_the_memory_is_another(folder, tmp_path, monkeypatch):
    tree = config(image_folder, data__path=str(folder), model__stem="cifar", data__image_size=16).to_dict()
    begun = tmp_path / "begun"
    run_dir.open_folder(begun, check(tree).nested())
    monkeypatch.setattr(data, "memory_bytes", lambda: 1000)
    assert check(tree)["data.in_memory"] is False
    for place, in_memory in ((begun, True), (tmp_path / "new", False)):
        runs = train.list_seeds(tree, place)
        assert runs[0].settings["data.in_memory"] is check(runs[0].config)["data.in_memory"] is in_memory
        train.check_folders(runs)
    together = train.list_seeds(tree | {"seeds": (0, 1)}, place := tmp_path / "together")  # and one that is added
    assert {run.settings["data.in_memory"] for run in together} == {False}
    second = tree | {"seed": 1, "data": tree["data"] | {"in_memory": True}}
    run_dir.open_folder(place / "seed_1", check(second).nested())
    together = train.list_seeds(tree | {"seeds": (0, 1)}, place)
    assert {run.settings["data.in_memory"] for run in together} == {True}
    with pytest.raises(ValueError, match="differ in seed alone, these in data.in_memory"):
        build_together([tree, together[1].config])
    chosen = tree | {"data": tree["data"] | {"in_memory": False}}
    with pytest.raises(ValueError, match="data.in_memory was True, now False"):
        train.check_folders(train.list_seeds(chosen, begun))


def test_tiny_imagenet_checks_without_its_files_and_takes_a_cache():
    argument = "teacher=resnet20,student=resnet8,method=sdd_kd"
    settings = check(config(tiny_imagenet, argument, data__num_classes=100, teacher__cache="somewhere"))
    assert settings["data.in_memory"] is True and settings["epochs"] == 200 and settings["batch_size"] == 256
    check(config(tiny_imagenet, argument, teacher__cache="somewhere", data__in_memory=False))  # by seed and epoch


def test_a_built_run_has_its_images_in_memory(tmp_path):
    path = sets.write_zip(tmp_path / "a.zip", sets.tiny_imagenet(train=4, val=1))
    built = build(config(tiny_imagenet, data__path=str(path), data__image_size=32, batch_size=4))
    assert isinstance(built.dataset, Dataset) and built.dataset.image_shape == (32, 32, 3)
    assert built.model.num_classes == 2 and len(built.dataset.train.index) == 6


# ---- processes


def script(path):
    load = f"data.load('tiny_imagenet', path={str(path)!r}, workers=2)"
    return f"from sdd_jax import data\nif __name__ == '__main__':\n    {load}\n"


@pytest.mark.slow
def test_killed_while_it_decodes_it_makes_the_same_bytes_and_leaves_no_process(tmp_path, cache):
    path = sets.write_zip(tmp_path / "a.zip", sets.tiny_imagenet(train=1500, val=10))
    (tmp_path / "decode.py").write_text(script(path))
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "kept")}

    def start():
        return subprocess.Popen([sys.executable, tmp_path / "decode.py"], env=environment, start_new_session=True)

    assert start().wait() == 0
    whole = content(cache)
    os.utime(path, ns=(1, 1))
    os.utime(path, ns=(2, 2))
    for _ in range(2):
        process = start()
        written = 0
        while process.poll() is None and written < 100:
            for found in cache.glob("*.tmp/train.npy"):
                written = int((np.load(found, mmap_mode="r")[:, 0, 0] > 0).any(-1).sum())
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(cache.glob("*.tmp"))
        deadline = time.monotonic() + 20
        while session_members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not session_members(process.pid)
    assert start().wait() == 0
    again = content(cache)
    assert {name: again[name] for name in again if name != "MANIFEST.json"} == {
        name: whole[name] for name in whole if name != "MANIFEST.json"
    }
    alone = decoded.read(
        data._read_listed("tiny_imagenet", path), name="alone", place=tmp_path / "alone", size=64, workers=1
    )
    (by_one,) = cache.glob("alone-*/train.npy")
    assert by_one.read_bytes() == whole["train.npy"] and len(alone[0]) == 3000


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_signal_while_images_are_decoded_ends_the_run(tmp_path, cache, number, code):
    path = sets.write_zip(tmp_path / "a.zip", sets.tiny_imagenet(train=3000, val=10))
    flags = ["--config=configs/tiny_imagenet.py:teacher=none,student=resnet8", f"--config.data.path={path}"]
    command = [sys.executable, "-m", "sdd_jax", "train", *flags, f"--workdir={tmp_path}/run"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "kept")}
    said = tmp_path / "said.txt"
    for reached in ("parts.pickle", "test.npy"):  # as the processes start, and before
        with open(said, "w") as file:
            process = subprocess.Popen(command, env=environment, stderr=file, start_new_session=True)
        try:
            while not list(cache.glob(f"*.tmp/{reached}")):
                assert process.poll() is None, said.read_text()
                time.sleep(0.01)
            process.send_signal(number)
            assert process.wait(timeout=60) == code
        finally:
            process.kill()
            process.wait()
        assert "saving" not in said.read_text()
        assert not list(cache.glob("*/MANIFEST.json")) and not (tmp_path / "run").exists()


def ignores(process, number):
    """Whether a process has begun, and ignores a signal."""
    (mask,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.slow
def test_workers_leave_signals_to_their_parent_and_a_lost_one_ends_it_at_once(tmp_path, cache):
    path = sets.write_zip(tmp_path / "a.zip", sets.tiny_imagenet(train=1500, val=10))
    survived = []

    def signals():
        while len(workers := active_children()) < 2 or not all(ignores(one.pid, signal.SIGTERM) for one in workers):
            time.sleep(0.01)
        for number in (signal.SIGTERM, signal.SIGINT):
            for worker in workers:
                os.kill(worker.pid, number)
        time.sleep(0.2)
        survived.extend(worker.is_alive() for worker in workers)
        workers[0].kill()

    thread = threading.Thread(target=signals)
    thread.start()
    with pytest.raises(ChildProcessError, match="a process that decodes images was lost"):
        load(path, "tiny_imagenet", image_size=64, workers=2)
    thread.join()
    assert survived == [True, True] and not active_children() and not content(cache)


def session_members(session):
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(place.name))
    return found


@pytest.mark.slow
def test_teacher_cache_and_three_seeds_together(tmp_path):
    path = sets.write_zip(tmp_path / "a.zip", sets.tiny_imagenet(train=20, val=4, grey=(1,)))
    environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "kept")}
    common_flags = [f"--config.data.path={path}", "--config.data.image_size=32", "--config.batch_size=16"]
    common_flags += ["--config.epochs=2", "--config.optim.schedule=cosine", "--config.optim.learning_rate=0.05"]

    def command(name, argument, *flags):
        result = run(
            name, f"--config=configs/tiny_imagenet.py:{argument}", *common_flags, *flags, environment=environment
        )
        assert result.returncode == 0, result.stderr
        return result

    said = command("train", "teacher=none,student=resnet8", f"--workdir={tmp_path}/teacher").stderr
    assert "tiny_imagenet: 48 images of 32x32 take 0.15 MB decoded" in said
    argument = "teacher=resnet8,student=resnet8,method=sdd_kd"
    together = [f"--config.teacher.run={tmp_path}/teacher", "--config.seeds=0,1,2"]
    said = command("cache", argument, *together, f"--workdir={tmp_path}/cache")
    assert "decoded" not in said.stderr and "views" in said.stdout
    command("train", argument, *together, f"--config.teacher.cache={tmp_path}/cache", f"--workdir={tmp_path}/students")
    assert len(list((tmp_path / "students").glob("seed_*/done.json"))) == 3
    result = run("evaluate", f"--workdir={tmp_path}/students/seed_1", environment=environment)
    assert "on 8 test images of tiny_imagenet" in result.stdout


SCRIPT = """
import sys
import jax, sdd_jax
from sdd_jax import data
from sdd_jax.mesh import make_mesh
print("begins", __name__, flush=True)
place, workers = sys.argv[1], int(sys.argv[2])
dataset = data.load("image_folder", path=place, image_size=8, select_on="test", workers=workers, in_memory=not workers)
found = data.eval_data(dataset, dataset.test, batch_size=500, mesh=make_mesh(jax.devices()[:1]))
print(len(list(found.batches())), len(dataset.test.index), flush=True)
"""


ADVICE = 'as each of data.workers does: put its calls of sdd_jax under if __name__ == "__main__":'


def test_a_script_that_is_run_again_neither_trains_nor_takes_a_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "__mp_main__", ModuleType("__mp_main__"))  # as multiprocessing has it meanwhile
    for call in (partial(sdd_jax.train, "resnet8", data=tmp_path, folder=tmp_path), partial(lock_folder, tmp_path)):
        with pytest.raises(SystemExit, match=re.escape(ADVICE)):
            call()
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__mp_main__"])  # and from its end on
    lock_folder(tmp_path).release()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_script_without_a_guard_is_not_run_again_by_processes_that_decode(tmp_path, workers):
    sets.write_folder(tmp_path / "set", classes=("a", "b"), train=250, test=250)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "set"), str(workers)]
    got = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if not workers:
        assert (got.returncode, got.stdout) == (0, "begins __main__\n1 500\n"), got.stderr
    else:
        assert got.returncode == 1 and got.stdout == "begins __main__\nbegins __mp_main__\n"
        assert ADVICE in got.stderr
        assert got.stderr.splitlines()[-1].startswith("ChildProcessError: a process that decodes images was lost")
