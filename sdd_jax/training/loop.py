"""The training loop. One for every method, network and data set: what varies comes in as an argument.

The order is fixed: evaluate, save, step, log. A checkpoint of step s therefore holds everything up to s, its evaluation
included, and a run that goes on from it repeats nothing and skips nothing.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sdd_jax import metrics
from sdd_jax.data.dataset import Split
from sdd_jax.data.feed import AnyDataset, eval_data
from sdd_jax.data.streamed import StreamedSplit
from sdd_jax.training import optim, processes, run_folder
from sdd_jax.training.checkpoint import Checkpoints, abstract
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.logbook import Logbook, Silence
from sdd_jax.training.profile import Trace
from sdd_jax.training.programs import Built, Programs
from sdd_jax.training.sharding import pick, put, replicated
from sdd_jax.training.step import State, make_eval_step, student_variables

LOG_EVERY = 50  # steps; a line of metrics.jsonl holds the means of so many
EVAL_BATCH = 500


class NonFinite(FloatingPointError):
    """A loss, a term of it, a gradient or an evaluation that is NaN or infinite."""


def train(built: Built, workdir: str | os.PathLike[str]) -> State:
    """Trains what ``built`` describes in ``workdir``, from its newest checkpoint if it has one.

    Returns:
      The state after the last step. ``workdir/done.json`` holds last and best accuracy.

    Raises:
      ValueError: if ``workdir`` holds a run of another config, or every checkpoint in it is damaged.
      NonFinite: names the step and the terms; the newest checkpoint is from before it.
    """
    return train_together((built,), (workdir,))[0]


def train_together(runs: Sequence[Built], workdirs: Sequence[str | os.PathLike[str]]) -> list[State]:
    """``train`` for runs that differ in their seed alone, in one program over one data set and one teacher.

    Each leaves in its folder what it would leave alone. Runs that stopped at different steps go on one after the other.
    """
    built, programs = runs[0], Programs(runs)
    dataset, num_examples, on_all = built.dataset, len(built.dataset.train.index), programs.on_all
    total = optim.total_steps(built.epochs, num_examples, built.batch_size)
    eval_steps = _due(built.eval_every_epochs, built.epochs, num_examples, built.batch_size)
    save_steps = _due(built.save_every_epochs, built.epochs, num_examples, built.batch_size)

    # ---- states: the newest whole checkpoint, else the beginning
    files = [_Files(run, Path(workdir)) for run, workdir in zip(runs, workdirs, strict=True)]
    states = [file.restore(programs.begin, on_all) for file in files]
    if len({int(state.step) for state in states}) > 1:
        for file in files:
            file.checkpoints.close()
        return [train(run, workdir) for run, workdir in zip(runs, workdirs, strict=True)]
    step = resumed_at = int(states[0].step)
    states = programs.stack(states)
    for number, file in enumerate(files):
        name = f"seed {runs[number].seed}" if len(runs) > 1 else ""
        file.begin(step, total, {*eval_steps, *save_steps}, name=name, shows_progress=number == 0)
    evaluators = make_evaluators(built, programs.mesh)
    numbers = [put(np.int32(number), on_all) for number in range(max(len(runs), built.steps_per_call + 1))]
    trace = Trace(Path(workdirs[0]), built.profile_steps)
    pending = None  # the chunk before this one: its metrics are read while the device works on the next

    def tally(chunk):
        if chunk is not None:
            first, count, measured = chunk
            measured = jax.device_get(measured)
            for number, file in enumerate(files):
                file.tally.add(first, count, pick(measured, number))

    try:
        with jax.transfer_guard("disallow"):  # nothing crosses between host and device unless it says so
            while True:
                due = step != resumed_at  # what a checkpoint holds was evaluated before it was saved
                if due and (step in eval_steps or step in save_steps):
                    tally(pending)  # a state is evaluated or saved only after its loss proved finite
                    pending = None
                    for number, file in enumerate(files):
                        state = programs.pick(states, numbers[number])

                        # 1. evaluate
                        selection_accuracy = None
                        if step in eval_steps:
                            for split, evaluator in evaluators.items():
                                results = evaluator(student_variables(state))
                                file.logbook.evaluation(step, split, results)
                                if split == dataset.select_on:
                                    selection_accuracy = results["accuracy"]

                        # 2. save
                        better = selection_accuracy is not None and selection_accuracy > file.best
                        if step in save_steps or better:
                            file.checkpoints.save(state, step, selection_accuracy)
                        file.best = selection_accuracy if better else file.best
                        file.logbook.restart_clock()
                if step == total:
                    break

                # 3. step
                if trace.at(step, states):
                    files[0].logbook.say(trace.message)
                ends = (boundary for boundary in (*eval_steps, *save_steps, *built.profile_steps) if boundary > step)
                count = min(built.steps_per_call, min(ends) - step)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    states, measured = programs.run_chunk(states, *programs.arrays(step), numbers[count])

                # 4. log
                tally(pending)
                pending = (step, count, measured)
                step += count
        for file in files:
            processes.from_first(functools.partial(file.finish, total, trained_together=len(runs)))
    finally:
        trace.close()
        programs.close()
        for file in files:
            file.close()
    return [programs.pick(states, number) for number in numbers[: len(runs)]]


class _Files:
    """What one run leaves behind: its folder, checkpoints, logbook and tally. Of several processes the first writes."""

    def __init__(self, run: Built, workdir: Path):
        processes.from_first(lambda: run_folder.open_folder(workdir, run.config))
        processes.check_all((workdir / run_folder.CONFIG).exists(), f"{workdir} has to be one folder for all processes")
        self._run, self._workdir = run, workdir
        self.checkpoints = Checkpoints(workdir / run_folder.CHECKPOINTS, run.config_hash)
        removed = processes.from_first(self.checkpoints.remove_unfinished)
        self._messages = [f"removed an unfinished checkpoint: {name}" for name in removed]

    def restore(self, begin: Callable[[jax.Array], State], on_all: NamedSharding) -> State:
        """The state of the newest whole checkpoint, else ``begin``'s."""
        key = jax.jit(lambda: jax.random.key(self._run.seed), out_shardings=on_all)()
        state, problems = self.checkpoints.restore_latest(abstract(jax.eval_shape(begin, key), on_all))
        self._messages += problems
        return begin(key) if state is None else state

    def begin(self, step: int, total: int, boundaries: set[int], *, name: str, shows_progress: bool) -> None:
        """Opens the logbook at ``step`` of ``total``; ``boundaries`` are the steps of evaluations and checkpoints."""
        run = self._run
        self.logbook: Logbook | Silence = Silence()
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
        self.tally = _Tally(self.logbook, boundaries, name)
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
            "teacher_accuracy": run.teacher_accuracy,
            "seconds": round(self.logbook.elapsed, 1),
            "trained_together": trained_together,
        }
        run_folder.write_done(self._workdir, done)

    def close(self) -> None:
        """Closes the files."""
        self.logbook.close()
        self.checkpoints.close()


