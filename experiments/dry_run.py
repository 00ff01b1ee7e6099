"""Goes through every row without data: its config is checked, its training step traced for abstract inputs.

Rows of the same settings are traced once. ``trace`` compiles nothing, so this is Python's work: processes share it,
each with the rows of one pair of networks at a time, which it traces once for all of them.
"""

import gc
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from experiments import recipes
from experiments.cells import QUOTED, RUN, UNAVAILABLE, Table
from experiments.command_line import hold_no_device
from experiments.recipes import Recipe
from experiments.shared_traces import share_networks
from sdd_jax import build, data


class Row(NamedTuple):
    """Settings that are traced once, and the tables that have them."""

    recipe: Recipe
    preset: str
    tables: tuple[str, ...]


class Traced(NamedTuple):
    """What came of it."""

    row: Row
    seconds: float
    parameters: int
    problem: str  # empty if there is none


def distinct(tables: Iterable[Table], presets: Sequence[str]) -> list[Row]:
    """Every row of ``tables``, and the teachers that they need, each settings once."""
    rows: dict[str, Row] = {}
    for preset in presets:
        for table in tables:
            for cell in table.cells:
                if cell.recipe is None:
                    continue
                teacher = [recipes.teacher_recipe(cell.recipe)] if cell.recipe.teacher != "none" else []
                for recipe in (*teacher, cell.recipe):
                    key = recipes.key(recipes.settings(recipe, preset))
                    row = rows.setdefault(key, Row(recipe, preset, ()))
                    if table.name not in row.tables:
                        rows[key] = row._replace(tables=(*row.tables, table.name))
    return list(rows.values())


def describe(row: Row) -> str:
    """A row in a few words."""
    text = f"{row.recipe.file}:{recipes.argument(row.recipe, row.preset)}"
    changes = recipes.overrides(row.recipe, row.preset)
    return text + "".join(f" {name}={value}" for name, value in changes.items())


def trace_row(row: Row) -> Traced:
    """Traces one row; what is wrong with it is said, not raised."""
    start, parameters, problem = time.perf_counter(), 0, ""
    try:
        settings = recipes.settings(row.recipe, row.preset)
        info = data.describe(settings["data.name"])
        state, metrics = build.trace(settings.nested())
        parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))
        classes = state.params["student"]["head"]["bias"].shape
        if classes != (info.num_classes,):
            raise ValueError(
                f"the student tells {classes} classes apart, {settings['data.name']} has {info.num_classes}"
            )
        if metrics["loss"].shape != ():
            raise ValueError(f"the loss has shape {metrics['loss'].shape}, expected a number")
        if (settings["data.train_examples"] or 0) > info.train_examples:
            raise ValueError(
                f"data.train_examples is {settings['data.train_examples']}, there are {info.train_examples}"
            )
    except Exception as error:  # whatever is wrong with one row, the others are traced as well
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Traced(row, time.perf_counter() - start, parameters, problem)


def by_pair(rows: Iterable[Row]) -> list[list[Row]]:
    """``rows`` by config file, teacher and student."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.recipe.file, row.recipe.teacher, row.recipe.student), []).append(row)
    return list(groups.values())


def trace_pair(rows: Sequence[Row]) -> list[Traced]:
    """Traces ``rows`` one after the other, and forgets what they shared."""
    traced = [trace_row(row) for row in rows]
    jax.clear_caches()
    gc.collect()
    return traced


def run(tables: Sequence[Table], presets: Sequence[str], processes: int, say: Callable[[str], None]) -> bool:
    """Traces the rows of ``tables`` and says what came of each; whether all went well."""
    start = time.perf_counter()
    rows, failed = distinct(tables, presets), 0
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    with ProcessPoolExecutor(processes, context, initializer=_prepare) as pool:
        for traced in itertools.chain.from_iterable(pool.map(trace_pair, by_pair(rows))):
            failed += bool(traced.problem)
            what = traced.problem or f"{traced.parameters:,} parameters"
            where = ", ".join(traced.row.tables)
            say(f"{'FAILED' if traced.problem else 'ok':6} {describe(traced.row)} | {where} | {what}")
    say("")
    for line in counts(tables, presets):
        say(line)
    seconds = time.perf_counter() - start
    say(f"{len(rows)} distinct rows, {failed} failed, presets {' and '.join(presets)}; {seconds:.0f} s")
    return not failed


def _prepare() -> None:
    """Of a process that traces: a trace leaves its garbage in one heap, so it is collected once for each pair."""
    hold_no_device()
    share_networks()
    gc.freeze()
    gc.disable()


def counts(tables: Iterable[Table], presets: Sequence[str]) -> list[str]:
    """A line for each table: how many of its cells are run, quoted, and not available yet."""
    lines = []
    for table in tables:
        number = {status: sum(cell.status == status for cell in table.cells) for status in (RUN, QUOTED, UNAVAILABLE)}
        own = sum(cell.ours for cell in table.cells)
        shape = f"{len(table.rows)} rows x {len(table.columns)} columns"
        ours = f" ({own} of them ours)" if own else ""
        line = f"{table.name}: {shape}: {number[RUN]} run{ours}, {number[QUOTED]} quoted, "
        lines.append(line + f"{number[UNAVAILABLE]} not available yet, {len(distinct([table], presets))} distinct runs")
        reasons = dict.fromkeys(f"{cell.row}: {cell.missing}" for cell in table.cells if cell.status == UNAVAILABLE)
        lines += [f"    not available yet: {reason}" for reason in reasons]
    return lines
