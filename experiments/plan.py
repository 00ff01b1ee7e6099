"""What is to run for a table: which runs lack their line, in which folders, and after which teachers."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from experiments import recipes, results
from experiments.cells import RUN, TEACHER, Cell, Table
from experiments.recipes import RELEASED, Recipe
from experiments.results import NO_TEACHER, Did
from sdd_jax import methods
from sdd_jax.training import run_folder

TEACHER_SEED = 0  # every student of a teacher learns from the same one


class Job(NamedTuple):
    """One run.

    Attributes:
      table: the table whose file gets its line.
      name: what it is, for people.
      recipe: how it is run.
      preset: of the paper or of the released code.
      seed: of the run.
      did: what its line is found by.
      folder: of the run.
      teacher: the folder of its teacher, or None.
      needs: the folder of a job that has to be done before, or None.
      data_path: where its data are, or None.
      workers: processes that decode images on disk, or None.
      cache: the folder of its teacher's kept outputs, or None.
    """

    table: str
    name: str
    recipe: Recipe
    preset: str
    seed: int
    did: Did
    folder: Path
    teacher: Path | None
    needs: Path | None
    data_path: Path | None
    workers: int | None
    cache: Path | None = None

    def flags(self) -> list[str]:
        """The arguments of the training command."""
        flags = recipes.command_line(self.recipe, self.preset) + [f"--config.seed={self.seed}"]
        flags += [f"--config.data.path={self.data_path}"] if self.data_path else []
        flags += [f"--config.teacher.run={self.teacher}"] if self.teacher else []
        flags += [f"--config.data.workers={self.workers}"] if self.workers else []
        flags += [f"--config.teacher.cache={self.cache}"] if self.cache else []
        return [*flags, f"--workdir={self.folder}"]


class Plan(NamedTuple):
    """What is to run, and what was found."""

    jobs: list[Job]
    done: int  # runs that have their line
    remarks: list[str]


def chosen(tables: Iterable[Table], patterns: Sequence[str]) -> list[tuple[Table, Cell]]:
    """The cells that are run, of rows that fit a pattern: ``ROW`` or ``COLUMN/ROW``, with ``*`` and ``?``."""
    cells = [(table, cell) for table in tables for cell in table.cells if cell.status == RUN]
    if not patterns:
        return cells
    for pattern in patterns:
        if not any(fits(cell, pattern) for _, cell in cells):
            rows = dict.fromkeys(cell.row for _, cell in cells)
            columns = dict.fromkeys(cell.column for _, cell in cells)
            raise ValueError(
                f"--rows={pattern}: no row that is run fits; rows are {', '.join(rows)}; columns, for COLUMN/ROW, are "
                f"{', '.join(columns)}"
            )
    return [(table, cell) for table, cell in cells if any(fits(cell, pattern) for pattern in patterns)]


def fits(cell: Cell, pattern: str) -> bool:
    """Whether a cell's row, or its column and row, fit a pattern; capitals do not matter."""
    names = (cell.row.lower(), f"{cell.column}/{cell.row}".lower())
    return any(fnmatchcase(name, pattern.lower()) for name in names)


def make(
    cells: Iterable[tuple[Table, Cell]],
    *,
    preset: str,
    seeds: Sequence[int],
    lines: Iterable[Mapping[str, Any]],
    workdir: Path,
    teachers: Path | None,
    data_path: Path | None,
    workers: int | None = None,
    caches: Path | None = None,
) -> Plan:
    """The runs of ``cells`` that have no line yet, and the teachers that those need.

    Raises:
      ValueError: for a teacher in ``teachers`` that has not finished or is no run's folder.
    """
    planner = _Planner(preset, results.index(lines), workdir, teachers, data_path, workers, caches)
    for table, cell in cells:
        assert cell.recipe is not None
        if cell.row == TEACHER:
            planner.add_teacher_row(table, cell.recipe)
            continue
        for seed in seeds:
            planner.add(table, cell, seed)
    return Plan(list(planner.jobs.values()), planner.done, list(planner.remarks))


