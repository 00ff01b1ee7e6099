"""A teacher as one value, which a step asks."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sdd_jax.regions import Regions


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
