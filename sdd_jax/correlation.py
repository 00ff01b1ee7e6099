"""DIST: a base loss of correlations, within each example and, for each class, over the batch.

The conventions are those of ``sdd_jax.losses``, but for two that a relation between examples changes: logits are
``[B, ..., K]``, batch first, and NaN in one example is NaN in all examples of its region.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdd_jax.logits import prepare

__all__ = ["dist_loss"]

EPSILON = 1e-8  # what the released code adds to the product of norms


def dist_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    temperature: float = 4.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> jax.Array:
    """DIST: ``T^2 (beta (1 - rows) + gamma (1 - columns))`` of Pearson correlations of softened probabilities.

    ``rows`` correlates the two networks' probabilities of an example over the classes (inter-class relation);
    ``columns`` their probabilities of a class over the batch, averaged over the classes (intra-class relation). The
    second is one number for the batch, or for each region of it, and is added to each of its examples, so that the
    mean over the batch is the paper's loss. Under ``sdd_loss`` the batch of a column is the same region of every
    example, and an example's share of it weighs as the region does there.

    A correlation is ``a.b / (|a| |b| + 1e-8)`` of centred values, as the released code has it. So where values do not
    vary (a row of equal probabilities, a batch of one) it is zero: such a term is its weight times ``T^2``, and its
    gradient there is exact and finite (zero for a batch of one, up to ``1e8`` for equal probabilities against a teacher
    whose are not; the gradient of float16 logits is float16, which ends at 65504: it can be infinite there). Classes
    whose norms over the batch multiply to well below ``1e-8`` hardly count.

    The columns depend on which examples are in a batch: with gradients accumulated over parts of a batch the loss is
    another one, and less is related. Over several devices the batch is the global one.

    Args:
      student_logits: ``[B, ..., K]``, batch first.
      teacher_logits: ``[B, ..., K]``.
      labels: not read; accepted so that every base loss is called alike.
      temperature: ``T > 0``.
      beta: weight of the rows.
      gamma: weight of the columns.

    Returns:
      ``[B, ...]``. A class that both networks leave out (``-inf``) is as if it did not exist; one that one of them
      leaves out has probability zero there, which costs a finite amount, unlike in a KL divergence.

    Raises:
      ValueError: if the logits' shapes differ, have no batch axis, hold no class, or are not floating point.

    Source: "Knowledge Distillation from A Stronger Teacher" (Huang et al., NeurIPS 2022), equations 6 to 10, and its
    released code (dist_kd.py), which weighs the loss by 2 beside a cross-entropy of weight 1, with T = 4 on CIFAR-100
    and 1 on ImageNet.
    """
    del labels
    student, teacher = prepare(student_logits, teacher_logits, temperature=temperature)
    if student.ndim < 2:
        raise ValueError(f"dist_loss relates the examples of a batch: it needs [B, ..., K], got {student.shape}")
    exists = ~(jnp.isneginf(student) & jnp.isneginf(teacher))
    student, teacher = (jax.nn.softmax(logits / temperature, axis=-1) for logits in (student, teacher))
    rows = _correlation(student, teacher, exists, axis=-1)
    columns = _correlation(student, teacher, jnp.ones_like(exists), axis=0)
    columns = jnp.mean(columns, axis=-1, where=jnp.any(exists, axis=0))
    return temperature**2 * (beta * (1.0 - rows) + gamma * (1.0 - columns)[None])


def _correlation(first: jax.Array, second: jax.Array, exists: jax.Array, axis: int) -> jax.Array:
    """Pearson's correlation along ``axis`` of the values that exist."""
    first, second = (_centred(values, exists, axis) for values in (first, second))
    return jnp.sum(first * second, axis) / (_norm(first, axis) * _norm(second, axis) + EPSILON)


def _centred(values: jax.Array, exists: jax.Array, axis: int) -> jax.Array:
    return jnp.where(exists, values - jnp.mean(values, axis, keepdims=True, where=exists), 0.0)


def _norm(values: jax.Array, axis: int) -> jax.Array:
    """The root has no derivative at zero; the quotient that it stands in has one, which zero here gives."""
    squares = jnp.sum(values**2, axis)
    zero = squares == 0.0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
