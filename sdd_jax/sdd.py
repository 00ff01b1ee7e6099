"""Scale decoupled distillation: regions of a logit map, which of them are complementary, and the loss over them.

Source of everything here: "Scale Decoupled Distillation" (Wei, Luo, Luo; CVPR 2024; arXiv 2403.13512), cited below as
"the paper", and its official code (commit e412036), "the released code".

A region is a cell of an ``m x m`` grid over the logit map, for each scale ``m``. Regions are numbered scale by scale,
row by row within a scale; region 0 is the whole map. ``R`` is the sum of ``m^2`` over the scales: 21 for (1, 2, 4).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdd_jax.logits import check_labels

__all__ = [
    "average_grid", "complementary_mask", "num_regions", "pool_regions", "reduce_terms", "region_terms", "sdd_loss",
    "shared_grid",
]  # fmt: skip

POOLINGS = ("direct", "nested")
CONSISTENCIES = ("label", "class")
REDUCTIONS = ("mean", "sum")
NESTED_GRID = 4  # the released code pools every map to 4x4 first


def pool_regions(logit_map: ArrayLike, scales: Sequence[int] = (1, 2, 4), *, pooling: str = "direct") -> jax.Array:
    """Averages of a logit map over the regions of every scale.

    Cell ``i`` of ``m`` spans rows ``floor(i h / m)`` to ``ceil((i + 1) h / m)``, columns alike: cells tile the map
    where ``m`` divides it, overlap where it does not, and repeat locations where the map is smaller than ``m``. Any
    affine head commutes with this average, so feature maps ``[B, h, w, C]`` may be pooled before the head (the
    paper's equations 4 to 7).

    A value that is not finite makes every region that holds it not finite. Where cells do not tile the map it is NaN in
    all of that scale's cells of its image and channel, also for ``-inf``: leave classes out of the regions instead.

    Args:
      logit_map: ``[B, h, w, K]``.
      scales: the paper's ``M``: increasing, starting with 1.
      pooling: "direct" averages the map itself, as the paper writes. "nested" makes a 4x4 grid first and every scale
        from that grid, as the released code does; the two differ where 4 does not divide the map (7x7, 14x14), and
        there region 0 is not the map's mean.

    Returns:
      ``[B, R, K]``, region 0 first; at least float32.

    Raises:
      ValueError: for a map that is not ``[B, h, w, K]`` with locations, scales that do not increase from 1, an unknown
        pooling, or nested pooling with a scale above 4.
    """
    logit_map = _check_map(logit_map)
    scales = check_scales(scales, pooling)
    batch, height, width, channels = logit_map.shape
    grid = shared_grid(height, width, scales, pooling)
    if grid is not None:  # every scale is an average of one grid: the map itself is read once
        logit_map = average_grid(logit_map, grid)
    cells = [average_grid(logit_map, scale).reshape(batch, scale**2, channels) for scale in scales]
    return jnp.concatenate(cells, axis=1)


def shared_grid(height: int, width: int, scales: Sequence[int], pooling: str) -> int | None:
    """The side of the one grid whose cells average to every region, or None where no such grid exists.

    It is what a head has to be applied to, and what is worth keeping of a teacher: 4 for nested pooling, the finest
    scale when pooling is direct and every scale tiles the map and that grid.
    """
    scales = check_scales(scales, pooling)
    if pooling == "nested":
        return NESTED_GRID
    finest = scales[-1]
    tiles = height % finest == 0 and width % finest == 0 and all(finest % scale == 0 for scale in scales)
    return finest if tiles else None


def average_grid(logit_map: ArrayLike, side: int) -> jax.Array:
    """Averages ``[B, h, w, K]`` to ``[B, side, side, K]``, at least float32; cells as in ``pool_regions``."""
    logit_map = _check_map(logit_map)
    _, height, width, _ = logit_map.shape
    if (height, width) == (side, side):
        return logit_map
    if height % side == 0 and width % side == 0:
        window = (1, height // side, width // side, 1)
        zero = np.zeros((), logit_map.dtype)[()]
        total = jax.lax.reduce_window(logit_map, zero, jax.lax.add, window, window, "VALID")
        return total / (window[1] * window[2])
    rows, columns = (jnp.asarray(_averaging_matrix(n, side), logit_map.dtype) for n in (height, width))
    return jnp.einsum("ih,jw,bhwk->bijk", rows, columns, logit_map, precision=jax.lax.Precision.HIGHEST)


@lru_cache
def _averaging_matrix(size: int, cells: int) -> np.ndarray:
    """``[cells, size]``: row i averages the locations of cell i along one axis."""
    matrix = np.zeros((cells, size))
    for cell in range(cells):
        start, stop = cell * size // cells, -(-(cell + 1) * size // cells)
        matrix[cell, start:stop] = 1.0 / (stop - start)
    return matrix


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
    _check_name("consistency", consistency, CONSISTENCIES)
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
    _check_name("reduction", reduction, REDUCTIONS)
    terms, complementary = region_terms(
        student_regions,
        teacher_regions,
        labels,
        base=base,
        complementary_weight=complementary_weight,
        consistent_weight=consistent_weight,
        consistency=consistency,
    )
    return reduce_terms(terms, complementary.shape[1], reduction)


def region_terms(
    student_regions: ArrayLike,
    teacher_regions: ArrayLike,
    labels: ArrayLike,
    *,
    base: Callable[..., jax.Array],
    complementary_weight: float = 2.0,
    consistent_weight: float = 1.0,
    consistency: str = "label",
) -> tuple[jax.Array, jax.Array]:
    """What ``sdd_loss`` adds up, and which of it is complementary: weighted losses ``[B, R]`` and a mask ``[B, R]``.

    Arguments and errors are those of ``sdd_loss``.
    """
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
        raise ValueError(
            f"base must return one value per region, {complementary.shape}, got {losses.shape}: "
            "a base loss keeps the leading axes and takes no mean"
        )
    weights = jnp.where(complementary, complementary_weight, consistent_weight).astype(losses.dtype)
    return weights * losses, complementary


def reduce_terms(terms: jax.Array, regions: int, reduction: str) -> jax.Array:
    """The sum of ``terms`` ``[B, ...]`` of an image; with "mean" as reduction, a share of its ``regions``."""
    total = jnp.sum(terms, axis=1)
    return total / regions if reduction == "mean" else total


def num_regions(scales: Sequence[int]) -> int:
    """``R``, the number of regions of ``scales``."""
    return sum(scale**2 for scale in scales)


def check_scales(scales: Sequence[int], pooling: str) -> tuple[int, ...]:
    """``scales`` as a tuple, or ``ValueError`` unless they are integers that increase from 1 and fit the pooling."""
    _check_name("pooling", pooling, POOLINGS)
    checked = tuple(scales) if isinstance(scales, Sequence) and not isinstance(scales, str) else (scales,)
    integers = all(isinstance(scale, int | np.integer) and not isinstance(scale, bool) for scale in checked)
    if not checked or not integers or checked[0] != 1 or list(checked) != sorted(set(checked)):
        raise ValueError(f"scales must be integers that increase and start with 1, such as (1, 2, 4); got {scales!r}")
    if pooling == "nested" and checked[-1] > NESTED_GRID:
        raise ValueError(
            f"nested pooling makes every scale from a {NESTED_GRID}x{NESTED_GRID} grid: a scale above {NESTED_GRID} "
            f"needs pooling='direct'; got {scales!r}"
        )
    return tuple(int(scale) for scale in checked)


def _check_map(logit_map: ArrayLike) -> jax.Array:
    logit_map = jnp.asarray(logit_map)
    if logit_map.ndim != 4 or 0 in logit_map.shape[1:3]:
        raise ValueError(f"a map must have shape [B, h, w, K] with h, w >= 1, got {logit_map.shape}")
    if not jnp.issubdtype(logit_map.dtype, jnp.floating):
        raise ValueError(f"a map must be floating point, got {logit_map.dtype}")
    return logit_map.astype(jnp.promote_types(logit_map.dtype, jnp.float32))


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}; got {name!r}")
