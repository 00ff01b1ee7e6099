"""Regions of a logit map or feature map, and the averages over them.

A region is a cell of an ``m x m`` grid over the map, for each scale ``m``. Regions are numbered scale by scale, row by
row within a scale; region 0 is the whole map. ``R`` is their number: 21 for the scales (1, 2, 4).

Source: "Scale Decoupled Distillation" (CVPR 2024), equations 4 to 7, and its released code (see ``sdd_jax.sdd``).
"""

import dataclasses
from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdd_jax.logits import as_float

__all__ = ["Regions", "average_grid", "check_name", "pool_regions"]

POOLINGS = ("direct", "nested")
NESTED_GRID = 4  # the released code pools every map to 4x4 first


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """``ValueError`` unless ``name`` is one of the ``known``."""
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}; got {name!r}")


@dataclasses.dataclass(frozen=True)
class Regions:
    """The regions of a map ``[B, h, w, K]`` at every scale.

    Attributes:
      scales: the paper's ``M``: increasing, starting with 1.
      pooling: "direct" averages the map itself, as the paper writes; "nested" makes a 4x4 grid first and every scale
        from that grid, as the released code does. They differ where a side of the map is neither 1, 2 nor a multiple
        of 4 (7x7, 14x14): there region 0 of "nested" is not the map's mean.

    Raises:
      ValueError: for scales that do not increase from 1, an unknown pooling, or nested pooling with a scale above 4.
    """

    scales: tuple[int, ...] = (1, 2, 4)
    pooling: str = "direct"

    def __post_init__(self):
        check_name("pooling", self.pooling, POOLINGS)
        scales = tuple(self.scales) if isinstance(self.scales, Sequence) or np.ndim(self.scales) else (self.scales,)
        integers = all(isinstance(scale, int | np.integer) and not isinstance(scale, bool) for scale in scales)
        if not scales or not integers or scales[0] != 1 or list(scales) != sorted(set(scales)):
            raise ValueError(
                f"scales must be integers that increase and start with 1, such as (1, 2, 4); got {self.scales!r}"
            )
        object.__setattr__(self, "scales", tuple(int(scale) for scale in scales))
        if self.pooling == "nested" and self.scales[-1] > NESTED_GRID:
            raise ValueError(f"a scale above {NESTED_GRID} needs pooling='direct'; got {self.scales}")

    @property
    def count(self) -> int:
        """``R``."""
        return sum(scale**2 for scale in self.scales)

    def places(self) -> list[tuple[int, int, int]]:
        """``(scale, row, column)`` of every region, in their order."""
        return [(m, row, column) for m in self.scales for row in range(m) for column in range(m)]

    def grid(self, height: int, width: int) -> int | None:
        """The side of the one grid whose cells average to every region of a map, or None where no such grid exists.

        The head is applied to this grid alone, and a cache of a teacher keeps this grid alone.
        """
        if self.pooling == "nested":
            return NESTED_GRID
        finest = self.scales[-1]
        tiles = height % finest == 0 and width % finest == 0 and all(finest % scale == 0 for scale in self.scales)
        return finest if tiles else None

    def pool(self, values: ArrayLike) -> jax.Array:
        values = _check_map(values)
        batch, height, width, channels = values.shape
        grid = self.grid(height, width)
        if grid is not None:  # every scale is an average of one grid: the map itself is read once
            values = average_grid(values, grid)
        cells = [average_grid(values, scale).reshape(batch, scale**2, channels) for scale in self.scales]
        return jnp.concatenate(cells, axis=1)


EVERY_SCALE = Regions()


def pool_regions(logit_map: ArrayLike, scales: Sequence[int] = (1, 2, 4), *, pooling: str = "direct") -> jax.Array:
    """Averages of a logit map over the regions of every scale.

    Cell ``i`` of ``m`` spans rows ``floor(i h / m)`` to ``ceil((i + 1) h / m)``, columns alike: cells tile the map
    where ``m`` divides it, overlap where it does not, and repeat locations where the map is smaller than ``m``. An
    affine head commutes with this average, so feature maps ``[B, h, w, C]`` may be pooled before the head (the paper's
    equations 4 to 7).

    A value that is not finite makes every region that holds it not finite. Where cells do not tile the map it is NaN in
    all of that scale's cells of its image and channel, also for ``-inf``: leave classes out of the regions instead.

    Args:
      logit_map: ``[B, h, w, K]``.
      scales: as of :class:`Regions`.
      pooling: as of :class:`Regions`.

    Returns:
      ``[B, R, K]``, region 0 first; at least float32.

    Raises:
      ValueError: for a map that is not ``[B, h, w, K]`` with locations, or what :class:`Regions` refuses.
    """
    return Regions(scales, pooling).pool(logit_map)  # type: ignore[arg-type]


def average_grid(values: ArrayLike, side: int | tuple[int, int]) -> jax.Array:
    """Averages ``[B, h, w, K]`` to ``[B, side, side, K]``, at least float32; cells as in :func:`pool_regions`.

    ``side`` may be a height and a width.
    """
    values = _check_map(values)
    _, height, width, _ = values.shape
    sides = (side, side) if isinstance(side, int) else side
    if (height, width) == sides:
        return values
    if height % sides[0] == 0 and width % sides[1] == 0:
        window = (1, height // sides[0], width // sides[1], 1)
        zero = np.zeros((), values.dtype)[()]
        total = jax.lax.reduce_window(values, zero, jax.lax.add, window, window, "VALID")
        return total / (window[1] * window[2])
    rows, columns = (
        jnp.asarray(_averaging_matrix(n, m), values.dtype) for n, m in zip((height, width), sides, strict=True)
    )
    return jnp.einsum("ih,jw,bhwk->bijk", rows, columns, values, precision=jax.lax.Precision.HIGHEST)


@lru_cache
def _averaging_matrix(size: int, cells: int) -> np.ndarray:
    """``[cells, size]``: row i averages the locations of cell i along one axis."""
    matrix = np.zeros((cells, size))
    for cell in range(cells):
        start, stop = cell * size // cells, -(-(cell + 1) * size // cells)
        matrix[cell, start:stop] = 1.0 / (stop - start)
    return matrix


def _check_map(values: ArrayLike) -> jax.Array:
    values = as_float(values, "a map")
    if values.ndim != 4 or 0 in values.shape[1:3]:
        raise ValueError(f"a map must have shape [B, h, w, K] with h, w >= 1, got {values.shape}")
    return values
