"""Images on disk as the loop sees them: order, augmentation, worker processes, and killed runs that go on."""

import json
import multiprocessing
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import print_shares
import pytest
import run_streamed
import sets
import tiny
from test_loop import lines

from sdd_jax import data
from sdd_jax.data import eval_data, grain_source, train_data
from sdd_jax.mesh import SEEDS, make_mesh
from sdd_jax.training import loop

BATCH, EPOCHS = 8, 2


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Three sets of three classes: 10 images of each to train on, 4 to test."""
    pytest.importorskip("tensorflow_datasets")
    roots = {kind: tmp_path_factory.mktemp(kind) for kind in run_streamed.NAMES}
    sets.write_cub200(roots["cub200"], train=10, test=4)
    sets.write_folder(roots["folder"], classes=("n01", "n02", "n03"), train=10, test=4, test_name="val", suffix="JPEG")
    sets.write_tfds(roots["tfds"], "birds", train=10, test=4)
    return roots


def workers_end():
    """Whether no worker process is left after some seconds."""
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not multiprocessing.active_children()


@pytest.fixture
def folder(roots):
    return run_streamed.load("folder", roots["folder"], workers=0)


def batches(dataset, steps, *, first=0, seeds=(0,), batch_size=BATCH):
    """The batches of some steps, as NumPy arrays ``[seeds, B, ...]``."""
    source = train_data(
        dataset, seeds=seeds, epochs=50, batch_size=batch_size, steps_per_call=1, mesh=make_mesh(jax.devices()[:1])
    )
    try:
        found = [jax.device_get({**source.own(first + step), "key": None}) for step in range(steps)]
    finally:
        source.close()
    return found


def by_position(found, run=0):
    """What was seen at each position: {position: (number, label, view, pixels)}."""
    return {
        int(batch["position"][run, i]): tuple(
            batch[name][run, i].tobytes() for name in ("index", "label", "view", "image")
        )
        for batch in found
        for i in range(batch["position"].shape[1])
    }


@pytest.mark.parametrize("kind", run_streamed.NAMES)
def test_an_epoch_sees_every_example_once_in_an_order_of_its_own(roots, kind):
    dataset = run_streamed.load(kind, roots[kind], workers=0)
    examples = len(dataset.train.index)
    assert examples % BATCH  # so that batches cross the ends of epochs
    found = batches(dataset, 3 * examples // BATCH + 1)
    numbers = np.concatenate([batch["index"][0] for batch in found])
    positions = np.concatenate([batch["position"][0] for batch in found])
    np.testing.assert_array_equal(positions, np.arange(len(positions)))
    epochs = [numbers[start : start + examples] for start in range(0, 3 * examples, examples)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(dataset.train.index)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for batch in found:
        assert batch["image"].dtype == np.uint8 and batch["image"].shape[1:] == (BATCH, 16, 16, 3)
        np.testing.assert_array_equal(dataset.train.index[batch["row"]], batch["index"])
        for number, label in zip(batch["index"][0], batch["label"][0], strict=True):
            assert label == dataset.train.records.read(int(number))[1]


def test_what_is_seen_at_a_position_follows_from_seed_and_position_alone(folder):
    whole = by_position(batches(folder, 8))
    assert by_position(batches(folder, 3, first=5)) == {p: seen for p, seen in whole.items() if p >= 5 * BATCH}
    assert by_position(batches(folder, 16, batch_size=BATCH // 2)) == whole
    together = batches(folder, 8, seeds=(3, 0))
    assert by_position(together, run=1) == whole
    assert by_position(together, run=0) == by_position(batches(folder, 8, seeds=(3,)))
    assert by_position(together, run=0) != whole


def test_an_example_is_augmented_by_seed_epoch_and_number_alone(folder):
    root = Path(folder.train.records._root).parent
    few = data.load("imagenet", path=root, image_size=16, train_examples=9, in_memory=False)
    seen = {}  # of the first epoch
    for dataset in (folder, few):
        for batch in batches(dataset, 1):
            for number, image in zip(batch["index"][0], batch["image"][0], strict=True):
                seen.setdefault(int(number), []).append(image)
    both = [images for images in seen.values() if len(images) == 2]
    assert both and all(np.array_equal(*images) for images in both)


def test_the_shares_of_two_processes_are_the_halves_of_each_batch_in_its_order(folder, monkeypatch):
    """Only so are the same images neighbours, and mixed, that are so in one process."""

    def evaluated():
        source = eval_data(folder, folder.test, batch_size=BATCH, mesh=make_mesh(jax.devices()[:1]))
        return [jax.device_get(batch) for batch in source.batches()]

    whole, whole_test = batches(folder, 4), evaluated()
    monkeypatch.setattr(jax, "make_array_from_process_local_data", lambda sharding, arrays: jax.device_put(arrays))
    monkeypatch.setattr(grain_source.jax, "process_count", lambda: 2)
    shares, shares_test = [], []
    for process in range(2):
        monkeypatch.setattr(grain_source.jax, "process_index", lambda process=process: process)
        shares.append(batches(folder, 4))
        shares_test.append(evaluated())
    assert shares[0][0]["label"].shape == (1, BATCH // 2)
    for step, batch in enumerate(whole):
        one, other = ({name: array[0] for name, array in share[step].items() if name != "key"} for share in shares)
        together = {name: np.concatenate([one[name], other[name]]) for name in one}
        chex.assert_trees_all_equal(together, {name: batch[name][0] for name in together})
    for batch, one, other in zip(whole_test, *shares_test, strict=True):
        chex.assert_trees_all_equal({name: np.concatenate([one[name], other[name]]) for name in batch}, batch)


def test_what_processes_cannot_divide_is_refused(folder, monkeypatch):
    monkeypatch.setattr(grain_source.jax, "process_count", lambda: 2)
    given = {"epochs": 1, "steps_per_call": 1}
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 processes, got 5"):
        train_data(folder, seeds=(0,), batch_size=5, mesh=make_mesh(jax.devices()[:1]), **given)
    mesh = SimpleNamespace(shape={SEEDS: 2})
    with pytest.raises(ValueError, match="several seeds of images on disk train in one process, got 2 processes"):
        train_data(folder, seeds=(0, 1), batch_size=4, mesh=mesh, **given)


class Device(SimpleNamespace):
    __hash__ = object.__hash__


def test_the_devices_of_a_process_have_one_stretch_of_a_batch(monkeypatch):
    """Some machines number them across their processes."""
    found = [Device(id=number, process_index=process) for number, process in enumerate((0, 1, 0, 1))]
    monkeypatch.setattr(jax, "devices", lambda: found)
    assert [device.id for device in make_mesh().devices.flat] == [0, 2, 1, 3]


@pytest.mark.slow
def test_two_real_processes_share_every_batch(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script, root = Path(print_shares.__file__), Path(folder.train.records._root).parent
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(process), str(port), str(root)],
            cwd=script.parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [errors[-2000:] for _, errors in outputs]
    first, second = (json.loads(printed.splitlines()[-1]) for printed, _ in outputs)
    alone = batches(folder, print_shares.STEPS)
    expected = {tuple(int(batch[name][0, i]) for name in print_shares.rows) for batch in alone for i in range(BATCH)}
    shares = [{tuple(row) for row in printed["seen"]} for printed in (first, second)]
    assert shares[0] | shares[1] == expected and not shares[0] & shares[1]
    assert len(shares[0]) == len(shares[1])
    sums = [
        [int((batch["position"][0] * range(BATCH)).sum()), int(batch["image"].astype(int).sum())] for batch in alone
    ]
    assert first["sums"] == second["sums"] == sums
    assert first["evaluated"] == second["evaluated"] == len(folder.test.index)

    # Data in memory: each has its half of every step, and put together an epoch has every example once.
    assert {len(step) for printed in (first, second) for step in printed["memory"]} == {BATCH // 2}
    order = [number for halves in zip(first["memory"], second["memory"], strict=True) for number in sum(halves, [])]
    everyone = sorted(tiny.dataset().train.index.tolist())
    epochs = [sorted(order[start : start + len(everyone)]) for start in range(0, len(order), len(everyone))]
    assert epochs == [everyone] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_covers_a_split_once_and_pads_the_rest(folder, monkeypatch, workers):
    monkeypatch.setattr(grain_source, "WORTH_A_PROCESS", 1)
    dataset = run_streamed.load("folder", Path(folder.train.records._root).parent, workers)
    found = [
        jax.device_get(arrays)
        for arrays in eval_data(dataset, dataset.test, batch_size=5, mesh=make_mesh(jax.devices()[:1])).batches()
    ]
    valid = np.concatenate([batch["valid"] for batch in found])
    assert [len(batch["label"]) for batch in found] == [5, 5, 5] and valid.tolist() == [True] * 12 + [False] * 3
    numbers = np.concatenate([batch["index"] for batch in found])
    np.testing.assert_array_equal(numbers, [*range(12), 11, 11, 11])
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in found])[:12], np.repeat([0, 1, 2], 4))
    assert workers_end()


@pytest.fixture(scope="module")
def uninterrupted(roots, tmp_path_factory):
    done = {}

    def train(kind):
        if kind not in done:
            workdir = tmp_path_factory.mktemp(f"uninterrupted_{kind}")
            done[kind] = loop.train(run_streamed.built(kind, roots[kind], workers=0), workdir), workdir
        return done[kind]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("kind, workers, then", [("folder", 2, 0), ("folder", 0, 2), ("tfds", 2, 0), ("cub200", 0, 2)])
def test_killed_and_started_again_it_ends_bit_for_bit_as_if_nothing_had_been(
    roots, uninterrupted, tmp_path, capsys, kind, workers, then
):
    """It may go on with another number of worker processes; the uninterrupted run has none."""
    state, whole = uninterrupted(kind)
    arguments = [kind, str(roots[kind]), str(tmp_path), str(workers), "6"]
    script = Path(run_streamed.__file__)
    command = [sys.executable, str(script), *arguments]
    # Worker processes that outlived the run would hold its output open, and the time would be up.
    killed = subprocess.run(command, cwd=script.parent.parent, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not (tmp_path / "done.json").exists()

    again = loop.train(run_streamed.built(kind, roots[kind], workers=then), tmp_path)
    chex.assert_trees_all_equal(jax.device_get(again), jax.device_get(state))
    assert lines(tmp_path) == lines(whole)
    assert "going on from step 4 of 7" in capsys.readouterr().out


@pytest.mark.slow
def test_worker_processes_end_with_the_run(roots, tmp_path):
    loop.train(run_streamed.built("folder", roots["folder"], workers=2), tmp_path)
    assert workers_end()


def test_the_examples_of_a_step_are_told_without_reading_them(folder):
    steps = 2 * len(folder.train.index) // BATCH + 1  # into a third epoch
    source = train_data(folder, seeds=[3], epochs=9, batch_size=BATCH, steps_per_call=1, mesh=make_mesh())
    for step, batch in enumerate(batches(folder, steps, seeds=(3,))):
        assert source.indices(3, step).tolist() == batch["index"][0].tolist()


def test_an_image_that_a_worker_process_cannot_read_is_named(tmp_path):
    sets.write_folder(tmp_path, classes=("n01", "n02", "n03"), train=4, test=1)
    (tmp_path / "train" / "n02" / "3.png").write_bytes(b"no image")
    dataset = data.load("image_folder", path=tmp_path, image_size=16, select_on="test", workers=1, in_memory=False)
    with pytest.raises(ValueError, match="train/n02/3.png cannot be read as an image"):
        batches(dataset, 2)
    assert workers_end()


def test_several_steps_a_call_are_refused(folder):
    with pytest.raises(ValueError, match="steps_per_call 1, got 5"):
        train_data(folder, seeds=[0], epochs=1, batch_size=4, steps_per_call=5, mesh=make_mesh(jax.devices()[:1]))
