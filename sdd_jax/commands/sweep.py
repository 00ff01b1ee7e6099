"""Searches for weights: trains a grid of settings, and says which did best on held-out images.

sdd sweep --config=quickstart:method=sdd_kd --config.teacher.run=runs/quickstart/teacher \\
    --grid=distill_weight=0.3,1,3 --grid=temperature=2,4 --seeds=0,1 --workdir=runs/sweep

Each --grid is a field and its values, by its full name (docs/fields.md) or the end of it, if no other field ends so.
Every combination is trained with every seed, and each is a run's folder below WORKDIR. The same command goes on where
it was, and may ask for more values or seeds; what has finished is not trained again. The teacher is asked once for each
picture that any of the runs will see, and its outputs are kept in WORKDIR/cache, where that is possible.

Chosen is the combination whose accuracy on held-out images is largest after the last epoch, on average over the seeds.
Test images choose nothing: their accuracy is said of the chosen one alone. A combination whose loss is not finite is
given up, the others are trained; the same command tries it again. The table is printed and written to
WORKDIR/sweep.md, and drawn in WORKDIR/sweep.png with matplotlib: pip install -e ".[report]".
"""

import io
import itertools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from sdd_jax import methods, saved
from sdd_jax.build import check, from_disk
from sdd_jax.commands import cache, train
from sdd_jax.config import (
    ENSEMBLE,
    NONE,
    Settings,
    closest,
    mixing,
    named_field,
    option_fields,
    parse_method,
    refuse_unread,
)
from sdd_jax.fields import FIELDS, RUNTIME_FIELDS, Field
from sdd_jax.files import write_whole
from sdd_jax.reporting.measures import Spread, spread
from sdd_jax.training import run_dir
from sdd_jax.training.logbook import read_log

NOT_SWEPT = {"seed", "seeds", "data.select_on", *RUNTIME_FIELDS}
# Fields that change neither what a teacher is asked for nor what it answers.
ONE_CACHE = ("loss.", "optim.", "sdd.c", "sdd.reduction")


def define_flags() -> None:
    """The flags of this command."""
    own = {"lock_config": False, "accept_new_attributes": True}  # `sdd_jax.config` refuses unknown fields
    config_flags.DEFINE_config_file("config", None, "What all runs share, as FILE.py or FILE.py:ARGUMENT.", **own)
    flags.DEFINE_multi_string("grid", None, "A field and its values, FIELD=VALUE,VALUE; once for each field.")
    flags.DEFINE_list("seeds", ["0"], "The seeds of every combination, trained together.")
    flags.DEFINE_string("workdir", None, "The folder of all runs; made if it is not there.")
    stores = (*cache.STORES, NONE)
    flags.DEFINE_enum("store", "float32", stores, "How a teacher's logit is kept; none: every run asks the teacher.")
    flags.mark_flags_as_required(["config", "grid", "workdir"])


class Point(NamedTuple):
    """A combination of the grid."""

    values: dict[str, Any]  # by the field's full name
    runs: list[train.Run]  # by seed

    @property
    def name(self) -> str:
        return ",".join(f"{short(field)}={value}" for field, value in self.values.items())


class Result(NamedTuple):
    """What a point came to, in percent: on held-out images and on test images, after the last epoch."""

    point: Point
    held_out: Spread
    test: Spread
    images: int  # how many are held out


