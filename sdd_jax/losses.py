"""Base distillation losses: pure functions of arrays, one value per example.

Conventions of every ``*_loss`` here:

- ``student_logits`` and ``teacher_logits`` are ``[..., K]`` with equal shapes, ``labels`` integers ``[...]``;
  the loss is taken over the last axis and comes out as ``[...]``, in nats, with no mean over examples. A loss that
  does not read labels accepts them, so that all are called alike.
- float16 and bfloat16 logits are computed, and returned, in float32; float64 stays float64. Their gradient comes back
  in their own type, of which float16 ends at 65504: a gradient beyond is infinite.
- Everything stays in log space, so the value and its gradient are finite for any finite logits that float32 can
  carry through a difference (1e4 and beyond), also for a saturated student.
- A logit of ``-inf`` is a class left out of that network's distribution: a class that the teacher leaves out adds
  nothing; one that only the student leaves out costs ``inf`` (unless the teacher's probability for it underflows to
  zero). A network that has no class left, or in ``dkd_loss`` and ``nkd_loss`` none beside the target, gives NaN. NaN
  or ``+inf`` in gives NaN out: it is never hidden.
- A label outside ``0..K-1`` raises ``ValueError`` for concrete arrays and gives NaN inside ``jit``.
"""

import jax
import jax.numpy as jnp
from jax.nn import log_softmax, logsumexp
from jax.typing import ArrayLike

from sdd_jax.logits import cross_entropy, kl_divergence, log_binary, prepare, target_mask, target_term, without

__all__ = ["abkd_loss", "dkd_loss", "kd_loss", "nkd_as_released_loss", "nkd_loss", "ttm_loss", "wttm_loss"]


def kd_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    temperature: float = 4.0,
) -> jax.Array:
    """Knowledge distillation: ``T^2 KL(softmax(t / T) || softmax(s / T))``.

    Args:
      student_logits: ``[..., K]``.
      teacher_logits: ``[..., K]``.
      labels: not read.
      temperature: ``T > 0``.

    Returns:
      ``[...]``, times ``T^2``.

    Raises:
      ValueError: if the logits' shapes differ, hold no class, or are not floating point, or ``T`` is not positive.

    Source: "Distilling the Knowledge in a Neural Network" (Hinton, Vinyals, Dean, 2015), section 2, with the factor
    ``T^2`` that keeps gradients comparable between temperatures; equation 1 of "Scale Decoupled Distillation"
    (2024), which prints no temperature while its released code uses ``T = 4``, the default here.
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature=temperature)
    return temperature**2 * kl_divergence(log_softmax(teacher / temperature), log_softmax(student / temperature))


def dkd_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> jax.Array:
    """Decoupled knowledge distillation: ``T^2 (alpha TCKD + beta NCKD)``.

    TCKD is the KL divergence of (target, any other class) probabilities, NCKD that of the other classes alone.

    Args:
      student_logits: ``[..., K]``, ``K >= 2``.
      teacher_logits: ``[..., K]``.
      labels: integers ``[...]``, the target classes.
      temperature: ``T > 0``.
      alpha: weight of TCKD.
      beta: weight of NCKD (not SDD's weight of complementary regions).

    Returns:
      ``[...]``, times ``T^2``.

    Raises:
      ValueError: as ``kd_loss``, and for fewer than two classes or a concrete label out of range.

    Source: "Decoupled Knowledge Distillation" (Zhao et al., CVPR 2022), equation 7. Its released code subtracts 1000
    from the target's logit; here the target is masked, which agrees where theirs is finite.
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature=temperature)
    target, valid = target_mask(labels, student.shape, "dkd_loss")
    student, teacher = student / temperature, teacher / temperature
    tckd = kl_divergence(log_binary(teacher, target), log_binary(student, target))
    nckd = kl_divergence(log_softmax(without(teacher, target)), log_softmax(without(student, target)))
    return jnp.where(valid, temperature**2 * (alpha * tckd + beta * nckd), jnp.nan)


