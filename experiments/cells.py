"""Tables as data: cells with the paper's values, each run by a recipe or quoted."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.recipes import Overrides, Recipe
from sdd_jax import methods

TEACHER, STUDENT = "teacher", "student"
RUN, QUOTED = "run", "quoted"
MEASURES = {"top1": "top-1 %", "top5": "top-5 %", "ms": "ms per batch"}
OURS = "ours, not in the paper: the same base loss on both sides"


class Cell(NamedTuple):
    """One number of a table."""

    row: str  # the method
    column: str  # the pair
    paper: Mapping[str, float] = {}  # the paper's value by measure
    recipe: Recipe | None = None  # how it is run here; None: it is quoted
    bases: tuple[str, ...] = ()  # the rows of this column that it is compared with
    printed: float | None = None  # the difference to the first of these, as the paper prints it beside the value
    recorded: tuple[float, ...] = ()  # repeats that the released shell scripts note beside their command
    ours: bool = False  # whether the paper lacks the row
    note: str = ""

    @property
    def status(self) -> str:
        """``RUN`` or ``QUOTED``."""
        return QUOTED if self.recipe is None else RUN


class Table(NamedTuple):
    """A table. Its rows and columns are in the order of its cells."""

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


class Row(NamedTuple):
    """How the cells of a row are run."""

    method: str
    bases: tuple[str, ...] = ()  # the rows that it is compared with; one that the table lacks is left out
    overrides: Overrides = ()  # beside those of the table
    loss_of: str | None = None  # another method, whose loss replaces that of this one


def known_row(name: str) -> Row | None:
    """The row of a base loss ("DKD") or of its SDD form ("SD-DKD"); None for any other name."""
    plain = name.removeprefix("SD-")
    base = plain.replace("-", "_").lower()
    if base not in methods.BASES:
        return None
    if plain != name:
        return Row(methods.SDD + base, (plain, f"{plain} with {name}'s loss"))
    return Row(base, (plain.removeprefix("LS-") if plain.startswith("LS-") else STUDENT,))


def compare(
    name: str,
    title: str,
    source: str,
    file: str,
    pairs: Mapping[str, tuple[str, str]],
    paper: Mapping[str, tuple],
    *,
    rows: Mapping[str, Row] | None = None,
    printed: Mapping[str, tuple[float, ...]] | None = None,
    recorded: Mapping[str, tuple[tuple[float, ...], ...]] | None = None,
    cell_notes: Mapping[tuple[str, str], str] | None = None,
    overrides: Overrides = (),
    teacher_overrides: Overrides = (),
    measures: tuple[str, ...] = ("top1",),
    notes: tuple[str, ...] = (),
) -> Table:
    """A table of methods for pairs of teacher and student.

    Args:
      name: as the command line has it.
      title: what is compared.
      source: where the values stand.
      file: the config file of every run.
      pairs: column -> (teacher, student).
      paper: row -> a value for each column, or a tuple of them, one for each measure; None where there is none.
      rows: instead of ``known_row``; those that are not in ``paper`` come last, as ours.
      printed: row -> the differences as printed, for each column.
      recorded: row -> the repeats noted in the released scripts, for each column.
      cell_notes: (row, column) -> note.
      overrides: of every run but the teacher's.
      teacher_overrides: of the run that trains the teacher.
      measures: what the numbers of a value measure.
      notes: anything else to know about the table.
    """
    every = {row: known_row(row) for row in paper} | dict(rows or {})
    nothing = (None,) * len(pairs)

    def recipe(row: str, teacher: str, student: str) -> Recipe | None:
        if row == TEACHER:
            return Recipe(file, teacher, overrides=teacher_overrides)
        if row == STUDENT:
            return Recipe(file, student, overrides=overrides)
        how = every[row]
        if how is None:
            return None
        changes = (*overrides, *how.overrides)
        return Recipe(file, student, teacher, how.method, changes, how.loss_of, teacher_overrides)

    def cell(row: str, column: str, value: Any, difference: float | None, repeats: tuple[float, ...] | None) -> Cell:
        values = value if isinstance(value, tuple) else (value,)
        ours = row not in paper
        remarks = [OURS if ours else "", (cell_notes or {}).get((row, column), "")]
        how = every[row]
        return Cell(
            row,
            column,
            {measure: number for measure, number in zip(measures, values, strict=False) if number is not None},
            recipe(row, *pairs[column]),
            tuple(base for base in how.bases if base in every) if how else (),
            difference,
            repeats or (),
            ours,
            "; ".join(filter(None, remarks)),
        )

    cells = []
    for row in every:
        of_row = [(given or {}).get(row, nothing) for given in (paper, printed, recorded)]
        cells += [cell(row, *values) for values in zip(pairs, *of_row, strict=True)]
    return Table(name, title, source, tuple(cells), measures, notes)


def difference(table: Table, cell: Cell, base: str, measure: str) -> float | None:
    """The paper's value of ``cell`` less that of the row ``base``, or None where it lacks one of the two."""
    other = table.find(base, cell.column)
    if other is None or measure not in cell.paper or measure not in other.paper:
        return None
    return round(cell.paper[measure] - other.paper[measure], 2)


def remarks(table: Table, cell: Cell) -> str:
    """A cell's note, repeats that the scripts record, and a printed difference that is not that of the values."""
    parts = [cell.note]
    if cell.recorded:
        parts.append(f"the released scripts record {', '.join(f'{value:.2f}' for value in cell.recorded)}")
    if cell.printed is not None:
        real = difference(table, cell, cell.bases[0], table.measures[0])
        if abs(real - cell.printed) > 0.001:
            parts.append(f"the paper prints {cell.printed:+.2f}, its accuracies differ by {real:+.2f}")
    return "; ".join(part for part in parts if part)
