"""The statistics of differences by hand and beside SciPy's, and Holm's correction."""

import functools
import math
import statistics
import warnings

import pytest
from experiment_lines import seeded
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.summary import EXPLORATORY, LARGER, NOT_SHOWN, UNTESTED, difference, holm


def test_the_paired_interval_by_hand():
    # Differences 1, 2 and 3: mean 2, variance 1, se = sqrt(1/3), two degrees of freedom, t = 4.3027.
    ours = difference(seeded(3.0, 3.0, 5.0), seeded(2.0, 1.0, 2.0))
    assert (ours.pairs, ours.paired.mean) == (3, pytest.approx(2.0))
    half = pytest.approx(4.3026527 * math.sqrt(1 / 3), rel=1e-6)
    assert ours.paired.high - 2.0 == half and 2.0 - ours.paired.low == half
    # With two degrees of freedom P(|T| > t) = 1 - t / sqrt(2 + t^2); here t = 2 sqrt(3).
    assert ours.paired.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)


def test_welchs_interval_by_hand():
    # Means 3 and 1, variances 1 and 1, three runs each: se = sqrt(2/3), four degrees of freedom, t = 2.7764.
    welch = difference(seeded(2.0, 3.0, 4.0), seeded(0.0, 1.0, 2.0)).welch
    assert welch.mean == 2.0 and welch.high - welch.mean == pytest.approx(2.7764451 * math.sqrt(2 / 3), rel=1e-6)
    # Welch's: means 4 and 1, variances 4 and 1, sizes 3 and 2: se^2 = 11/6, (11/6)^2 / (8/9 + 1/4) = 2.9512 degrees.
    welch = difference(seeded(2.0, 4.0, 6.0), seeded(1 - math.sqrt(0.5), 1 + math.sqrt(0.5))).welch
    assert welch.mean == pytest.approx(3.0)
    assert welch.high - welch.mean == pytest.approx(stats.t.ppf(0.975, 2.951219512) * math.sqrt(11 / 6), rel=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # SciPy's, of values that are nearly equal
@given(st.lists(st.tuples(*[st.integers(8000, 9500)] * 2), min_size=2, max_size=8))
def test_intervals_are_scipys(counts):
    first, second = ([number / 100 for number in side] for side in zip(*counts, strict=True))
    ours = difference(seeded(*first), seeded(*second))
    assert ours.paired.mean == pytest.approx(
        statistics.fmean(a - b for a, b in zip(first, second, strict=True)), abs=1e-9
    )
    for one, test in (
        (ours.paired, stats.ttest_rel),
        (ours.welch, functools.partial(stats.ttest_ind, equal_var=False)),
    ):
        if one.p is not None:
            expected = test(first, second)
            assert one.p == expected.pvalue and (one.low, one.high) == expected.confidence_interval(0.95)
    spread = {round(a - b, 6) for a, b in zip(first, second, strict=True)}
    assert (ours.paired.p is None) == (len(spread) == 1)


def test_pairs_are_runs_of_one_seed():
    first, second = {0: 90.0, 1: 91.0, 2: 89.0, 7: 50.0}, {2: 88.5, 1: 90.0, 0: 89.5, 8: 10.0}
    ours = difference(first, second)
    assert (ours.pairs, ours.paired.mean) == (3, pytest.approx(2 / 3))
    assert ours.welch.mean == pytest.approx(320 / 4 - 278 / 4)
    assert ours.paired.p == stats.ttest_rel([90.0, 91.0, 89.0], [89.5, 90.0, 88.5]).pvalue


@pytest.mark.parametrize(
    ("first", "second", "pairs", "mean"),
    [
        ({0: 90.0}, {0: 89.5}, 1, 0.5),  # one pair
        ({0: 90.0, 1: 91.0}, {1: 90.0, 2: 91.0}, 1, 1.0),
        ({0: 90.0, 1: 91.0}, {2: 90.0, 3: 91.0}, 0, None),  # no common seed
        (seeded(90.0, 91.0, 92.0), seeded(89.0, 90.0, 91.0), 3, 1.0),  # equal differences
        (seeded(90.1, 91.3), seeded(89.9, 91.1), 2, 0.2),  # equal but for rounding
        (seeded(90.0, 91.0), seeded(90.0, 91.0), 2, 0.0),
        (seeded(90.0, 90.0), seeded(89.0, 89.0), 2, 1.0),
    ],
)
def test_without_noise_to_judge_by_there_is_no_interval_and_no_claim(first, second, pairs, mean):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = difference(first, second)
    assert ours.pairs == pairs and ours.paired == (None if mean is None else pytest.approx(mean), None, None, None)
    assert ours.verdict == UNTESTED
    assert (ours.welch.p is None) == (
        min(len(first), len(second)) < 2 or first.keys() == {0, 1} and first[0] == first[1]
    )


def test_two_seeds_and_one_side_without_spread():
    ours = difference(seeded(90.0, 90.0), seeded(88.9, 89.1))  # se = 0.1 of either, one degree of freedom, t = 12.706
    for one in (ours.paired, ours.welch):
        assert (one.mean, one.low) == (pytest.approx(1.0), pytest.approx(1 - 1.27062, rel=1e-4))
        assert one.p == pytest.approx(1 - 2 * math.atan(10) / math.pi)  # Cauchy's distribution


def test_the_verdict_goes_by_the_corrected_p():
    ours = difference(seeded(90.0, 90.2, 90.1), seeded(88.0, 88.1, 88.2))
    verdicts = [ours._replace(corrected=corrected).verdict for corrected in (None, 0.0499, 0.05, 1.0)]
    assert ours.paired.p < 0.01 and verdicts == [EXPLORATORY, LARGER, NOT_SHOWN, NOT_SHOWN]


def test_holms_correction_of_published_values():
    # "Holm-Bonferroni method", Wikipedia, the example: at 0.05 H4 and H1 are rejected, H3 (2 x 0.03) and H2 are not.
    assert holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.04], 4) == pytest.approx([0.04, 0.12])  # two have no value yet
    assert holm([], 3) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 5))
def test_holms_correction_keeps_the_order_and_is_at_most_bonferronis(values, without):
    size = len(values) + without
    corrected = holm(values, size)
    assert all(p <= one <= min(1.0, size * p) for p, one in zip(values, corrected, strict=True))
    assert corrected[values.index(min(values))] == min(1.0, size * min(values))
    by_p = [one for _, one in sorted(zip(values, corrected, strict=True))]
    assert by_p == sorted(by_p)
    # Step by step, as Holm's paper has it: reject the smallest while it is at most level / (tests that are left).
    for level in (0.01, 0.05, 0.3):
        ranked = sorted(values)
        rejected = 0
        while rejected < len(values) and ranked[rejected] * (size - rejected) <= level:
            rejected += 1
        assert sum(one <= level for one in corrected) == rejected
