"""A trace of some steps: where their time goes, for a look when a run is slow."""

from pathlib import Path
from typing import Any

import jax

from sdd_jax import processes

FOLDER = "profile"


class Trace:
    """Traces the first process from one step to another, at the ends of the chunks nearest to them.

    Args:
      workdir: the run's folder, which gets a folder ``profile``.
      steps: the first step, and the one before which the trace ends; empty for no trace.
    """

    def __init__(self, workdir: Path, steps: tuple[int, ...]):
        self._folder, self._running = workdir / FOLDER, False
        self._first, self._last = steps if steps and processes.is_first() else (0, 0)

    @property
    def message(self) -> str:
        """Where the trace is, and how to look at it."""
        return (
            f"trace of steps {self._first} to {self._last - 1} in {self._folder}: open its perfetto_trace.json.gz at "
            f"https://ui.perfetto.dev, or run `pip install xprof && xprof {self._folder}`"
        )

    def at(self, step: int, states: Any) -> bool:
        """Begins or ends the trace if it is due at ``step``; whether it has ended now."""
        if not self._running and self._first <= step < self._last:
            self._first, self._running = step, True  # a run that was resumed in between begins later
            jax.block_until_ready(states)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
        elif self._running and step >= self._last:
            jax.block_until_ready(states)  # what was dispatched belongs to these steps
            self.close()
            return True
        return False

    def close(self) -> None:
        """Ends the trace if it is running; one that an error cut short is kept as well."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
