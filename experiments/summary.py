"""A table's cells with our runs beside the paper's values: numbers, no layout."""

import functools
import itertools
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import cells, recipes, results
from experiments.cells import Cell, Table
from experiments.recipes import PRESETS, RELEASED
from experiments.results import NO_TEACHER, RunKey
from sdd_jax.reporting.measures import Spread, spread
from sdd_jax.training.teacher_cache import EXACT

WHICH = ("last", "best")  # of the test split
HELD_OUT = "held_out"  # after the last step, on the split that best is chosen on; lines of before have none
LARGER, NOT_SHOWN = "larger than its noise", "not shown"
EXPLORATORY, UNTESTED = "exploratory", "cannot be tested"
CONFIDENCE, LEVEL = 0.95, 0.05


class Estimate(NamedTuple):
    """A difference of means by a t test. There is no interval where values are too few, or have no spread at all."""

    mean: float | None = None  # None without values
    low: float | None = None
    high: float | None = None
    p: float | None = None  # two-sided


class Difference(NamedTuple):
    """One row less another. Runs of one seed share initial weights and the order of the data: they are pairs."""

    pairs: int  # seeds that both rows have
    paired: Estimate  # over these
    welch: Estimate  # over all runs, as if there were no pairs
    corrected: float | None = None  # the paired p value, corrected over its family; None without one or outside of it

    @property
    def verdict(self) -> str:
        """What may be said of it; ``NOT_SHOWN`` does not say that the rows are equal."""
        if self.paired.p is None:
            return UNTESTED
        if self.corrected is None:
            return EXPLORATORY
        return LARGER if self.corrected < LEVEL else NOT_SHOWN


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Of the values of two rows by seed."""
    from scipy.stats import ttest_ind, ttest_rel

    seeds = [seed for seed in first if seed in second]
    paired = _estimate(ttest_rel, [first[seed] for seed in seeds], [second[seed] for seed in seeds])
    welch = _estimate(functools.partial(ttest_ind, equal_var=False), [*first.values()], [*second.values()])
    return Difference(len(seeds), paired, welch)


def _estimate(test: Callable[..., Any], first: Sequence[float], second: Sequence[float]) -> Estimate:
    if not first:
        return Estimate()
    mean = statistics.fmean(first) - statistics.fmean(second)
    with warnings.catch_warnings():  # SciPy warns of too few values, and of those that are all equal
        warnings.simplefilter("ignore", RuntimeWarning)
        result = test(first, second)
        low, high = map(float, result.confidence_interval(CONFIDENCE))
    # Of one value the interval is NaN; of equal values it has no width, but for what rounding leaves.
    return Estimate(mean, low, high, float(result.pvalue)) if high - low > 1e-9 else Estimate(mean)


def holm(values: Sequence[float], size: int) -> list[float]:
    """P values corrected by Holm's method over a family of ``size`` tests; those that have no value yet count as 1.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure" (1979). The smallest is multiplied by
    ``size``, the next by one less, and so on; none is below the one before it, or above 1.
    """
    corrected, largest = list(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        corrected[place] = largest = max(largest, min((size - rank) * values[place], 1.0))
    return corrected


class Group(NamedTuple):
    """What runs that are averaged share."""

    key: RunKey
    teacher_accuracy: float | None  # 0 to 1: one that was trained again is another teacher
    store: str | None  # of a cache that changes what the teacher says; None of those in ``EXACT``
    train_examples: int | None  # as they were: of a set on disk the config does not say
    select_on: str
    device: str | None  # in a table of times

    @classmethod
    def of(cls, line: Mapping[str, Any], table: Table) -> "Group":
        """That of a line in a table."""
        store = line["teacher"].get("store")
        taught = line["teacher"]["accuracy"], None if store in EXACT else store
        device = line["device"] if table.measures == ("ms",) else None
        return cls(results.run_key(line), *taught, line["train_examples"], line["select_on"], device)


class Entry(NamedTuple):
    """Runs of a cell that are averaged: one config, one teacher, the same images, different seeds."""

    cell: Cell
    preset: str
    group: Group | None  # None without runs
    lines: tuple[Mapping[str, Any], ...]  # by seed

    def values(self, measure: str, which: str) -> dict[int, float]:
        """The runs' values by seed, in the table's units: percent, or milliseconds."""
        if measure == "ms":
            # A batch whose teacher was read from a cache is no batch of the method that the table times.
            timed = [line for line in self.lines if which == "last" and not line["teacher"].get("cached")]
            rates = {line["seed"]: line.get("images_per_second") for line in timed}
            sizes = {line["seed"]: line["settings"]["batch_size"] for line in timed}
            return {seed: 1000 * sizes[seed] / rate for seed, rate in rates.items() if rate}
        name = {"top1": "accuracy", "top5": "top5"}[measure]
        parts = {line["seed"]: line.get(which) or {} for line in self.lines}
        return {seed: 100 * part[name] for seed, part in parts.items() if name in part}

    def spread(self, measure: str, which: str) -> Spread | None:
        """Mean, standard deviation and number of the runs, or None."""
        values = self.values(measure, which)
        return spread([*values.values()]) if values else None

    @property
    def teacher_accuracy(self) -> float | None:
        """Of the teacher that these runs learned from, in percent."""
        measured = None if self.group is None else self.group.teacher_accuracy
        return None if measured is None else 100 * measured

    def label(self, entries: Iterable["Entry"]) -> str:
        """The row's name, with the preset, the teacher and the images where ``entries`` differ in them."""
        text = self.cell.row if self.preset == RELEASED else f"{self.cell.row} (preset {self.preset})"
        twins = [other.group for other in entries if (other.cell, other.preset) == (self.cell, self.preset)]
        if self.group is None or len(twins) == 1:
            return text

        def said(group: Group) -> tuple[str, ...]:
            accuracy = "unknown accuracy" if group.teacher_accuracy is None else f"{100 * group.teacher_accuracy:.6g} %"
            teacher, kept = f"a teacher of {accuracy}", f"a cache of {group.store}" if group.store else "no such cache"
            images = f"{group.train_examples} training images"
            return f"teacher: {group.key.teacher}", teacher, kept, images, str(group.device)

        told = zip(said(self.group), *(said(twin) for twin in twins if twin), strict=True)
        parts = [own for own, *all_of_them in told if len(set(all_of_them)) > 1]
        return f"{text} ({', '.join(parts)})" if parts else text


