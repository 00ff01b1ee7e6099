"""What a run writes while it trains: checkpoints, log, results, and a trace if one is asked for."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from sdd_jax import processes
from sdd_jax.data.streamed import StreamedDataset
from sdd_jax.files import write_json
from sdd_jax.training import run_dir
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training.logbook import Logbook, NonFinite
from sdd_jax.training.programs import Built, Programs
from sdd_jax.training.step import State

SHOWN = 16  # examples that an error names
TRAINED_ON, TESTED_ON = "training images", "test images"  # inputs of a run, as a checkpoint notes them
HELD_OUT, STORES = "held-out images", "form of the teacher's cache"


class RunWriter:
    """Writes one run's folder. All processes of the run have one; the first process writes."""

    def __init__(self, run: Built, workdir: Path):
        self._run, self._workdir, self._closing = run, workdir, ExitStack()
        self._skipped = run.dataset.skipped if isinstance(run.dataset, StreamedDataset) else None

    def open(self) -> None:
        """Locks the folder, notes this start in it, and removes what a killed process was writing."""

        def begin():
            run_dir.check_same_config(self._workdir, self._run.config)
            self._workdir.mkdir(parents=True, exist_ok=True)
            lock = run_dir.lock_folder(self._workdir)
            self._closing.callback(run_dir.unlock_folder, self._workdir, lock)
            run_dir.open_folder(self._workdir, self._run.config)
            run_dir.keep_skipped(self._workdir, self._skipped)
            run_dir.keep_data(self._workdir, self._run.dataset.about())
            return self._find_checkpoints().remove_unfinished()

        self._messages = processes.from_first(begin)
        there = (self._workdir / run_dir.CONFIG).exists()
        processes.check_all(there, f"{self._workdir} has to be one folder for all processes")
        self.checkpoints = self._find_checkpoints()
        self._closing.callback(self.checkpoints.close)

    def _find_checkpoints(self) -> Checkpoints:
        owner = run_dir.owner(run_dir.read_config(self._workdir))  # of the folder: a run that is extended keeps its own
        return Checkpoints(self._workdir / run_dir.CHECKPOINTS, owner)

    def newest(self) -> int:
        """The step of the newest whole checkpoint; 0 if there is none."""
        step, problems = self.checkpoints.newest_whole()
        self._messages += problems
        return step or 0

    def restore(self, programs: Programs, on_all: NamedSharding, step: int) -> State:
        """The state of the checkpoint of ``step``; at 0 a new one."""
        key = jax.jit(lambda: jax.random.key(self._run.seed), out_shardings=on_all)()
        if not step:
            return programs.begin(key)
        return self.checkpoints.load(step, jax.eval_shape(programs.draw, key), on_all)

    def check(self, step: int) -> None:
        """Reads how far the run had come at ``step``; ``ValueError`` if teacher or images are now others."""
        self._before = processes.from_first(lambda: self.checkpoints.manifest(step)["progress"]) if step else {}
        self._check_inputs(self._before.get("inputs", {}))

    def begin(self, step: int, total: int, boundaries: set[int], name: str, shows_progress: bool) -> None:
        """Opens the logbook at ``step`` of ``total``; ``boundaries`` are the steps of evaluations and checkpoints.

        To be called after ``check``: a run that is given more epochs is that longer run from here on.
        """
        before = self._before
        self._messages += processes.from_first(lambda: run_dir.extend(self._workdir, self._run.config))
        self.logbook = Logbook(self._workdir, self._run, before, total, boundaries, name, shows_progress)
        self._closing.callback(self.logbook.close)
        for message in [*self._messages, *([f"going on from step {step} of {total}"] if step else [])]:
            self.logbook.say(message)
        self._results: dict[str, Any] = {"last": {}, "best": {}, "best_selection": -1.0, **before}

    def _check_inputs(self, before: Mapping[str, str]) -> None:
        """Notes which teacher and images the run has; ``ValueError`` if they are not those that it began with."""
        dataset = self._run.dataset
        self._inputs = {"teacher": self._run.teacher.digest, STORES: self._run.teacher.stores}
        for name, split in {TRAINED_ON: "train", HELD_OUT: "selection", TESTED_ON: "test"}.items():
            self._inputs[name] = dataset.identity(split)
        for name, known in before.items():  # a run of an earlier version noted less
            if (now := self._inputs.get(name)) != known and None not in (now, known):
                raise ValueError(
                    f"{self._workdir} holds a run that began with another {name}: the weights or files that its config "
                    "names have changed since. Put them back, or give --workdir another folder"
                )

    def evaluated(self, step: int, measured: Mapping[str, dict[str, float]]) -> bool:
        """Notes what was measured on each split; whether that on the selection split is the best so far."""
        lines = {split: self.logbook.evaluation(step, split, values) for split, values in measured.items()}
        self.logbook.say_evaluations(step, measured)
        self._results["last"], selection = lines["test"], measured[self._run.dataset.select_on]["accuracy"]
        if better := selection > self._results["best_selection"]:
            self._results |= {"best": lines["test"], "best_selection": selection}
        return better

    def save(self, state: State, step: int) -> None:
        """Begins to save ``state``, and with it all that the run needs to know of what came before."""
        progress = {**self._results, "inputs": self._inputs, "steps": step, **self.logbook.progress()}
        self.checkpoints.save(state, step, progress)

    def finish(self, total: int, *, trained_together: int) -> None:
        """Writes the results."""
        run = self._run
        self.checkpoints.wait()
        log = self.logbook.progress()
        done = {
            "select_on": run.dataset.select_on,
            "last": self._results["last"],
            "best": self._results["best"],
            "seed": run.seed,
            "steps": total,
            "train_examples": len(run.dataset.train.index),
            "skipped_images": len(self._skipped.images) if self._skipped else 0,
            "teacher_accuracy": run.teacher_accuracy,
            "teacher_stores": run.teacher.stores,
            "seconds": round(log["elapsed"], 1),
            "trained_together": trained_together,
            "log": log["log"],
        }
        run_dir.write_sealed(self._workdir, run_dir.DONE, done)

    def explained(self, error: NonFinite, indices: np.ndarray) -> NonFinite:
        """``error`` with the first examples of its step; all of them are written to ``not_finite.json``."""
        path, numbers = self._workdir / "not_finite.json", indices.tolist()
        report = {"step": error.step, "error": str(error), "examples": numbers}
        processes.from_first(lambda: write_json(path, report))
        shown = ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")
        return NonFinite(f"{error}; its examples: {shown} (all {len(indices)} in {path})", error.step)

    def close(self, *error: Any) -> None:
        """Closes the files and unlocks the folder; for ``ExitStack.push``, which passes on what ended the run.

        An error of closing, which a full disk causes as well, then keeps that one as its context.
        """
        self._closing.__exit__(*error)


class Trace:
    """A profiler trace of the first process, from the first to before the last of ``steps``; none if they are empty."""

    def __init__(self, workdir: Path, steps: tuple[int, ...], say: Callable[[str], None]):
        self._folder, self._running, self._say = workdir / "profile", False, say
        self._first, self._last = steps if steps and processes.is_first() else (0, 0)

    def at(self, step: int, states: Any) -> None:
        """Begins or ends the trace if it is due at ``step``."""
        if not self._running and self._first <= step < self._last:
            self._first, self._running = step, True  # a run that was resumed in between begins later
            jax.block_until_ready(states)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
        elif self._running and step >= self._last:
            jax.block_until_ready(states)  # the last steps may still be running
            self.close(f"steps {self._first} to {self._last - 1}")

    def close(self, steps: str | None = None) -> None:
        """Ends the trace if it is running, also with the run and after an error, and says where it is."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._say(
                f"trace of {steps or f'the steps from {self._first} on'} in {self._folder}: open its "
                "perfetto_trace.json.gz at https://ui.perfetto.dev, or run "
                f"`pip install xprof && xprof {self._folder}`"
            )
