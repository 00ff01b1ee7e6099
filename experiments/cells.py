"""Tables as data: cells with the paper's values, each run by a recipe or quoted."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.recipes import Overrides, Recipe
from sdd_jax import methods

TEACHER, STUDENT = "teacher", "student"
RUN, QUOTED = "run", "quoted"
MEASURES = {"top1": "top-1 %", "top5": "top-5 %", "ms": "ms per batch"}
FAMILIES = {"RN": "resnet", "WRN": "wrn_", "VGG": "vgg", "MobileNetV": "mobilenet_v", "ShuffleNetV": "shufflenet_v"}
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
    tuning_seed: int | None = None  # of the runs that chose settings: they count in tables that tune, and in no other
    tunes: bool = False
    declared: tuple[tuple[str, str], ...] | None = None  # the rows and bases that the table is about; None: all

    @property
    def family(self) -> set[tuple[str, str, str]]:
        """Column, row and base of each declared difference, whether it has results or not."""
        every = {(cell.column, cell.row, base) for cell in self.cells for base in cell.bases}
        return {one for one in every if self.declared is None or one[1:] in self.declared}

    def counts(self, seed: int) -> bool:
        """Whether runs with this seed belong to the table."""
        return self.tuning_seed is None or (seed == self.tuning_seed) == self.tunes

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


def known(*names: str) -> dict[str, Row | None]:
    """The rows of these names; None is a row that is quoted, or that of a teacher or a student."""
    return {name: _known(name) for name in names}


def _known(name: str) -> Row | None:
    """The row of a base loss ("DKD") or of its SDD form ("SD-DKD"), also with the numbers of the other one's loss."""
    own, _, other = name.removesuffix("'s loss").partition(" with ")
    plain = own.removeprefix("SD-")
    base = plain.replace("-", "_").lower()
    if base not in methods.BASES:
        return None
    loss_of = {plain: base, f"SD-{plain}": methods.SDD + base}[other] if other else None
    if own == plain:
        return Row(base, (plain.removeprefix("LS-") if plain.startswith("LS-") else STUDENT,), loss_of=loss_of)
    return Row(methods.SDD + base, (plain,) if other else (plain, f"{plain} with {own}'s loss"), loss_of=loss_of)


def compare(
    name: str,
    title: str,
    text: str,
    *,
    source: str,
    file: str = "cifar100",
    rows: Mapping[str, Row | None] | None = None,
    cell_notes: Mapping[str, str] | None = None,
    overrides: Overrides = (),
    teacher_overrides: Overrides = (),
    measures: tuple[str, ...] = ("top1",),
    **of_table: Any,
) -> Table:
    """A table of methods for pairs of teacher and student.

    Args:
      text: the values, as ``read_rows`` and ``_numbers`` read them; the row "row" has the pairs ("RN32x4 -> RN8x4").
        A method of the paper is not run where the paper has "-".
      file: the config file of every run.
      rows: instead of those of ``known``; rows that are not in ``text`` come last.
      cell_notes: by the letter that the cell has.
      overrides: of every run but the teacher's.
      teacher_overrides: of the run that trains the teacher.
      of_table: further fields of the table.
    """
    texts = read_rows(text)
    columns = texts.pop("row")
    every = known(*texts) | dict(rows or {})
    cells = []
    for row, how in every.items():
        for column, of_cell in zip(columns, texts.get(row, [""] * len(columns)), strict=True):
            teacher, student = map(network, column.split(" -> "))
            recipe, bases, ours = None, (), False
            if row == TEACHER:
                recipe = Recipe(file, teacher, overrides=teacher_overrides)
            elif row == STUDENT:
                recipe = Recipe(file, student, overrides=overrides)
            elif how is not None and (how.loss_of is not None or of_cell.partition(" ")[0] != "-"):
                changes = (*overrides, *how.overrides)
                recipe = Recipe(file, student, teacher, how.method, changes, how.loss_of, teacher_overrides)
                bases, ours = tuple(base for base in how.bases if base in every), how.loss_of is not None
            values, printed, recorded, letters = _numbers(of_cell)
            paper = dict(zip(measures, values, strict=True)) if values else {}
            note = "; ".join([*([OURS] if ours else []), *((cell_notes or {})[letter] for letter in letters)])
            cells.append(Cell(row, column, paper, recipe, bases, printed, recorded, ours, note))
    return Table(name, title, source, tuple(cells), measures, **of_table)


def read_rows(text: str) -> dict[str, list[str]]:
    """Row -> its cells, which "|" parts. A line without a name continues the cells of the row above it."""
    rows: dict[str, list[str]] = {}
    row: list[str] = []
    for line in text.strip().splitlines():
        name, *parts = (part.strip() for part in line.split("|"))
        if name:
            row = rows[name] = [""] * len(parts)
        row[:] = [f"{before} {part}".strip() for before, part in zip(row, parts, strict=True)]
    return rows


def _numbers(text: str) -> tuple[list[float], float | None, tuple[float, ...], list[str]]:
    """The values of a cell, the printed difference, the recorded repeats, and the letters of its notes.

    ``"76.30 +2.23 a (76.44 75.98)"`` has one of each, "-" no value.
    """
    stated, _, repeats = text.rstrip(")").partition("(")
    words = stated.split()
    values = [float(word) if "." in word else int(word) for word in words if word[0].isdigit()]
    printed = next((float(word) for word in words if word[0] in "+-" and word != "-"), None)
    return values, printed, tuple(map(float, repeats.split())), [word for word in words if word.isalpha()]


def network(short: str) -> str:
    """The network that the paper's tables call ``short``: "WRN40-2" is wrn_40_2."""
    family = short.rstrip("0123456789x-")
    return FAMILIES[family] + short.removeprefix(family).replace("-", "_")


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
