"""One folder, one run."""

import json
import os
import socket
import subprocess
import sys

import pytest
import tiny

from sdd_jax.training import loop
from sdd_jax.training.lock import LOCK, Lock


def test_a_second_run_is_refused_with_the_first_ones_name(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on {socket.gethostname()} since 20\d\d-"):
        Lock(tmp_path)
    with pytest.raises(ValueError, match="in use by process"):
        loop.train(tiny.built(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    lock.release()
    loop.train(tiny.built(epochs=1), tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_run_that_fails_gives_its_folder_back(tmp_path):
    with pytest.raises(loop.NonFinite):
        loop.train(tiny.built(learning_rate=1e30), tmp_path)
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("content", [None, "", '{"host": "' + socket.gethostname()[:3]])
def test_what_a_killed_process_left_on_this_machine_is_no_obstacle(tmp_path, content):
    if content is None:  # killed while it held the lock
        code = f"import os, pathlib; from sdd_jax.training.lock import Lock; Lock(pathlib.Path({str(tmp_path)!r}))"
        subprocess.run([sys.executable, "-c", f"{code}; os.kill(os.getpid(), 9)"], check=False)
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()
    else:  # killed before it had written all of it
        (tmp_path / LOCK).write_text(content)
    loop.train(tiny.built(epochs=1), tmp_path)
    assert (tmp_path / "done.json").exists()


def test_another_machines_lock_is_refused_with_the_command_that_removes_it(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": "node-17", "process": 99, "started": "2026-01-02 03:04:05 UTC"}))
    with pytest.raises(ValueError, match=rf"process 99 on node-17 since 2026-.*: rm {tmp_path / LOCK}"):
        loop.train(tiny.built(), tmp_path)
    assert "node-17" in (tmp_path / LOCK).read_text()  # refusing it left it as it was


def test_a_holder_that_leaves_in_between_does_not_leave_two(tmp_path, monkeypatch):
    """Opened before the holder removed the file, locked after it: that lock is of a file that is no longer there."""
    holder = Lock(tmp_path)
    open_file, opened = os.open, []

    def opening(*args):
        opened.append(open_file(*args))
        if len(opened) == 1:
            holder.release()
        return opened[-1]

    monkeypatch.setattr(os, "open", opening)
    lock = Lock(tmp_path)
    monkeypatch.undo()
    assert len(opened) == 2
    with pytest.raises(ValueError, match="in use by process"):
        Lock(tmp_path)
    lock.release()
