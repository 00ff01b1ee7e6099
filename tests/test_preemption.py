"""A run that is asked to stop, killed, or loses a process: what is saved, what is printed, how it goes on."""

import os
import re
import signal
import threading
import time

import chex
import jax
import numpy as np
import pytest
import tiny
from test_processes import ROOT, free_port, start

from sdd_jax import processes, saved
from sdd_jax.training import loop
from sdd_jax.training.logbook import read_metrics
from sdd_jax.training.teacher import variables_hash

TRAIN = [str(ROOT / "tests" / "train_tiny.py")]


def begin(workdir, *options, processes=1):
    """One process, or several that are one run; of two virtual devices each."""
    port = free_port()
    parts = [[f"--process={index},{processes},{port}"] if processes > 1 else [] for index in range(processes)]
    return [start([*TRAIN, workdir, *options, *part], 2) for part in parts]


def wait_for(process, step):
    """Until the process says that it is at ``step`` or further."""
    for line in process.stdout:
        if (at := re.match(r"at (\d+)", line)) and int(
            at[1]
        ) >= step:  # the runtime's words may follow in the same line
            return
    raise AssertionError(process.stderr.read()[-3000:])


def end(processes, seconds=120):
    """Exit codes and what was said to stderr."""
    outputs = [process.communicate(timeout=seconds) for process in processes]
    return [process.returncode for process in processes], [errors for _, errors in outputs]


def final(workdir):
    """The step of the last checkpoint, and the hash of its variables."""
    checkpoints = saved.checkpoints(workdir)
    step = checkpoints.steps()[-1]
    return step, variables_hash(checkpoints.load_variables(step))


def test_a_killed_and_a_preempted_run_end_bit_for_bit_as_an_uninterrupted_one(tmp_path):
    killed, preempted = tmp_path / "killed", tmp_path / "preempted"
    same_programs = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}  # as this process compiles them
    process = start([*TRAIN, killed, "--epochs=3", "--seconds=0.1"], 1, same_programs)

    with processes.stop_signals() as requested:

        def should_stop(step):
            if step == 8:  # between two checkpoints: epochs end at 6 and 11
                os.kill(os.getpid(), signal.SIGTERM)
            return requested(step)

        with pytest.raises(processes.Preempted, match="SIGTERM: ended after step 8, which is saved") as stopped:
            loop.train(tiny.built(), preempted, should_stop=should_stop)
    assert stopped.value.code == 143 and processes.Preempted(signal.SIGINT, 1).code == 130
    assert read_metrics(preempted / "metrics.jsonl")[-1]["step"] == final(preempted)[0] == 8

    while not list(killed.glob("checkpoints/*/MANIFEST.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (killed / "done.json").exists() and final(killed)[0] > 0

    expected = jax.device_get(loop.train(tiny.built(), tmp_path / "whole"))
    for workdir in (killed, preempted):
        chex.assert_trees_all_equal(jax.device_get(loop.train(tiny.built(), workdir)), expected)


def test_several_processes_count_how_often_they_ask_and_remember_the_answer(monkeypatch):
    """JAX says yes to the number after the largest it was given, and to no other."""
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_STOPS", threading.Event())
    sync = processes.multihost_utils
    monkeypatch.setattr(sync, "reached_preemption_sync_point", lambda number: asked.append(number) or len(asked) == 3)
    said = [processes.preemption_requested(step) for step in (0, 50, 100, 0, 50)]  # the second run's too
    assert said == [None, None, *[signal.SIGTERM] * 3]
    assert asked == [*range(asked[0], asked[0] + 3)]


# ---------------------------------------------------------------------- in real processes


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """``final`` of a run in one process and of one in two: they are different programs."""
    found = {}
    for count in (1, 2):
        workdir = tmp_path_factory.mktemp("whole")
        codes, errors = end(begin(workdir, processes=count))
        assert codes == [0] * count, errors
        found[count] = final(workdir)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on(uninterrupted, tmp_path, number, code):
    (process,) = begin(tmp_path, "--seconds=0.2")
    wait_for(process, 8)  # between two checkpoints: epochs end at 6 and 11
    process.send_signal(number)
    codes, (errors,) = end([process])
    name = signal.Signals(number).name
    assert codes == [code]
    assert f"{name}: saving after these steps; the same signal again ends it now" in errors
    said = int(re.search(rf"{name}: ended after step (\d+), which is saved", errors)[1])
    checkpoints = saved.checkpoints(tmp_path)
    assert checkpoints.steps()[-1] == said >= 8
    told = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert told["step"] == said  # nothing measured is lost
    assert told["images_per_second"] < 1e4  # with a fifth of a second before each step
    assert not (tmp_path / "lock.json").exists()

    codes, errors = end(begin(tmp_path))
    assert codes == [0], errors
    assert final(tmp_path) == uninterrupted[1]


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(tmp_path):
    (process,) = begin(tmp_path, "--seconds=60")
    wait_for(process, 0)
    process.send_signal(signal.SIGTERM)
    line = process.stderr.readline()
    assert "SIGTERM: saving after these steps" in line
    process.send_signal(signal.SIGTERM)
    codes, _ = end([process], seconds=30)  # the chunk would take a minute
    assert codes == [143] and not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.slow
def test_a_process_that_comes_late_is_waited_for(uninterrupted, tmp_path):
    port = free_port()
    first, late = ([*TRAIN, tmp_path, f"--process={index},2,{port}"] for index in range(2))
    both = [start(first, 2)]
    assert "waiting up to 60 s" in both[0].stderr.readline()
    time.sleep(10)
    assert both[0].poll() is None and not list(tmp_path.iterdir())  # nothing is begun alone
    both.append(start(late, 2))
    codes, errors = end(both)
    assert codes == [0, 0], errors
    assert final(tmp_path) == uninterrupted[2]


@pytest.mark.slow
def test_two_processes_stop_together_and_end_when_one_is_lost(uninterrupted, tmp_path):
    both = begin(tmp_path, "--seconds=0.3", processes=2)
    wait_for(both[0], 7)
    both[1].send_signal(signal.SIGTERM)  # one of them is told
    codes, errors = end(both)
    assert codes == [143, 143], errors
    steps = {int(re.search(r"SIGTERM: ended after step (\d+), which is saved", text)[1]) for text in errors}
    assert len(steps) == 1 and final(tmp_path)[0] == steps.pop() < 22

    again = begin(tmp_path, "--seconds=0.3", processes=2)
    wait_for(again[0], final(tmp_path)[0] + 1)
    again[1].kill()
    codes, errors = end(again, seconds=60)
    assert codes[0] not in (0, -signal.SIGKILL) and codes[1] == -signal.SIGKILL
    assert re.search("tasks are unhealthy|[Cc]onnection", errors[0])  # the runtime's own messages

    codes, errors = end(begin(tmp_path, processes=2))
    assert codes == [0, 0], errors
    assert final(tmp_path) == uninterrupted[2]
    assert np.isfinite([line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]).all()


@pytest.mark.slow
def test_several_processes_stop_between_chunks_and_before_the_first_of_a_run_that_goes_on(tmp_path):
    chunks, at = ("--seconds=0.3", "--steps_per_call=4", "--epochs=12"), 0
    for early in ((), ("--early",)):
        both = begin(tmp_path, *chunks, *early, processes=2)
        if not early:
            wait_for(both[0], 4)
            both[1].send_signal(signal.SIGTERM)
        codes, errors = end(both)
        assert codes == [143, 143], errors
        assert at < final(tmp_path)[0] <= at + 20 < 60
        at = final(tmp_path)[0]