class Comparison(NamedTuple):
    """A row less another of its column."""

    entry: Entry
    base: Entry
    measure: str  # of ``cells.MEASURES``
    paper: float | None  # the paper's difference
    ours: dict[str, Difference]  # by "last" and "best", where both sides have runs

    @property
    def name(self) -> tuple[str, str, str]:
        """As in the family of a table."""
        return self.entry.cell.column, self.entry.cell.row, self.base.cell.row


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
        held_out = any(line.get(HELD_OUT) for entry in self.entries for line in entry.lines)
        return (*WHICH, HELD_OUT) if held_out else WHICH


def summarize(table: Table, lines: Sequence[Mapping[str, Any]], own: Iterable[Mapping[str, Any]]) -> Summary:
    """The summary of ``table`` by the ``lines`` of every table, since a run that two of them share has its line in one.

    ``own`` are those in the file of this table; one that belongs to no cell is named.
    """
    found = results.index(lines)
    groups: dict[Group, list[Mapping[str, Any]]] = {}
    for key, seed in sorted(one for one in found if table.counts(one[1])):
        groups.setdefault(Group.of(found[key, seed], table), []).append(found[key, seed])
    entries = [entry for cell in table.cells for entry in _entries(cell, groups)]
    used = {entry.group.key for entry in entries if entry.group}
    trained = {recipes.teacher_recipe(cell.recipe) for cell in table.cells if cell.recipe is not None} - {None}
    teachers = {recipes.key(recipes.settings(recipe, RELEASED)) for recipe in trained}
    remarks = [
        f"a line belongs to no row as it is configured now, and is left out: {line['argument']} {line['overrides']}, "
        f"seed {line['seed']}, {line['train_examples']} training images"
        for line in own
        if not ((key := results.run_key(line)) in used and table.counts(line["seed"])) and key.config not in teachers
    ]
    twice = sum(results.run_key(line) in used for line in lines) - sum(key in used for key, _ in found)
    if twice:
        remarks.append(f"{twice} lines tell of a run that another line tells of, and are left out")
    return Summary(table, entries, _comparisons(table, entries), remarks + _apart(entries))


