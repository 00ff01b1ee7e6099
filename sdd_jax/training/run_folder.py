"""A run's folder: ``config.json``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``, ``done.json``.

And ``skipped.json``, of a run that leaves out training images which cannot be decoded.
"""

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from sdd_jax.data import Skipped
from sdd_jax.training import environment
from sdd_jax.training.checkpoint import write_json
from sdd_jax.training.lock import LOCK

CONFIG, ENVIRONMENT, DONE, CHECKPOINTS = "config.json", "environment.json", "done.json", "checkpoints"
SKIPPED = "skipped.json"
# How a run is carried out, not what it computes: a start may change it.
CARRIED_OUT = frozenset({"data.workers", "profile_steps"})


def open_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Makes ``folder`` the folder of ``config``'s run, or checks that it is, and notes this start.

    Raises:
      ValueError: if it holds a run of another config; the message names the fields that differ.
    """
    check_same_config(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).exists():
        write_json(folder / CONFIG, config)
    starts = read_json(folder / ENVIRONMENT) if (folder / ENVIRONMENT).exists() else []
    write_json(folder / ENVIRONMENT, [*starts, environment.describe()])


def check_same_config(folder: Path, config: Mapping[str, Any]) -> None:
    """``ValueError`` if ``folder`` is the folder of another run; creates nothing."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{folder} cannot be a run's folder: {path} is a file")
    if not (folder / CONFIG).exists():
        begun = {LOCK, CONFIG + ".tmp"}  # what a process leaves that was killed before it had written the config
        if folder.exists() and any(path.name not in begun for path in folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no run: give --workdir a folder of its own")
        return
    fields = differing(read_config(folder), config, besides=CARRIED_OUT)
    if fields:
        raise ValueError(f"{folder} holds a run of another config ({fields}): give --workdir another folder")


def differing(before: Mapping[str, Any], now: Mapping[str, Any], besides: Set[str] = frozenset()) -> str:
    """The fields in which two nested configs differ, with both values; empty if in none, ``besides`` left aside."""
    before, now = flatten(before), flatten(now)
    names = [name for name in sorted((before.keys() | now.keys()) - besides) if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the run in ``folder``; ``ValueError`` if there is none."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not a run's folder: it has no {CONFIG}")
    return read_mapping(folder / CONFIG)


def read_done(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run, or None."""
    return read_mapping(folder / DONE) if (folder / DONE).exists() else None


def write_done(folder: Path, results: Mapping[str, Any]) -> None:
    """Marks the run as finished, with its ``results``."""
    write_json(folder / DONE, results)


def read_skipped(folder: Path) -> Skipped | None:
    """The training images that the run in ``folder`` leaves out; None if it has not said yet, or never will."""
    return Skipped.from_json(read_json(folder / SKIPPED)) if (folder / SKIPPED).exists() else None


def keep_skipped(folder: Path, skipped: Skipped | None) -> None:
    """Notes what the run in ``folder`` leaves out; ``ValueError`` if its checkpoints are of a run with other images."""
    before = read_skipped(folder)
    if before is None and skipped is not None:
        if any((folder / CHECKPOINTS).glob("*/*")):
            raise ValueError(f"{folder / SKIPPED} is gone, and the run's order with it: give --workdir another folder")
        write_json(folder / SKIPPED, skipped.to_json())
    elif before is not None and not (skipped and before.same(skipped)):
        count = len(skipped.images) if skipped else 0
        raise ValueError(
            f"{folder / SKIPPED} names {len(before.images)} training images that the run leaves out, now they are "
            f"{count}, or others: its order would change (the train command hands on those that are named)"
        )


def summarize(lines: Sequence[Mapping[str, Any]], *, select_on: str) -> dict[str, Any]:
    """Last and best test accuracy from the lines of ``metrics.jsonl``.

    Best is the test result at the step of the highest accuracy on the selection split, the earliest of equals; with
    ``select_on="test"`` that is the best test accuracy itself, an optimistic number.
    """
    results = {split: {} for split in ("test", select_on)}
    for line in lines:
        if line["kind"] == "evaluation":
            results[line["split"]][line["step"]] = line
    selected = max(results[select_on].values(), key=lambda line: (line["accuracy"], -line["step"]))
    last = max(results["test"].values(), key=lambda line: line["step"])
    keep = ("step", "epoch", "accuracy", "top5", "loss", "examples")
    last, best = (
        {name: line[name] for name in keep if name in line} for line in (last, results["test"][selected["step"]])
    )
    return {"select_on": select_on, "last": last, "best": best}


def read_json(path: Path) -> Any:
    """The content of a JSON file; ``ValueError`` names the file if it does not read."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} does not read as JSON: {error}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """``read_json`` of a file that holds names and values; ``ValueError`` if it holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold names and values, got {content!r:.80}")
    return content


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config with dotted names."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
