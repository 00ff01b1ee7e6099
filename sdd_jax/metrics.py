"""Metrics as ``{"sum", "count"}`` states that add up: over batches, devices and processes, with padding masked out.

``compute(merge(a, b))`` is the mean over both, whatever their sizes, so a last partial batch needs no special case.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdd_jax.logits import check_labels

__all__ = ["agreement", "compute", "mean", "merge", "same_accuracy", "top_k"]

State = Mapping[str, jax.Array]


def mean(values: ArrayLike, valid: ArrayLike | None = None) -> State:
    """The sum of ``values`` ``[B]`` and their count (int32); ``ValueError`` if they or ``valid`` are not ``[B]``.

    Where ``valid``, bool ``[B]``, is False there is padding, which is not counted; None counts all.
    """
    values = jnp.asarray(values)
    valid = jnp.ones(values.shape, bool) if valid is None else jnp.asarray(valid)
    if values.ndim != 1 or valid.shape != values.shape:
        raise ValueError(f"values and valid must have one shape [B], got {values.shape} and {valid.shape}")
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return {"sum": jnp.sum(jnp.where(valid, values, 0)), "count": jnp.sum(valid, dtype=jnp.int32)}


def top_k(logits: ArrayLike, labels: ArrayLike, k: int = 1, valid: ArrayLike | None = None) -> State:
    """The share of examples whose label is among the ``k`` largest logits.

    ``logits`` are ``[B, K]``, ``labels`` integers ``[B]``, ``valid`` as in ``mean``. Equal logits rank by class number,
    so that top-1 is ``argmax``. A row with a NaN or a label out of range is never correct. ``ValueError`` for shapes
    that do not fit, ``k`` outside of 1 to K, or a concrete label out of range.
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape [B, K], got {logits.shape}")
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k must lie in 1..{logits.shape[-1]}, the number of classes; got {k}")
    check_labels(labels, logits.shape[:1], logits.shape[-1])
    labels = jnp.asarray(labels)[:, None]
    own = jnp.take_along_axis(logits, labels, axis=-1, mode="fill")  # NaN beyond the last class; below 0 from the end
    ahead = (logits > own) | ((logits == own) & (jnp.arange(logits.shape[-1])[None] < labels))
    known = (labels[:, 0] >= 0) & ~jnp.isnan(own[:, 0])
    correct = (jnp.sum(ahead, axis=-1) < k) & ~jnp.isnan(logits).any(axis=-1) & known
    return mean(correct, valid)


def agreement(student_logits: ArrayLike, teacher_logits: ArrayLike, valid: ArrayLike | None = None) -> State:
    """The share of examples for which student and teacher predict the same class (``[B, K]`` each)."""
    student, teacher = jnp.asarray(student_logits), jnp.asarray(teacher_logits)
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(f"logits must have one shape [B, K], got {student.shape} and {teacher.shape}")
    return mean(jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1), valid)


def merge(*states: Mapping) -> Mapping:
    """The sum of states, or of dictionaries of states with the same names."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *states)


def compute(state: State) -> jax.Array:
    """The mean that a state stands for; NaN if nothing was counted."""
    return state["sum"] / state["count"]


def same_accuracy(measured: float, stated: float) -> bool:
    """Whether two accuracies (0 to 1) can be one network's: they are at most 0.1 points apart."""
    return abs(measured - stated) <= 1e-3 + 1e-11
