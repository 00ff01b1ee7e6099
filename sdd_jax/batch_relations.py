"""Base losses that relate the examples of a batch; the conventions are those of ``sdd_jax.losses``.

What relates examples has the batch first, ``[B, ..., K]``, and does so within each region. Its value is added to each
example, so that the mean over the batch is the paper's loss; under ``sdd_loss`` an example's share of it weighs as its
region does there. The batch is the global one over several devices, and a part of it with accumulated gradients
(``optim.accumulate_steps``): there such a loss is another one. NaN in one example is NaN in all examples of its region.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdd_jax.logits import prepare, root

__all__ = ["dist_loss"]


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

    ``rows`` correlates the two networks' probabilities of an example over the classes; ``columns`` their probabilities
    of a class over the batch, averaged over the classes. The second is one number for the batch, or for each region of
    it, and is added to each example.

    A correlation is ``a.b / (|a| |b| + 1e-8)`` of centred values, as the released code has it. So where values do not
    vary (a row of equal probabilities, a batch of one) it is zero: such a term is its weight times ``T^2``, and its
    gradient is exact and finite (zero for a batch of one, up to ``1e8`` for equal probabilities against a teacher whose
    are not). Classes whose norms over the batch multiply to well below ``1e-8`` hardly count.

    Args:
      student_logits: ``[B, ..., K]``, batch first.
      teacher_logits: ``[B, ..., K]``.
      labels: not read.
      temperature: ``T > 0``.
      beta: weight of the rows.
      gamma: weight of the columns.

    Returns:
      ``[B, ...]``. A class that both networks leave out (``-inf``) is as if it did not exist; one that one of them
      leaves out has probability zero there, which costs a finite amount, unlike in a KL divergence.

    Raises:
      ValueError: as ``kd_loss``, and if the logits have no batch axis.

    Source: "Knowledge Distillation from A Stronger Teacher" (Huang et al., NeurIPS 2022), equations 6 to 10, and its
    released code (dist_kd.py), with T = 4 on CIFAR-100 and 1 on ImageNet.
    """
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

    def centred(values):
        return jnp.where(exists, values - jnp.mean(values, axis, keepdims=True, where=exists), 0.0)

    first, second = centred(first), centred(second)
    norms = root(jnp.sum(first**2, axis)) * root(jnp.sum(second**2, axis))
    return jnp.sum(first * second, axis) / (norms + 1e-8)  # as the released code of DIST has it
