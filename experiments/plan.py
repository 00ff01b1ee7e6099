"""What is to run for a table: which runs lack their line, in which folders, and after which teachers."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from experiments import recipes, results
from experiments.cells import RUN, TEACHER, Cell, Table
from experiments.recipes import RELEASED, Recipe
from experiments.results import NO_TEACHER, RunKey
from sdd_jax import methods
from sdd_jax.training import run_dir

TEACHER_SEED = 0  # every student of a teacher learns from the same one


class Job(NamedTuple):
    """One run."""

    table: str  # whose file gets its line
    name: str  # for people
    recipe: Recipe
    preset: str
    seed: int
    key: RunKey
    folder: Path
    needs: Path | None  # the folder of the job that trains its teacher, if there is one
    fields: Mapping[str, Any]  # of the config: where data, teacher and cache are; None leaves a field as it is

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder.with_suffix(".log")

    def flags(self) -> list[str]:
        """The arguments of the training command."""
        given = {"seed": self.seed} | {name: value for name, value in self.fields.items() if value is not None}
        flags = [f"--config.{name}={value}" for name, value in given.items()]
        return [*recipes.command_line(self.recipe, self.preset), *flags, f"--workdir={self.folder}"]


def chosen(tables: Iterable[Table], patterns: Sequence[str]) -> list[tuple[Table, Cell]]:
    """The cells that are run, of rows that fit a pattern: ``ROW`` or ``COLUMN/ROW``, with ``*`` and ``?``."""
    cells = [(table, cell) for table in tables for cell in table.cells if cell.status == RUN]
    for pattern in patterns:
        if not any(fits(cell, pattern) for _, cell in cells):
            rows = dict.fromkeys(cell.row for _, cell in cells)
            columns = dict.fromkeys(cell.column for _, cell in cells)
            raise ValueError(
                f"--rows={pattern}: no row that is run fits; rows are {', '.join(rows)}; columns, for COLUMN/ROW, are "
                f"{', '.join(columns)}"
            )
    return [(table, cell) for table, cell in cells if any(fits(cell, pattern) for pattern in patterns or ["*"])]


def fits(cell: Cell, pattern: str) -> bool:
    """Whether a cell's row, or its column and row, fit a pattern; capitals do not matter."""
    names = (cell.row.lower(), f"{cell.column}/{cell.row}".lower())
    return any(fnmatchcase(name, pattern.lower()) for name in names)


def make(
    cells: Iterable[tuple[Table, Cell]], *, seeds: Sequence[int], lines: Iterable[Mapping[str, Any]], **options: Any
) -> "Plan":
    """The runs of ``cells`` that have no line yet, and those of their teachers; ``options`` are fields of ``Plan``."""
    plan = Plan(results.index(lines), **options)
    for table, cell in cells:
        for seed in (TEACHER_SEED,) if cell.row == TEACHER else seeds:
            if table.counts(seed):
                plan.add(table, cell, seed)
            else:
                plan.remarks[f"{table.name}: no runs at seed {seed}; seed {table.tuning_seed} chooses settings"] = None
    return plan


