"""Least times from published peaks: plain arithmetic.

"Roofline: An Insightful Visual Performance Model", Williams, Waterman and Patterson, 2009: a step takes at least the
time that its operations take at the chip's peak, and at least the time that its bytes take to and from memory. What it
sends to other chips comes on top where the program waits for it.
"""

import math
from typing import NamedTuple

from sdd_jax.planning.chips import Chip


class Bound(NamedTuple):
    """Seconds that a step takes at least.

    Attributes:
      compute: its operations at the chip's peak in bfloat16.
      memory: its bytes at the bandwidth of the chip's memory.
      network: its collectives at the bandwidth of the chip's links; no latency is in it.
      step: the larger of the first two, and the third: the compiled program starts a collective and waits for it.
    """

    compute: float
    memory: float
    network: float
    step: float


def bound(chip: Chip, *, flops: float, bytes: float, sent_bytes: float) -> Bound:
    """The bound for one step, of numbers per chip."""
    compute, memory, network = flops / chip.flops, bytes / chip.hbm_rate, sent_bytes / chip.link_rate
    return Bound(compute, memory, network, max(compute, memory) + network)


def hours(step_seconds: float, *, epochs: int, num_examples: int, batch_size: int) -> float:
    """Hours of the training steps of a run, of which there are ``ceil(epochs * N / B)``."""
    return math.ceil(epochs * num_examples / batch_size) * step_seconds / 3600


def line(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """``(intercept, slope)`` of the line through two points."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return first[1] - slope * first[0], slope


def largest(first: tuple[float, float], second: tuple[float, float], limit: float, multiple: int) -> int:
    """The largest multiple of ``multiple`` whose size, on the line through two ``(count, size)``, is within ``limit``.

    The line rises. 0 if there is none.
    """
    intercept, slope = line(first, second)
    return max(0, math.floor((limit - intercept) / slope / multiple)) * multiple
