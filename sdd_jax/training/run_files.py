"""What a run leaves behind: its folder and lock, checkpoints, logbook, and the sums that become its lines."""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from sdd_jax import processes
from sdd_jax.data import StreamedDataset
from sdd_jax.training import run_folder
from sdd_jax.training.checkpoint import Checkpoints, abstract, write_json
from sdd_jax.training.lock import Lock
from sdd_jax.training.logbook import Logbook, Silence
from sdd_jax.training.programs import Built
from sdd_jax.training.step import State

LOG_EVERY = 50  # steps; a line of metrics.jsonl holds the means of so many
NOT_FINITE = "not_finite.json"
SHOWN = 16  # examples of a step that is not finite


class NonFinite(FloatingPointError):
    """A loss, a term of it, a gradient or an evaluation that is NaN or infinite.

    Attributes:
      step: that of a training step.
    """

    def __init__(self, message: str, step: int = -1):
        super().__init__(message)
        self.step = step


class RunFiles:
    """What one run leaves behind: its folder, checkpoints, logbook and tally. Of several processes the first writes."""

    def __init__(self, run: Built, workdir: Path):
        self._run, self._workdir = run, workdir
        self._lock: Lock | None = None
        self.checkpoints = Checkpoints(workdir / run_folder.CHECKPOINTS, run.config_hash)
        self.logbook: Logbook | Silence = Silence()
        self._skipped = run.dataset.skipped if isinstance(run.dataset, StreamedDataset) else None

    def open(self) -> None:
        """Takes the folder, makes it the run's if it is new, and clears away what a killed process was writing."""
        processes.from_first(self._take)
        there = (self._workdir / run_folder.CONFIG).exists()
        processes.check_all(there, f"{self._workdir} has to be one folder for all processes")
        removed = processes.from_first(self.checkpoints.remove_unfinished)
        self._messages = [f"removed an unfinished checkpoint: {name}" for name in removed]

    def _take(self) -> None:
        run_folder.check_same_config(self._workdir, self._run.config)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self._workdir)
        run_folder.open_folder(self._workdir, self._run.config)
        run_folder.keep_skipped(self._workdir, self._skipped)

    def newest(self) -> int:
        """The step of the newest whole checkpoint; 0 if there is none."""
        step, problems = self.checkpoints.newest_whole()
        self._messages += problems
        return step or 0

    def has(self, step: int) -> bool:
        """Whether the run can go on from ``step``."""
        return step == 0 or self.checkpoints.newest_whole(step)[0] == step

    def restore(self, begin: Callable[[jax.Array], State], on_all: NamedSharding, step: int) -> State:
        """The state of the checkpoint of ``step``, or ``begin``'s at 0."""
        key = jax.jit(lambda: jax.random.key(self._run.seed), out_shardings=on_all)()
        return self.checkpoints.load(step, abstract(jax.eval_shape(begin, key), on_all)) if step else begin(key)

    def begin(self, step: int, total: int, boundaries: set[int], *, name: str, shows_progress: bool) -> None:
        """Opens the logbook at ``step`` of ``total``; ``boundaries`` are the steps of evaluations and checkpoints."""
        run = self._run
        if processes.is_first():
            self.logbook = Logbook(
                self._workdir,
                step=step,
                total_steps=total,
                num_examples=len(run.dataset.train.index),
                batch_size=run.batch_size,
                name=name,
                shows_progress=shows_progress,
            )
        for message in [*self._messages, *([f"going on from step {step} of {total}"] if step else [])]:
            self.logbook.say(message)
        self.tally = Tally(self.logbook, boundaries, name)
        selection = (line for line in self.logbook.lines if line.get("split") == run.dataset.select_on)
        self.best = processes.from_first(lambda: max((line["accuracy"] for line in selection), default=-1.0))

    def finish(self, total: int, *, trained_together: int) -> None:
        """Writes the results."""
        run = self._run
        self.checkpoints.wait()
        done = run_folder.summarize(self.logbook.lines, select_on=run.dataset.select_on)
        done |= {
            "seed": run.seed,
            "steps": total,
            "train_examples": len(run.dataset.train.index),
            "skipped_images": len(self._skipped.images) if self._skipped else 0,
            "teacher_accuracy": run.teacher_accuracy,
            "seconds": round(self.logbook.elapsed, 1),
            "trained_together": trained_together,
        }
        run_folder.write_done(self._workdir, done)

    def explained(self, error: NonFinite, indices: np.ndarray) -> NonFinite:
        """``error`` with the examples of its step, all of which go to ``not_finite.json``."""
        path = self._workdir / NOT_FINITE
        report = {"step": error.step, "error": str(error), "examples": indices.tolist()}
        processes.from_first(lambda: write_json(path, report))
        shown = ", ".join(map(str, indices[:SHOWN])) + (", ..." if len(indices) > SHOWN else "")
        return NonFinite(f"{error}; its examples: {shown} (all {len(indices)} in {path})", error.step)

    def close(self) -> None:
        """Closes the files, and gives the folder back."""
        try:
            self.logbook.close()
        finally:
            try:
                self.checkpoints.close()
            finally:
                if self._lock is not None:
                    self._lock.release()


class Tally:
    """Adds up the metrics of steps, refuses what is not finite, and writes a line when one is due."""

    def __init__(self, logbook: Logbook | Silence, boundaries: set[int], name: str):
        self._logbook, self._boundaries, self._name = logbook, boundaries, f"{name}: " if name else ""
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, first: int, count: int, measured: dict[str, np.ndarray]) -> None:
        """Adds ``count`` steps from step ``first`` on; metrics are ``[steps_per_call]``."""
        for i in range(count):
            values = {name: float(column[i]) for name, column in measured.items()}
            if not all(math.isfinite(value) for value in values.values()):
                terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
                raise NonFinite(f"{self._name}step {first + i} is not finite: {terms}", first + i)
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
            self._count += 1
            done = first + i + 1
            if done % LOG_EVERY == 0 or done in self._boundaries:
                self.write(done)

    def write(self, step: int) -> None:
        """Writes what there is, up to ``step``."""
        if self._count:
            self._logbook.train(step, {name: total / self._count for name, total in self._sums.items()})
            self._sums, self._count = {}, 0