def main() -> None:
    """Runs the command."""
    given, say = flags.FLAGS, partial(print, flush=True)
    try:
        import matplotlib  # noqa: F401  # before any work is done
    except ImportError as error:
        raise ImportError("the plot of a sweep needs matplotlib: pip install -e '.[report]'") from error
    folder, tree = Path(given.workdir), given.config.to_dict()
    if (own := check(tree))["seed"] or own["seeds"]:
        raise ValueError("the seeds of a sweep are given by --seeds, not by the config")
    tree["seeds"] = tuple(_integer(seed) for seed in given.seeds or [""])
    settings = check(tree)
    if settings["data.select_on"] != "validation":
        raise ValueError(
            "a sweep chooses on held-out images, never on the test set: add --config.data.select_on=validation"
        )
    grid = read_grid(given.grid, settings)
    kept = keeps_outputs(settings, list(grid), given.store)
    if kept is None:
        tree["teacher"] = tree["teacher"] | {"cache": str(folder / "cache")}
    points = list_points(grid, tree, folder)
    runs = [run for point in points for run in point.runs]
    say(f"{len(points)} combinations x {len(settings['seeds'])} seeds: {len(runs)} runs in {folder}")
    train.check_folders(runs, config_flags.get_override_values(flags.FLAGS["config"]))
    if kept is not None:
        say(kept)
    elif not all(run_dir.is_finished(run.folder, run.settings["epochs"]) for run in runs):
        cache.fill(check(tree), folder / "cache", given.store)
    not_finite: list[list[train.Run]] = []
    groups = [point.runs for point in points]
    train.train_groups(groups, say, lambda done: f"{done['seconds']:.0f} s", not_finite)
    lost = [point for point in points if point.runs in not_finite]
    if len(lost) == len(points):
        raise ValueError(f"every combination ended in numbers that are not finite: nothing to choose in {folder}")
    results = [measured(point) for point in points if point not in lost]
    lines = table(results, lost)
    say("\n" + "\n".join(lines))
    write_whole(folder / "sweep.md", ("\n".join(["# Sweep", "", *lines]) + "\n").encode())
    draw(results, folder / "sweep.png")
    say(f"{folder / 'sweep.md'}, {folder / 'sweep.png'}")


def short(field: str) -> str:
    """The end of a field's name."""
    return field.rpartition(".")[2]


def read_grid(texts: list[str], settings: Settings) -> dict[str, list[Any]]:
    """The values of every field, from ``FIELD=VALUE,VALUE``; ``ValueError`` says what is wrong with one."""
    known = FIELDS | option_fields(settings, parse_method(settings))
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name and equals and values):
            raise ValueError(f"--grid={text}: expected FIELD=VALUE,VALUE")
        found = [field for field in known if field == name or field.endswith(f".{name}")]
        if len(found) != 1:
            told = f"which of {', '.join(found)}?" if found else f"no field {name!r}{closest(name, known)}"
            raise ValueError(f"--grid={text}: {told}")
        field = found[0]
        with named_field(f"--grid={text}"):
            refuse_unread(settings, [field])
        if field in NOT_SWEPT or known[field].kind is tuple:
            raise ValueError(f"--grid={text}: {field}: it cannot be a sweep's")
        if any(short(other) == short(field) for other in grid):
            raise ValueError(f"--grid={text}: {short(field)} is there twice")
        grid[field] = [_value(one, known[field], text) for one in values.split(",")]
        if len(set(grid[field])) != len(grid[field]):
            raise ValueError(f"--grid={text}: a value is there twice")
    return grid


def _value(text: str, field: Field, where: str) -> Any:
    """A value as its field's kind; what it may hold is checked with the config."""
    if field.optional and text == NONE:
        return None
    try:
        value = {"True": True, "False": False}[text] if field.kind is bool else field.kind(text)
    except (ValueError, KeyError):
        kinds = {int: "integers", float: "numbers", bool: "True or False"}
        raise ValueError(f"--grid={where}: expected {kinds[field.kind]}, got {text!r}") from None
    if isinstance(value, str) and "/" in value:
        raise ValueError(f"--grid={where}: a value becomes part of a folder's name, and cannot hold '/'")
    return value


def _integer(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"--seeds: expected integers such as 0,1,2, got {text!r}")
    return int(text)


def list_points(grid: dict[str, list[Any]], tree: dict[str, Any], folder: Path) -> list[Point]:
    """Every combination, the last field's values next to each other, each config checked."""
    points, begun = [], sorted(folder.glob("*/seed_*"))
    for values in itertools.product(*grid.values()):
        chosen, own = dict(zip(grid, values, strict=True)), tree
        for field, value in chosen.items():
            own = _with(own, field.split("."), value)
        point = Point(chosen, [])
        points.append(point._replace(runs=train.list_seeds(own, folder / point.name, begun)))
    return points


