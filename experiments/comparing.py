"""How tables 1 to 5 and this project's own are put together: methods side by side for pairs of teacher and student."""

from collections.abc import Mapping
from typing import Any

from experiments.cells import STUDENT, TEACHER, Cell, Table
from experiments.recipes import Recipe

METHODS = {
    "KD": "kd",
    "SD-KD": "sdd_kd",
    "DKD": "dkd",
    "SD-DKD": "sdd_dkd",
    "NKD": "nkd",
    "SD-NKD": "sdd_nkd",
    "LS-KD": "ls_kd",
    "SD-LS-KD": "sdd_ls_kd",
    "LS-DKD": "ls_dkd",
    "SD-LS-DKD": "sdd_ls_dkd",
    "DIST": "dist",
    "SD-DIST": "sdd_dist",
    "TTM": "ttm",
    "SD-TTM": "sdd_ttm",
    "WTTM": "wttm",
    "SD-WTTM": "sdd_wttm",
}
# Rows that the paper lacks: its released code gives NKD and SD-NKD different base losses, and on ImageNet KD and SD-KD
# too, so that the two differ in more than SDD. Row -> (method, whose loss).
SAME_NKD = {
    "NKD with SD-NKD's loss": ("nkd", "sdd_nkd"),
    "SD-NKD with NKD's loss": ("sdd_nkd", "nkd"),
}
SAME_KD = {
    "KD with SD-KD's loss": ("kd", "sdd_kd"),
    "SD-KD with KD's loss": ("sdd_kd", "kd"),
}
OWN_NOTE = "ours, not in the paper: the same base loss on both sides"
Place = tuple[str, str]  # a row and a column
Overrides = tuple[tuple[str, Any], ...]  # dotted fields and their values


def compare(
    name: str,
    title: str,
    source: str,
    file: str,
    pairs: Mapping[str, tuple[str, str]],
    paper: Mapping[str, tuple],
    *,
    own: Mapping[str, tuple[str, str]] | None = None,
    printed: Mapping[str, tuple[float, ...]] | None = None,
    recorded: Mapping[Place, tuple[float, ...]] | None = None,
    cell_notes: Mapping[Place, str] | None = None,
    variants: Mapping[str, tuple[str, Overrides]] | None = None,
    overrides: Overrides = (),
    teacher_overrides: Overrides = (),
    measures: tuple[str, ...] = ("top1",),
    notes: tuple[str, ...] = (),
) -> Table:
    """A table from the paper's values.

    Args:
      name: as the command line has it.
      title: what is compared.
      source: where the values stand.
      file: the config file of every run.
      pairs: column -> (teacher, student).
      paper: row -> a value for each column, or a tuple of them, one for each measure; None where there is none.
      own: rows after those, without values: row -> (method, whose loss).
      printed: row -> the differences as printed, for each column.
      recorded: repeats noted in the released scripts.
      cell_notes: what else there is to know of a cell.
      variants: rows of ``paper`` that are another row with fields changed: row -> (that row, its overrides).
      overrides: of every run but the teacher's.
      teacher_overrides: of the run that trains the teacher.
      measures: what a value measures.
      notes: what else there is to know of the table.
    """
    own, printed, recorded, cell_notes = own or {}, printed or {}, recorded or {}, cell_notes or {}
    variants = variants or {}

    def recipe(row: str, teacher: str, student: str) -> Recipe | None:
        if row == TEACHER:
            return Recipe(file, teacher, overrides=teacher_overrides)
        if row == STUDENT:
            return Recipe(file, student, overrides=overrides)
        if row in variants:
            same, changes = variants[row]
            made = recipe(same, teacher, student)
            assert made is not None
            return made._replace(overrides=(*made.overrides, *changes))
        if row not in METHODS and row not in own:
            return None
        method, loss_of = own[row] if row in own else (METHODS[row], None)
        return Recipe(file, student, teacher, method, overrides, loss_of, teacher_overrides)

    def cell(row: str, column: str, value: Any) -> Cell:
        values = value if isinstance(value, tuple) else (value,)
        notes = [OWN_NOTE] if row in own else []
        notes += [cell_notes[row, column]] if (row, column) in cell_notes else []
        return Cell(
            row,
            column,
            {measure: number for measure, number in zip(measures, values, strict=False) if number is not None},
            recipe(row, *pairs[column]),
            (*bases_of(variants[row][0], own), variants[row][0]) if row in variants else bases_of(row, own),
            printed[row][list(pairs).index(column)] if row in printed else None,
            recorded.get((row, column), ()),
            ours=row in own,
            note="; ".join(notes),
        )

    for row, values in (*paper.items(), *printed.items()):
        if len(values) != len(pairs):
            raise ValueError(f"{name}, {row}: {len(values)} values for {len(pairs)} columns")
    cells = [cell(row, *item) for row, values in paper.items() for item in zip(pairs, values, strict=True)]
    cells += [cell(row, column, None) for row in own for column in pairs]
    return Table(name, title, source, tuple(cells), measures, notes)


def bases_of(row: str, own: Mapping[str, Any]) -> tuple[str, ...]:
    """The rows that a row is held against: the student, or what it builds on, first as the paper has it."""
    if row not in METHODS and row not in own:
        return ()
    if row.startswith("LS-"):
        return (row.removeprefix("LS-"),)
    if not row.startswith("SD-"):
        return (STUDENT,)
    plain = row.removeprefix("SD-").partition(" with ")[0]
    same = f"{plain} with {row}'s loss"
    return (plain, same) if same in own else (plain,)