@dataclasses.dataclass
class Plan:
    """What is to run, and what was found. The options are those of the command line."""

    found: Mapping[tuple[RunKey, int], Mapping[str, Any]]  # result lines
    preset: str
    workdir: Path
    teachers: Path | None = None
    caches: Path | None = None
    data_path: Path | None = None
    workers: int | None = None
    named: bool = False  # whether the row "teacher" is asked for by its name
    jobs: dict[Path, Job] = dataclasses.field(default_factory=dict)  # by folder; teachers before their students
    done: set[tuple[RunKey, int]] = dataclasses.field(default_factory=set)  # runs that have their line
    remarks: dict[str, None] = dataclasses.field(default_factory=dict)  # where teachers and caches are

    def add(self, table: Table, cell: Cell, seed: int) -> None:
        """Adds the run of a cell, after the one that trains its teacher, unless it has its line.

        That of a teacher is added unless a trained one is given. A named one is added though it has its line, if its
        folder is not there.
        """
        recipe = cell.recipe
        assert recipe is not None
        if cell.row == TEACHER and self._given(recipe) is not None:
            return
        preset, key, teacher, needs = RELEASED, _plain_key(recipe), None, None
        own = recipes.teacher_recipe(recipe)
        if own is not None:
            preset, teacher = self.preset, self._given(own)
            trained = results.trained_identity(_plain_key(own).config, TEACHER_SEED)
            identity = results.teacher_identity(teacher) if teacher else trained
            key = RunKey(recipes.key(recipes.settings(recipe, preset)), identity)
        wanted = self.named and cell.row == TEACHER and not _finished(self._folder(recipe, key, seed))
        if (key, seed) in self.found and not wanted:
            self.done.add((key, seed))
            return
        if cell.row == TEACHER:
            self._add_teacher(table, recipe)
            return
        if own is not None and teacher is None:
            teacher = needs = self._add_teacher(table, own)
        kind = "" if self.preset == RELEASED else f" ({self.preset})"
        name = f"{table.name} {cell.column}: {cell.row}{kind}, seed {seed}"
        self._add_job(table, name, recipe, preset, seed, key, teacher, needs)

    def _add_teacher(self, table: Table, recipe: Recipe) -> Path:
        """The folder of a teacher that is trained here; adds its job, unless that is finished and has its line."""
        key = _plain_key(recipe)
        folder, data, network = self._folder(recipe, key, TEACHER_SEED), _data_name(recipe), recipe.student
        finished = _finished(folder)
        where = f"{self.teachers}/{data}/{network}" if self.teachers else "--teachers, which is not set"
        again = ", again: at another accuracy its students are a row of their own"
        state = "is there" if finished else "is trained first" + (again if (key, TEACHER_SEED) in self.found else "")
        self.remarks[f"teacher {network} of {data}: none in {where}; the table's own, {folder}, {state}"] = None
        if not (finished and (key, TEACHER_SEED) in self.found):
            name = f"{table.name} teacher {network}, seed {TEACHER_SEED}"
            self._add_job(table, name, recipe, RELEASED, TEACHER_SEED, key)
        return folder

    def _add_job(self, table, name, recipe, preset, seed, key, teacher=None, needs=None) -> None:
        data = _data_name(recipe)
        path = self.data_path / data if self.data_path and (self.data_path / data).is_dir() else self.data_path
        fields = {"data.path": path, "teacher.run": teacher, "data.workers": self.workers}
        if self.caches and methods.parse(recipe.method).features is None:  # a cache holds logits, and no feature maps
            cache = self.caches / data / recipe.teacher
            if cache.is_dir():
                fields["teacher.cache"] = cache
            elif recipe.teacher != "none":
                self.remarks[f"no cache in {cache}: runs of {recipe.teacher} ask the network"] = None
        folder = self._folder(recipe, key, seed)
        self.jobs.setdefault(folder, Job(table.name, name, recipe, preset, seed, key, folder, needs, fields))

    def _given(self, recipe: Recipe) -> Path | None:
        """The folder in ``teachers`` that holds the network of ``recipe``, or None."""
        if self.teachers is None:
            return None
        folder = self.teachers / _data_name(recipe) / recipe.student
        if not folder.exists():
            return None
        run_dir.read_config(folder)
        if run_dir.read_done(folder) is None:
            raise ValueError(f"{folder} has not finished: start its command again to go on with it, or take it away")
        self.remarks[f"teacher {recipe.student} of {_data_name(recipe)}: {folder}"] = None
        return folder

    def _folder(self, recipe: Recipe, key: RunKey, seed: int) -> Path:
        """The folder of a run, named by its data, networks and method, and by a hash of its key."""
        parts = [_data_name(recipe), recipe.student]
        parts += [] if recipe.teacher == "none" else ["from", recipe.teacher, recipe.method]
        tail = key.config if key.teacher == NO_TEACHER else recipes.digest(key)
        return self.workdir / "-".join([*parts, tail]) / f"seed_{seed}"


def _plain_key(recipe: Recipe) -> RunKey:
    """The key of a run without a teacher."""
    return RunKey(recipes.key(recipes.settings(recipe, RELEASED)), NO_TEACHER)


def _finished(folder: Path) -> bool:
    return folder.is_dir() and run_dir.read_done(folder) is not None


def _data_name(recipe: Recipe) -> str:
    return recipes.settings(recipe, RELEASED)["data.name"]
