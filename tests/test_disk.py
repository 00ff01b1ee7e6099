"""A disk that fills or cannot be written: one line, and what was saved before is whole."""

import json
import resource
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import tiny
from served import images, served
from test_preemption import final
from test_processes import ROOT

from experiments import results
from sdd_jax import files
from sdd_jax.serving.predict import Prediction, write
from sdd_jax.training.checkpoint import Checkpoints, SaveFailed
from sdd_jax.training.logbook import Logbook, read_metrics
from sdd_jax.training.run_writer import RunWriter

CONFIG = [
    "--config=configs/quickstart.py:run=plain",
    *(f"--config.{name}" for name in ("epochs=4", "eval_every_epochs=1", "save_every_epochs=1")),
]
TRAIN = f"{sys.executable} -m sdd_jax train {' '.join(CONFIG)} --workdir="


def may_mount():
    return (
        bool(shutil.which("unshare")) and not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    )


needs_mount = pytest.mark.skipif(not may_mount(), reason="needs unshare -rm, to mount a small file system")


def test_what_ended_the_run_is_known_if_closing_fails_as_well(tmp_path, monkeypatch):
    """A full disk fails more than once, and the program names the first failure."""

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "close", full)
    writer = RunWriter(tiny.built(), tmp_path)
    with pytest.raises(OSError, match="No space left") as ended, ExitStack() as closing:
        closing.push(writer.close)
        writer.open()
        raise SaveFailed("the checkpoint could not be written")
    assert isinstance(ended.value.__context__, SaveFailed)
    assert not (tmp_path / "lock.json").exists()


@contextmanager
def room_for(size):
    """No file may have more bytes: a write ends as on a full disk, after a part of it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_files_that_belong_together_are_written_all_or_none(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("before")
    with room_for(100), pytest.raises(OSError, match=f"too large: '{second}'"):
        files.write_together({first: bytes(50), second: bytes(200)})
    assert first.read_text() == "before" and list(tmp_path.iterdir()) == [first]
    with room_for(100), pytest.raises(ValueError, match=f"{second} cannot be written: File too large"):
        files.write_new({tmp_path / "c": bytes(50), second: bytes(200)})
    assert list(tmp_path.iterdir()) == [first]
    files.write_together({first: b"after", second: b"too"})
    assert (first.read_text(), second.read_text()) == ("after", "too")
    (tmp_path / "d").mkdir()
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path / 'd'}'"):
        files.write_together({first: b"", tmp_path / "d": b"", second: b""})


def test_a_result_line_is_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.jsonl"
    results.append(path, {"seed": 0})
    before = path.read_bytes()
    with room_for(len(before) + 20), pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        results.append(path, {"seed": 1, "settings": "x" * 100})
    assert path.read_bytes() == before


def test_a_full_disk_under_tensorboards_file_is_said_at_once(tmp_path):
    book = Logbook(tmp_path, tiny.built(), {}, 100, set(), "", False)
    with room_for(9000), pytest.raises(OSError, match=f"(File too large|No space left).*: '{tmp_path}/tensor"):
        for step in range(100):
            book.evaluation(step, "test", {"accuracy": 0.5} | {f"value_{number}": 0.5 for number in range(40)})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == step + 1  # the line that TensorBoard's file has not whole
    book.close()
    (tmp_path / "other").mkdir()
    with room_for(10), pytest.raises(OSError, match="tensorboard/events"):
        Logbook(tmp_path / "other", tiny.built(), {}, 100, set(), "", False)  # and leaves no file open


def test_predictions_that_find_no_room_leave_nothing(tmp_path):
    one = served("served:small")
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    given = [
        Prediction(path, pixels, 0, np.full(7, 1 / 7), []) for path, pixels in zip(pictures, images(one), strict=True)
    ]
    out = tmp_path / "out"
    with room_for(500), pytest.raises(OSError, match=f"File too large: '{out}'"):
        list(write(given, out, tmp_path, one.names))
    assert not [path for path in out.rglob("*") if path.is_file()]
    assert len(list(write(given, out, tmp_path, one.names))) == 3


def in_a_file_system(folder, size, script):
    """What the shell script prints in a name space of its own, where ``folder`` is a file system of that size."""
    folder.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={size} tmpfs {folder}"
    command = ["unshare", "-rm", "bash", "-c", f"{mount} && {script}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@needs_mount
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path):
    disk, kept, whole = tmp_path / "disk", tmp_path / "kept", tmp_path / "whole"
    subprocess.run(f"{TRAIN}{whole}", shell=True, cwd=ROOT, check=True, capture_output=True)
    script = f"""
        {TRAIN}{disk}/run; echo "full: exit code $?"
        ls {disk}/run/checkpoints
        mount -o remount,size=50m {disk}
        {TRAIN}{disk}/run; echo "room: exit code $?"
        cp -r {disk}/run {kept}
    """
    result = in_a_file_system(disk, "1300k", script)
    assert "full: exit code 1" in result.stdout and "room: exit code 0" in result.stdout, result.stdout + result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("sdd:")]
    assert len(said) == 1 and "No space left on device" in said[0] and f"{disk}/run" in said[0], result.stderr
    assert "Traceback" not in result.stderr
    assert "going on from step 4 of" in result.stdout
    assert final(kept) == final(whole)


@pytest.mark.slow
@needs_mount
def test_each_command_on_a_disk_that_is_full_or_cannot_be_written(tmp_path):
    command = ["unshare", "-rm", sys.executable, "-m", "tests.faults.disks", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found.values()) == {"right"} and len(found) == 20, result.stdout + result.stderr
