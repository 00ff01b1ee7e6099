"""A teacher: what a step asks, and how a network out of a run's folder is identified and held against its accuracy."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sdd_jax.files import read_json, write_json
from sdd_jax.processes import from_first
from sdd_jax.regions import Regions

MEASURED = "measured.json"
TOLERANCE = 0.1  # percentage points


class Teacher(NamedTuple):
    """Whoever answers the student's questions: a network, a cache, or nobody.

    Attributes:
      apply: ``apply({**arrays, **chunk(seed, step)}, batch) -> Outputs``, called inside ``jit``; None: no teacher.
      arrays: what it reads through the whole run.
      chunk: ``chunk(seed, step)``: what else it reads in the chunk of steps that starts at ``step``; None: nothing.
    """

    apply: Callable[..., Any] | None = None
    arrays: Mapping[str, Any] = {}
    chunk: Callable[[int, int], Mapping[str, Any]] | None = None


def live_teacher(model: Any, variables: Any, regions: Regions | None) -> Teacher:
    """The network itself, in evaluation mode, on the batch's images."""

    def apply(arrays, batch):
        return model.apply(arrays, batch["image"], train=False, regions=regions)

    return Teacher(apply, variables)


def variables_hash(variables: Any) -> str:
    """SHA-256, in hex, over the name, dtype, shape and bytes of every leaf of ``variables``."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype.str} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def measured_accuracy(folder: Path, key: str, measure: Callable[[], float]) -> float:
    """The accuracy kept under ``key`` in the teacher's folder, else that of ``measure()``, which is then kept."""
    path = folder / MEASURED

    def kept():
        return read_json(path) if path.exists() else {}

    results = from_first(lambda: kept().get(key))
    if results is None:
        results = {"accuracy": measure()}  # by all processes together
        from_first(lambda: write_json(path, kept() | {key: results}))
    return results["accuracy"]


def check_accuracy(measured: float, stated: float | None) -> None:
    """Refuses a teacher that is not the one it is said to be.

    Args:
      measured: test accuracy in percent.
      stated: in percent; None if there is nothing to hold it against.

    Raises:
      ValueError: if they differ by more than 0.1 points.
    """
    if stated is not None and abs(measured - stated) > TOLERANCE + 1e-9:
        raise ValueError(
            f"the teacher's test accuracy is {measured:.2f} %, stated is {stated:.2f} %: wrong weights, data or "
            "normalisation? If this very teacher is meant, state its accuracy: "
            f"--config.teacher.accuracy={measured:.2f}"
        )