def _entries(cell: Cell, groups: Mapping[Group, Sequence[Mapping[str, Any]]]) -> list[Entry]:
    """The entries of a cell: one for each preset and group with runs; an empty one if there are none."""
    found: dict[Group, Entry] = {}
    for preset in PRESETS if cell.recipe is not None else ():
        config = recipes.key(recipes.settings(cell.recipe, preset))
        for group, lines in groups.items():
            if group.key.config == config:
                found.setdefault(group, Entry(cell, preset, group, tuple(lines)))
    if not any(entry.preset == RELEASED for entry in found.values()):
        return [Entry(cell, RELEASED, None, ()), *found.values()]
    return list(found.values())


def _comparisons(table: Table, entries: list[Entry]) -> list[Comparison]:
    """Every entry less each of its bases, where both have runs, it was declared, or the paper has both values."""
    found = []
    for (entry, base), measure in itertools.product(_pairs(entries), table.measures):
        paper = cells.difference(table, entry.cell, base.cell.row, measure)
        values = {which: (entry.values(measure, which), base.values(measure, which)) for which in WHICH}
        ours = {which: difference(*both) for which, both in values.items() if all(both)}
        if not (_of_one_teacher(entry, base) and _on_one_set(entry, base)):
            ours = {}
        empty = RELEASED == entry.preset == base.preset and not (entry.lines and base.lines)
        one = Comparison(entry, base, measure, paper, ours)
        declared = table.declared is not None and one.name in table.family
        if ours or (empty and (declared or paper is not None)):
            found.append(one)
    _correct(table, found)
    return found


def _pairs(entries: list[Entry]) -> list[tuple[Entry, Entry]]:
    """Every entry with each entry of a row that it is held against."""
    return [
        (entry, base)
        for entry in entries
        for name in entry.cell.bases
        for base in entries
        if (base.cell.column, base.cell.row) == (entry.cell.column, name)
    ]


def _apart(entries: list[Entry]) -> list[str]:
    """What is said of pairs that differ in their images, and of rows that no row of the same teacher stands beside."""
    pairs = [(entry, base) for entry, base in _pairs(entries) if entry.group and base.group]
    beside = {(id(entry), base.cell.row) for entry, base in pairs if _of_one_teacher(entry, base)}
    alone = dict.fromkeys(
        f"{entry.cell.column}: {entry.label(entries)} is not compared with {base.cell.row}: that has another "
        f"{'device or ' if base.group and base.group.device else ''}teacher"
        for entry, base in pairs
        if entry.preset == base.preset and (id(entry), base.cell.row) not in beside
    )
    return [*alone] + [
        f"{entry.cell.column}: {entry.label(entries)} and {base.label(entries)} are not compared: "
        f"{entry.group.train_examples} and {base.group.train_examples} training images, best chosen on "
        f"{entry.group.select_on} and {base.group.select_on}"
        for entry, base in pairs
        if entry.group and base.group and _of_one_teacher(entry, base) and not _on_one_set(entry, base)
    ]


def _correct(table: Table, comparisons: Iterable[Comparison]) -> None:
    """Corrects p values, one family at a time: the table's declared differences, by one measure, of last or of best."""
    declared = [one for one in comparisons if one.name in table.family]
    for measure, which in itertools.product(table.measures, WHICH):
        family = [one for one in declared if one.measure == measure and which in one.ours]
        tested = [one for one in family if one.ours[which].paired.p is not None]
        # One test for each preset and teacher that there are runs of, and one for each difference without any.
        size = len(tested) + len(table.family - {one.name for one in tested})
        corrected = holm([one.ours[which].paired.p for one in tested], size)
        for one, value in zip(tested, corrected, strict=True):
            one.ours[which] = one.ours[which]._replace(corrected=value)


def _of_one_teacher(entry: Entry, base: Entry) -> bool:
    """Whether two entries have runs of one preset and one teacher. A plain run has none, and is of every preset."""
    if entry.group is None or base.group is None:
        return False

    def taught(one: Entry, group: Group) -> tuple[Any, ...]:
        return one.preset, group.key.teacher, group.teacher_accuracy, group.store, group.device

    return base.group.key.teacher == NO_TEACHER or taught(base, base.group) == taught(entry, entry.group)


def _on_one_set(entry: Entry, base: Entry) -> bool:
    """Whether two entries with runs have the same images, and chose their best epoch on the same ones."""
    if entry.group is None or base.group is None:
        return False
    images = [(group.train_examples, group.select_on) for group in (entry.group, base.group)]
    return images[0] == images[1]