def _with(tree: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """``tree`` with one leaf replaced."""
    first, *rest = path
    return tree | {first: _with(tree.get(first, {}), rest, value) if rest else value}


def keeps_outputs(settings: Settings, fields: list[str], store: str) -> str | None:
    """Why the teacher's outputs are not to be kept for all runs, or None if they are."""
    if settings["model.teacher"] == "none":
        return "there is no teacher"
    if settings["teacher.cache"] is not None:
        return f"the teacher's outputs are those in {settings['teacher.cache']}"
    if settings["model.teacher"] == ENSEMBLE:
        return "several teachers: fill a cache of each, and name them as teacher.cache"
    others = [field for field in fields if not field.startswith(ONE_CACHE)]
    features = parse_method(settings).features
    if from_disk(settings):
        reason = f"{settings['data.name']} is read from disk: the cache command fills one, for teacher.cache"
    elif store == NONE:
        reason = "--store=none"
    elif mixing(settings):
        reason = "images are mixed, and a cache holds what is said of single ones"
    elif features is not None:
        reason = f"{methods.PLUS}{features} reads feature maps, which no cache holds"
    elif others:
        reason = f"what it is asked for differs with {', '.join(others)}"
    else:
        return None
    return f"every run asks the teacher itself: {reason}"


def measured(point: Point) -> Result:
    """The accuracies of a point's finished runs."""
    held_out, test, images = [], [], 0
    for run in point.runs:
        done = saved.read_results(run.folder)
        lines = [line for line in read_log(run.folder, done) if line.get("split") == "validation"]
        held_out.append(100 * lines[-1]["accuracy"])
        images = lines[-1]["examples"]
        test.append(100 * done["last"]["accuracy"])
    return Result(point, spread(held_out), spread(test), images)


def best(results: list[Result]) -> Result:
    """The one with the largest mean on held-out images; of equal ones the first."""
    return max(results, key=lambda result: result.held_out.mean)


def table(results: list[Result], lost: Sequence[Point] = ()) -> list[str]:
    """Lines of Markdown: every point, those ``lost`` last, which one is chosen, and how sure that is."""
    chosen = best(results)
    rows = [[*map(short, chosen.point.values), "held-out images, %", "runs", ""]]
    for result in results:
        told = [*map(typed, result.point.values.values()), result.held_out.text(), str(result.held_out.n)]
        rows.append([*told, "chosen" if result is chosen else ""])
    rows += [[*map(typed, point.values.values()), "not finite", str(len(point.runs)), ""] for point in lost]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in cells]
    images, share = chosen.images, chosen.held_out.mean / 100
    error = 100 * math.sqrt(share * (1 - share) / images)
    near = sum(result.held_out.mean >= chosen.held_out.mean - error for result in results) - 1
    fields = " ".join(f"--config.{field}={typed(value)}" for field, value in chosen.point.values.items())
    return [
        *lines,
        "",
        f"Chosen on {images} held-out images after the last epoch: {fields}",
        f"Test accuracy of its runs: {chosen.test.text()} %",
        f"One accuracy on {images} images has a standard error of {error:.2f} points: {near} of the other "
        f"{len(results) - 1} combinations lie within that of the chosen one.",
    ]


def typed(value: Any) -> str:
    """A field's value as it is typed."""
    return NONE if value is None else str(value)


def draw(results: list[Result], path: Path) -> None:
    """Writes the picture: accuracy over the first field's values, a line for each combination of the others."""
    from matplotlib.figure import Figure

    first, *others = results[0].point.values
    places = list(dict.fromkeys(result.point.values[first] for result in results))
    lines: dict[str, list[Result]] = {}
    for result in results:
        label = ", ".join(f"{short(field)} {result.point.values[field]}" for field in others)
        lines.setdefault(label, []).append(result)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (label, members) in enumerate(lines.items()):
        shift = 0.06 * (number - (len(lines) - 1) / 2)  # so that bars do not lie on each other
        x = [places.index(member.point.values[first]) + shift for member in members]
        means, sds = [one.held_out.mean for one in members], [one.held_out.sd or 0.0 for one in members]
        axes.errorbar(x, means, yerr=sds, marker="osD^vP*X"[number % 8], capsize=3, label=label)
        if (chosen := best(results)) in members:
            place = x[members.index(chosen)], chosen.held_out.mean
            axes.plot(*place, "o", markersize=15, markerfacecolor="none", markeredgecolor="black")
    axes.set_xticks(range(len(places)), [str(value) for value in places])
    axes.set_xlabel(first)
    axes.set_ylabel(f"accuracy on {results[0].images} held-out images, %")
    bars = "\nbars: one standard deviation over seeds" if results[0].held_out.n > 1 else ""
    axes.set_title(f"After the last epoch; the chosen one is ringed{bars}", fontsize=10)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    if others:
        axes.legend(fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130)
    write_whole(path, buffer.getvalue())
