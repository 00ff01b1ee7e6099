"""A table's cells with our runs beside the paper's values: numbers, no layout."""

import itertools
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import cells, recipes, results
from experiments.cells import Cell, Table
from experiments.recipes import PRESETS, RELEASED
from experiments.results import NO_TEACHER, RunKey
from sdd_jax.reporting.measures import Spread, spread

WHICH = ("last", "best")  # of the test split
HELD_OUT = "held_out"  # after the last step, on the split that best is chosen on; lines of before have none
LARGER, WITHIN, TOO_FEW = "larger than its noise", "within noise", "n too small"
CONFIDENCE = 0.95


class Difference(NamedTuple):
    """One mean less another, with its 95 % confidence interval if both sides have several runs."""

    mean: float
    low: float | None
    high: float | None
    verdict: str  # ``LARGER`` if the interval leaves out zero, ``WITHIN`` if not, ``TOO_FEW`` without one


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean of ``first`` less that of ``second``, with the interval of Welch's t."""
    mean = statistics.fmean(first) - statistics.fmean(second)
    if min(len(first), len(second)) < 2:
        return Difference(mean, None, None, TOO_FEW)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():  # SciPy warns of values that are all equal; its interval is right for them too
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), WITHIN if low <= 0 <= high else LARGER)


class Entry(NamedTuple):
    """Runs of a cell that are averaged: one config, one teacher, different seeds."""

    cell: Cell
    preset: str
    key: RunKey | None  # None without runs
    lines: tuple[Mapping[str, Any], ...]  # by seed

    def values(self, measure: str, which: str) -> list[float]:
        """The runs' values in the table's units: percent, or milliseconds."""
        if measure == "ms":
            # A batch whose teacher was read from a cache is no batch of the method that the table times.
            timed = [line for line in self.lines if which == "last" and not line["teacher"].get("cached")]
            rates = [(line["settings"]["batch_size"], line.get("images_per_second")) for line in timed]
            return [1000 * size / rate for size, rate in rates if rate]
        name = {"top1": "accuracy", "top5": "top5"}[measure]
        parts = [line.get(which) or {} for line in self.lines]
        return [100 * part[name] for part in parts if name in part]

    def spread(self, measure: str, which: str) -> Spread | None:
        """Mean, standard deviation and number of the runs, or None."""
        values = self.values(measure, which)
        return spread(values) if values else None

    @property
    def teacher_accuracy(self) -> float | None:
        """Of the teacher that these runs learned from, in percent."""
        measured = [line["teacher"]["accuracy"] for line in self.lines if line["teacher"]["accuracy"] is not None]
        return 100 * measured[0] if measured else None

    def label(self, entries: Iterable["Entry"]) -> str:
        """The row's name, with the preset and the teacher where ``entries`` differ in them."""
        text = self.cell.row if self.preset == RELEASED else f"{self.cell.row} (preset {self.preset})"
        same = [other for other in entries if other.cell == self.cell and other.preset == self.preset]
        return f"{text} (teacher: {self.key.teacher})" if len(same) > 1 and self.key else text


class Comparison(NamedTuple):
    """A row less another of its column."""

    entry: Entry
    base: Entry
    measure: str  # of ``cells.MEASURES``
    paper: float | None  # the paper's difference
    ours: Mapping[str, Difference]  # by "last" and "best", where both sides have runs


class Summary(NamedTuple):
    """What is known of a table."""

    table: Table
    entries: list[Entry]  # in the order of the cells; a cell has one or more
    comparisons: list[Comparison]
    remarks: list[str]

    @property
    def shown(self) -> tuple[str, ...]:
        """The parts of a line that a page shows: of times the first alone, held-out accuracy where any run has it."""
        if self.table.measures == ("ms",):
            return WHICH[:1]
        return (
            (*WHICH, HELD_OUT) if any(line.get(HELD_OUT) for entry in self.entries for line in entry.lines) else WHICH
        )


def summarize(table: Table, lines: Sequence[Mapping[str, Any]], own: Iterable[Mapping[str, Any]]) -> Summary:
    """The summary of ``table`` by the ``lines`` of every table, since a run that two of them share has its line in one.

    ``own`` are those in the file of this table; one that belongs to no cell is named.
    """
    found = results.index(lines)
    groups: dict[RunKey, list[Mapping[str, Any]]] = {}
    for key, seed in sorted(one for one in found if table.counts(one[1])):
        groups.setdefault(key, []).append(found[key, seed])
    entries = [entry for cell in table.cells for entry in _entries(cell, groups)]
    used = {entry.key for entry in entries}
    trained = {recipes.teacher_recipe(cell.recipe) for cell in table.cells if cell.recipe is not None} - {None}
    teachers = {recipes.key(recipes.settings(recipe, RELEASED)) for recipe in trained}
    remarks = [
        f"a line belongs to no row as it is configured now, and is left out: {line['argument']} {line['overrides']}, "
        f"seed {line['seed']}, {line['train_examples']} training images"
        for line in own
        if not ((key := results.run_key(line)) in used and table.counts(line["seed"])) and key.config not in teachers
    ]
    twice = len(lines) - len(found)
    if twice:
        remarks.append(f"{twice} lines tell of a run that another line tells of, and are left out")
    return Summary(table, entries, _comparisons(table, entries), remarks)


def _entries(cell: Cell, groups: Mapping[RunKey, Sequence[Mapping[str, Any]]]) -> list[Entry]:
    """The entries of a cell: one for each preset and teacher with runs; an empty one if there are none."""
    found: dict[RunKey, Entry] = {}
    for preset in PRESETS if cell.recipe is not None else ():
        config = recipes.key(recipes.settings(cell.recipe, preset))
        for key, lines in groups.items():
            if key.config == config:
                found.setdefault(key, Entry(cell, preset, key, tuple(lines)))
    if not any(entry.preset == RELEASED for entry in found.values()):
        return [Entry(cell, RELEASED, None, ()), *found.values()]
    return list(found.values())


def _comparisons(table: Table, entries: list[Entry]) -> list[Comparison]:
    """Every entry less each of its bases, where both have runs or the paper has both values."""
    found = []
    for entry in entries:
        of_column = [base for base in entries if base.cell.column == entry.cell.column]
        bases = [base for name in entry.cell.bases for base in of_column if base.cell.row == name]
        for base, measure in itertools.product(bases, table.measures):
            paper = cells.difference(table, entry.cell, base.cell.row, measure)
            values = {which: (entry.values(measure, which), base.values(measure, which)) for which in WHICH}
            ours = {which: difference(*both) for which, both in values.items() if all(both)}
            if not _comparable(entry, base):
                ours = {}
            empty = RELEASED == entry.preset == base.preset and not (entry.lines and base.lines)
            if ours or (empty and paper is not None):
                found.append(Comparison(entry, base, measure, paper, ours))
    return found


def _comparable(entry: Entry, base: Entry) -> bool:
    """Whether two entries differ by what their rows say: one preset, one teacher, the same images and selection.

    A plain run has no teacher, and is of every preset.
    """
    if entry.key is None or base.key is None:
        return False
    protocols = {(line["train_examples"], line["select_on"]) for line in (*entry.lines, *base.lines)}
    same = base.key.teacher == NO_TEACHER or (base.preset, base.key.teacher) == (entry.preset, entry.key.teacher)
    return same and len(protocols) == 1
