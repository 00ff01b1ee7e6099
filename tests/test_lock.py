"""One folder, one run."""

import json
import os
import socket
import subprocess
import sys

import pytest
import tiny

from sdd_jax.training import loop
from sdd_jax.training.run_dir import HOLDER, LOCK, lock_folder, unlock_folder
from sdd_jax.training.run_writer import RunWriter


def test_a_second_run_is_refused_with_the_first_ones_name(tmp_path):
    lock = lock_folder(tmp_path)
    with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on {socket.gethostname()} since 20\d\d-"):
        lock_folder(tmp_path)
    with pytest.raises(ValueError, match="in use by process"):
        loop.train(tiny.built(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, HOLDER}  # the second run left nothing
    (tmp_path / HOLDER).unlink()
    with pytest.raises(ValueError, match="in use by another process that has just begun"):
        lock_folder(tmp_path)
    unlock_folder(tmp_path, lock)
    unlock_folder(tmp_path, lock_folder(tmp_path))


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    """It was killed before it had written a config, so that the folder holds no run yet."""
    lines = (
        "import os, pathlib",
        "from sdd_jax.training.run_dir import lock_folder",
        f"lock = lock_folder(pathlib.Path({str(tmp_path)!r}))",
        "os.kill(os.getpid(), 9)",
    )
    killed = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=False)
    assert killed.returncode == -9
    assert json.loads((tmp_path / HOLDER).read_text())["host"] == socket.gethostname()
    for name in (f"{HOLDER}.tmp", "config.json.tmp"):  # or a moment earlier or later
        (tmp_path / name).write_text('{"host": "')
    writer = RunWriter(tiny.built(), tmp_path)
    writer.open()
    assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    writer.close(None, None, None)
    assert not (tmp_path / HOLDER).exists() and (tmp_path / "config.json").exists()
