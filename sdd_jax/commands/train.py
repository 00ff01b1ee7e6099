"""Trains what a config describes, or goes on with it.

sdd train --config=quickstart --workdir=runs/quickstart

The same command again goes on where the run was; a finished run says its results. The config file's argument chooses by
name (docs/fields.md has the methods), any field of that page can be overridden:

sdd train --config=cifar100:teacher=resnet32x4,student=resnet8x4,method=sdd_dkd \\
    --config.seed=1 --config.sdd.scales=1,2 --config.teacher.run=runs/resnet32x4 --workdir=runs/a
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from sdd_jax import data, processes, saved
from sdd_jax.build import build_together, check, described
from sdd_jax.config import Settings, reads, refuse_unread
from sdd_jax.data import Skipped
from sdd_jax.training import run_dir
from sdd_jax.training.logbook import NonFinite, whole_epochs
from sdd_jax.training.loop import train_together


def define_flags() -> None:
    """The flags of this command."""
    own = {"lock_config": False, "accept_new_attributes": True}  # `sdd_jax.config` refuses unknown fields
    config_flags.DEFINE_config_file("config", None, "A config file, as FILE.py or FILE.py:ARGUMENT.", **own)
    flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")
    flags.DEFINE_string("coordinator", None, "Of several processes: HOST:PORT where process 0 listens.")
    flags.DEFINE_integer("processes", None, "How many; 1: this one alone. Default: what the environment says.")
    flags.DEFINE_integer("process", None, "Which of them this one is, from 0.")
    flags.DEFINE_float("coordinator_wait", 300.0, "Seconds in which all processes have to come.", lower_bound=1.0)
    flags.mark_flags_as_required(["config", "workdir"])


class Run(NamedTuple):
    """One run of the config."""

    config: dict[str, Any]  # what ``build`` takes
    settings: Settings  # the same, checked
    folder: Path


def main() -> None:
    """Runs the command."""
    given = flags.FLAGS
    processes.join(given.coordinator, given.processes, given.process, wait=given.coordinator_wait)
    groups = list_runs(given.config, Path(given.workdir))
    runs = [run for group in groups for run in group]
    names = sorted({name for run in runs for name in run.settings})
    run_dir.check_processes({name: [run.settings.get(name) for run in runs] for name in names})
    say = partial(print, flush=True) if processes.is_first() else lambda text: None
    check_folders(runs, config_flags.get_override_values(flags.FLAGS["config"]))
    train_groups(groups, say, summary)
    if len(runs) > 1:
        say(table(runs))


def check_folders(runs: list[Run], changed: Iterable[str] = ()) -> None:
    """``ValueError`` if a run's folder holds anything else, or a new run does not read one of the ``changed`` fields.

    These are dotted, as on the command line; of a sequence they begin with ``runs.NAME``. All runs are checked before
    the first one starts.
    """

    def check_one(run):
        run_dir.check_same_config(run.folder, run.settings.nested())
        if not (run.folder / run_dir.CONFIG).is_file():  # one that was begun goes on
            own = tuple(f"runs.{place.name}." for place in (run.folder, run.folder.parent))
            refuse_unread(run.settings, (name.split(".", 2)[2] if name.startswith(own) else name for name in changed))

    for run in runs:
        processes.from_first(partial(check_one, run))


def train_groups(
    groups: list[list[Run]],
    say: Callable[[str], None],
    told: Callable[[dict[str, Any]], str],
    lost: list[list[Run]] | None = None,
    stopping: Callable[[], AbstractContextManager[Callable[[int], int | None]]] = processes.stop_signals,
) -> None:
    """Trains what has not finished of ``groups``, the runs of a group together; ``told`` says the results of one.

    A group with a run that is not finite is added to ``lost``, if that is given, and the others go on. While a group
    trains, what ``stopping()`` gives says whether to stop. A signal that comes before, while data are read, ends the
    process: there is nothing to save.
    """
    runs = [run for group in groups for run in group]
    for group in groups:
        unfinished = [group[number] for number in processes.from_first(partial(_unfinished, group))]
        if unfinished:
            say(reading(unfinished[0].settings))
        built = build_together([run.config for run in unfinished], _skipped(unfinished))
        for run in group:
            if len(runs) > 1:
                say(f"[{1 + runs.index(run)}/{len(runs)}] {run.folder}")
            if run in unfinished:
                say(describe(built[unfinished.index(run)], run.settings))
            else:
                processes.from_first(partial(saved.check_finished, run.folder))
                say(f"{run.folder} has finished")
        try:
            if unfinished:
                with stopping() as should_stop:
                    train_together(built, [run.folder for run in unfinished], should_stop=should_stop)
        except NonFinite as error:
            if lost is None:
                raise
            say(str(error))
            lost.append(group)
            continue
        for run in group:
            name = f"{run.folder}: " if len(group) > 1 else ""
            say(name + told(processes.from_first(partial(saved.read_results, run.folder))))


def _unfinished(group: list[Run]) -> list[int]:
    """Which of these runs have not finished."""
    return [number for number, run in enumerate(group) if not run_dir.is_finished(run.folder, run.settings["epochs"])]


def reading(settings: Settings) -> str:
    """What is about to be read, which may take a while."""
    info = described(settings)
    images = info.train_examples + info.test_examples
    return f"reading {settings['data.name']}" + (f": {images:,} images" if images else "")


def _skipped(runs: list[Run]) -> Skipped | None:
    """The training images that earlier starts of these runs left out; None if there was no such start."""

    def read():
        known = [(run.folder, skipped) for run in runs if (skipped := run_dir.read_skipped(run.folder)) is not None]
        for folder, skipped in known[1:]:
            if not skipped.same(known[0][1]):
                raise ValueError(f"{known[0][0]} and {folder} skip different images: give --workdir another folder")
        return known[0][1].to_json() if known else None

    content = processes.from_first(read)
    return None if content is None else Skipped.from_json(content)


def list_runs(config: ConfigDict, workdir: Path) -> list[list[Run]]:
    """The runs that the config describes, those that differ in their seed alone together.

    That is one; one for each of several ``seeds``; or those of a ``sequence``, the names, in order, of configs in
    ``runs``, where ``teacher.run`` may name an earlier one.
    """
    tree = config.to_dict()
    if "sequence" not in tree:
        return [list_seeds(tree, workdir)]
    names, runs = tree["sequence"], tree.get("runs")
    if tree.keys() != {"sequence", "runs"} or not isinstance(names, tuple | list) or not isinstance(runs, dict):
        raise ValueError(
            f"a config with a sequence holds the runs that it names and nothing else, got {sorted(tree)}: choose one "
            "run in its argument, or say for which one a field is, --config.runs.NAME.FIELD=VALUE"
        )
    if sorted(runs) != sorted(map(str, names)) or not all(isinstance(runs[name], dict) for name in runs):
        raise ValueError(f"sequence must name each of the runs once, and each be a config: got {names}, {sorted(runs)}")
    groups = []
    for name in names:
        single = runs[name]
        if isinstance(teacher := single.get("teacher"), dict) and teacher.get("run") in names:
            teacher["run"] = str(workdir / teacher["run"])
        groups.append(list_seeds(single, workdir / name))
    return groups


def list_seeds(tree: dict[str, Any], workdir: Path, others: Iterable[Path] = ()) -> list[Run]:
    """The run that a config describes, or one for each of several ``seeds``; ``others`` are of the same study."""
    folders = {seed: workdir / f"seed_{seed}" for seed in check(tree)["seeds"]}
    tree = as_begun(tree, [*(folders.values() or [workdir]), *others])
    singles = [(tree | {"seed": seed, "seeds": ()}, folder) for seed, folder in folders.items()]
    return [Run(single, check(single), folder) for single, folder in singles or [(tree, workdir)]]


def as_begun(tree: dict[str, Any], folders: Iterable[Path]) -> dict[str, Any]:
    """``tree`` with what the first begun run decided: where it was begun there may have been another memory."""
    fields = tree.get("data")
    if not isinstance(fields, dict) or fields.get("in_memory") is not None:
        return tree
    for folder in folders:
        if (folder / run_dir.CONFIG).is_file():
            begun = run_dir.flat_fields(run_dir.read_config(folder))
            if all(begun.get(f"data.{name}") == fields.get(name) for name in ("name", "image_size")):
                return tree | {"data": fields | {"in_memory": begun.get("data.in_memory")}}
    return tree


def describe(built: Any, settings: Settings) -> str:
    """What is about to run, in lines of at most 80 characters where names are short."""
    dataset, mesh = built.dataset, built.mesh
    student, method, epochs = settings["model.student"], settings["method"], settings["epochs"]
    teacher = built.teacher.name or settings["model.teacher"]
    what = f"{student} plain" if teacher == "none" else f"{teacher} -> {student} by {method}"
    together = f" in {count} processes" if (count := jax.process_count()) > 1 else ""
    device = f"{mesh.size} x {mesh.devices.flat[0].device_kind}{together}"
    lines = [f"{what} on {dataset.name}, {epochs} epoch{'s' * (epochs > 1)}, seed {built.seed}; {device}"]
    if built.initial is not None:
        lines.append(f"{student} {built.initial.told}")
    if built.teacher_accuracy is not None:
        held = "" if built.teacher_stated is not None else "; no teacher.accuracy to hold it against"
        lines.append(f"teacher: {100 * built.teacher_accuracy:.2f}% on the test set{held}")
    images = f"{len(dataset.train.index)} training images, {len(dataset.test.index)} test images"
    if data.on_disk(settings["data.name"]):  # at the size that the config chose
        height, width, _ = dataset.image_shape
        images += f" of {height}x{width} pixels; stem {settings['model.stem']}"
    lines.append(images)
    if (per_epoch := len(dataset.train.index)) < built.batch_size:
        lines.append(
            f"a batch of {built.batch_size} is more than an epoch: each step shows some of {per_epoch} images again"
        )
    lines += warm_ups(settings)
    held_out = f"{len(dataset.selection.index)} held-out images"
    chosen_on = held_out if settings["data.select_on"] == "validation" else "the test set itself"
    return "\n".join([*lines, f"best epoch chosen on {chosen_on}"])


def warm_ups(settings: Settings) -> list[str]:
    """A line for each warm-up that the run is too short for."""
    names, epochs = ("loss.warmup_epochs", "features.options.warmup_epochs"), settings["epochs"]
    return [
        f"{name} is {settings[name]}, the run has {epochs}: it ends at {epochs / settings[name]:.0%} of its weight"
        for name in names
        if name in reads(settings) and settings[name] > epochs
    ]


def summary(done: dict[str, Any]) -> str:
    """Last and best in one line."""
    last, best = done["last"], done["best"]
    chosen = "chosen on the test set" if done["select_on"] == "test" else "chosen on held-out images"
    count = done["skipped_images"]
    skipped = f"; {count} training image{'' if count == 1 else 's'} skipped" if count else ""
    return (
        f"test accuracy: last {100 * last['accuracy']:.2f}%, best {100 * best['accuracy']:.2f}% "
        f"(epoch {whole_epochs(best['epoch'])}, {chosen}); {done['seconds']:.0f} s{skipped}"
    )


def table(runs: list[Run]) -> str:
    """Finished runs side by side."""
    rows = [["run", "student", "teacher", "images", "last %", "best %", "seconds"]]
    for _, settings, folder in runs:
        done = saved.read_results(folder)
        accuracies = [f"{100 * done[which]['accuracy']:.2f}" for which in ("last", "best")]
        names = [str(folder), settings["model.student"], settings["model.teacher"]]
        rows.append([*names, str(done["train_examples"]), *accuracies, f"{done['seconds']:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<<>>>>", widths, strict=True))
    lines = [form.format(*row) for row in rows]
    return "\n".join(["", lines[0], "-" * len(lines[0]), *lines[1:]])
