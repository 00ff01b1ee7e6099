"""Scale decoupled distillation: which regions are complementary, and the loss over all of them.

Source: "Scale Decoupled Distillation" (Wei, Luo, Luo; CVPR 2024; arXiv 2403.13512), "the paper", and its official code
(commit e412036), "the released code". Regions are those of ``sdd_jax.regions``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdd_jax.logits import check_labels
from sdd_jax.regions import check_name

__all__ = ["complementary_mask", "reduce_terms", "region_terms", "sdd_loss"]

CONSISTENCIES = ("label", "class")
REDUCTIONS = ("mean", "sum")


def complementary_mask(teacher_regions: ArrayLike, labels: ArrayLike, *, consistency: str = "label") -> jax.Array:
    """Which regions are complementary: the teacher's verdict there differs from its global verdict.

    Args:
      teacher_regions: the teacher's region logits ``[B, R, K]``, region 0 the global one.
      labels: integers ``[B]``.
      consistency: what a verdict is. "label": whether the prediction is the label, as the released code has it.
        "class": the predicted class, as the paper writes. They differ only where the region and the whole are both
        wrong with different classes: consistent for "label", complementary for "class".

    Returns:
      ``[B, R]`` bool; region 0 is never complementary.

    Raises:
      ValueError: for shapes that do not fit, a concrete label out of range, or an unknown consistency.
    """
    teacher_regions = jnp.asarray(teacher_regions)
    check_name("consistency", consistency, CONSISTENCIES)
    if teacher_regions.ndim != 3 or 0 in teacher_regions.shape[1:]:
        raise ValueError(f"teacher_regions must have shape [B, R, K] with R, K >= 1, got {teacher_regions.shape}")
    check_labels(labels, teacher_regions.shape[:1], teacher_regions.shape[-1])
    verdicts = jnp.argmax(teacher_regions, axis=-1)
    if consistency == "label":
        verdicts = verdicts == jnp.asarray(labels)[:, None]
    return verdicts != verdicts[:, :1]


def sdd_loss(
    student_regions: ArrayLike,
    teacher_regions: ArrayLike,
    labels: ArrayLike,
    *,
    base: Callable[..., jax.Array],
    complementary_weight: float = 2.0,
    consistent_weight: float = 1.0,
    consistency: str = "label",
    reduction: str = "mean",
) -> jax.Array:
    """A base loss over every region, complementary regions weighing more (the paper's equations 8 to 10).

    Args:
      student_regions: ``[B, R, K]``, from ``pool_regions``.
      teacher_regions: ``[B, R, K]``; the two maps may have differed in size.
      labels: integers ``[B]``.
      base: a loss ``(student_logits, teacher_logits, labels) -> [...]`` over the last axis, such as
        ``functools.partial(kd_loss, temperature=4.0)``. It sees ``[B, R, K]`` and labels ``[B, R]``.
      complementary_weight: weight of complementary regions (the paper's beta; hard-coded 2 in the released code).
      consistent_weight: weight of the others, region 0 among them.
      consistency: see ``complementary_mask``.
      reduction: "mean" divides the sum by R whatever the weights, as the released code does; "sum" is the paper's
        equation 9.

    Returns:
      ``[B]``.

    Raises:
      ValueError: for shapes that do not fit, a concrete label out of range, an unknown name, or a base loss that does
        not return ``[B, R]``.
    """
    weighting = (complementary_weight, consistent_weight, consistency)
    terms, complementary = region_terms(student_regions, teacher_regions, labels, base, *weighting)
    return reduce_terms(terms, complementary.shape[1], reduction)


def region_terms(
    student_regions: ArrayLike,
    teacher_regions: ArrayLike,
    labels: ArrayLike,
    base: Callable[..., jax.Array],
    complementary_weight: float = 2.0,
    consistent_weight: float = 1.0,
    consistency: str = "label",
) -> tuple[jax.Array, jax.Array]:
    """What ``sdd_loss`` adds up: weighted losses ``[B, R]``, and which of them are complementary, a mask ``[B, R]``."""
    student_regions, teacher_regions = jnp.asarray(student_regions), jnp.asarray(teacher_regions)
    if student_regions.shape != teacher_regions.shape:
        raise ValueError(
            "student_regions and teacher_regions must have one shape [B, R, K], "
            f"got {student_regions.shape} and {teacher_regions.shape}"
        )
    complementary = complementary_mask(teacher_regions, labels, consistency=consistency)
    region_labels = jnp.broadcast_to(jnp.asarray(labels)[:, None], complementary.shape)
    losses = base(student_regions, teacher_regions, region_labels)
    if losses.shape != complementary.shape:
        raise ValueError(f"base must return one value per region, {complementary.shape}, no mean; got {losses.shape}")
    weights = jnp.where(complementary, complementary_weight, consistent_weight).astype(losses.dtype)
    return weights * losses, complementary


def reduce_terms(terms: jax.Array, regions: int, reduction: str) -> jax.Array:
    """The sum of ``terms`` ``[B, ...]`` of an image, or with "mean" as reduction its share of ``regions``.

    ``ValueError`` for an unknown reduction.
    """
    check_name("reduction", reduction, REDUCTIONS)
    total = jnp.sum(terms, axis=1)
    return total / regions if reduction == "mean" else total
