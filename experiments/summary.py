"""A table's cells with our runs beside the paper's values: numbers, no layout."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from experiments import cells as of_paper
from experiments import recipes, results, spread
from experiments.cells import Cell, Table
from experiments.recipes import PRESETS, RELEASED
from experiments.results import NO_TEACHER, Did
from experiments.spread import Difference, Sample

WHICH = ("last", "best")


class Entry(NamedTuple):
    """Runs of a cell that may be averaged over: one config, one teacher, different seeds.

    Attributes:
      cell: of the table.
      preset: under which it was run.
      did: what was run; None for a cell without runs.
      lines: the result lines, by seed.
    """

    cell: Cell
    preset: str
    did: Did | None
    lines: tuple[Mapping[str, Any], ...]

    def values(self, measure: str, which: str) -> list[float]:
        """The runs' values in the table's units: percent, or milliseconds."""
        if measure == "ms":
            # A batch whose teacher was read from a cache is no batch of the method that the table times.
            timed = [line for line in self.lines if which == "last" and not line["teacher"].get("cached")]
            rates = [(line["settings"]["batch_size"], line.get("images_per_second")) for line in timed]
            return [1000 * size / rate for size, rate in rates if rate]
        name = {"top1": "accuracy", "top5": "top5"}[measure]
        return [100 * line[which][name] for line in self.lines if name in line[which]]

    def sample(self, measure: str, which: str) -> Sample | None:
        """Mean, spread and number of the runs, or None."""
        values = self.values(measure, which)
        return spread.sample(values) if values else None

    @property
    def teacher_accuracy(self) -> float | None:
        """Of the teacher that these runs learned from, in percent."""
        measured = [line["teacher"]["accuracy"] for line in self.lines if line["teacher"]["accuracy"] is not None]
        return 100 * measured[0] if measured else None


class Comparison(NamedTuple):
    """A row held against another of its column.

    Attributes:
      entry: the row.
      base: the other one.
      measure: of ``cells.MEASURES``.
      paper: the paper's difference, or None.
      ours: by "last" and "best", where both sides have runs.
    """

    entry: Entry
    base: Entry
    measure: str
    paper: float | None
    ours: Mapping[str, Difference]


class Summary(NamedTuple):
    """What is known of a table."""

    table: Table
    entries: list[Entry]  # in the order of the cells; a cell has one or more
    comparisons: list[Comparison]
    remarks: list[str]


def summarize(table: Table, lines: Iterable[Mapping[str, Any]], own: Iterable[Mapping[str, Any]]) -> Summary:
    """The summary of ``table``.

    Args:
      table: whose cells they are.
      lines: of every table, since a run that two of them share has its line in one.
      own: those in the file of this table; one that belongs to no cell is named.
    """
    lines = list(lines)
    groups: dict[Did, dict[int, Mapping[str, Any]]] = {}
    for (did, seed), line in results.index(lines).items():
        groups.setdefault(did, {})[seed] = line
    entries = [entry for cell in table.cells for entry in _entries(table, cell, groups)]
    used = {entry.did for entry in entries}
    stray = [line for line in own if results.did(line) not in used]
    needed = _teacher_keys(table)
    remarks = [
        f"a line belongs to no row as it is configured now, and is left out: {line['argument']} {line['overrides']}, "
        f"seed {line['seed']}, {line['train_examples']} training images"
        for line in stray
        if results.did(line).key not in needed
    ]
    twice = len(lines) - len(results.index(lines))
    if twice:
        remarks.append(f"{twice} lines tell of a run that another line tells of, and are left out")
    return Summary(table, entries, _comparisons(table, entries), remarks)


def _entries(table: Table, cell: Cell, groups: Mapping[Did, Mapping[int, Mapping[str, Any]]]) -> list[Entry]:
    """The entries of a cell: one for each preset and teacher with runs; an empty one if there are none."""
    found: dict[Did, Entry] = {}
    for preset in PRESETS if cell.recipe is not None else ():
        key = recipes.key(recipes.settings(cell.recipe, preset))
        for did in sorted(did for did in groups if did.key == key):
            runs = tuple(groups[did][seed] for seed in sorted(groups[did]))
            found.setdefault(did, Entry(cell, preset, did, runs))
    released = [entry for entry in found.values() if entry.preset == RELEASED]
    return [*([] if released else [Entry(cell, RELEASED, None, ())]), *found.values()]


def _teacher_keys(table: Table) -> set[str]:
    """Keys of the runs that train the teachers of a table, which need not be rows of it."""
    taught = (cell.recipe for cell in table.cells if cell.recipe is not None and cell.recipe.teacher != "none")
    return {recipes.key(recipes.settings(recipes.teacher_recipe(recipe), RELEASED)) for recipe in taught}


def _comparisons(table: Table, entries: list[Entry]) -> list[Comparison]:
    """Every entry against its bases: of the same column, preset and teacher."""
    found = []
    for entry in entries:
        for name in entry.cell.bases:
            bases = [e for e in entries if (e.cell.row, e.cell.column) == (name, entry.cell.column)]
            for base in bases:
                for measure in table.measures:
                    paper = of_paper.difference(table, entry.cell, name, measure)
                    ours = _differences(entry, base, measure) if _comparable(entry, base) else {}
                    empty = RELEASED == entry.preset == base.preset and not (entry.lines and base.lines)
                    if ours or (empty and paper is not None):
                        found.append(Comparison(entry, base, measure, paper, ours))
    return found


def _comparable(entry: Entry, base: Entry) -> bool:
    """Whether two entries differ by what their rows say: one preset, one teacher, the same images and selection.

    A plain run has no teacher, and is of every preset.
    """
    if entry.did is None or base.did is None:
        return False
    protocols = {(line["train_examples"], line["select_on"]) for line in (*entry.lines, *base.lines)}
    same = base.did.teacher == NO_TEACHER or (base.preset, base.did.teacher) == (entry.preset, entry.did.teacher)
    return same and len(protocols) == 1


def _differences(entry: Entry, base: Entry, measure: str) -> dict[str, Difference]:
    found = {}
    for which in WHICH:
        first, second = entry.sample(measure, which), base.sample(measure, which)
        if first is not None and second is not None:
            found[which] = spread.difference(first, second)
    return found
