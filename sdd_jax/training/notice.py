"""A notice to leave: SIGTERM and SIGINT as a wish that the loop grants when it has saved."""

import os
import signal
import sys
from types import FrameType

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Left(Exception):
    """The run was asked to leave, has saved, and goes on when its command is started again.

    Attributes:
      code: the process's exit code: 143 after SIGTERM, 130 after SIGINT.
    """

    def __init__(self, number: int, step: int):
        where = f"after step {step}, which is saved" if step else "before its first step"
        super().__init__(f"{signal.Signals(number).name}: ended {where}; the same command goes on")
        self.code = 128 + number


def told_by_the_others(step: int) -> int | None:
    """SIGTERM if one of several processes was sent it and all are to stop at ``step``; they ask at each chunk."""
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
        return signal.SIGTERM
    return None


class Notice:
    """Listens, inside a ``with``; a second signal ends the process at once.

    With several processes it sets no handler. There JAX's own catches SIGTERM and tells the other processes, and all of
    them stop after the same step.
    """

    def __init__(self):
        self._received: int | None = None
        self._before = {}

    def __enter__(self) -> "Notice":
        if jax.process_count() == 1:
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def at(self, step: int) -> int | None:
        """The signal that asks to stop at ``step``, if there was one."""
        return self._received if jax.process_count() == 1 else told_by_the_others(step)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            os._exit(128 + number)
        self._received = number
        name = signal.Signals(number).name
        print(f"{name}: saving after these steps; the same signal again ends it now", file=sys.stderr, flush=True)
