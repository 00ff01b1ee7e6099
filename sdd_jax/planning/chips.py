"""Published numbers of TPU chips: peaks, memory, links, and which slices exist.

GB a second are 10^9 bytes; the "GB" of a memory are GiB: of v5e's 16 the compiler lets programs have 15.75 GiB.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One generation.

    Attributes:
      name: as it stands before the colon of a topology.
      flops: peak of the matrix units in bfloat16 with float32 sums, per chip and second.
      hbm_bytes: memory per chip.
      hbm_rate: bytes per second between chip and memory.
      link_rate: bytes per second that a chip can send over all of its links together, one direction: half of the
        "bidirectional bandwidth per chip" that is published.
      accelerator: what Cloud TPU calls a slice, before its size; the size counts ``cores`` for each chip.
      cores: tensor cores of a chip.
      config: libtpu's name for how a chip's cores are used on Cloud TPU, where that is not its default; with "megacore"
        the two of v4 are one device. Source: JAX's own tests of ahead-of-time compilation (tests/aot_test.py).
      example: a slice that exists.
      shapes: which slices exist, in words.
      has: whether a slice of these sides exists.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_rate: float
    link_rate: float
    accelerator: str
    cores: int
    config: str | None
    example: str
    shapes: str
    has: Callable[[tuple[int, ...]], bool]


FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_FLAT_SHAPES = ", ".join("x".join(map(str, sides)) for sides in FLAT)
_CUBE_SHAPES = "AxBxC: 2x2x1, 2x2x2, 2x2x4, 2x4x4, or multiples of 4 in increasing order, up to {} chips"


def _is_cube(most: int) -> Callable[[tuple[int, ...]], bool]:
    def has(sides: tuple[int, ...]) -> bool:
        if sides in ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)):
            return True
        in_order = len(sides) == 3 and list(sides) == sorted(sides)
        return in_order and all(side > 0 and side % 4 == 0 for side in sides) and math.prod(sides) <= most

    return has


CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        # cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB at 1200 GB/s, 4096 chips. The links: 6 of 50 GB/s in each
        # direction, Jouppi et al., "TPU v4: An Optically Reconfigurable Supercomputer", ISCA 2023, table 4.
        Chip(
            "v4",
            275e12,
            32 * GIB,
            1200e9,
            300e9,
            "v4",
            2,
            "megacore",
            "v4:2x2x4",
            _CUBE_SHAPES.format(4096),
            _is_cube(4096),
        ),
        # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB at 819 GB/s, 400 GB/s both ways, 256 chips in a 2D torus.
        Chip("v5e", 197e12, 16 * GIB, 819e9, 200e9, "v5litepod", 1, None, "v5e:16x16", _FLAT_SHAPES, FLAT.__contains__),
        # cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GB at 2765 GB/s, 1200 GB/s both ways, jobs of up to 6144 chips.
        Chip(
            "v5p",
            459e12,
            95 * GIB,
            2765e9,
            600e9,
            "v5p",
            2,
            "megachip_tccontrol",
            "v5p:2x2x4",
            _CUBE_SHAPES.format(6144),
            _is_cube(6144),
        ),
        # cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB at 1638 GB/s, 800 GB/s both ways, 256 chips in a 2D torus.
        Chip(
            "v6e",
            918e12,
            32 * GIB,
            1638e9,
            400e9,
            "v6e",
            1,
            "megachip_tccontrol",
            "v6e:16x16",
            _FLAT_SHAPES,
            FLAT.__contains__,
        ),
    )
}