def nkd_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> jax.Array:
    """Normalised knowledge distillation, as its paper defines it (the official SDD code: ``nkd_as_released_loss``).

    ``-p_t[y] log p_s[y]`` (no temperature) plus ``gamma T^2`` times the cross-entropy between the two networks'
    distributions over the classes other than ``y``. Both terms are cross-entropies, so the minimum is not zero.

    Args:
      student_logits: ``[..., K]``, ``K >= 2``.
      teacher_logits: ``[..., K]``.
      labels: integers ``[...]``, the target classes ``y``.
      temperature: ``T > 0``, of the second term.
      gamma: weight of the second term.

    Returns:
      ``[...]``.

    Raises:
      ValueError: as ``kd_loss``, and for fewer than two classes or a concrete label out of range.

    Source: "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and
    Customized Soft Labels" (Yang et al., ICCV 2023), equation 7.
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature=temperature)
    target, valid = target_mask(labels, student.shape, "nkd_loss")
    others = cross_entropy(
        log_softmax(without(teacher / temperature, target)), log_softmax(without(student / temperature, target))
    )
    return jnp.where(valid, target_term(student, teacher, target) + gamma * temperature**2 * others, jnp.nan)


def nkd_as_released_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> jax.Array:
    """NKD as the official SDD code runs it: the target class stays in the second term.

    The released mask is all ones, so the second term is ``gamma T^2`` times the softened cross-entropy over *all*
    classes. Needed to reproduce the paper's NKD and SD-NKD numbers; the loss of the NKD paper is ``nkd_loss``.

    Args:
      student_logits: ``[..., K]``, ``K >= 2``.
      teacher_logits: ``[..., K]``.
      labels: integers ``[...]``, the target classes.
      temperature: ``T > 0``, of the second term.
      gamma: weight of the second term.

    Returns:
      ``[...]``.

    Raises:
      ValueError: as ``kd_loss``, and for fewer than two classes or a concrete label out of range.

    Source: the official code of "Scale Decoupled Distillation" (2024), commit e412036, SDD_nkd.py and nkd.py.
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature=temperature)
    target, valid = target_mask(labels, student.shape, "nkd_as_released_loss")
    softened = cross_entropy(log_softmax(teacher / temperature), log_softmax(student / temperature))
    return jnp.where(valid, target_term(student, teacher, target) + gamma * temperature**2 * softened, jnp.nan)


def ttm_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    gamma: float = 0.1,
) -> jax.Array:
    """Transformed teacher matching: ``KL(q || softmax(s))``, ``q`` proportional to ``softmax(t)^gamma``.

    The power makes the teacher softer (``gamma < 1``) as a temperature of ``1 / gamma`` would; the student's
    distribution is left as it is, and there is no factor ``T^2``.

    Args:
      student_logits: ``[..., K]``.
      teacher_logits: ``[..., K]``.
      labels: not read.
      gamma: the power, greater than 0.

    Returns:
      ``[...]``.

    Raises:
      ValueError: as ``kd_loss``, and if ``gamma`` is not positive.

    Source: "Knowledge Distillation Based on Transformed Teacher Matching" (Zheng and Yang, ICLR 2024), section 3, and
    its released code (distiller_zoo/ttm.py), whose ``ttm_l`` is ``gamma``, 0.1 in its example.
    """
    transformed, _, student_log = _transformed(student_logits, teacher_logits, gamma)
    return kl_divergence(transformed, student_log)


def wttm_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    gamma: float = 0.2,
) -> jax.Array:
    """Weighted transformed teacher matching: ``ttm_loss`` times ``sum(softmax(t)^gamma)``, the power sum.

    For ``gamma < 1`` the power sum lies between 1, for a teacher that is certain, and ``K^(1 - gamma)``, for one that
    knows nothing: what the teacher is unsure of weighs more.

    Args:
      student_logits: ``[..., K]``.
      teacher_logits: ``[..., K]``.
      labels: not read.
      gamma: the power, greater than 0.

    Returns:
      ``[...]``.

    Raises:
      ValueError: as ``kd_loss``, and if ``gamma`` is not positive.

    Source: as of ``ttm_loss``, section 4, and distiller_zoo/wttm.py; 0.2 in its example, where WTTM is added to CRD.
    """
    transformed, power_sum, student_log = _transformed(student_logits, teacher_logits, gamma)
    return power_sum * kl_divergence(transformed, student_log)


