"""Runs by method: which folders hold some, which of them differ in their seed alone, and what each group is called."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdd_jax import methods, saved
from sdd_jax.config import CACHE, ENSEMBLE, NONE
from sdd_jax.fields import RUNTIME_FIELDS
from sdd_jax.own import check_allowed
from sdd_jax.serving.network import CONTROLS
from sdd_jax.training import run_dir
from sdd_jax.training.logbook import read_log
from sdd_jax.training.run_writer import STORES, TESTED_ON, TRAINED_ON
from sdd_jax.training.teacher_cache import EXACT

TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # Unicode's kinds of marks that reorder text
# Fields that do not tell methods apart: seeds, places, and how a run was carried out.
_NOT_RECIPE = frozenset({"seed", "seeds", "data.path", "teacher.cache", *RUNTIME_FIELDS})

ROUNDED = "teacher.rounded"  # by caches that change what a teacher says: no field of a config, told apart like one
# Fields that say which teacher it is; teacher.cache is one where the cache is all that there is of it.
TEACHER = (
    *("model.teacher", "teacher.run", "teacher.checkpoint", "teacher.cache", ROUNDED),
    *("teacher.runs", "teacher.weights", "teacher.mean"),
)


class Run(NamedTuple):
    """One run's folder."""

    folder: Path
    config: dict[str, Any]  # flat, and ``ROUNDED`` where its teacher's cache is not exact
    lines: list[dict[str, Any]]  # of metrics.jsonl
    results: dict[str, Any]  # last and best as in done.json; of a run that has not finished, so far
    finished: bool
    environment: dict[str, Any]  # of its last start
    inputs: Mapping[str, Any]  # fingerprints of its images; a run of before they were noted has none

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def recipe(self) -> dict[str, Any]:
        """The fields that are set; a field that came after a run is one that it has not set."""
        fields = {name: value for name, value in self.config.items() if name not in _NOT_RECIPE}
        return {name: value for name, value in (fields | self._nameless()).items() if value is not None}

    def _nameless(self) -> dict[str, str]:
        """``teacher.cache`` as far as it is all that is known of a teacher."""
        teacher, cache = self.config["model.teacher"], self.config.get("teacher.cache") or NONE
        if teacher == ENSEMBLE and NONE in (runs := self.config["teacher.runs"].split(",")):
            members = zip(runs, cache.split(","), strict=True)
            return {"teacher.cache": ",".join(one if run == NONE else NONE for run, one in members)}
        return {"teacher.cache": cache} if teacher == CACHE else {}

    def differs(self, other: "Run", what: str) -> bool:
        """Whether the images that ``inputs`` calls so are known of both, and are others."""
        own, its = self.inputs.get(what), other.inputs.get(what)
        return None not in (own, its) and own != its

    def curve(self, name: str, split: str | None = None) -> dict[float, float]:
        """``{epoch: value}`` of a metric of training, or of a split's evaluation; empty where it was not logged."""
        return {line["epoch"]: line[name] for line in self.lines if line.get("split") == split and name in line}


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

    @property
    def by_region(self) -> bool:
        """Whether a base loss is applied region by region."""
        return methods.parse(self.method).regions


