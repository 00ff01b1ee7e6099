"""The training loop. One for every method, network and data set: what varies comes in as an argument.

The order is fixed: evaluate, save, step, log. A checkpoint of step s therefore holds everything up to s, its evaluation
included, and a run that goes on from it repeats nothing and skips nothing.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from sdd_jax import metrics
from sdd_jax.data.arrays import Dataset, Split, eval_batch, eval_batches
from sdd_jax.data.memory import MemoryData, put_split
from sdd_jax.training import optim, run_folder
from sdd_jax.training.checkpoint import Checkpoints, abstract
from sdd_jax.training.logbook import Logbook
from sdd_jax.training.objective import Objective
from sdd_jax.training.sharding import replicated
from sdd_jax.training.step import State, init_state, make_eval_step, make_run_chunk, make_train_step, student_variables

LOG_EVERY = 50  # steps; a line of metrics.jsonl holds the means of so many
EVAL_BATCH = 500


class Built(NamedTuple):
    """What a run is made of; ``sdd_jax.build`` makes it from a config, a program may make it itself."""

    config: dict[str, Any]  # JSON-ready, written beside the results
    config_hash: str
    model: Any
    teacher: Callable[..., Any] | None  # teacher(arrays, batch) -> Outputs
    teacher_arrays: Any  # what it reads: one tree for the whole run, or a function of a chunk's first step
    teacher_accuracy: float | None  # on the test set, 0 to 1, as measured before the run
    teacher_stated: float | None  # in percent: what that was held against, if anything
    objective: Objective
    optimizer: optax.GradientTransformation
    dataset: Dataset
    mesh: Mesh
    seed: int
    epochs: int
    batch_size: int
    steps_per_call: int
    eval_every_epochs: int
    save_every_epochs: int
    scales: tuple[int, ...]
    pooling: str
    dtype: Any  # of the images; what the networks compute in is their own


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
    workdir = Path(workdir)
    run_folder.open_folder(workdir, built.config)
    dataset, mesh = built.dataset, built.mesh
    num_examples = len(dataset.train.labels)
    total = optim.total_steps(built.epochs, num_examples, built.batch_size)
    eval_steps = _due(built.eval_every_epochs, built.epochs, num_examples, built.batch_size)
    save_steps = _due(built.save_every_epochs, built.epochs, num_examples, built.batch_size)
    on_all = replicated(mesh)

    # ---- data, on the device for the whole run
    data = MemoryData(
        dataset,
        seed=built.seed,
        epochs=built.epochs,
        batch_size=built.batch_size,
        steps_per_call=built.steps_per_call,
        sharding=on_all,
    )
    teacher_arrays = built.teacher_arrays
    if not callable(teacher_arrays):
        fixed = jax.device_put(teacher_arrays, on_all)

        def teacher_arrays(step):
            return fixed

    teacher_shapes = jax.eval_shape(lambda arrays: arrays, teacher_arrays(0))
    evaluators = make_evaluators(built)

    # ---- the jitted programs
    train_step = make_train_step(
        built.model,
        built.teacher,
        built.objective,
        built.optimizer,
        scales=built.scales,
        pooling=built.pooling,
        num_examples=num_examples,
    )
    run_chunk = jax.jit(
        make_run_chunk(train_step, data.batch_function(built.dtype), mesh, built.steps_per_call),
        donate_argnums=0,
        out_shardings=(on_all, on_all),
    )

    # ---- state: the newest whole checkpoint, else the beginning
    def begin(key):
        return init_state(
            key,
            built.model,
            built.teacher,
            teacher_shapes,
            built.objective,
            built.optimizer,
            image_shape=dataset.image_shape,
            num_examples=num_examples,
        )

    checkpoints = Checkpoints(workdir / run_folder.CHECKPOINTS, built.config_hash)
    messages = [f"removed an unfinished checkpoint: {name}" for name in checkpoints.remove_unfinished()]
    key = jax.random.key(built.seed)
    state, problems = checkpoints.restore_latest(abstract(jax.eval_shape(begin, key), on_all))
    if state is None:
        state = jax.jit(begin, out_shardings=on_all)(key)
    step = resumed_at = int(state.step)

    logbook = Logbook(workdir, step=step, total_steps=total, num_examples=num_examples, batch_size=built.batch_size)
    for message in [*messages, *problems, *([f"going on from step {step} of {total}"] if step else [])]:
        logbook.say(message)
    tally = _Tally(logbook, {*eval_steps, *save_steps})
    best = max((line["accuracy"] for line in logbook.lines if line.get("split") == dataset.select_on), default=-1.0)
    counts = [jax.device_put(np.int32(count), on_all) for count in range(built.steps_per_call + 1)]
    pending = None  # the chunk before this one: its metrics are read while the device works on the next

    try:
        with jax.transfer_guard("disallow"):  # nothing crosses between host and device unless it says so
            while True:
                due = step != resumed_at  # what a checkpoint holds was evaluated before it was saved
                selection_accuracy = None
                if due and (step in eval_steps or step in save_steps):
                    tally.add(pending)  # a state is evaluated or saved only after its loss proved finite
                    pending = None

                # 1. evaluate
                if due and step in eval_steps:
                    for split, evaluator in evaluators.items():
                        logbook.evaluation(step, split, evaluator(student_variables(state)))
                        if split == dataset.select_on:
                            selection_accuracy = logbook.lines[-1]["accuracy"]

                # 2. save
                if due and (step in save_steps or (selection_accuracy is not None and selection_accuracy > best)):
                    checkpoints.save(state, step, selection_accuracy)
                best = best if selection_accuracy is None else max(best, selection_accuracy)
                if step == total:
                    break
                if due and (step in eval_steps or step in save_steps):
                    logbook.restart_clock()

                # 3. step
                ends = (boundary for boundary in (*eval_steps, *save_steps) if boundary > step)
                count = min(built.steps_per_call, min(ends) - step)
                state, measured = run_chunk(state, teacher_arrays(step), data.arrays(step), counts[count])

                # 4. log
                tally.add(pending)
                pending = (step, count, measured)
                step += count
        checkpoints.wait()
        done = run_folder.summarize(logbook.lines, select_on=dataset.select_on)
        done |= {
            "seed": built.seed,
            "steps": total,
            "train_examples": num_examples,
            "teacher_accuracy": built.teacher_accuracy,
            "seconds": round(logbook.elapsed, 1),
        }
        run_folder.write_done(workdir, done)
    finally:
        logbook.close()
        checkpoints.close()
    return state


def make_evaluators(built: Built) -> dict[str, Callable[[Any], dict[str, float]]]:
    """``{split: evaluator(student variables) -> results}``: the test set and, if it is another, the selection set."""
    splits = {built.dataset.select_on: built.dataset.selection, "test": built.dataset.test}
    return {
        name: make_evaluator(built.model, split, built.dataset, built.mesh, built.dtype)
        for name, split in splits.items()
    }


def make_evaluator(
    model: Any, split: Split, dataset: Dataset, mesh: Mesh, dtype: Any
) -> Callable[[Any], dict[str, float]]:
    """``evaluator(variables) -> results`` of ``model`` on ``split``: accuracy, top-5, loss, and how many were seen."""
    num_examples, devices, on_all = len(split.labels), mesh.size, replicated(mesh)
    batch_size = math.ceil(min(EVAL_BATCH, num_examples) / devices) * devices
    arrays = put_split(split, on_all)

    def make_batch(arrays, number):
        return eval_batch(
            arrays, number, batch_size=batch_size, mean=dataset.mean, std=dataset.std, pad=dataset.pad, dtype=dtype
        )

    step = jax.jit(make_eval_step(model, make_batch, mesh, dataset.num_classes))
    numbers = [jax.device_put(np.int32(n), on_all) for n in range(eval_batches(num_examples, batch_size))]

    def evaluator(variables):
        states = [jax.device_get(step(variables, arrays, number)) for number in numbers]
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

    def __init__(self, logbook: Logbook, boundaries: set[int]):
        self._logbook, self._boundaries = logbook, boundaries
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, chunk: tuple[int, int, Any] | None) -> None:
        """Adds ``(first step, number of steps, metrics [steps_per_call])``."""
        if chunk is None:
            return
        first, count, measured = chunk
        measured = jax.device_get(measured)
        for i in range(count):
            values = {name: float(column[i]) for name, column in measured.items()}
            if not all(math.isfinite(value) for value in values.values()):
                terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
                raise NonFinite(f"step {first + i} is not finite: {terms}")
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
            self._count += 1
            done = first + i + 1
            if done % LOG_EVERY == 0 or done in self._boundaries:
                self._logbook.train(done, {name: total / self._count for name, total in self._sums.items()})
                self._sums, self._count = {}, 0
