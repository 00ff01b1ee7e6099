"""What a table is: cells with the paper's values, each run by a recipe, quoted, or not available yet."""

from collections.abc import Mapping
from typing import NamedTuple

from experiments.recipes import Recipe

TEACHER, STUDENT = "teacher", "student"
RUN, QUOTED, UNAVAILABLE = "run", "quoted", "not available yet"
MEASURES = {"top1": "top-1 %", "top5": "top-5 %", "ms": "ms per batch"}


class Cell(NamedTuple):
    """One number of a table.

    Attributes:
      row: the method.
      column: the pair.
      paper: the paper's value by measure; empty where it has none.
      recipe: how it is run here; None for a cell that is quoted or not available yet.
      bases: the rows of this column that it is held against.
      printed: the difference to ``bases[0]`` as the paper prints it beside the value.
      recorded: accuracies that the released shell scripts note beside their command, one for each repeat.
      ours: whether the paper lacks the row.
      missing: why it cannot be run yet; makes it "not available yet".
      note: what else there is to know.
    """

    row: str
    column: str
    paper: Mapping[str, float] = {}
    recipe: Recipe | None = None
    bases: tuple[str, ...] = ()
    printed: float | None = None
    recorded: tuple[float, ...] = ()
    ours: bool = False
    missing: str = ""
    note: str = ""

    @property
    def status(self) -> str:
        """``RUN``, ``QUOTED`` or ``UNAVAILABLE``."""
        if self.recipe is not None:
            return RUN
        return UNAVAILABLE if self.missing else QUOTED


class Table(NamedTuple):
    """A table; rows and columns are in the order in which its cells name them."""

    name: str
    title: str
    source: str
    cells: tuple[Cell, ...]
    measures: tuple[str, ...] = ("top1",)
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """Row names in order."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(dict.fromkeys(cell.column for cell in self.cells))

    def find(self, row: str, column: str) -> Cell | None:
        """The cell of a row and a column, or None."""
        return next((cell for cell in self.cells if (cell.row, cell.column) == (row, column)), None)


def difference(table: Table, cell: Cell, base: str, measure: str) -> float | None:
    """The paper's value of ``cell`` less that of the row ``base``, or None where it lacks one of the two."""
    other = table.find(base, cell.column)
    if other is None or measure not in cell.paper or measure not in other.paper:
        return None
    return round(cell.paper[measure] - other.paper[measure], 2)


def remarks(table: Table, cell: Cell) -> str:
    """Everything to be said of a cell: its note, repeats that the scripts record, a printed difference that is off."""
    parts = [cell.missing, cell.note]
    if cell.recorded:
        parts.append(f"the released scripts record {', '.join(f'{value:.2f}' for value in cell.recorded)}")
    if cell.printed is not None:
        real = difference(table, cell, cell.bases[0], table.measures[0])
        if abs(real - cell.printed) > 0.001:
            parts.append(f"the paper prints {cell.printed:+.2f}, its accuracies differ by {real:+.2f}")
    return "; ".join(part for part in parts if part)
