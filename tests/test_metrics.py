"""Metrics that add up, over uneven batches and with padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import metrics
from sdd_jax.training.objective import task_loss

RNG = np.random.default_rng(1)
LOGITS = jnp.asarray(RNG.integers(0, 4, (40, 6)).astype(np.float32))  # many ties
LABELS = jnp.asarray(RNG.integers(0, 6, 40))


@pytest.mark.parametrize("k", range(1, 7))
def test_top_k_ranks_equal_logits_by_class(k):
    order = np.argsort(-np.asarray(LOGITS), axis=1, kind="stable")[:, :k]
    expected = (order == np.asarray(LABELS)[:, None]).any(1)
    state = jax.jit(metrics.top_k, static_argnames="k")(LOGITS, LABELS, k=k)
    assert int(state["count"]) == 40 and float(state["sum"]) == expected.sum()


def test_uneven_batches_add_up_to_the_whole():
    parts = [metrics.top_k(LOGITS[a:b], LABELS[a:b], 2) for a, b in ((0, 7), (7, 8), (8, 40))]
    assert metrics.compute(metrics.merge(*parts)) == metrics.compute(metrics.top_k(LOGITS, LABELS, 2))
    both = [{"a": metrics.mean(values), "b": metrics.mean(2 * values)} for values in (jnp.arange(3.0), jnp.arange(5.0))]
    merged = metrics.merge(*both)
    assert metrics.compute(merged["a"]) == 13 / 8 and metrics.compute(merged["b"]) == 26 / 8


def test_padding_counts_for_nothing_whatever_is_in_it():
    valid = jnp.arange(40) < 33
    garbage = jnp.where(valid[:, None], LOGITS, jnp.nan)
    for state, expected in (
        (metrics.top_k(garbage, LABELS, 1, valid), metrics.top_k(LOGITS[:33], LABELS[:33])),
        (metrics.mean(garbage[:, 0], valid), metrics.mean(LOGITS[:33, 0])),
        (metrics.agreement(garbage, LOGITS, valid), metrics.agreement(LOGITS[:33], LOGITS[:33])),
    ):
        assert int(state["count"]) == 33
        np.testing.assert_array_equal(metrics.compute(state), metrics.compute(expected))


def test_a_row_that_is_not_a_number_is_never_correct():
    for column in range(6):
        assert float(metrics.top_k(LOGITS.at[:, column].set(jnp.nan), LABELS, 6)["sum"]) == 0


def test_a_label_out_of_range_is_never_correct_and_has_no_cross_entropy():
    logits, labels = jnp.tile(jnp.arange(6.0), (4, 1)), jnp.array([5, -1, 6, -6])
    assert float(jax.jit(metrics.top_k)(logits, labels)["sum"]) == 1
    for smoothing in (0.0, 0.1):
        losses = jax.jit(lambda logits, labels, smoothing=smoothing: task_loss(logits, labels, smoothing))
        assert np.isnan(losses(logits, labels)).tolist() == [False, True, True, True]


def test_agreement_is_of_predictions():
    teacher = jnp.roll(LOGITS, 1, axis=0)
    expected = np.mean(np.argmax(LOGITS, 1) == np.argmax(teacher, 1))
    np.testing.assert_allclose(metrics.compute(metrics.agreement(LOGITS, teacher)), expected)


def test_nothing_counted_is_no_number():
    assert np.isnan(metrics.compute(metrics.mean(jnp.ones(3), jnp.zeros(3, bool))))


@pytest.mark.parametrize("k", [0, 7])
def test_k_is_a_number_of_classes(k):
    with pytest.raises(ValueError, match=rf"1\.\.6.*got {k}"):
        metrics.top_k(LOGITS, LABELS, k)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[B\]"):
        metrics.mean(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="one shape"):
        metrics.agreement(LOGITS, LOGITS[:, :5])


def test_an_accuracy_is_the_same_up_to_a_tenth_of_a_point():
    assert metrics.same_accuracy(0.5009, 0.5) and metrics.same_accuracy(0.501, 0.5)
    assert not metrics.same_accuracy(0.5011, 0.5) and not metrics.same_accuracy(0.4989, 0.5)
