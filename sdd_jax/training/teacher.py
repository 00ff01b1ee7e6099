"""A teacher from a run's folder: its variables, their hash, and its accuracy, measured once and kept by that hash."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdd_jax.files import read_json, write_json
from sdd_jax.processes import from_first

MEASURED = "measured.json"
TOLERANCE = 0.1  # percentage points


def variables_hash(variables: Any) -> str:
    """SHA-256, in hex, over the name, dtype, shape and bytes of every leaf of ``variables``."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype.str} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def measured_accuracy(folder: Path, key: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The results kept under ``key`` in the teacher's folder, else those of ``measure()``, kept there from now on."""
    path = folder / MEASURED

    def kept():
        return read_json(path) if path.exists() else {}

    results = from_first(lambda: kept().get(key))
    if results is None:
        results = measure()  # by all processes together
        from_first(lambda: write_json(path, kept() | {key: results}))
    return results


def check_accuracy(measured: float, stated: float | None) -> None:
    """Refuses a teacher that is not the one it is said to be.

    Args:
      measured: test accuracy in percent.
      stated: in percent; None is nothing to hold it against.

    Raises:
      ValueError: if they differ by more than 0.1 points.
    """
    if stated is not None and abs(measured - stated) > TOLERANCE + 1e-9:
        raise ValueError(
            f"the teacher's test accuracy is {measured:.2f} %, stated is {stated:.2f} %: wrong weights, data or "
            "normalisation? If this very teacher is meant, state its accuracy: "
            f"--config.teacher.accuracy={measured:.2f}"
        )
