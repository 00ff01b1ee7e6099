"""The training loop, one for every method, network and data set.

The order is fixed: evaluate, save, step, log. A checkpoint of step s therefore holds everything up to s, its evaluation
included, and a run that goes on from it repeats nothing and skips nothing.
"""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sdd_jax import metrics, processes
from sdd_jax.data import AnyDataset, Split, eval_data
from sdd_jax.data.streamed import StreamedSplit
from sdd_jax.mesh import pick, put, replicated
from sdd_jax.processes import Preempted, preemption_requested
from sdd_jax.training import optim
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.logbook import EMA, NonFinite
from sdd_jax.training.programs import Built, Programs
from sdd_jax.training.run_dir import check_processes, owner
from sdd_jax.training.run_writer import RunWriter, Trace
from sdd_jax.training.step import AveragedState, State, make_eval_step, student_variables

EVAL_BATCH = 500


def train(
    built: Built, workdir: str | os.PathLike[str], *, should_stop: Callable[[int], int | None] = preemption_requested
) -> State:
    """Trains what ``built`` describes in ``workdir``, from its newest checkpoint if it has one.

    Args:
      built: what is trained.
      workdir: the run's folder.
      should_stop: called before every chunk with the number of steps done; a signal's number ends the run there.

    Returns:
      The state after the last step. ``workdir/done.json`` holds last and best accuracy.

    Raises:
      ValueError: if ``workdir`` holds a run of another config, another process trains there, or every checkpoint in it
        is damaged.
      NonFinite: names the step, the terms and the examples; the newest checkpoint is from before it.
      Preempted: after ``should_stop`` said so, and all is saved.
      SaveFailed: a checkpoint could not be written; those before it are whole.
    """
    return train_together((built,), (workdir,), should_stop=should_stop)[0]