def abkd_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.8,
    beta: float = 0.3,
) -> jax.Array:
    """ABKD: the alpha-beta divergence of softened probabilities, ``p`` the teacher's and ``q`` the student's.

    ``-sum(p^alpha q^beta - alpha/s p^s - beta/s q^s) / (alpha beta)`` with ``s = alpha + beta``, and its limits where
    one of the three is zero. (1, 0) is KL(p || q), (0, 1) KL(q || p), (1/2, 1/2) ``2 sum((sqrt p - sqrt q)^2)``, (1, 1)
    half the squared distance of p and q, (0, 0) that of their logarithms. There is no factor ``T^2``: the weight makes
    up for it. The released code divides by ``beta``, ``alpha`` and ``alpha`` in the limits, where the divergence has
    their squares: its value is off by that factor there, and negative for a negative one.

    Args:
      student_logits: ``[..., K]``.
      teacher_logits: ``[..., K]``.
      labels: not read.
      temperature: ``T > 0``.
      alpha: the power of the teacher's probabilities.
      beta: the power of the student's.

    Returns:
      ``[...]``. With both powers above zero a class that one network alone leaves out (``-inf``) costs a finite amount.
      With a power of zero or below a probability near zero may cost ``inf``, as in the formula.

    Raises:
      ValueError: as ``kd_loss``.

    Source: "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
    alpha-beta-Divergence" (Wang et al., ICML 2025; arXiv 2505.04560), and the README of its released code
    (standard_classification) for the numbers on CIFAR-100, where the weight is 32.
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature=temperature)
    absent = jnp.isneginf(student) & jnp.isneginf(teacher)
    log_q, log_p = (jnp.where(absent, 0.0, log_softmax(logits / temperature)) for logits in (student, teacher))
    total = jnp.sum(jnp.where(absent, 0.0, _alpha_beta_terms(log_q, log_p, alpha, beta)), axis=-1)
    return jnp.where(jnp.all(absent, axis=-1), jnp.nan, total)


def _transformed(student_logits: ArrayLike, teacher_logits: ArrayLike, gamma: float) -> tuple[jax.Array, ...]:
    """The teacher's log-probabilities to the power ``gamma`` and normalised, their power sum, and the student's."""
    student, teacher = prepare(student_logits, teacher_logits, gamma=gamma)
    powers = gamma * log_softmax(teacher)
    total = logsumexp(powers, axis=-1)
    return powers - total[..., None], jnp.exp(total), log_softmax(student)


def _alpha_beta_terms(log_q: jax.Array, log_p: jax.Array, alpha: float, beta: float) -> jax.Array:
    """The terms ``[..., K]`` of the alpha-beta divergence, of log-probabilities; each is at least zero.

    With ``r = log q - log p`` a term is ``r^2`` times the second divided difference of ``exp`` at three points: the
    logarithms of ``p^s``, ``p^alpha q^beta`` and ``q^s``, which lie ``0``, ``beta r`` and ``s r`` above the first. That
    one formula has the limits in it, and loses no digits beside them or where ``p`` and ``q`` are close.
    """
    ratio, total = log_q - log_p, alpha + beta

    def power(exponent, log):  # exponent * log, where a probability of zero to the power of zero is one
        return jnp.where(jnp.isneginf(log) & (exponent == 0), 0.0, exponent * log)

    points = (power(total, log_p), power(alpha, log_p) + power(beta, log_q), power(total, log_q))
    highest = jnp.maximum(jnp.maximum(*points[:2]), points[2])  # the logarithm of the largest power
    low, middle, high = jnp.sort(jnp.asarray([0.0, beta, total], ratio.dtype))
    upper = jnp.where(ratio > 0, high - middle, middle - low)  # the gaps below the largest point, times |r|
    lower, span = high - low - upper, high - low
    far = jnp.isinf(ratio)  # one network leaves the class out
    distance = jnp.where(far, 0.0, jnp.abs(ratio))
    close = span * distance < 0.5

    # Next to each other: the series sum_n h_n / (n + 2)! of the gaps' complete homogeneous polynomials h_n.
    first, second = -upper * jnp.where(close, distance, 0.0), -span * jnp.where(close, distance, 0.0)
    polynomial, series, factor = jnp.ones_like(ratio), 0.5 * jnp.ones_like(ratio), 0.5
    for order in range(1, 14):
        polynomial, factor = first * polynomial + second**order, factor / (order + 2)
        series += factor * polynomial
    # Apart: a quotient of differences over the widest gap, which is not small.
    apart = jnp.where(close, 1.0, distance)
    quotient = (_decay(upper, apart) - jnp.exp(-upper * apart) * _decay(lower, apart)) / jnp.where(span > 0, span, 1.0)
    # Infinitely apart: what is left of that.
    alone = jnp.exp(jnp.where(far, highest, -jnp.inf))
    missed = alone / jnp.where(alone == 0.0, 1.0, upper * span)
    terms = jnp.where(close, jnp.where(close, distance, 0.0) ** 2 * series, quotient)
    # Of equal probabilities nothing is left, also where a power below zero of them is infinite.
    nothing = (terms == 0.0) & (highest > jnp.log(jnp.finfo(highest.dtype).max))
    return jnp.where(far, missed, jnp.exp(jnp.where(nothing, 0.0, highest)) * terms)


def _decay(rate: jax.Array, distance: jax.Array) -> jax.Array:
    """The integral of ``exp(-rate x)`` from 0 to ``distance``."""
    zero = rate == 0.0
    return jnp.where(zero, distance, -jnp.expm1(-rate * distance) / jnp.where(zero, 1.0, rate))
