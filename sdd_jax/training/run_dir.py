"""A run's folder: the names of its files, its lock, and what is read from it."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from sdd_jax import __version__, processes, sealed
from sdd_jax.data import Skipped
from sdd_jax.fields import FIELDS, LATER, RUNTIME_FIELDS
from sdd_jax.files import NUMBER, Fields, check_fields, flatten, read_mapping, write_json
from sdd_jax.training.compiling import cpu_options

CONFIG, ENVIRONMENT, CHECKPOINTS, LOCK = "config.json", "environment.json", "checkpoints", "lock"
DONE = "done.json"  # the results, at the end of a run
SKIPPED = "skipped.json"  # of a run that leaves out bad training images
DATA = "data.json"  # of a trained run: what became of its images, and what its classes were called
BEGUN = "begun"  # in the config of a run that was extended: the fields with which it began, which name its owner
HOLDER = "lock.json"  # which process trains
KINDS = {name: {tuple: list, float: NUMBER}.get(field.kind, field.kind) for name, field in FIELDS.items()}  # as JSON
KINDS |= {name: KINDS[name] | None for name, field in FIELDS.items() if field.optional}
NETWORK: Fields = dict.fromkeys(("model.student", "model.stem", "model.dtype"), str)
IMPORTED: Fields = {**NETWORK, "imported": dict, "num_classes": int, "image_size": int | None}
TRAINED: Fields = {**NETWORK, **KINDS, "data.num_classes": int}  # which is settled when a run begins
RESULTS: Fields = {  # of a trained run, whoever wrote them: a digest can be computed by anybody
    **{"select_on": str, "seconds": NUMBER, "last.step": int, "best.step": int},
    **{f"{which}.{name}": NUMBER for which in ("last", "best") for name in ("epoch", "accuracy")},
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def lock_folder(folder: Path) -> FileLock:
    """Locks ``folder`` until the lock is released or this process ends; ``ValueError`` names a holder of the lock."""
    processes.end_second_script()  # which the first one would keep out, for another reason
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            fields = {"process": int, "host": str, "started": str}
            holder = "process {process} on {host} since {started}".format_map(read_mapping(folder / HOLDER, fields))
        except FileNotFoundError:
            holder = "another process that has just begun"
        except ValueError as error:
            holder = f"another process ({error})"
        raise ValueError(
            f"{folder} is in use by {holder}: wait for it, or end it and start again. If its machine is gone, remove "
            f"{folder / LOCK}"
        ) from None
    started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    write_json(folder / HOLDER, {"host": socket.gethostname(), "process": os.getpid(), "started": started})
    return lock


def unlock_folder(folder: Path, lock: FileLock) -> None:
    """Releases the lock; its file stays, since another process may be about to lock it."""
    (folder / HOLDER).unlink(missing_ok=True)
    lock.release()


def open_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Makes ``folder`` the folder of ``config``'s run, or checks that it is, and notes this start."""
    check_same_config(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = read_starts(folder) if (folder / ENVIRONMENT).exists() else []
    if not (folder / CONFIG).exists():
        write_json(folder / CONFIG, config)
    devices = jax.devices()
    start = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"sdd_jax": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "compiler_options": cpu_options() if devices[0].platform == "cpu" else {},
        "processes": jax.process_count(),
        "processors": processes.processors(),
        "commit": commit(),
    }
    write_sealed(folder, ENVIRONMENT, {"starts": [*earlier, start]})


