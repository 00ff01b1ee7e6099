"""Last words: a line on where a run of several processes was when it ended without being able to say so."""

import subprocess
import sys
from types import TracebackType

import jax

# Reads steps until its parent is gone. It is a process since the runtime ends one that has lost another from within, by
# SIGABRT, where no handler of Python's runs.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
last = "0"
for line in sys.stdin:
    last = line.strip()
if last != "done":
    print(sys.argv[1].replace("STEP", last), file=sys.stderr, flush=True)
"""


class Witness:
    """With several processes: a child that says which step was the last one if this process ends without a word.

    Args:
      coordinator: the address at which the processes came together.
    """

    def __init__(self, coordinator: str | None):
        self._child: subprocess.Popen | None = None
        if jax.process_count() > 1:
            text = (
                f"sdd_jax: process {jax.process_index()} of {jax.process_count()} ended after step STEP, probably as "
                f"another one was lost (coordinator {coordinator}): start all of them again, and the run goes on"
            )
            command = [sys.executable, "-S", "-c", PROGRAM, text]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> "Witness":
        return self

    def tell(self, step: int) -> None:
        """Tells it how many steps are done."""
        self._write(str(step))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if not isinstance(error, jax.errors.JaxRuntimeError):  # anything else says itself what it is
            self._write("done")
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
            self._child.wait()

    def _write(self, text: str) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.write(f"{text}\n".encode())
            self._child.stdin.flush()
