"""Result lines: ``experiments/results/TABLE.jsonl``, one committed line of JSON for each run."""

import json
import os
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import recipes
from experiments.recipes import Recipe
from sdd_jax.files import read_json
from sdd_jax.training import run_dir
from sdd_jax.training.logbook import METRICS, read_metrics

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
NO_TEACHER = "none"


class Did(NamedTuple):
    """What was run: the same for two runs that may be averaged over, but for their seeds."""

    key: str  # of ``recipes.key``
    teacher: str  # of ``teacher_identity``


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of every table in ``folder``.

    Raises:
      ValueError: names file and line of one that is torn, was changed by hand, or lacks what a line has.
    """
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
            settings, digest = line["settings"], line["config_hash"]
            complete = all(name in line for name in ("seed", "last", "best", "select_on", "teacher"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{where} is torn or no result line ({error!r}): delete it; the run that it tells of still has its "
                "folder, and writes it again"
            ) from error
        if not complete or recipes.digest(settings) != digest:
            raise ValueError(
                f"{where}: its settings are not those of its config_hash, or a part of the line is missing"
            )
        lines.append(line)
    return lines


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line in one write, and has it on the disk before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = json.dumps(line).encode() + b"\n"
        written = os.write(file, data)
        if written != len(data):
            raise OSError(f"{path}: only {written} of {len(data)} bytes of a line were written")
        os.fsync(file)
    finally:
        os.close(file)


def did(line: Mapping[str, Any]) -> Did:
    """What the run of a line did."""
    return Did(recipes.key(recipes.completed(line["settings"])), line["teacher"]["id"])


def index(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[Did, int], Mapping[str, Any]]:
    """Lines by what was run and its seed; of two for one run, which a merge may bring together, the first."""
    found: dict[tuple[Did, int], Mapping[str, Any]] = {}
    for line in lines:
        found.setdefault((did(line), line["seed"]), line)
    return found


def teacher_identity(folder: Path) -> str:
    """What the teacher in ``folder`` is: its file's digest if it was imported, else what was trained, with its seed."""
    config = run_dir.read_config(folder)
    if "imported" in config:
        return f"imported {config['imported'].get('sha256') or recipes.digest(config['imported'])}"[:21]
    return trained_identity(recipes.key(recipes.completed(recipes.flatten(config))), config["seed"])


def trained_identity(key: str, seed: int) -> str:
    """The identity of a teacher trained here."""
    return f"trained {key} seed {seed}"


def unchanged_revision(root: Path = ROOT) -> str | None:
    """The commit of the checkout if no tracked file differs but result files; else None.

    Each line that a run adds changes a tracked file, which says nothing about the code of the next run.
    """
    others = ["--", ".", ":(exclude)experiments/results"]
    try:
        revision, changes = (
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", *others))
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
    return None if changes else revision


def make(folder: Path, recipe: Recipe, preset: str, teacher: str, unchanged: str | None) -> dict[str, Any]:
    """The line of the finished run in ``folder``.

    Args:
      folder: of the run.
      recipe: of the run.
      preset: under which it was run.
      teacher: its identity.
      unchanged: the ``unchanged_revision`` when the run was started.

    Raises:
      ValueError: if the run has not finished, or is not the recipe's.
    """
    config, done = run_dir.read_config(folder), run_dir.read_done(folder)
    if done is None:
        raise ValueError(f"{folder} has not finished: it has no {run_dir.DONE}")
    settings = recipes.identity(recipes.flatten(config))
    wanted = recipes.identity(recipes.settings(recipe, preset))
    if settings != wanted:
        raise ValueError(f"{folder} holds another run: {run_dir.differing(settings, wanted)}")
    starts = read_json(folder / run_dir.ENVIRONMENT)
    devices = starts[-1]["devices"]
    rates = [line["images_per_second"] for line in read_metrics(folder / METRICS) if line["kind"] == "train"]
    accuracy = done["teacher_accuracy"]
    return {
        "config": f"configs/{recipe.file}.py",
        "argument": recipes.argument(recipe, preset),
        "overrides": recipes.overrides(recipe, preset),
        "config_hash": recipes.digest(settings),
        "seed": done["seed"],
        "last": done["last"],
        "best": done["best"],
        "select_on": done["select_on"],
        "train_examples": done["train_examples"],
        "teacher": {"id": teacher, "accuracy": accuracy, "cached": config["teacher"]["cache"] is not None},
        "seconds": done["seconds"],
        "images_per_second": round(statistics.median(rates), 1) if rates else None,
        "device": f"{devices['count']} x {devices['kind']}",
        "commit": unchanged if starts[-1]["commit"] == f"{unchanged}+changes" else starts[-1]["commit"],
        "starts": len(starts),
        "started": starts[-1]["started"],
        "python": starts[-1]["python"],
        "versions": starts[-1]["versions"],
        "settings": settings,
    }