def extend(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Gives the run in ``folder`` the epochs of ``config``, and returns what there is to say, if they are more.

    To be called when nothing is left that may refuse the run: the command with which it began does not suit it then.
    """
    if (before := read_config(folder)).get("epochs") == config.get("epochs"):
        return []
    begun = before.get(BEGUN) or {"epochs": before["epochs"], "optim.milestones": before["optim"]["milestones"]}
    (folder / DONE).unlink(missing_ok=True)  # first: a run without it goes on, whichever of the two configs it has
    write_json(folder / CONFIG, {**config, BEGUN: begun})
    return [f"extended from {before['epochs']} epochs to {config['epochs']}"]


def check_same_config(folder: Path, config: Mapping[str, Any]) -> None:
    """``ValueError`` if ``folder`` holds anything else than a run of ``config``.

    ``RUNTIME_FIELDS`` may differ, and a run may get more epochs if it has been the longer run so far.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{folder} cannot be a run's folder: {path} is a file")
    if (folder / CONFIG).exists():
        before, config = read_config(folder), _filled(config)
        if (fields := differing(before, config, RUNTIME_FIELDS)) and not _extends(folder, before, config):
            raise ValueError(
                f"{folder} holds a run of another config, by its {CONFIG} ({fields}): give --workdir another folder"
            )
    elif folder.exists() and holds_more(folder):
        raise ValueError(f"{folder} is not empty and holds no run: give --workdir a folder of its own")


def _extends(folder: Path, before: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether ``config`` is the run of ``before`` with more epochs; ``ValueError`` if it would have gone another way.

    A run by steps goes the same way up to its end if no milestone before that changes; those from there on are free.
    """
    old, now = flat_fields(before), flat_fields(config)
    differ = {name for name in old.keys() | now.keys() if old.get(name) != now.get(name)} - RUNTIME_FIELDS
    needed = {"epochs", "method", "optim.schedule", "optim.milestones"}
    if differ - {"optim.milestones"} != {"epochs"} or not needed <= old.keys() or now["epochs"] < old["epochs"]:
        return False
    end, milestones = old["epochs"], list(old["optim.milestones"])
    if old["optim.schedule"] != "step":
        reason = f"the {old['optim.schedule']} schedule of its rate ends with its epochs"
    elif old["method"] != "plain" and old.get("loss.warmup_share"):
        reason = "its warm-up, loss.warmup_share, is a share of its epochs"
    elif milestones != [epoch for epoch in now["optim.milestones"] if epoch < end]:
        reason = f"optim.milestones before epoch {end} must stay {milestones}, got {list(now['optim.milestones'])}"
    else:
        return True
    raise ValueError(
        f"the run in {folder} has {end} epochs and cannot be given {now['epochs']}: {reason}. Another run can begin "
        f"with its weights: --config.model.init={folder} and another --workdir"
    )


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether the run in ``folder`` has ended after so many ``epochs``."""
    return read_done(folder) is not None and read_config(folder).get("epochs") == epochs


def holds_more(folder: Path) -> bool:
    """Whether there is more in ``folder`` than a kill leaves before the first file is written."""
    return any(path.name not in (LOCK, HOLDER) and path.suffix != ".tmp" for path in folder.iterdir())


def differing(before: Mapping[str, Any], now: Mapping[str, Any], besides: Set[str] = frozenset()) -> str:
    """The fields in which two nested configs differ, with both values; the fields ``besides`` are not compared."""
    before, now = flat_fields(before), flat_fields(now)
    names = [name for name in sorted((before.keys() | now.keys()) - besides) if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names)


def check_processes(mine: Mapping[str, Any]) -> None:
    """``ValueError`` in every process unless all of them have the first one's values, but for ``RUNTIME_FIELDS``."""
    if jax.process_count() > 1:
        first = processes.from_first(lambda: mine)
        other = differing(first, json.loads(json.dumps(mine)), RUNTIME_FIELDS)
        told = f": here {other}".replace(" was ", " is the first's ") if other else ""
        processes.check_all(not other, f"every process needs the config and the data of the first one{told}")


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the run in ``folder``, each field that is there of its type; ``ValueError`` if there is none.

    A run of before a field of ``LATER`` came holds its value there.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not a run's folder: it has no {CONFIG}")
    config = _filled(read_mapping(folder / CONFIG))
    there = {name: kind for name, kind in KINDS.items() if name in flatten(config)}
    return check_fields(config, there, str(folder / CONFIG))


def flat_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config by dotted names, without what is noted of its beginning where it was extended."""
    return flatten({name: value for name, value in config.items() if name != BEGUN})


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with those fields of ``LATER`` that its rooms lack."""
    filled = dict(config)
    for name, value in LATER.items():
        room, _, field = name.partition(".")
        if isinstance(filled.get(room), dict):
            filled[room] = {field: value, **filled[room]}
    return filled


def read_network(folder: Path) -> dict[str, Any]:
    """``read_config`` of a run that one of the commands made; ``ValueError`` if it does not say what its network is."""
    config = read_config(folder)
    return check_fields(config, IMPORTED if "imported" in config else TRAINED, str(folder / CONFIG))


def owner(config: Mapping[str, Any]) -> str:
    """Whose a run's files are: every field of its config but ``RUNTIME_FIELDS``, as one digest, and its seed.

    A run that was extended keeps its owner: the fields count as they were in the beginning. Fields of ``LATER`` at
    their values are left out, as they were before they came.
    """
    begun = flat_fields(config) | dict(config.get(BEGUN) or {})
    fields = {name: value for name, value in begun.items() if name not in RUNTIME_FIELDS}
    told = {name: value for name, value in fields.items() if value is not None and LATER.get(name) != value}
    known = sealed.digest(told)[:16]
    return f"{CONFIG} {known}" + (f", seed {config['seed']}" if "seed" in config else "")


def read_sealed(folder: Path, name: str) -> dict[str, Any] | None:
    """What a sealed file of the run in ``folder`` holds, None if it is not there; ``Damaged`` if it was changed."""
    path = folder / name
    return sealed.read(path, name, owner(read_config(folder))) if path.exists() else None


def write_sealed(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Writes a file of the run in ``folder``, for `read_sealed`."""
    sealed.write(folder / name, name, owner(read_config(folder)), content)


def read_done(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run, or None."""
    if (done := read_sealed(folder, DONE)) is None:
        return None
    return check_fields(done, {"last.step": int} if "imported" in read_config(folder) else RESULTS, str(folder / DONE))


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """When, where and with what the run in ``folder`` was started, each time: at least once."""
    noted, where = read_sealed(folder, ENVIRONMENT), str(folder / ENVIRONMENT)
    if noted is None or not (starts := check_fields(noted, {"starts": list}, where)["starts"]):
        raise sealed.Damaged(f"{where} is not there, or names no start of the run")
    return [check_fields(start, {"started": str, "versions": dict, "devices": dict}, where) for start in starts]


def read_data(folder: Path) -> dict[str, Any] | None:
    """What became of the images of the run in ``folder``, and what its classes are called; None if it is not noted."""
    kinds: Fields = {"class_names": list, "image_shape": list, "mean": list, "std": list}
    if (noted := read_sealed(folder, DATA)) is None:
        return None
    found = check_fields(noted, kinds, str(folder / DATA))
    items = {"class_names": str, "image_shape": int, "mean": float, "std": float}
    right = all(isinstance(item, kind) for name, kind in items.items() for item in found[name])
    if not right or {len(found[name]) for name in ("mean", "std")} != {*found["image_shape"][2:]}:
        raise sealed.Damaged(f"{folder / DATA} holds other values than a run notes of its images")
    return found


def keep_data(folder: Path, about: Mapping[str, Any]) -> None:
    """Notes what ``read_data`` reads; ``ValueError`` if other things became of images when the run began."""
    if (before := read_data(folder)) is None:
        write_sealed(folder, DATA, about)
    elif other := differing({name: before.get(name) for name in about}, about, {"class_names"}):
        raise ValueError(f"{folder} holds a run whose images were treated otherwise ({other}): put the data back")


def read_skipped(folder: Path) -> Skipped | None:
    """The training images that the run in ``folder`` leaves out; None if none are noted."""
    noted = read_sealed(folder, SKIPPED)
    return Skipped.from_json(noted["images"]) if noted else None


def keep_skipped(folder: Path, skipped: Skipped | None) -> None:
    """Notes which images the run in ``folder`` leaves out; ``ValueError`` if an earlier start left out others."""
    before = read_skipped(folder)
    if before is None and skipped is not None:
        if any((folder / CHECKPOINTS).glob("*/*")):
            raise ValueError(f"{folder / SKIPPED} is gone, and the run's order with it: give --workdir another folder")
        write_sealed(folder, SKIPPED, {"images": skipped.to_json()})
    elif before is not None and not (skipped and before.same(skipped)):
        count = len(skipped.images) if skipped else 0
        raise ValueError(
            f"{folder / SKIPPED} names {len(before.images)} training images that the run leaves out, now they are "
            f"{count}, or others: its order would change (the train command hands on those that are named)"
        )


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout that ``folder`` is in, "+changes" if its code differs; None outside of one.

    Files of results are left out: each run of a table adds a line to them.
    """
    run = partial(subprocess.run, cwd=folder, capture_output=True, text=True)
    try:
        run(["git", "ls-files", "--error-unmatch", "."], check=True)  # installed inside of another's, it is not of it
        revision = run(["git", "rev-parse", "HEAD"], check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or an installed package: there is no commit to name
        return None
    changes = run(["git", "diff", "--quiet", "HEAD", "--", ":(top)", ":(top,exclude)experiments/results"])
    return revision + ("+changes" if changes.returncode else "")
