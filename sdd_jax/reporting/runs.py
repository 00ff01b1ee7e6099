"""Run folders as data: what was logged, and which runs differ in their seed alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdd_jax import saved
from sdd_jax.fields import RUNTIME_FIELDS
from sdd_jax.files import flatten, read_json
from sdd_jax.training import run_dir
from sdd_jax.training.logbook import METRICS, read_metrics

# Fields that do not tell methods apart: seeds, places, and how a run was carried out.
_NOT_RECIPE = frozenset({"seed", "seeds", "data.path", "teacher.cache", *RUNTIME_FIELDS})


class Run(NamedTuple):
    """One run's folder."""

    folder: Path
    config: dict[str, Any]  # flat
    lines: list[dict[str, Any]]  # of metrics.jsonl
    results: dict[str, Any]  # last and best as in done.json; of a run that has not finished, so far
    finished: bool
    environment: dict[str, Any]  # of its last start

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def recipe(self) -> dict[str, Any]:
        """The fields that tell methods apart."""
        return {name: value for name, value in self.config.items() if name not in _NOT_RECIPE}

    def curve(self, kind: str, name: str, split: str | None = None) -> list[tuple[float, float]]:
        """``(epoch, value)`` of a metric over the run; empty where it was not logged."""
        lines = [line for line in self.lines if line["kind"] == kind and split in (None, line.get("split"))]
        return [(line["epoch"], line[name]) for line in lines if name in line]


class Group(NamedTuple):
    """Runs that differ in their seed alone, by seed."""

    label: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> dict[str, Any]:
        """The config of any of them, but for the seed."""
        return self.runs[0].config

    @property
    def method(self) -> str:
        return self.config["method"]


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at ``paths``: a run's folder each, or a folder with runs below it, such as RUN/seed_0, RUN/seed_1.

    ``ValueError`` if there is none, or one has nothing to report.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        found = saved.find_folders(path)
        found = [folder for folder in found if folder == path or "imported" not in run_dir.read_config(folder)]
        if not found:
            raise ValueError(f"{path} holds no run: expected a folder with {run_dir.CONFIG}, or folders that have it")
        folders |= {folder.resolve(): folder for folder in found}
    return [_read(folder) for folder in folders.values()]


def _read(folder: Path) -> Run:
    config = run_dir.read_config(folder)
    if "imported" in config:
        raise ValueError(f"{folder} holds an imported network: it was not trained here, there is nothing to compare")
    lines = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
    if not any(line.get("split") == "test" for line in lines):
        raise ValueError(f"{folder} has no test result yet: let it train until its first evaluation")
    done = run_dir.read_done(folder)
    results = done or run_dir.summarize(lines, select_on=config["data"]["select_on"])
    starts = folder / run_dir.ENVIRONMENT
    environment = read_json(starts)[-1] if starts.exists() else {}
    return Run(folder, flatten(config), lines, results, done is not None, environment)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of one recipe together; groups in the order of their first run, those without a teacher first.

    ``ValueError`` if runs are on different data, or two are the same run.
    """
    first = runs[0]
    gathered: dict[str, dict[int, Run]] = {}
    for run in runs:
        for name in ("data.name", "data.image_size", "data.augment"):
            if run.config.get(name) != first.config.get(name):
                raise ValueError(
                    f"runs to compare must be on the same data: {name} is {first.config.get(name)!r} in {first.folder} "
                    f"and {run.config.get(name)!r} in {run.folder}"
                )
        seeds = gathered.setdefault(repr(sorted(run.recipe.items())), {})
        other = seeds.setdefault(run.seed, run)
        if other is not run:
            raise ValueError(f"{other.folder} and {run.folder} are the same run: seed {run.seed} of one config")
    groups = [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in gathered.values()]
    groups.sort(key=lambda group: group[0].config["method"] != "plain")
    labels = _labels([group[0] for group in groups])
    return [Group(label, group) for label, group in zip(labels, groups, strict=True)]


def method_name(method: str) -> str:
    """As the literature writes it: ``sdd_kd`` is SDD-KD."""
    return method if method == "plain" else method.replace("_", "-").upper()


def _labels(firsts: Sequence[Run]) -> list[str]:
    """Student and method of each, and where these are the same what else differs."""
    bare = [f"{run.config['model.student']} {method_name(run.config['method'])}" for run in firsts]
    labels = []
    for run, label in zip(firsts, bare, strict=True):
        twins = [other for other, its in zip(firsts, bare, strict=True) if its == label]
        names = [name for name in run.recipe if len({repr(twin.recipe.get(name)) for twin in twins}) > 1]
        apart = ", ".join(f"{name.rpartition('.')[2]} {_short(run.recipe[name])}" for name in names)
        labels.append(f"{label} ({apart})" if apart else label)
    return labels


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 24 else "…" + text[-23:]


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """What a distilled group is compared with: SDD with its base method, else plain training of the same student."""
    if group.method == "plain":
        return None
    fields = ("model.student", "data.train_examples", "epochs")
    wanted = {"plain": fields}
    if group.method.startswith("sdd_"):
        wanted = {group.method.removeprefix("sdd_"): (*fields, "model.teacher", "teacher.run"), "plain": fields}
    for method, same in wanted.items():
        for other in groups:
            if other.method == method and all(other.config.get(name) == group.config.get(name) for name in same):
                return other
    return None


def teacher_folder(group: Group) -> Path | None:
    """The folder of a distilled group's teacher; None if it is neither where the config says nor beside the run.

    A relative path was relative to where training was started, which is some folder above the run.
    """
    stated = group.config["teacher.run"]
    places = [Path(stated), *(parent / stated for parent in group.runs[0].folder.resolve().parents)]
    return next((place for place in places if (place / run_dir.CONFIG).is_file()), None)
