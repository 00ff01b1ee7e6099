"""Base losses that relate the examples of a batch; the conventions are those of ``sdd_jax.losses``.

What relates examples has the batch first, ``[B, ..., K]``, and does so within each region. Its value is added to each
example, so that the mean over the batch is the paper's loss; under ``sdd_loss`` an example's share of it weighs as its
region does there. The batch is the global one over several devices, and a part of it with accumulated gradients
(``optim.accumulate_steps``): there such a loss is another one. NaN in one example is NaN in all examples of its region.
"""

import jax
import jax.numpy as jnp
from jax.nn import log_softmax
from jax.typing import ArrayLike

from sdd_jax.logits import kl_divergence, prepare, root

__all__ = ["dist_loss", "mlkd_loss"]


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


def mlkd_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    temperature: float = 4.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    further_temperatures: tuple[int, ...] = (2, 3, 5, 6),
) -> jax.Array:
    """Multi-level logit distillation: ``instances + beta classes + gamma examples``, summed over temperatures.

    At each temperature T, with softened probabilities P ``[B, K]`` (t: teacher, s: student): instances is
    ``T^2 KL(p_t || p_s)`` of the example; classes ``|P_t' P_t - P_s' P_s|^2 / K``, how classes go together over the
    batch; examples ``|P_t P_t' - P_s P_s'|^2 / B``, how alike two examples are, of which each example has its own row.
    Classes is one number for the batch, or for each region of it, and is added to each example.

    The released code multiplies each of them by the share of examples, or classes, whose confidence is not above the
    median, a half or little more, which is a factor and no mask: it can be put into the weight. Its second, strongly
    augmented view is a matter of the data and not here.

    Args:
      student_logits: ``[B, ..., K]``, batch first.
      teacher_logits: ``[B, ..., K]``.
      labels: not read.
      temperature: ``T > 0``, the first.
      beta: weight of classes.
      gamma: weight of examples.
      further_temperatures: the others, each ``> 0``; none: ``()``.

    Returns:
      ``[B, ...]``. A class that both networks leave out (``-inf``) is as if it did not exist.

    Raises:
      ValueError: as ``kd_loss``, and if the logits have no batch axis.

    Source: "Multi-Level Logit Distillation" (Jin, Wang, Lin; CVPR 2023), by its released code
    (mdistiller/distillers/KD_ours.py), whose temperatures these are; on ImageNet the first is 1.
    """
    further = {f"further_temperatures[{number}]": value for number, value in enumerate(further_temperatures)}
    student, teacher = prepare(student_logits, teacher_logits, temperature=temperature, **further)
    if student.ndim < 2:
        raise ValueError(f"mlkd_loss relates the examples of a batch: it needs [B, ..., K], got {student.shape}")
    exists = jnp.any(~(jnp.isneginf(student) & jnp.isneginf(teacher)), axis=0)
    classes = jnp.sum(exists, axis=-1, dtype=student.dtype)
    total = jnp.zeros(student.shape[:-1], student.dtype)
    for number in (temperature, *further_temperatures):
        teacher_log, student_log = (log_softmax(logits / number) for logits in (teacher, student))
        teacher_p, student_p = jnp.exp(teacher_log), jnp.exp(student_log)
        # Differences of Gram matrices from the difference and the sum of what they are of: close networks lose no
        # digits, and no [K, K] is made. Of D = (A C' + C A') / 2 with A = P_t - P_s, C = P_t + P_s the squares are
        # summed by row; those of A'C + C'A over all entries are traces of products of [B, B].
        mixed, differences, sums = (
            jnp.einsum("i...k,j...k->ij...", *pair, precision=jax.lax.Precision.HIGHEST)
            for pair in (
                (teacher_p - student_p, teacher_p + student_p),
                (teacher_p - student_p, teacher_p - student_p),
                (teacher_p + student_p, teacher_p + student_p),
            )
        )
        turned = jnp.swapaxes(mixed, 0, 1)
        of_examples = jnp.sum((0.5 * (mixed + turned)) ** 2, axis=1)
        of_classes = 0.5 * jnp.sum(differences * sums + mixed * turned, axis=(0, 1)) / classes
        total += number**2 * kl_divergence(teacher_log, student_log) + beta * of_classes[None] + gamma * of_examples
    return total


def _correlation(first: jax.Array, second: jax.Array, exists: jax.Array, axis: int) -> jax.Array:
    """Pearson's correlation along ``axis`` of the values that exist."""

    def centred(values):
        return jnp.where(exists, values - jnp.mean(values, axis, keepdims=True, where=exists), 0.0)

    first, second = centred(first), centred(second)
    norms = root(jnp.sum(first**2, axis)) * root(jnp.sum(second**2, axis))
    return jnp.sum(first * second, axis) / (norms + 1e-8)  # as the released code of DIST has it
