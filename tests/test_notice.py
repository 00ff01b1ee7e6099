"""A notice to leave, and a process that is lost, in real processes: what is saved, what is said, how it goes on."""

import re
import signal

import numpy as np
import pytest
from test_processes import ROOT, free_port, start

from sdd_jax.training.checkpoint import Checkpoints
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
        if line.startswith("at ") and int(line.split()[1]) >= step:
            return
    raise AssertionError(process.stderr.read()[-3000:])


def end(processes, seconds=120):
    """Exit codes and what was said to stderr."""
    outputs = [process.communicate(timeout=seconds) for process in processes]
    return [process.returncode for process in processes], [errors for _, errors in outputs]


def final(workdir):
    """The hash of the last checkpoint, and the losses of every line, by step."""
    checkpoints = Checkpoints(workdir / "checkpoints", "")
    step = checkpoints.steps()[-1]
    checkpoints.close()
    return step, variables_hash(checkpoints.load_variables(step))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """``final`` of a run in one process and of one in two: they are different programs."""
    found = {}
    for processes in (1, 2):
        workdir = tmp_path_factory.mktemp("whole")
        codes, errors = end(begin(workdir, processes=processes))
        assert codes == [0] * processes, errors
        found[processes] = final(workdir)
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_notice_saves_and_the_run_goes_on(uninterrupted, tmp_path, number, code):
    (process,) = begin(tmp_path, "--seconds=0.2")
    wait_for(process, 8)  # between two checkpoints: epochs end at 6 and 11
    process.send_signal(number)
    codes, (errors,) = end([process])
    name = signal.Signals(number).name
    assert codes == [code]
    assert f"{name}: saving after these steps; the same signal again ends it now" in errors
    said = int(re.search(rf"{name}: ended after step (\d+), which is saved", errors)[1])
    checkpoints = Checkpoints(tmp_path / "checkpoints", "")
    assert checkpoints.steps()[-1] == said >= 8
    told = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert told["step"] == said  # nothing measured is lost
    assert told["images_per_second"] < 1e4  # with a fifth of a second before each step
    assert not (tmp_path / "lock").exists()

    codes, errors = end(begin(tmp_path))
    assert codes == [0], errors
    assert final(tmp_path) == uninterrupted[1]


def test_a_second_signal_ends_it_at_once(tmp_path):
    (process,) = begin(tmp_path, "--seconds=60")
    wait_for(process, 0)
    process.send_signal(signal.SIGTERM)
    line = process.stderr.readline()
    assert "SIGTERM: saving after these steps" in line
    process.send_signal(signal.SIGTERM)
    codes, _ = end([process], seconds=30)  # the chunk would take a minute
    assert codes == [143] and not list(tmp_path.glob("checkpoints/*"))


def test_two_processes_leave_together_and_end_when_one_is_lost(uninterrupted, tmp_path):
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
    print(errors[0])
    assert 0

    codes, errors = end(begin(tmp_path, processes=2))
    assert codes == [0, 0], errors
    assert final(tmp_path) == uninterrupted[2]
    assert np.isfinite([line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]).all()


def steps_of(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", "")
    checkpoints.close()
    return checkpoints.steps()
