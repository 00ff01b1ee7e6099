"""Base distillation losses: pure functions of arrays, one value per example.

Conventions of every ``*_loss`` here:

- ``student_logits`` and ``teacher_logits`` are ``[..., K]`` with equal shapes, ``labels`` integers ``[...]``;
  the loss is taken over the last axis and comes out as ``[...]``, with no mean over examples.
- float16 and bfloat16 logits are computed, and returned, in float32; float64 stays float64.
- Everything stays in log space, so the value and its gradient are finite for any finite logits that float32 can
  carry through a difference (1e4 and beyond), also for a saturated student.
- A logit of ``-inf`` is a class left out of that network's distribution: a class that the teacher leaves out adds
  nothing; one that only the student leaves out costs ``inf`` (unless the teacher's probability for it underflows to
  zero). NaN or ``+inf`` in gives NaN out: it is never hidden.
- A label outside ``0..K-1`` raises ``ValueError`` for concrete arrays and gives NaN inside ``jit``.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

__all__ = ["dkd_loss", "kd_loss", "nkd_as_released_loss", "nkd_loss"]


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
      labels: not read; accepted so that every base loss is called alike.
      temperature: ``T > 0``.

    Returns:
      ``[...]``, in nats times ``T^2``.

    Raises:
      ValueError: if the logits' shapes differ, hold no class, or are not floating point.

    Source: "Distilling the Knowledge in a Neural Network" (Hinton, Vinyals, Dean, 2015), section 2, with the factor
    ``T^2`` that keeps gradients comparable between temperatures; equation 1 of "Scale Decoupled Distillation"
    (2024), which prints no temperature while its released code uses ``T = 4``, the default here.
    """
    del labels
    student, teacher = _prepare(student_logits, teacher_logits, temperature)
    return temperature**2 * _kl(_log_softmax(teacher / temperature), _log_softmax(student / temperature))


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

    TCKD is the KL divergence between the two networks' (target, any other class) probabilities, NCKD the one between
    their distributions over the other classes alone.

    Args:
      student_logits: ``[..., K]``, ``K >= 2``.
      teacher_logits: ``[..., K]``.
      labels: integers ``[...]``, the target classes.
      temperature: ``T > 0``.
      alpha: weight of TCKD.
      beta: weight of NCKD (not SDD's weight of complementary regions).

    Returns:
      ``[...]``, in nats times ``T^2``.

    Raises:
      ValueError: for shapes or dtypes that do not fit, fewer than two classes, or a concrete label out of range.

    Source: "Decoupled Knowledge Distillation" (Zhao et al., CVPR 2022), equation 7. Its released code takes the target
    out by subtracting 1000 from its logit and the logarithm of probabilities that may be zero; here the target is
    masked and every logarithm is a difference of log-sum-exps, which agrees where theirs is finite.
    """
    student, teacher = _prepare(student_logits, teacher_logits, temperature)
    target, valid = _target_mask(labels, student.shape, "dkd_loss")
    student, teacher = student / temperature, teacher / temperature
    tckd = _kl(_log_binary(teacher, target), _log_binary(student, target))
    nckd = _kl(_log_softmax(_without(teacher, target)), _log_softmax(_without(student, target)))
    return _nan_unless(valid, temperature**2 * (alpha * tckd + beta * nckd))


def nkd_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> jax.Array:
    """Normalised knowledge distillation, as its paper defines it.

    ``-p_t[y] log p_s[y]`` (no temperature) plus ``gamma T^2`` times the cross-entropy between the two networks'
    distributions over the classes other than ``y``. Both terms are cross-entropies, so the minimum is not zero.

    Args:
      student_logits: ``[..., K]``, ``K >= 2``.
      teacher_logits: ``[..., K]``.
      labels: integers ``[...]``, the target classes ``y``.
      temperature: ``T > 0``, of the second term.
      gamma: weight of the second term.

    Returns:
      ``[...]``, in nats.

    Raises:
      ValueError: for shapes or dtypes that do not fit, fewer than two classes, or a concrete label out of range.

    Source: "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and
    Customized Soft Labels" (Yang et al., ICCV 2023), equation 7. See ``nkd_as_released_loss`` for what the official
    SDD code runs under this name.
    """
    student, teacher = _prepare(student_logits, teacher_logits, temperature)
    target, valid = _target_mask(labels, student.shape, "nkd_loss")
    others = _cross_entropy(
        _log_softmax(_without(teacher / temperature, target)), _log_softmax(_without(student / temperature, target))
    )
    return _nan_unless(valid, _target_term(student, teacher, target) + gamma * temperature**2 * others)


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
      ``[...]``, in nats.

    Raises:
      ValueError: for shapes or dtypes that do not fit, fewer than two classes, or a concrete label out of range.

    Source: the official code of "Scale Decoupled Distillation" (2024), commit e412036, SDD_nkd.py and nkd.py.
    """
    student, teacher = _prepare(student_logits, teacher_logits, temperature)
    target, valid = _target_mask(labels, student.shape, "nkd_as_released_loss")
    softened = _cross_entropy(_log_softmax(teacher / temperature), _log_softmax(student / temperature))
    return _nan_unless(valid, _target_term(student, teacher, target) + gamma * temperature**2 * softened)


# ---------------------------------------------------------------------- the terms, on log-probabilities


def _kl(teacher_log: jax.Array, student_log: jax.Array) -> jax.Array:
    """KL(teacher || student) over the last axis."""
    return _expectation(teacher_log, teacher_log - student_log)


def _cross_entropy(teacher_log: jax.Array, student_log: jax.Array) -> jax.Array:
    return -_expectation(teacher_log, student_log)


def _expectation(teacher_log: jax.Array, values: jax.Array) -> jax.Array:
    """The teacher's expectation of ``values``; a class of probability zero counts zero, whatever its value.

    The value is replaced before the product, not after it, because 0 * inf would put NaN into the gradient.
    """
    teacher = jnp.exp(teacher_log)
    return jnp.sum(teacher * jnp.where(teacher == 0.0, 0.0, values), axis=-1)


def _target_term(student: jax.Array, teacher: jax.Array, target: jax.Array) -> jax.Array:
    """``-p_t[y] log p_s[y]``: NKD's first term."""
    student_log = _select(_log_softmax(student), target)[..., None]
    teacher_log = _select(_log_softmax(teacher), target)[..., None]
    return _cross_entropy(teacher_log, student_log)


def _log_binary(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Log-probabilities of (target, any other class), ``[..., 2]``."""
    pair = jnp.stack([_select(logits, target), _logsumexp(_without(logits, target))], axis=-1)
    return _log_softmax(pair)


def _select(values: jax.Array, target: jax.Array) -> jax.Array:
    """``values[..., y]``, by masking: a gather would be slow on TPU and would clamp a wrong label."""
    return jnp.sum(jnp.where(target, values, 0.0), axis=-1)


def _without(logits: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.where(target, -jnp.inf, logits)


def _log_softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits, axis=-1)


def _logsumexp(logits: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(logits, axis=-1)


# ---------------------------------------------------------------------- input


def _prepare(student_logits: ArrayLike, teacher_logits: ArrayLike, temperature: float) -> tuple[jax.Array, jax.Array]:
    student, teacher = jnp.asarray(student_logits), jnp.asarray(teacher_logits)
    if student.shape != teacher.shape or student.ndim == 0 or student.shape[-1] == 0:
        raise ValueError(
            "student_logits and teacher_logits must have one shape [..., K] with K >= 1, "
            f"got {student.shape} and {teacher.shape}"
        )
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {logits.dtype}")
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}")
    dtype = jnp.promote_types(jnp.promote_types(student.dtype, teacher.dtype), jnp.float32)
    return student.astype(dtype), teacher.astype(dtype)


def _target_mask(labels: ArrayLike, shape: tuple[int, ...], name: str) -> tuple[jax.Array, jax.Array]:
    """One-hot mask ``[..., K]`` and which labels are in range ``[...]``."""
    check_labels(labels, shape[:-1], shape[-1])
    if shape[-1] < 2:
        raise ValueError(f"{name} sets the target class against the others: it needs K >= 2 classes, got {shape[-1]}")
    labels = jnp.asarray(labels)
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # uint8 could not count the classes
    target = jax.nn.one_hot(labels, shape[-1], dtype=bool)
    return target, jnp.any(target, axis=-1)


def check_labels(labels: ArrayLike, shape: tuple[int, ...], num_classes: int) -> None:
    """Raises ``ValueError`` unless ``labels`` are integers of ``shape``, in range where their values are known.

    Inside ``jit`` values are not known; there a loss turns a label out of range into NaN.
    """
    dtype, got = jnp.result_type(labels), jnp.shape(labels)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {dtype}")
    if got != shape:
        raise ValueError(f"labels must have shape {shape}, one for each row of logits, got {got}")
    if not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)
        wrong = (values < 0) | (values >= num_classes)
        if wrong.any():
            raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {values[wrong].ravel()[0]}")


def _nan_unless(valid: jax.Array, loss: jax.Array) -> jax.Array:
    return jnp.where(valid, loss, jnp.nan)
