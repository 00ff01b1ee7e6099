"""What losses over logits share: checks and terms on log-probabilities, by the conventions of ``sdd_jax.losses``."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax, logsumexp
from jax.typing import ArrayLike

__all__ = [
    "as_float", "check_labels", "cross_entropy", "expectation", "kl_divergence", "log_binary", "log_softmax_within",
    "prepare", "root", "select", "target_mask", "target_term", "without",
]  # fmt: skip


def prepare(student_logits: ArrayLike, teacher_logits: ArrayLike, **positive: float) -> tuple[jax.Array, jax.Array]:
    """Both networks' logits in one dtype, float32 or float64; checks them, and that the named numbers are positive."""
    student, teacher = jnp.asarray(student_logits), jnp.asarray(teacher_logits)
    if student.shape != teacher.shape or student.ndim == 0 or student.shape[-1] == 0:
        raise ValueError(
            "student_logits and teacher_logits must have one shape [..., K] with K >= 1, "
            f"got {student.shape} and {teacher.shape}"
        )
    student, teacher = as_float(student, "student_logits"), as_float(teacher, "teacher_logits")
    for name, value in positive.items():
        if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name} must be greater than 0, got {value}")
    dtype = jnp.promote_types(student.dtype, teacher.dtype)
    return student.astype(dtype), teacher.astype(dtype)


def as_float(values: ArrayLike, name: str) -> jax.Array:
    """``values`` in float32 or float64; ``ValueError`` if they are not floating point."""
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {values.dtype}")
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def target_mask(labels: ArrayLike, shape: tuple[int, ...], name: str) -> tuple[jax.Array, jax.Array]:
    """One-hot mask ``[..., K]`` and which labels are in range ``[...]``."""
    check_labels(labels, shape[:-1], shape[-1])
    if shape[-1] < 2:
        raise ValueError(f"{name} sets the target class against the others: it needs K >= 2 classes, got {shape[-1]}")
    labels = jnp.asarray(labels)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # uint8 could not count the classes
    target = jax.nn.one_hot(labels, shape[-1], dtype=bool)
    return target, jnp.any(target, axis=-1)


def check_labels(labels: ArrayLike, shape: tuple[int, ...], num_classes: int) -> None:
    """Raises ``ValueError`` unless ``labels`` are integers of ``shape``, in range where their values are known."""
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


def kl_divergence(teacher_log: jax.Array, student_log: jax.Array) -> jax.Array:
    """KL(teacher || student) of log-probabilities."""
    return expectation(teacher_log, teacher_log - student_log)


def cross_entropy(teacher_log: jax.Array, student_log: jax.Array) -> jax.Array:
    """-sum(teacher * log student) of log-probabilities."""
    return -expectation(teacher_log, student_log)


def expectation(teacher_log: jax.Array, values: jax.Array) -> jax.Array:
    """The teacher's expectation of ``values``; a class of probability zero counts zero, whatever its value.

    The value is replaced before the product, not after it, because 0 * inf would put NaN into the gradient.
    """
    teacher = jnp.exp(teacher_log)
    return jnp.sum(teacher * jnp.where(teacher == 0.0, 0.0, values), axis=-1)


def select(values: jax.Array, target: jax.Array) -> jax.Array:
    """``values[..., y]``, by masking: a gather would be slow on TPU and would clamp a wrong label."""
    return jnp.sum(jnp.where(target, values, 0.0), axis=-1)


def without(logits: jax.Array, target: jax.Array) -> jax.Array:
    """``logits`` with the target class left out."""
    return jnp.where(target, -jnp.inf, logits)


def log_softmax_within(logits: jax.Array, kept: jax.Array | bool = True) -> jax.Array:
    """Log-probabilities among the classes ``kept``: ``-inf`` for the others, and for all where none is left."""
    logits = jnp.where(kept, logits, -jnp.inf)
    none = jnp.all(jnp.isneginf(logits), axis=-1, keepdims=True)
    return jnp.where(none, -jnp.inf, log_softmax(jnp.where(none, 0.0, logits)))


def log_binary(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Log-probabilities of (target, any other class), ``[..., 2]``."""
    # Taken from logits of 1e5, the small number that log-sum-exp adds to them would be rounded away.
    logits = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    others = without(logits, target)
    none = jnp.all(jnp.isneginf(others), axis=-1)  # whose sum has no gradient
    rest = jnp.where(none, -jnp.inf, logsumexp(jnp.where(none[..., None], 0.0, others), axis=-1))
    return log_softmax(jnp.stack([select(logits, target), rest], axis=-1))


def target_term(student: jax.Array, teacher: jax.Array, target: jax.Array) -> jax.Array:
    """``-p_t[y] log p_s[y]``: NKD's first term. NaN stays NaN, also where ``p_t[y]`` is zero."""
    student_log, teacher_log = (select(log_softmax(logits), target) for logits in (student, teacher))
    term = cross_entropy(teacher_log[..., None], student_log[..., None])
    return jnp.where(jnp.isnan(student_log), jnp.nan, term)


def root(squares: jax.Array) -> jax.Array:
    """The square root, with a gradient of zero at zero: it has none there, but the quotient that it stands in does."""
    zero = squares == 0.0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
