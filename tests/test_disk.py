"""A disk that fills or cannot be written: one line, and what was saved before is whole."""

import shutil
import subprocess
import sys
from contextlib import ExitStack

import pytest
import tiny
from test_preemption import final
from test_processes import ROOT

from sdd_jax.training.checkpoint import Checkpoints, SaveFailed
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
    said = [line for line in result.stderr.splitlines() if line.startswith("sdd_jax:")]
    assert len(said) == 1 and "No space left on device" in said[0] and f"{disk}/run" in said[0], result.stderr
    assert "Traceback" not in result.stderr
    assert "going on from step 4 of" in result.stdout
    assert final(kept) == final(whole)


@pytest.mark.slow
@needs_mount
def test_a_disk_that_cannot_be_written_is_one_line(tmp_path):
    script = f"mount -o remount,ro {tmp_path} && {TRAIN}{tmp_path}/run"
    result = in_a_file_system(tmp_path, "1m", script)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("sdd_jax: ") and "Read-only file system" in result.stderr
    assert "Traceback" not in result.stderr
