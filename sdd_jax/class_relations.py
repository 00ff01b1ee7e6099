"""Base losses that relate classes: by their order (RLD, LDRLD) or their distances (WKD-L).

The conventions are those of ``sdd_jax.losses``; each example, and each region, is by itself. What orders classes jumps
where two of them change places, and there is no gradient through the order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jax.typing import ArrayLike

from sdd_jax.logits import (
    kl_divergence,
    log_binary,
    log_softmax_within,
    prepare,
    select,
    target_mask,
    target_term,
    without,
)

__all__ = ["class_cost", "ldrld_loss", "rld_loss", "wkd_loss"]

FLOOR = 1e-8  # of the released code of WKD-L: added to distances and to what is divided by
HIGHEST = jax.lax.Precision.HIGHEST  # accelerators would round what they multiply


def rld_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float = 4.0,
    target_temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> jax.Array:
    """Refined logit distillation: ``alpha T_a^2 SCD + beta T^2 MCD``; nothing is learned of a teacher's wrong order.

    SCD is the KL divergence of two pairs: (the teacher's largest probability, the rest) and (the student's probability
    of the label, the rest), at ``T_a``. MCD is that of both networks over the classes that the teacher ranks strictly
    below the label, at ``T``; it is zero where there are fewer than two.

    Args:
      student_logits: ``[..., K]``, ``K >= 2``.
      teacher_logits: ``[..., K]``.
      labels: integers ``[...]``.
      temperature: ``T > 0``, of MCD.
      target_temperature: ``T_a > 0``, of SCD.
      alpha: weight of SCD.
      beta: weight of MCD.

    Returns:
      ``[...]``. A class that the student leaves out (``-inf``) costs ``inf`` if it is the label, or if the teacher has
      it and ranks it below the label; no other is compared. A student with no class but the label costs ``inf``, too.

    Raises:
      ValueError: as ``kd_loss``, and for fewer than two classes or a concrete label out of range.

    Source: "Knowledge Distillation with Refined Logits" (Sun et al., ICCV 2025; arXiv 2408.07703), and its released
    code (mdistiller/engine/cfg.py:180-185) for the numbers on CIFAR-100; the command of its README has ``T_a = 4``.
    """
    temperatures = {"temperature": temperature, "target_temperature": target_temperature}
    student, teacher = prepare(student_logits, teacher_logits, **temperatures)
    target, valid = target_mask(labels, student.shape, "rld_loss")
    first = jax.nn.one_hot(jnp.argmax(teacher, axis=-1), teacher.shape[-1], dtype=bool)
    below = (teacher < select(teacher, target)[..., None]) & ~jnp.isneginf(teacher)
    scd = kl_divergence(
        log_binary(teacher / target_temperature, first), log_binary(student / target_temperature, target)
    )
    mcd = kl_divergence(*(log_softmax_within(logits / temperature, below) for logits in (teacher, student)))
    return jnp.where(valid, alpha * target_temperature**2 * scd + beta * temperature**2 * mcd, jnp.nan)


def ldrld_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 10.5,
    beta: float = 7.0,
    depth: int = 7,
) -> jax.Array:
    """Local dense relations: ``T^2 (alpha local + beta rest)``, over the student's first classes and the others.

    With o_1, o_2, ... the classes by falling student logit, local is the mean of KL over {o_1, ..., o_depth} and of
    ``w_ij`` KL over {o_i, o_j}, ``w_ij = 2 exp(-0.05 (i + j)) / (1.5 + j - i)``, for each pair of them; rest is KL over
    the classes after them, zero where there are none. Of equal logits the first class comes first.

    The paper adds up what is averaged here, as in the released code, whose alpha this is: 10.5 times the mean over 22
    is 0.477 times the sum. Elsewhere this is the paper's: at a depth of 2 the released code weighs the first term as a
    pair, and at a depth of K it takes KL over all classes for the rest.

    Args:
      student_logits: ``[..., K]``.
      teacher_logits: ``[..., K]``.
      labels: not read.
      temperature: ``T > 0``.
      alpha: weight of the first classes.
      beta: weight of the others.
      depth: how many are the first, from 2 to K.

    Returns:
      ``[...]``. A class that both networks leave out (``-inf``) is as if it did not exist.

    Raises:
      ValueError: as ``kd_loss``, and for a depth that is not from 2 to K.

    Source: "Local Dense Logit Relations for Enhanced Knowledge Distillation" (Xu et al., ICCV 2025; arXiv 2507.15911),
    and the README of its released code for the numbers, of resnet32x4 -> resnet8x4 on CIFAR-100.
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature=temperature)
    classes = student.shape[-1]
    if not 2 <= depth <= classes:
        raise ValueError(f"depth must be from 2 to the number of classes, {classes}: got {depth}")
    ranked = jnp.where(student == 0.0, 0.0, jax.lax.stop_gradient(student))  # -0.0 would come after 0.0
    order = jax.lax.top_k(ranked, depth)[1]
    exists = jnp.take_along_axis(~(jnp.isneginf(student) & jnp.isneginf(teacher)), order, axis=-1)
    upper, lower = np.triu_indices(depth, 1)
    weights = 2.0 * np.exp(-0.05 * (upper + lower + 2)) / (1.5 + lower - upper)  # ranks count from 1

    def log_probabilities(logits):
        """Of the first classes, of pairs of them, and of the others."""
        first = jnp.take_along_axis(logits, order, axis=-1)
        pairs = jnp.stack([first[..., upper], first[..., lower]], axis=-1)
        others = ~jnp.any(jax.nn.one_hot(order, classes, dtype=bool), axis=-2)
        return log_softmax_within(first), log_softmax_within(pairs), log_softmax_within(logits, others)

    both = zip(log_probabilities(teacher / temperature), log_probabilities(student / temperature), strict=True)
    whole, pairs, rest = (kl_divergence(*logs) for logs in both)
    number = jnp.sum(exists, axis=-1, dtype=student.dtype)
    pairs = jnp.matmul(pairs, jnp.asarray(weights, student.dtype), precision=HIGHEST)
    local = (whole + pairs) / (number * (number - 1) / 2 + 1)
    defined = jnp.isfinite(logsumexp(student, axis=-1)) & jnp.isfinite(logsumexp(teacher, axis=-1))
    return jnp.where(defined, temperature**2 * (alpha * local + beta * rest), jnp.nan)


