"""Every kind of bad image under both policies, and runs that skip them: their order, exact resumption, refusals."""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import subprocess
import time
import zlib

import chex
import jax
import numpy as np
import own_networks
import pytest
import sets
import tiny
from PIL import Image
from test_end_to_end import ENVIRONMENT, ROOT, command, final_variables, run
from test_grain_source import batches, by_position

from sdd_jax import data
from sdd_jax.build import build, load_data
from sdd_jax.config import read
from sdd_jax.configs.image_folder import get_config
from sdd_jax.data import eval_data, images, streamed, train_data
from sdd_jax.mesh import make_mesh
from sdd_jax.training import loop, run_dir
from sdd_jax.training.objective import plain
from sdd_jax.training.teacher import Teacher

CLASSES = ("n01", "n02", "n03")
LINEAR = "own_networks:plain_function"  # compiled at once


def png(width, height):
    """A PNG whose header states a size, with next to nothing behind it."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def truncated(path):
    path.write_bytes(path.read_bytes()[:-900])


def broken_link(path):
    path.unlink()
    path.symlink_to("nowhere.png")


def circle(path):
    path.unlink()
    path.symlink_to(path.name)


BAD = {  # what is done to a file, and what is said of it
    "empty": (lambda path: path.write_bytes(b""), "in none of the formats"),
    "truncated": (truncated, "truncated"),
    "not an image": (lambda path: path.write_bytes(b"<html>404</html>"), "in none of the formats"),
    "bomb": (lambda path: path.write_bytes(png(60_000, 60_000)), r"Image size \(3600000000 pixels\) exceeds limit"),
    "above the limit": (lambda path: path.write_bytes(png(9460, 9460)), "89491600|9460 x 9460"),
    "broken link": (broken_link, "nowhere|No such file"),
    "circle of links": (circle, "symbolic links"),
}
GOOD = {  # odd, but images
    "one pixel": lambda path: Image.new("RGB", (1, 1), "red").save(path),
    "wrong suffix": lambda path: path.write_bytes(sets.jpeg(sets.picture(0, 1))),
}


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """Three classes, ten images of each to train on, two to test."""
    root = tmp_path_factory.mktemp("pattern")
    sets.write_folder(root, classes=CLASSES, train=10, test=2)
    return root


@pytest.fixture
def root(pattern, tmp_path):
    return shutil.copytree(pattern, tmp_path / "set", symlinks=True)


def load(root, policy, **options):
    options = {"image_size": 16, "select_on": "test", "in_memory": False} | options
    return data.load("image_folder", path=root, on_bad_image=policy, **options)


def evaluated(dataset, split):
    found = eval_data(dataset, split, batch_size=5, mesh=make_mesh(jax.devices()[:1])).batches()
    return sum(int(jax.device_get(batch["valid"]).sum()) for batch in found)


# ---- each kind, each policy


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_under_error_and_left_out_under_skip(root, kind):
    spoil, reason = BAD[kind]
    spoil(path := root / "train" / "n02" / "3.png")
    with pytest.raises((ValueError, OSError), match=f"n02/3.png.*({reason})|({reason}).*n02/3.png"):
        batches(load(root, "error"), 4)

    dataset = load(root, "skip")
    assert list(dataset.skipped.images) == [13] and str(path) in dataset.skipped.images[13]
    assert "\n" not in dataset.skipped.images[13]
    numbers = np.concatenate([batch["index"][0] for batch in batches(dataset, 8)])[: 2 * 29]
    for epoch in numbers.reshape(2, 29):
        assert sorted(epoch) == [number for number in range(30) if number != 13]


@pytest.mark.parametrize("kind", GOOD)
def test_an_odd_image_is_none_of_them(root, kind):
    GOOD[kind](root / "train" / "n02" / "3.png")
    assert not load(root, "skip").skipped.images
    seen = np.concatenate([batch["index"][0] for batch in batches(load(root, "error"), 4)])
    assert 13 in seen


def test_a_header_is_refused_before_memory_is_taken_for_its_pixels(monkeypatch):
    side = int(images.MOST_PIXELS**0.5)
    asked = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: asked.append(self.size))  # which allocates them
    for width, height in ((60_000, 60_000), (side + 1, side + 1), (2**31 - 1, 1)):
        with pytest.raises(ValueError, match="^a.png cannot be read as an image: .* exceeds? .*limit of [0-9]+ pixels"):
            images.decode(png(width, height), "a.png")
    large = [size for size in asked if max(size) > 1000]  # threads of an earlier test may still decode small ones
    assert not large
    images.decode(png(side, side), "a.png")
    assert (side, side) in asked


@pytest.mark.parametrize("policy", streamed.ON_BAD_IMAGE)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_folder_without_images_is_named_under_either_policy(root, policy, part):
    for path in (root / part / "n02").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=f"{part}/n02 holds no image"):
        load(root, policy)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(root, monkeypatch):
    """As on a network disk that is away for a moment."""
    (root / "train" / "n02" / "part").mkdir()
    listed = os.scandir

    def failing(path):
        if str(path).endswith("n02/part"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Input/output error.*n02/part"):
        load(root, "error")


@pytest.mark.parametrize("policy", streamed.ON_BAD_IMAGE)
def test_a_bad_test_image_is_an_error_under_either_policy(root, policy):
    (root / "test" / "n02" / "1.png").write_bytes(b"")
    dataset = load(root, policy)
    with pytest.raises(ValueError, match="test/n02/1.png cannot be read as an image"):
        evaluated(dataset, dataset.test)


# ---- what else the machine may be blamed for


def test_what_is_wrong_with_the_machine_is_never_an_images_fault(root, monkeypatch):
    """A disk that fails for a moment, or memory that is short, would take good images out of the run."""
    read = load(root, "error").train.records.__class__.read

    def failing(self, number):
        if number == 7:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name(number))
        return read(self, number)

    with monkeypatch.context() as patch:
        patch.setattr("sdd_jax.data.folders.Files.read", failing)
        with pytest.raises(OSError, match="Input/output error.*n01/7.png"):
            load(root, "skip")

    def short(self):
        raise MemoryError

    monkeypatch.setattr(images.Image.Image, "load", short)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", short)
    with pytest.raises(MemoryError, match="too little memory to decode .*png"):
        load(root, "skip")


@contextlib.contextmanager
def signalled(root, number):
    """Training images that a process of their own reads, and that process, which got a signal after the first step."""
    mesh = make_mesh(jax.devices()[:1])
    dataset = load(root, "error", workers=1)
    source = train_data(dataset, seeds=(0,), epochs=50, batch_size=8, steps_per_call=1, mesh=mesh)
    try:
        source.own(0)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, number)
        yield source, worker
    finally:
        source.close()


def test_a_worker_that_is_killed_ends_the_run(root):
    """As the kernel does when memory runs out; nobody waits for what it would have handed over."""
    with signalled(root, signal.SIGKILL) as (source, _):
        with pytest.raises(ChildProcessError, match="terminated unexpectedly with exit code -9"):
            for step in range(1, 50):
                source.own(step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_the_whole_group_leaves_the_workers_to_their_parent(root, number):
    """As Ctrl-C in a terminal, or the end of a job: the run still reads until it has saved."""
    with signalled(root, number) as (source, worker):
        for step in range(1, 50):  # more than is read ahead
            source.own(step)
        assert worker.is_alive()
    assert not worker.is_alive()


# ---- what is left


def spoil_some(root):
    for name in ("n01/0.png", "n02/3.png", "n02/4.png", "n03/9.png"):
        (root / "train" / name).write_bytes(b"no image")


def test_draws_fall_as_they_would_without_bad_images(root):
    """So that teacher, students and seeds hold out the same images, whoever looks."""
    whole = load(root, "error", select_on="validation", train_examples=18)
    bad = int(whole.selection.index[0]), int(whole.train.index[4]), int(whole.train.index[5])
    for number in bad:
        with open(whole.train.records.name(number), "wb"):
            pass
    unused = next(n for n in range(30) if n not in whole.train.index and n not in whole.selection.index)
    with open(whole.train.records.name(unused), "wb"):
        pass  # nobody would read it, so nobody looks
    dataset = load(root, "skip", select_on="validation", train_examples=18)
    assert sorted(dataset.skipped.images) == sorted(bad)
    assert dataset.train.index.tolist() == [n for n in whole.train.index if n not in bad]
    assert dataset.selection.index.tolist() == [n for n in whole.selection.index if n not in bad]
    assert evaluated(dataset, dataset.selection) == len(whole.selection.index) - 1


def test_what_is_seen_at_a_position_follows_from_seed_and_position_alone(root):
    spoil_some(root)
    dataset = load(root, "skip")
    whole = by_position(batches(dataset, 8))
    assert len(dataset.train.index) == 26
    assert by_position(batches(dataset, 3, first=5)) == {p: seen for p, seen in whole.items() if p >= 40}
    assert by_position(batches(load(root, "skip", workers=1), 8)) == whole
    assert by_position(batches(dataset, 8, seeds=(3, 0)), run=1) == whole


def test_processes_look_at_a_share_each_and_agree(root, monkeypatch):
    spoil_some(root)
    records = load(root, "error").train.records
    numbers = np.delete(np.arange(30), 5)  # shares of unequal size
    alone = streamed.find_bad_images(records, numbers)
    assert list(alone.images) == [0, 13, 14, 29]
    shares: list = []
    monkeypatch.setattr(streamed.jax, "process_count", lambda: 3)
    for first in (True, False):  # what each finds, then what it hears of the others
        for process in range(3):
            monkeypatch.setattr(streamed.jax, "process_index", lambda process=process: process)
            gather = (lambda mine: shares.append(mine) or mine[None]) if first else (lambda mine: np.stack(shares))
            monkeypatch.setattr(streamed.multihost_utils, "process_allgather", gather)
            found = streamed.find_bad_images(records, numbers)
            assert first or found.same(alone)
    assert sum(share.sum() for share in shares) == 4


def test_a_class_or_a_held_out_part_of_which_nothing_is_left_is_named(root):
    for number in range(10):
        (root / "train" / "n02" / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no training image of class 'n02' can be decoded; the first is .*n02/0.png"):
        load(root, "skip")


def test_every_held_out_image_bad_is_refused(root):
    whole = load(root, "error", select_on="validation")
    for number in whole.selection.index:
        with open(whole.train.records.name(number), "wb"):
            pass
    with pytest.raises(ValueError, match="every held-out image of image_folder is skipped"):
        load(root, "skip", select_on="validation")


def test_a_report_names_twenty_and_counts_the_rest():
    lines = data.Skipped("", {number: f"file {number} is empty" for number in range(23)}).report().splitlines()
    assert lines[0] == "23 training images skipped" and lines[1] == "  file 0 is empty"
    assert len(lines) == 22 and lines[-1] == "  and 3 more"


def test_options_that_are_none_are_refused(root):
    with pytest.raises(ValueError, match="on_bad_image must be one of error, skip; got 'ignore'"):
        load(root, "ignore")
    with pytest.raises(ValueError, match="digits is held in memory as it is: data.on_bad_image cannot be chosen"):
        data.load("digits", on_bad_image="skip")


def test_records_of_tfds_are_looked_at_too(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    sets.write_tfds(tmp_path, "birds", train=2, test=1)
    dataset = data.load("tfds:birds", path=tmp_path, image_size=16, select_on="test", on_bad_image="skip")
    assert len(dataset.train.index) == 6 and not dataset.skipped.images


# ---- a run that is started again


def built(root, skipped=None):
    network = own_networks.plain_function(num_classes=3, stem="cifar", dtype=np.float32)
    alone = {"model": network, "teacher": Teacher(), "objective": plain()}
    return tiny.built(epochs=1)._replace(**alone, dataset=load(root, "skip", skipped=skipped))


def test_a_run_goes_on_with_the_images_that_it_began_with_or_not_at_all(root, tmp_path):
    """Between two starts a bad file is repaired."""
    spoil_some(root)
    first = built(root)
    loop.train(first, workdir := tmp_path / "run")
    assert json.loads((workdir / "done.json").read_text())["skipped_images"] == 4
    kept = run_dir.read_skipped(workdir)
    assert kept is not None and kept == first.dataset.skipped == pickle.loads(pickle.dumps(kept))

    sets_picture = sets.jpeg(sets.picture(1, 3))
    (root / "train" / "n02" / "3.png").write_bytes(sets_picture)
    with pytest.raises(ValueError, match=r"skipped.json names 4 training images .* now they are 3, or others"):
        loop.train(built(root), workdir)
    again = built(root, kept)
    np.testing.assert_array_equal(again.dataset.train.index, first.dataset.train.index)
    (workdir / "done.json").unlink()
    loop.train(again, workdir)

    (workdir / "skipped.json").unlink()
    with pytest.raises(ValueError, match="skipped.json is gone"):
        loop.train(again, workdir)
    moved = shutil.move(root, root.with_name("moved"))  # the images are the same
    assert load(moved, "skip", skipped=kept).skipped == kept
    shutil.move(moved, root)
    (root / "train" / "n02" / "new.png").write_bytes(sets_picture)
    with pytest.raises(ValueError, match="training images were added, removed or renamed since this run began"):
        built(root, kept)


def config_of(root):
    config = get_config(f"teacher=none,student={LINEAR}")
    changed = {"model.stem": "cifar", "data.path": str(root), "data.image_size": 16, "data.select_on": "test"}
    changed |= {"data.on_bad_image": "skip", "data.num_classes": 3, "epochs": 10, "batch_size": 8}
    config.update_from_flattened_dict(changed)
    return config, changed


def named(root):
    return [f"  {root}/train/{name}" for name in ("n01/0.png", "n02/3.png", "n02/4.png", "n03/9.png")]


def test_skipped_images_are_named_on_stderr_and_looked_for_once(root, capsys):
    spoil_some(root)
    settings = read(config_of(root)[0])
    skipped = load_data(settings).skipped
    said = capsys.readouterr().err.splitlines()
    assert "every training image is decoded once" in said[0] and said[1] == "4 training images skipped"
    assert [line.split(" cannot be read")[0] for line in said[2:]] == named(root)
    shutil.copy(root / "train" / "n01" / "1.png", root / "train" / "n02" / "3.png")  # repaired too late
    assert load_data(settings, skipped).skipped == skipped
    assert capsys.readouterr().err.splitlines() == said[1:]


@pytest.mark.slow
def test_the_command_skips_names_counts_and_goes_on_after_a_kill(root, tmp_path):
    spoil_some(root)
    config, changed = config_of(root)
    loop.train(build(config), whole := tmp_path / "whole")

    environment, killed = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "tests")}, tmp_path / "killed"
    flags = [f"--config.{name}={value}" for name, value in changed.items()]
    file = f"--config=configs/image_folder.py:teacher=none,student={LINEAR}"
    arguments = ["train", file, *flags, "--config.data.workers=1", f"--workdir={killed}"]
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(killed.glob("checkpoints/*/MANIFEST.json")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    printed, said = process.communicate()
    assert process.returncode == -signal.SIGKILL and "26 training images" in printed, said
    said = said.splitlines()
    assert "every training image is decoded once" in said[0] and said[1] == "4 training images skipped"
    assert [line.split(" cannot be read")[0] for line in said[2:6]] == named(root)

    shutil.copy(root / "train" / "n01" / "1.png", root / "train" / "n02" / "3.png")  # repaired too late
    result = run(*arguments, environment=environment)
    assert result.returncode == 0, result.stderr
    assert "going on from step" in result.stdout and "decoded once" not in result.stderr
    assert result.stdout.splitlines()[-1].endswith("; 4 training images skipped")
    assert json.loads((killed / "done.json").read_text())["skipped_images"] == 4
    chex.assert_trees_all_equal(final_variables(killed), final_variables(whole))
