"""Checks the config of every row without data, and traces training steps until everything that has shapes is tried.

A check makes a row's networks and its objective. What can still fail in its step are shapes. They follow from three
parts of a row: its networks with their images and the features that are read, how maps are divided into regions, and
the loss. Numbers such as temperatures and rates have no shape. So a row is traced if one of its parts was in no row
before. The others rely on these.
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

NETWORKS = ("model.", "data.", "batch_size")  # how the names of these fields begin
REGIONS = ("sdd.scales", "sdd.pooling")
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
    """The rows of ``cells``, and the teachers that they need, each settings once; first those with most to try."""
    found: dict[str, tuple[Recipe, str, dict[str, None]]] = {}
    for preset in presets:
        for table, cell in cells:
            for recipe in filter(None, (recipes.teacher_recipe(cell.recipe), cell.recipe)):
                key = recipes.key(recipes.settings(recipe, preset))
                found.setdefault(key, (recipe, preset, {}))[2][table.name] = None
    rows = [Row(recipe, preset, tuple(tables)) for recipe, preset, tables in found.values()]
    return sorted(rows, key=lambda row: not row.recipe.method.startswith(methods.SDD))


def parts(row: Row) -> tuple[Hashable, Hashable, Hashable]:
    """What decides the shapes in a row's step: networks with features, regions, and the loss without its numbers."""
    read = recipes.identity(row.settings)

    def fields(starts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{name}={value}" for name, value in read.items() if name.startswith(starts))

    loss = tuple(f"{name}={value}" for name, value in read.items() if name.startswith(LOSS) and isinstance(value, str))
    return ("networks", *fields(NETWORKS), methods.parse(read["method"]).features), fields(REGIONS), ("loss", *loss)


def firsts(rows: Iterable[Row]) -> dict[Hashable, Row]:
    """The first row of each part: these are traced, the others rely on them."""
    found: dict[Hashable, Row] = {}
    for row in rows:
        for part in parts(row):
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
            tried = [traced[first[part]] for part in parts(row)]
            wanted = row.settings["data.train_examples"] or 0
            of_set = {name: row.settings[f"data.{name}"] for name in ("name", "num_classes")}
            there = data.describe(**of_set).train_examples
            few = f"data.train_examples is {wanted}, there are {there}" if wanted > there else ""
            problem = next(filter(None, [few, *(text for _, text in tried)]), "")
            failed += bool(problem)
            what = problem or f"{tried[0][0]:,} parameters"
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
