"""Means, their spread over seeds, and whether a difference is larger than it."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LARGER, WITHIN, TOO_FEW = "larger than its noise", "within noise", "n too small"
CONFIDENCE = 0.95


class Sample(NamedTuple):
    """Runs that differ in their seed alone.

    Attributes:
      mean: of their values.
      sd: the sample standard deviation, over n - 1; None for one run.
      n: how many.
    """

    mean: float
    sd: float | None
    n: int


class Difference(NamedTuple):
    """One mean less another.

    Attributes:
      mean: the difference.
      low: the lower end of its 95 % confidence interval; None without one.
      high: its upper end.
      verdict: ``LARGER`` if the interval leaves out zero, ``WITHIN`` if not, ``TOO_FEW`` if a side has one run.
    """

    mean: float
    low: float | None
    high: float | None
    verdict: str


def sample(values: Sequence[float]) -> Sample:
    """Mean, standard deviation and number of ``values``, of which there is at least one."""
    return Sample(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def difference(first: Sample, second: Sample) -> Difference:
    """``first`` less ``second``, its interval by Welch's t, which takes neither spread for the other's.

    Source: B. L. Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", Biometrika 34 (1947); the degrees of freedom as there (Satterthwaite).
    """
    mean = first.mean - second.mean
    if first.sd is None or second.sd is None:
        return Difference(mean, None, None, TOO_FEW)
    parts = [one.sd**2 / one.n for one in (first, second)]
    half = 0.0  # all runs of either side equal: there is no noise to be seen
    if sum(parts) > 0:
        from scipy.stats import t

        freedom = sum(parts) ** 2 / sum(p**2 / (one.n - 1) for p, one in zip(parts, (first, second), strict=True))
        half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(sum(parts))
    low, high = mean - half, mean + half
    return Difference(mean, low, high, WITHIN if low <= 0 <= high else LARGER)
