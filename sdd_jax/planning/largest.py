"""The largest batch that fits, from as few compilations as will do: each takes minutes."""

from collections.abc import Callable
from typing import NamedTuple

from sdd_jax.planning.compile import TooLarge
from sdd_jax.planning.roofline import largest, line

ROUND = 8  # images a chip: the rows of a register of the vector unit, a batch is padded to a multiple of them anyway
TRIES = 3  # sizes that are read off a line; the compiler saves memory where it gets scarce, so the first may be low
CLOSE = 1.02  # a size that is so much larger is not worth minutes
# Of v5e's 16 GiB the compiler lets a program have 15.75, and says so when it refuses one. Others are taken to be alike.
USABLE = 63 / 64


class Largest(NamedTuple):
    """What was found.

    Attributes:
      per_chip: images a chip, 0 if not even one fits.
      compiled: whether a program of this size was compiled, and fits.
      compilations: how many it took beyond the plan's own.
    """

    per_chip: int
    compiled: bool
    compilations: int


def find_largest(per_chip: int, used: float, hbm_bytes: int, measure: Callable[[int], float]) -> Largest:
    """The largest batch a chip, found on the line through two sizes, and tried.

    Args:
      per_chip: images a chip of the plan.
      used: bytes that its program takes, more than there are if it does not fit.
      hbm_bytes: of the chip.
      measure: compiles for so many images a chip and returns the bytes; raises ``TooLarge``.
    """
    limit = hbm_bytes * USABLE
    compilations, fits, points = 0, per_chip if used <= limit else 0, [(per_chip, used)]

    def add(count: int) -> None:
        nonlocal compilations, fits, limit
        compilations += 1
        try:
            size = measure(count)
            fits = max(fits, count)
        except TooLarge as error:
            size, limit = error.used, error.usable
        points.append((count, size))

    # The second size should take about half of the memory: the line is to be read off far from a small first one.
    other = per_chip * max(2, int(limit / 2 / used)) if used < limit / 2 else max(1, per_chip // 2)
    if other == per_chip:
        return Largest(fits, bool(fits), compilations)
    add(other)
    estimate = 0
    for _ in range(TRIES):
        nearest = sorted(points, key=lambda point: abs(point[1] - limit))[:2]
        if line(nearest[0], nearest[1])[1] <= 0:  # the compiler found room in the larger one: no line to read from
            break
        estimate = largest(nearest[0], nearest[1], limit, ROUND)
        if estimate < ROUND:
            estimate = largest(nearest[0], nearest[1], limit, 1)
        if estimate <= fits * CLOSE or any(count == estimate for count, _ in points):
            break
        add(estimate)
    return Largest(fits, True, compilations) if fits else Largest(estimate, False, compilations)
