"""Measures of answers against values worked out by hand."""

import math

import numpy as np
import pytest

from sdd_jax.reporting import measures
from sdd_jax.reporting.measures import changed


def logits_of(*rows):
    """Logits whose softmax is exactly these rows."""
    return np.log(np.array(rows, np.float64))


def test_expected_calibration_error_by_hand():
    # Confidences 0.55, 0.6 (bin 3 of 5, the second on its upper edge), 0.9, 0.95 (bin 5); right, wrong, right, right.
    logits = logits_of([0.55, 0.45], [0.6, 0.4], [0.1, 0.9], [0.05, 0.95])
    result = measures.reliability([logits], np.array([0, 1, 1, 1]), bins=5)
    np.testing.assert_array_equal(result.counts, [0, 0, 2, 0, 2])
    np.testing.assert_allclose(result.confidence[[2, 4]], [0.575, 0.925])
    np.testing.assert_allclose(result.accuracy[[2, 4]], [0.5, 1.0])
    assert np.isnan(result.accuracy[[0, 1, 3]]).all()
    assert result.ece == pytest.approx((2 * 0.075 + 2 * 0.075) / 4)


def test_perfect_confidence_in_the_right_class_has_no_error():
    logits = np.array([[50.0, -50.0], [-50.0, 50.0]])
    assert measures.reliability([logits], np.array([0, 1])).ece == pytest.approx(0, abs=1e-12)
    assert measures.reliability([logits], np.array([1, 0])).ece == pytest.approx(1)


def test_divergence_and_agreement_by_hand():
    teacher, student = logits_of([0.5, 0.5], [0.9, 0.1]), logits_of([0.25, 0.75], [0.8, 0.2])
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2)
    assert measures.divergence(student, teacher) == pytest.approx((first + second) / 2)
    assert measures.divergence(teacher, teacher) == 0
    assert measures.accuracy(student, teacher.argmax(-1)) == 0.5  # of equal classes the first is the prediction


def test_a_class_that_the_teacher_rules_out_adds_nothing():
    teacher, student = np.array([[0.0, -np.inf]]), logits_of([0.5, 0.5])
    assert measures.divergence(student, teacher) == pytest.approx(math.log(2))


def test_accuracy_per_class_knows_classes_without_an_image():
    logits = np.eye(4)[[0, 1, 1, 3]]
    got = measures.class_accuracy(logits, np.array([0, 1, 0, 1]))
    np.testing.assert_array_equal(got[:2], [0.5, 0.5])
    assert np.isnan(got[2:]).all()


def test_correlations_are_compared_class_by_class():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 500))
    teacher, student = np.stack([a, a, b], 1), np.stack([a, -a, b], 1)
    got = measures.correlation_difference(student, teacher)
    np.testing.assert_allclose(np.diag(got), 0, atol=1e-12)
    np.testing.assert_allclose(got[0, 1], 2, atol=1e-12)  # 1 there, -1 here
    assert got[0, 2] == pytest.approx(0, abs=1e-12)
    assert measures.off_diagonal(got) == pytest.approx((2 * 2 + 2 * got[1, 2]) / 6)
    np.testing.assert_allclose(measures.correlation_difference(3 * student + 1, student), 0, atol=1e-12)


def test_spread_is_the_sample_standard_deviation():
    assert measures.spread([1.0, 3.0]) == (2.0, math.sqrt(2), 2)
    assert measures.spread([5.0]) == (5.0, None, 1)
    assert (measures.spread([1.0, 3.0]).text(), measures.spread([5.0]).text(0)) == ("2.00 ± 1.41", "5")


def test_what_changed_is_sorted_by_runs_then_by_probability():
    labels = np.array([0, 0, 0, 0, 0])
    sure, right, wrong = [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]
    before = [logits_of(wrong, wrong, sure, wrong, right), logits_of(wrong, wrong, sure, right, right)]
    after = [logits_of(right, sure, wrong, right, right), logits_of(right, sure, sure, right, right)]
    gained, lost = changed(before, after, labels, 9)
    # Image 1 and 0 were wrong in both runs and are right in both, 1 more surely; image 3 was right in one of two.
    assert (gained, lost) == ([1, 0, 3], [2])
    assert changed(before, after, labels, 1)[0] == gained[:1]
    assert changed(before, before, labels, 9) == ([], [])