def find_runs(paths: Sequence[Path], allow: Collection[str] = ()) -> list[Run]:
    """The runs at ``paths``: a run's folder each, or a folder with runs below it, such as RUN/seed_0, RUN/seed_1.

    ``ValueError`` if one names a network by MODULE:FUNCTION that is not in ``allow``.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        found = saved.find_folders(path)
        found = [folder for folder in found if folder == path or "imported" not in run_dir.read_config(folder)]
        if not found:
            raise ValueError(f"{path} holds no run: expected a folder with {run_dir.CONFIG}, or folders that have it")
        folders |= {folder.resolve(): folder for folder in found}
    return [_read(folder, allow) for folder in folders.values()]


def _read(folder: Path, allow: Collection[str]) -> Run:
    config = run_dir.read_network(folder)
    check_allowed(config["model"]["student"], folder, allow)
    if "imported" in config:
        raise ValueError(f"{folder} holds an imported network: it was not trained here, there is nothing to compare")
    results = saved.read_results(folder)
    if not results["last"]:
        raise ValueError(f"{folder} has no test result yet: let it train until its first evaluation")
    lines, finished = read_log(folder, results), (folder / run_dir.DONE).exists()
    environment = run_dir.read_starts(folder)[-1]
    inputs = saved.checkpoints(folder).manifest(results["steps"])["progress"].get("inputs", {})
    stores = [NONE if store in EXACT else store for store in (inputs.get(STORES) or NONE).split(",")]
    rounded = {ROUNDED: ",".join(stores)} if {*stores} - {NONE} else {}
    return Run(folder, run_dir.flat_fields(config) | rounded, lines, results, finished, environment, inputs)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of one recipe on the same images together; groups in the order of their first run, plain ones first.

    ``ValueError`` if a run is there twice, or their data differ.
    """
    first = runs[0]
    known: dict[str, set[str | None]] = {}  # the training images of each recipe
    for run in runs:
        known.setdefault(_key(run), set()).add(run.inputs.get(TRAINED_ON))
    gathered: dict[tuple[str, str | None], dict[int, Run]] = {}
    for run in runs:
        for name in ("data.name", "data.image_size", "data.in_memory", "data.augment"):
            if (run.config.get(name) or None) != (first.config.get(name) or None):
                raise ValueError(
                    f"runs to compare must be on the same data: {name} is {first.config.get(name)!r} in {first.folder} "
                    f"and {run.config.get(name)!r} in {run.folder}"
                )
        if run.differs(first, TESTED_ON):
            raise ValueError(
                f"runs to compare must be on the same data: the test images of {run.folder} are not those of "
                f"{first.folder}"
            )
        key = _key(run)
        seeds = gathered.setdefault((key, run.inputs.get(TRAINED_ON) if len(known[key] - {None}) > 1 else None), {})
        other = seeds.setdefault(run.seed, run)
        if other is not run:
            raise ValueError(f"{other.folder} and {run.folder} are the same run: seed {run.seed} of one config")
    groups = [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in gathered.values()]
    groups.sort(key=lambda group: group[0].config["method"] != "plain")
    labels = _labels([group[0] for group in groups])
    return [Group(label, group) for label, group in zip(labels, groups, strict=True)]


def _key(run: Run) -> str:
    return repr(sorted(run.recipe.items()))


def method_name(method: str) -> str:
    """As the literature writes it: ``sdd_kd`` is SDD-KD."""
    return method if method == "plain" else method.replace("_", "-").upper()


def _labels(firsts: Sequence[Run]) -> list[str]:
    """Student and method of each, and where these are the same what else differs: no two labels are the same."""
    bare = [f"{run.config['model.student']} {method_name(run.config['method'])}" for run in firsts]
    labels = []
    for run, label in zip(firsts, bare, strict=True):
        twins = [other for other, its in zip(firsts, bare, strict=True) if its == label]
        names = [name for name in run.config if len({repr(twin.recipe.get(name)) for twin in twins}) > 1]
        apart = [f"{name.rpartition('.')[2]} {short(run.config[name])}" for name in names]
        if any(run.differs(twin, TRAINED_ON) and run.recipe == twin.recipe for twin in twins):
            apart.append(f"training images {run.inputs[TRAINED_ON][:8]}")
        labels.append(shown(f"{label} ({', '.join(apart)})" if apart else label))
    return [
        label if labels.count(label) == 1 else f"{label} [{1 + labels[:place].count(label)}]"
        for place, label in enumerate(labels)
    ]


def shown(name: str) -> str:
    """``name`` on one line: characters that break lines, turn the direction of text or are none, as escapes."""
    if name.isprintable():
        return name
    odd = (unicodedata.category(sign) in CONTROLS or unicodedata.bidirectional(sign) in TURNS for sign in name)
    return "".join(ascii(sign)[1:-1] if is_odd else sign for sign, is_odd in zip(name, odd, strict=True))


def short(value: Any) -> str:
    """``value`` as a word of a figure; of a long one, the end."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 24 else "…" + text[-23:]


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """What a distilled group is compared with: SDD with its base method, else plain training of the same student.

    Of several the one that has most of the group's settings, its weight and temperature among them.
    """
    if group.method == "plain":
        return None
    run = group.runs[0]
    fields = ("model.student", "data.train_examples", "epochs")
    wanted = {"plain": fields}
    if group.method.startswith("sdd_"):
        wanted = {group.method.removeprefix("sdd_"): (*fields, *TEACHER), "plain": fields}
    for method, same in wanted.items():
        found = [
            other
            for other in groups
            if other.method == method
            and all(other.runs[0].recipe.get(name) == run.recipe.get(name) for name in same)
            and not other.runs[0].differs(run, TRAINED_ON)
        ]
        if found:
            recipe = run.recipe.items()
            return max(found, key=lambda other: sum(other.runs[0].recipe.get(name) == value for name, value in recipe))
    return None
