"""Result lines: ``experiments/results/TABLE.jsonl``, one committed line of JSON for each run."""

import errno
import json
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import recipes
from experiments.recipes import Recipe
from sdd_jax.files import NUMBER, Fields, check_fields
from sdd_jax.training import run_dir
from sdd_jax.training.logbook import read_log
from sdd_jax.training.teacher_cache import HEADER, read_header

RESULTS = Path(__file__).with_name("results")
NO_TEACHER = "none"
FIELDS: Fields = {  # without these a line is not whole
    "argument": str,
    "overrides": dict,
    "config_hash": str,
    "seed": int,
    "last.accuracy": NUMBER,
    "best.accuracy": NUMBER,
    "select_on": str,
    "train_examples": int,
    "teacher.id": str,
    "teacher.accuracy": NUMBER | None,
    "commit": str | None,
    "versions": dict,
    "settings": dict,
}
SEAL = "digest"  # of all the rest of a line; the first lines have none


class RunKey(NamedTuple):
    """Which experiment a result line belongs to. Lines of one key differ in their seeds and are averaged."""

    config: str  # of ``recipes.key``
    teacher: str  # of ``teacher_identity``


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of every table in ``folder``; ``ValueError`` names file and line of one that is torn or was changed."""
    return [line for path in sorted(folder.glob("*.jsonl")) for line in read_file(path)]


def read_file(path: Path) -> list[dict[str, Any]]:
    """The lines of one file; see ``read``."""
    lines = []
    texts = path.read_bytes().split(b"\n")
    for number, text in enumerate(texts, start=1):
        if not text:
            continue
        where = f"{path}:{number}"
        try:
            if number == len(texts):
                raise ValueError("no line break at its end")
            line = json.loads(text)
            check_fields(line, FIELDS, "a line")
            rest = {name: value for name, value in line.items() if name != SEAL}
            sealed = line.get(SEAL) in (None, recipes.digest(rest))
            intact = sealed and recipes.digest(line["settings"]) == line["config_hash"]
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{where} is torn or no result line ({error!r}): delete it; its run still has a folder, and writes the "
                "line again"
            ) from error
        if not intact:
            raise ValueError(f"{where} was changed: its settings or its other parts do not have the digest beside them")
        lines.append(line)
    return lines


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, whole or not at all, and has it on the disk before it returns; ``OSError`` names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(line).encode() + b"\n"
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(before)
            raise OSError(error.errno, error.strerror, str(path)) from error


def run_key(line: Mapping[str, Any]) -> RunKey:
    """The key of a line; a field that came after it was written has its default."""
    return RunKey(recipes.key(recipes.completed(line["settings"])), line["teacher"]["id"])


def index(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[RunKey, int], Mapping[str, Any]]:
    """Lines by key and seed. Of two lines for one run, which a merge of branches may bring together, the first."""
    found: dict[tuple[RunKey, int], Mapping[str, Any]] = {}
    for line in lines:
        found.setdefault((run_key(line), line["seed"]), line)
    return found


def teacher_identity(folder: Path) -> str:
    """Names the teacher in ``folder``: by the digest of its file if it was imported, else by its config and seed."""
    config = run_dir.read_config(folder)
    if "imported" in config:
        return f"imported {config['imported'].get('sha256') or recipes.digest(config['imported'])}"[:21]
    return trained_identity(recipes.key(recipes.completed(run_dir.flat_fields(config))), config["seed"])


def trained_identity(key: str, seed: int) -> str:
    """Names a teacher that is trained here, by the key of its config and its seed."""
    return f"trained {key} seed {seed}"


def make(folder: Path, recipe: Recipe, preset: str, teacher: str) -> dict[str, Any]:
    """The line of the finished run in ``folder``; ``teacher`` as in ``RunKey``.

    Raises:
      ValueError: if the run has not finished, or is not the recipe's.
    """
    config, done = run_dir.read_config(folder), run_dir.read_done(folder)
    if done is None:
        raise ValueError(f"{folder} has not finished: it has no {run_dir.DONE}")
    settings = recipes.identity(run_dir.flat_fields(config))
    wanted = recipes.identity(recipes.settings(recipe, preset))
    if settings != wanted:
        raise ValueError(f"{folder} holds another run: {run_dir.differing(settings, wanted)}")
    starts = run_dir.read_starts(folder)
    devices, commits = starts[-1]["devices"], dict.fromkeys(one["commit"] for one in starts if one["commit"])
    metrics = read_log(folder, done)
    rates = [line["images_per_second"] for line in metrics if line["kind"] == "train"]
    held_out = [line for line in metrics if line["kind"] == "evaluation" and line["split"] != "test"]
    accuracy, cache, store = done["teacher_accuracy"], config["teacher"]["cache"], done.get("teacher_stores")
    if cache is not None and "teacher_stores" not in done and (Path(cache) / HEADER).exists():  # of before it was noted
        store = read_header(Path(cache))["store"]
    kept = {"cached": cache is not None} | ({} if store is None else {"store": store})
    line = {
        "config": f"configs/{recipe.file}.py",
        "argument": recipes.argument(recipe, preset),
        "overrides": recipes.overrides(recipe, preset),
        "config_hash": recipes.digest(settings),
        "seed": done["seed"],
        "last": done["last"],
        "best": done["best"],
        "select_on": done["select_on"],
        "held_out": {name: held_out[-1][name] for name in done["last"]} if held_out else None,  # after the last step
        "train_examples": done["train_examples"],
        "teacher": {"id": teacher, "accuracy": accuracy, **kept},
        "seconds": done["seconds"],
        "images_per_second": round(statistics.median(rates), 1) if rates else None,
        "device": f"{devices['count']} x {devices['kind']}",
        "commit": ", ".join(commits) or None,  # each that it ran under
        "processors": starts[-1].get("processors"),  # on a CPU rounding depends on them; older starts do not say
        "starts": len(starts),
        "started": starts[-1]["started"],
        "python": starts[-1]["python"],
        "versions": starts[-1]["versions"],
        "settings": settings,
    }
    return line | {SEAL: recipes.digest(line)}