def make_evaluators(built: Built, mesh: Mesh) -> dict[str, Callable[[Any], dict[str, float]]]:
    """``{split: evaluator(student variables) -> results}``: the test set and, if it is another, the selection set."""
    splits = {built.dataset.select_on: built.dataset.selection, "test": built.dataset.test}
    return {
        name: make_evaluator(built.model, split, built.dataset, mesh, built.dtype) for name, split in splits.items()
    }


def make_evaluator(
    model: Any, split: Split | StreamedSplit, dataset: AnyDataset, mesh: Mesh, dtype: Any
) -> Callable[[Any], dict[str, float]]:
    """``evaluator(variables) -> results`` of ``model`` on ``split``: accuracy, top-5, loss, and how many were seen."""
    num_examples, devices = len(split.index), mesh.size
    batch_size = math.ceil(min(EVAL_BATCH, num_examples) / devices) * devices
    data = eval_data(dataset, split, batch_size=batch_size, mesh=mesh)
    network = functools.partial(model.init, jax.random.key(0), jnp.zeros((1, *dataset.image_shape)), train=False)
    step = make_eval_step(model, data.batch_function(dtype), mesh, dataset.num_classes)
    step = jit_network(step, network, out_shardings=replicated(mesh))

    def evaluator(variables):
        states = [jax.device_get(step(variables, arrays)) for arrays in data.batches()]
        total = metrics.merge(*states)
        seen = int(total["accuracy"]["count"])
        if seen != num_examples:
            raise AssertionError(f"evaluation saw {seen} of {num_examples} examples")
        results = {name: float(metrics.compute(state)) for name, state in total.items()}
        if not all(math.isfinite(value) for value in results.values()):
            raise NonFinite(f"an evaluation on {dataset.name} is not finite: {results}")
        return {**results, "examples": seen}

    return evaluator


def _due(every_epochs: int, epochs: int, num_examples: int, batch_size: int) -> frozenset[int]:
    """The steps at which something due every so many epochs happens: at the ends of epochs, and of the run."""
    ends = (optim.first_step(epoch, num_examples, batch_size) for epoch in range(every_epochs, epochs, every_epochs))
    return frozenset((*ends, optim.total_steps(epochs, num_examples, batch_size)))


class _Tally:
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
                raise NonFinite(f"{self._name}step {first + i} is not finite: {terms}")
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
            self._count += 1
            done = first + i + 1
            if done % LOG_EVERY == 0 or done in self._boundaries:
                self._logbook.train(done, {name: total / self._count for name, total in self._sums.items()})
                self._sums, self._count = {}, 0
