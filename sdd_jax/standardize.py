"""Logit standardisation: a step before any base loss, which takes mean and spread out of both networks' logits.

Source of everything here: "Logit Standardization in Knowledge Distillation" (Sun et al., CVPR 2024; arXiv 2403.01427)
and its released code (mdistiller/distillers/KD.py there). The conventions are those of ``sdd_jax.losses``.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdd_jax.logits import as_float, root

__all__ = ["standardize_logits", "standardized"]


def standardized(base: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A base loss of standardised logits: ``base(standardize_logits(s), standardize_logits(t), labels)``.

    Under ``sdd_loss`` every region is standardised by itself, since the classes are its last axis.

    Args:
      base: a base loss ``(student_logits, teacher_logits, labels, **options) -> [...]`` over the last axis, such as
        ``kd_loss``; its temperature is the paper's base temperature.

    Returns:
      A base loss with the arguments of ``base``, from ``[..., K]`` to ``[...]``.

    Raises:
      ValueError: only when called, as ``standardize_logits`` and ``base`` do.
    """

    @functools.wraps(base)  # so that its options are found by their names
    def loss(
        student_logits: ArrayLike, teacher_logits: ArrayLike, labels: ArrayLike | None = None, **options
    ) -> jax.Array:
        return base(standardize_logits(student_logits), standardize_logits(teacher_logits), labels, **options)

    return loss


def standardize_logits(logits: ArrayLike) -> jax.Array:
    """``(z - mean(z)) / (std(z) + 1e-7)`` over the classes.

    The standard deviation divides by ``K - 1``, as the released code's does; dividing by ``K`` would be the same as a
    temperature smaller by ``sqrt(1 - 1/K)``. Where the spread is taken out, so is the scale of the gradient: it grows
    as ``1 / std``. Logits that are all equal become zeros, with a gradient of ``1e7`` times the deviation from its
    mean, which is the exact one; clipping has to deal with it. A class of ``-inf`` is left out of mean and deviation
    and stays ``-inf``; a single class that is left becomes zero.

    Args:
      logits: ``[..., K]``.

    Returns:
      ``[..., K]``, at least float32.

    Raises:
      ValueError: if ``logits`` hold no class or are not floating point.
    """
    logits = as_float(logits, "logits")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape [..., K] with K >= 1, got {logits.shape}")
    left_out = jnp.isneginf(logits)
    count = jnp.sum(~left_out, axis=-1, keepdims=True).astype(logits.dtype)
    # A shift changes nothing but rounding: so equal logits are exactly zero, however large they are.
    shifted = jnp.where(left_out, 0.0, logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    # Nor does a scale: in units of the spread no square overflows.
    unit = jnp.maximum(1.0, -jax.lax.stop_gradient(jnp.min(shifted, axis=-1, keepdims=True)))
    shifted = shifted / unit
    centred = jnp.where(left_out, 0.0, shifted - jnp.sum(shifted, axis=-1, keepdims=True) / count)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / jnp.maximum(count - 1.0, 1.0)
    return jnp.where(left_out, -jnp.inf, centred / (root(variance) + 1e-7 / unit))  # 1e-7: as the released code has it