def train_together(
    runs: Sequence[Built],
    workdirs: Sequence[str | os.PathLike[str]],
    *,
    should_stop: Callable[[int], int | None] = preemption_requested,
) -> list[State]:
    """``train`` for runs that differ in their seed alone, in one program over one data set and one teacher.

    Each leaves what it would leave alone. All go on from one step, the smallest of their newest checkpoints; but one
    after the other if one of them lacks a checkpoint of that step, or if others have passed a due checkpoint since.
    """
    dataset = runs[0].dataset
    if jax.process_count() > 1:
        data = [dataset.about(), *(dataset.identity(split) for split in ("train", "selection", "test"))]
        teacher = [runs[0].teacher.digest, runs[0].teacher.stores]  # of a cache that may lie on each one's own disk
        seeds, configs = [run.seed for run in runs], [owner(run.config) for run in runs]
        check_processes({"config": configs, "seed": seeds, "data": data, "teacher": teacher})
    built, programs = runs[0], Programs(runs)
    num_examples, on_all = len(dataset.train.index), programs.on_all
    total = optim.total_steps(built.epochs, num_examples, built.batch_size)

    def due(every_epochs):  # the steps at the ends of these epochs, and of the run
        epochs = range(every_epochs, built.epochs, every_epochs)
        return frozenset((*(optim.first_step(epoch, num_examples, built.batch_size) for epoch in epochs), total))

    eval_steps, save_steps = due(built.eval_every_epochs), due(built.save_every_epochs)

    with ExitStack() as closing:  # each of these, whatever becomes of the others
        closing.callback(programs.data.close)
        files = [RunWriter(run, Path(workdir)) for run, workdir in zip(runs, workdirs, strict=True)]
        for file in files:
            closing.push(file.close)
            file.open()

        # ---- states: the newest whole checkpoint, else the beginning
        newest = [file.newest() for file in files]
        step = resumed_at = min(newest)
        if len(set(newest)) > 1:  # killed between two seeds' saves: all go back to the older step, if that is all
            between = [save for save in save_steps if step < save < max(newest)]
            if between or any(step and file.checkpoints.newest_whole(step)[0] != step for file in files):
                closing.close()
                pairs = zip(runs, workdirs, strict=True)
                return [train(run, workdir, should_stop=should_stop) for run, workdir in pairs]
        for file in files:
            file.check(step)
        states = programs.stack([file.restore(programs, on_all, step) for file in files])
        for number, file in enumerate(files):
            name = f"seed {runs[number].seed}" if len(runs) > 1 else ""
            file.begin(step, total, {*eval_steps, *save_steps}, name, number == 0)
        splits = {dataset.select_on: dataset.selection, "test": dataset.test}  # one, if the test set selects
        evaluators = {
            name: make_evaluator(built.model, split, dataset, programs.mesh, built.dtype)
            for name, split in splits.items()
        }
        numbers = [put(np.int32(number), on_all) for number in range(max(len(runs), built.steps_per_call + 1))]
        trace = Trace(Path(workdirs[0]), built.profile_steps, files[0].logbook.say)
        closing.callback(trace.close)
        pending = None  # the chunk before this one: its metrics are read while the device works on the next

        def tally(chunk):
            if chunk is not None:
                first, count, measured = chunk
                measured = jax.device_get(measured)
                for number, file in enumerate(files):
                    try:
                        file.logbook.add(first, count, pick(measured, number))
                    except NonFinite as error:
                        with jax.transfer_guard("allow"):
                            raise file.explained(error, programs.data.indices(runs[number].seed, error.step)) from None

        with jax.transfer_guard("disallow"):  # nothing crosses between host and device unless it says so
            while True:
                signal = should_stop(step)
                # What a checkpoint holds was evaluated before it was saved.
                if step != resumed_at and (step in eval_steps or step in save_steps or signal is not None):
                    for file in files:
                        file.checkpoints.wait()  # so that a kill from here on costs what came since the last one
                    tally(pending)  # a state is evaluated or saved only after its loss proved finite
                    pending = None
                    for number, file in enumerate(files):
                        state = programs.pick(states, numbers[number])
                        networks = {"": student_variables(state.params, state.batch_stats)}
                        if isinstance(state, AveragedState):
                            networks[EMA] = state.ema
                        if signal is not None:
                            file.logbook.write_means(step)  # before the clock of images per second starts again

                        # 1. evaluate
                        better = False
                        if step in eval_steps:
                            better = file.evaluated(step, measure(evaluators, networks))

                        # 2. save
                        if step in save_steps or better or signal is not None:
                            file.save(state, step)
                        file.logbook.restart_clock()
                if step == total:
                    break
                if signal is not None:
                    raise Preempted(signal, step)

                # 3. step
                if step == resumed_at:
                    files[0].logbook.say("compiling the training step")
                trace.at(step, states)
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
    return [programs.pick(states, number) for number in numbers[: len(runs)]]


def measure(evaluators: Mapping[str, Callable[[Any], dict[str, Any]]], networks: Mapping[str, Any]) -> dict[str, Any]:
    """The results of each split: of each of ``networks`` with its prefix, and how many examples were seen."""
    found = {}
    for split, evaluator in evaluators.items():
        results = {prefix: evaluator(variables) for prefix, variables in networks.items()}
        seen = results[""].pop("examples")
        found[split] = {f"{prefix}{name}": one[name] for prefix, one in results.items() for name in results[""]}
        found[split]["examples"] = seen
    return found


def make_evaluator(
    model: Any, split: Split | StreamedSplit, dataset: AnyDataset, mesh: Mesh, dtype: Any
) -> Callable[[Any], dict[str, float]]:
    """``evaluator(variables) -> results`` of ``model`` on ``split``: accuracy, top-5, loss, and how many were seen."""
    num_examples = len(split.index)
    batch_size = math.ceil(min(EVAL_BATCH, num_examples) / mesh.size) * mesh.size
    data = eval_data(dataset, split, batch_size=batch_size, mesh=mesh)
    step = make_eval_step(model, data.batch_function(dtype), mesh, dataset.num_classes)
    step = jit_network(step, out_shardings=replicated(mesh))

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
