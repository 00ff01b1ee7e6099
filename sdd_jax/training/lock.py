"""One run, one folder: a second process that would write there is refused, and told who does."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

LOCK = "lock"


class Lock:
    """Holds ``folder`` for this process, until ``release`` or its end.

    The lock is ``flock`` on the file ``lock``, which says who holds it. The system gives it back when a process ends,
    however it ends, so a file that a killed process left is no obstacle on its own machine. File systems that machines
    share do not all carry it to the others: there the file is what counts.

    Raises:
      ValueError: if another process holds it, or the file is of another machine.
    """

    def __init__(self, folder: Path):
        self._path = folder / LOCK
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(self._file)
                os.close(self._file)
                raise ValueError(
                    f"{folder} is in use by {_name(holder)}: wait for it, or end it and start again"
                ) from None
            if self._is_there():  # else its holder gave it back between the two lines above
                break
            os.close(self._file)
        holder = _read(self._file)
        if holder is not None and holder["host"] != socket.gethostname():
            os.close(self._file)
            raise ValueError(
                f"{folder} is in use by {_name(holder)}, or was when that machine was lost. If you know that nothing "
                f"runs there any more: rm {self._path}"
            )
        mine = {"host": socket.gethostname(), "process": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(mine).encode(), 0)

    def release(self) -> None:
        """Gives the folder back."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False


def _read(file: int) -> dict[str, Any] | None:
    """Who the file names; None if it is empty or torn: its writer was killed before it had written anything else."""
    try:
        return json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return None


def _name(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process that has just begun"
    return f"process {holder['process']} on {holder['host']} since {holder['started']}"