class _Planner:
    """Collects jobs by folder, each once, teachers before their students."""

    def __init__(self, preset, found, workdir, teachers, data_path, workers, caches):
        self._preset, self._found = preset, found
        self._workdir, self._teachers, self._data_path, self._workers = workdir, teachers, data_path, workers
        self._caches = caches
        self.jobs: dict[Path, Job] = {}
        self.remarks: dict[str, None] = {}
        self._had: set[tuple[Did, int]] = set()

    @property
    def done(self) -> int:
        """How many of the runs asked for have their line."""
        return len(self._had)

    def add(self, table: Table, cell: Cell, seed: int) -> None:
        """The run of a cell, unless it has its line; and that of its teacher, unless there is one."""
        recipe = cell.recipe
        kind = "" if self._preset == RELEASED else f" ({self._preset})"
        name = f"{table.name} {cell.column}: {cell.row}{kind}, seed {seed}"
        if recipe.teacher == "none":
            self._add_plain(table, recipe, name, seed)
            return
        own = recipes.teacher_recipe(recipe)
        given = self._given(own)
        own_did = self._plain_did(own)
        identity = results.teacher_identity(given) if given else results.trained_identity(own_did.key, TEACHER_SEED)
        did = Did(recipes.key(recipes.settings(recipe, self._preset)), identity)
        if (did, seed) in self._found:
            self._had.add((did, seed))
            return
        needs = None if given else self._add_teacher(table, own)
        folder = self._folder(recipe, did, seed)
        if folder in self.jobs:
            return
        self.jobs[folder] = Job(
            table.name,
            name,
            recipe,
            self._preset,
            seed,
            did,
            folder,
            given or needs,
            needs,
            self._data(recipe),
            self._workers,
            self._cache(recipe),
        )

    def add_teacher_row(self, table: Table, recipe: Recipe) -> None:
        """The row of a teacher: run at its one seed, unless it has its line or a trained one is given."""
        if self._given(recipe) is None:
            did = self._plain_did(recipe)
            if (did, TEACHER_SEED) in self._found:
                self._had.add((did, TEACHER_SEED))
            else:
                self._add_teacher(table, recipe)

    def _add_teacher(self, table: Table, recipe: Recipe) -> Path:
        """The folder of the teacher that is trained here, with its job unless it is whole and has its line."""
        did = self._plain_did(recipe)
        folder = self._folder(recipe, did, TEACHER_SEED)
        has_line = (did, TEACHER_SEED) in self._found
        finished = folder.is_dir() and run_folder.read_done(folder) is not None
        data, network = _data_name(recipe), recipe.student
        where = f"{self._teachers}/{data}/{network}" if self._teachers else "--teachers, which is not set"
        state = "is there" if finished else "is trained first"
        self.remarks[f"teacher {network} of {data}: none in {where}; the table's own, {folder}, {state}"] = None
        if folder not in self.jobs and not (finished and has_line):
            name = f"{table.name} teacher {network}, seed {TEACHER_SEED}"
            self.jobs[folder] = self._plain_job(table, recipe, name, TEACHER_SEED, did, folder)
        return folder

    def _add_plain(self, table: Table, recipe: Recipe, name: str, seed: int) -> None:
        did = self._plain_did(recipe)
        folder = self._folder(recipe, did, seed)
        if (did, seed) in self._found:
            self._had.add((did, seed))
        elif folder not in self.jobs:
            self.jobs[folder] = self._plain_job(table, recipe, name, seed, did, folder)

    def _plain_job(self, table, recipe, name, seed, did, folder) -> Job:
        data = self._data(recipe)
        return Job(table.name, name, recipe, RELEASED, seed, did, folder, None, None, data, self._workers)

    def _plain_did(self, recipe: Recipe) -> Did:
        return Did(recipes.key(recipes.settings(recipe, RELEASED)), NO_TEACHER)

    def _given(self, recipe: Recipe) -> Path | None:
        """The folder in ``teachers`` that holds the network of ``recipe``, or None."""
        if self._teachers is None:
            return None
        folder = self._teachers / _data_name(recipe) / recipe.student
        if not folder.exists():
            return None
        run_folder.read_config(folder)
        if run_folder.read_done(folder) is None:
            raise ValueError(f"{folder} has not finished: start its command again to go on with it, or take it away")
        self.remarks[f"teacher {recipe.student} of {_data_name(recipe)}: {folder}"] = None
        return folder

    def _cache(self, recipe: Recipe) -> Path | None:
        """The folder in ``caches`` of the recipe's teacher, or None: a cache holds logits, and no feature maps."""
        if self._caches is None or methods.parse(recipe.method).features is not None:
            return None
        folder = self._caches / _data_name(recipe) / recipe.teacher
        return folder if folder.is_dir() else None

    def _folder(self, recipe: Recipe, did: Did, seed: int) -> Path:
        """The folder of a run: what people call it, what makes it that run, its teacher's among it, and the seed."""
        parts = [_data_name(recipe), recipe.student]
        parts += [] if recipe.teacher == "none" else ["from", recipe.teacher, recipe.method]
        tail = did.key if did.teacher == NO_TEACHER else recipes.digest([did.key, did.teacher])
        return self._workdir / "-".join([*parts, tail]) / f"seed_{seed}"

    def _data(self, recipe: Recipe) -> Path | None:
        """``data_path/NAME`` if there is such a folder, else ``data_path`` itself."""
        if self._data_path is None:
            return None
        own = self._data_path / _data_name(recipe)
        return own if own.is_dir() else self._data_path


def _data_name(recipe: Recipe) -> str:
    return recipes.settings(recipe, RELEASED)["data.name"]
