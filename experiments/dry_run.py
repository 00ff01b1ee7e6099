"""Checks the config of every row without data, and traces training steps until each shape and each loss is tried.

A check makes a row's networks and its objective. What can still fail in its step are shapes. They follow from networks,
images, regions of the maps and features that are read: not from numbers such as temperatures and rates, and not from
which base loss takes the logits. So a row is traced if no row before it has its shapes, or none has its loss: each pair
of networks is traced with each way to divide their maps, and each loss with one pair. The others rely on these.
"""

import multiprocessing
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import jax

from experiments import recipes
from experiments.cells import QUOTED, Cell, Table
from experiments.command_line import hold_no_device
from experiments.recipes import Recipe
from sdd_jax import build_shapes, data, methods
from sdd_jax.config import Settings

SHAPES = ("model.", "data.", "batch_size", "sdd.scales", "sdd.pooling")  # how the names of these fields begin
LOSS = ("method", "loss.", "sdd.")


class Row(NamedTuple):
    """Settings, and the tables that have them."""

    recipe: Recipe
    preset: str
    tables: tuple[str, ...]

    @property
    def settings(self) -> Settings:
        """The checked config."""
        return recipes.settings(self.recipe, self.preset)

    def __str__(self) -> str:
        changes = recipes.overrides(self.recipe, self.preset)
        text = f"{self.recipe.file}:{recipes.argument(self.recipe, self.preset)}"
        return " ".join([text, *(f"{name}={value}" for name, value in changes.items())])


def distinct(cells: Sequence[tuple[Table, Cell]], presets: Sequence[str]) -> list[Row]:
    """The rows of ``cells``, and the teachers that they need, each settings once."""
    found: dict[str, tuple[Recipe, str, dict[str, None]]] = {}
    for preset in presets:
        for table, cell in cells:
            for recipe in filter(None, (recipes.teacher_recipe(cell.recipe), cell.recipe)):
                key = recipes.key(recipes.settings(recipe, preset))
                found.setdefault(key, (recipe, preset, {}))[2][table.name] = None
    return [Row(recipe, preset, tuple(tables)) for recipe, preset, tables in found.values()]


def shapes_and_loss(row: Row) -> tuple[Hashable, Hashable]:
    """What decides the shapes in a row's step, and what its loss is without its numbers."""
    read = recipes.identity(row.settings)
    shapes = tuple(f"{name}={value}" for name, value in read.items() if name.startswith(SHAPES))
    loss = tuple(f"{name}={value}" for name, value in read.items() if name.startswith(LOSS) and isinstance(value, str))
    return (*shapes, methods.parse(read["method"]).features), loss


def firsts(rows: Iterable[Row]) -> dict[Hashable, Row]:
    """The first row of each shapes and of each loss: these are traced, the others rely on them."""
    found: dict[Hashable, Row] = {}
    for row in rows:
        for part in shapes_and_loss(row):
            found.setdefault(part, row)
    return found


def trace(row: Row) -> tuple[int, str]:
    """Traces a row's training step: the number of parameters, and what is wrong with the row, or an empty text."""
    try:
        state, _ = build_shapes.trace(row.settings.nested())
        return sum(leaf.size for leaf in jax.tree.leaves(state.params)), ""
    except Exception as error:  # the other rows are traced as well
        return 0, f"{type(error).__name__}: {' '.join(str(error).split())}"


def run(
    tables: Sequence[Table],
    cells: Sequence[tuple[Table, Cell]],
    presets: Sequence[str],
    processes: int,
    say: Callable[[str], None],
) -> bool:
    """Checks the rows of ``cells``, which are of ``tables``, and says what came of each; whether all went well."""
    start = time.perf_counter()
    rows, failed = distinct(cells, presets), 0
    first = firsts(rows)
    chosen = [row for row in rows if row in first.values()]
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    with ProcessPoolExecutor(processes, context, initializer=hold_no_device) as pool:
        results = pool.map(trace, chosen)
        traced: dict[Row, tuple[int, str]] = {}
        for row in rows:
            if row in chosen:
                traced[row] = next(results)
            (parameters, of_shapes), (_, of_loss) = (traced[first[part]] for part in shapes_and_loss(row))
            wanted = row.settings["data.train_examples"] or 0
            of_set = {name: row.settings[f"data.{name}"] for name in ("name", "num_classes")}
            there = data.describe(**of_set).train_examples
            few = f"data.train_examples is {wanted}, there are {there}" if wanted > there else ""
            problem = few or of_shapes or of_loss
            failed += bool(problem)
            what = problem or f"{parameters:,} parameters"
            say(f"{'FAILED' if problem else 'ok':6} {row} | {', '.join(row.tables)} | {what}")
    say("")
    for table in tables:
        of_table = [(table, cell) for other, cell in cells if other is table]
        if of_table:
            ours = sum(cell.ours for _, cell in of_table)
            quoted = sum(cell.status == QUOTED for cell in table.cells)
            counts = f"{len(of_table)} run" + (f" ({ours} of them ours)" if ours else "") + f", {quoted} quoted"
            shape = f"{len(table.rows)} rows x {len(table.columns)} columns"
            say(f"{table.name}: {shape}: {counts}, {len(distinct(of_table, presets))} distinct runs")
    say(
        f"{len(rows)} distinct rows, {len(chosen)} traced, {failed} failed, presets {' and '.join(presets)}; "
        f"{time.perf_counter() - start:.0f} s"
    )
    return not failed