def wkd_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    cost: ArrayLike,
    temperature: float,
    gamma: float,
    epsilon: float = 0.05,
    iterations: int = 10,
) -> jax.Array:
    """WKD-L: ``-p_t[y] log p_s[y] + gamma W``, where W moves the student's other classes to the teacher's.

    The first term has no temperature. W is what it costs to turn the student's distribution over the classes other than
    ``y``, at ``T``, into the teacher's, where a probability goes from class i to j at ``cost[i, j]``. It is entropic
    transport after a fixed number of Sinkhorn's iterations, as released: ten have not converged on CIFAR-100, and so
    their number is a part of the loss. There is no factor ``T^2``. Iterations are unrolled; each is two products with a
    ``[K, K]`` matrix.

    Args:
      student_logits: ``[..., K]``, ``K >= 2``.
      teacher_logits: ``[..., K]``.
      labels: integers ``[...]``, the target classes ``y``.
      cost: ``[K, K]``, such as ``class_cost`` gives; what is below zero counts as zero.
      temperature: ``T > 0``, of W.
      gamma: weight of W.
      epsilon: how strongly entropy spreads the transport, above 0.
      iterations: Sinkhorn's, at least 1.

    Returns:
      ``[...]``. A class that one network alone leaves out (``-inf``) costs a finite amount, unless it is the target.

    Raises:
      ValueError: as ``kd_loss``, for fewer than two classes, a concrete label out of range, a cost of another shape,
        and for epsilon or iterations that are not positive.

    Source: "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation" (Lv, Yang, Li; NeurIPS
    2024; arXiv 2412.08139), and its released code (mdistiller/distillers/WKD.py), which also lowers gamma along a
    cosine towards the end of a run.
    """
    positive = {"temperature": temperature, "epsilon": epsilon, "iterations": iterations}
    student, teacher = prepare(student_logits, teacher_logits, **positive)
    target, valid = target_mask(labels, student.shape, "wkd_loss")
    if jnp.shape(cost) != (student.shape[-1],) * 2:
        raise ValueError(f"cost must be [K, K] for the {student.shape[-1]} classes, got {jnp.shape(cost)}")
    distances = jnp.maximum(jnp.asarray(cost, student.dtype), 0.0) + FLOOR
    kernel = jnp.exp(-distances / epsilon)
    others = ~(target | (jnp.isneginf(student) & jnp.isneginf(teacher)))
    there, here = (jax.nn.softmax(without(logits / temperature, target)) for logits in (teacher, student))
    rows = others / jnp.sum(others, axis=-1, keepdims=True, dtype=student.dtype)
    columns = jnp.zeros_like(rows)
    for _ in range(iterations):
        columns = there / (jnp.matmul(rows, kernel, precision=HIGHEST) + FLOOR)
        rows = here / (jnp.matmul(columns, kernel.T, precision=HIGHEST) + FLOOR)
    transport = jnp.sum(rows * jnp.matmul(columns, (kernel * distances).T, precision=HIGHEST), axis=-1)
    return jnp.where(valid, target_term(student, teacher, target) + gamma * transport, jnp.nan)


def class_cost(class_vectors: ArrayLike, *, kappa: float = 1.0) -> jax.Array:
    """What ``wkd_loss`` moves a probability at: ``1 - exp(-kappa (1 - c))``, ``c`` the cosine of two classes' vectors.

    Args:
      class_vectors: ``[K, C]``, floating point: a vector for each class, such as its weights in a teacher's last
        layer. A vector of zeros has a cosine of zero with all others.
      kappa: how sharply cost grows with distance, above 0.

    Returns:
      ``[K, K]``, symmetric, from 0 to ``1 - exp(-2 kappa)``.

    Raises:
      ValueError: if the vectors are not ``[K, C]`` or kappa is not positive.

    Source: as of ``wkd_loss``, whose released code calls this "fc". Its runs read centred kernel alignments of features
    from a file instead.
    """
    vectors = jnp.asarray(class_vectors)
    if vectors.ndim != 2:
        raise ValueError(f"class vectors must be [K, C], got {vectors.shape}")
    if not kappa > 0:
        raise ValueError(f"kappa must be greater than 0, got {kappa}")
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors = vectors / jnp.where(norms > 0, norms, 1.0)
    return -jnp.expm1(-kappa * (1.0 - jnp.matmul(vectors, vectors.T, precision=HIGHEST)))
