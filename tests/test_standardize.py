"""Logit standardisation: against its formula, its derivative, and where there is no spread to take out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from test_losses import by_definition, example, jit

from sdd_jax import dkd_loss, kd_loss, nkd_loss, sdd_loss, standardize_logits, standardized

INF = np.inf


def by_formula(logits):
    """As the released code has it: the deviation of a sample, and 1e-7 beside it."""
    logits = np.asarray(logits, np.float64)
    return (logits - logits.mean(-1, keepdims=True)) / (1e-7 + logits.std(-1, ddof=1, keepdims=True))


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e4])
def test_value_is_that_of_the_formula(scale, x64):
    student, _, _ = example((4, 3, 7), scale=scale)
    np.testing.assert_allclose(jit(standardize_logits)(student), by_formula(student), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "base"), [("kd", kd_loss), ("dkd", dkd_loss), ("nkd", nkd_loss)])
def test_a_base_sees_standardised_logits(name, base, x64):
    student, teacher, labels = map(np.asarray, example((2, 3, 7)))
    ours = np.asarray(jax.jit(standardized(base))(student, teacher, labels, temperature=2.0))
    for place in np.ndindex(2, 3):
        expected = by_definition(name, by_formula(student[place]), by_formula(teacher[place]), labels[place], 2.0)
        np.testing.assert_allclose(ours[place], expected, rtol=1e-9)


def test_each_region_is_standardised_by_itself(x64):
    student, teacher, labels = example((6, 5, 7))
    spread = jnp.array([1.0, 30.0, 0.01, 4.0, 2.0])[None, :, None]  # of the regions
    base = standardized(partial(kd_loss, temperature=2.0))
    loss = jax.jit(partial(sdd_loss, base=base))
    value = loss(student, teacher, labels[:, 0])
    # Positive factors move no argmax, so the weights are the same. 1e-7 is not much beside these deviations.
    np.testing.assert_allclose(loss(spread * student, teacher / spread, labels[:, 0]), value, rtol=1e-4)
    assert not np.allclose(sdd_loss(spread * student, teacher, labels[:, 0], base=kd_loss), value, rtol=0.1)


def test_gradient_is_that_of_finite_differences(x64):
    student, teacher, labels = example((3, 4))
    loss = standardized(dkd_loss)
    check_grads(jax.jit(lambda s, t: loss(s, t, labels)), (student, teacher), order=1, modes=("rev", "fwd"), rtol=1e-6)


def test_equal_logits_are_zeros_and_their_derivative_is_exact(x64):
    """Near equal logits the function is (z - mean) / 1e-7, up to second order."""
    constant = jnp.full((5,), 0.1)
    for level in (0.1, 1e4, -3e7):
        np.testing.assert_array_equal(standardize_logits(jnp.full((2, 5), level, jnp.float32)), np.zeros((2, 5)))
    jacobian = jax.jit(jax.jacobian(standardize_logits))(constant)
    np.testing.assert_allclose(jacobian, 1e7 * (np.eye(5) - 0.2), rtol=1e-12)
    direction, step = np.array([1.0, -0.5, 0.25, 0.0, 2.0]), 1e-13
    ahead = (jit(standardize_logits)(step * direction) - jit(standardize_logits)(-step * direction)) / (2 * step)
    np.testing.assert_allclose(ahead, jacobian @ direction, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("pair", [([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])])
def test_a_region_without_spread_has_a_finite_loss_and_gradient(dtype, pair):
    student, teacher = (jnp.asarray(logits, dtype) for logits in pair)
    value, gradient = jax.jit(jax.value_and_grad(standardized(kd_loss)))(student, teacher)
    assert value.dtype == jnp.float32 and value > 0.1
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_a_single_class_is_zero_whatever_is_left_out():
    np.testing.assert_array_equal(standardize_logits(jnp.array([[3.0], [-7.0]])), [[0.0], [0.0]])
    np.testing.assert_array_equal(standardize_logits(jnp.array([-INF, 4.0, -INF])), [-INF, 0.0, -INF])
    np.testing.assert_array_equal(standardized(kd_loss)(jnp.array([[3.0]]), jnp.array([[1.0]])), [0.0])


def test_a_class_that_is_left_out_is_as_if_it_did_not_exist(x64):
    pair, labels = np.stack(example((6, 5))[:2]), np.array([0, 1, 2, 0, 1, 2], np.int32)
    total = jax.jit(jax.value_and_grad(lambda *arrays: jnp.sum(standardized(dkd_loss)(*arrays))))
    fewer, _ = total(*pair[..., :4], labels)
    teacher = pair[1].copy()
    pair[..., 4] = -INF
    value, gradient = total(*pair, labels)
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    assert np.isfinite(gradient).all()
    assert np.isposinf(jax.jit(standardized(kd_loss))(pair[0], teacher)).all()


def test_scale_and_shift_are_gone_and_half_precision_is_float32(x64):
    student, _, _ = example((4, 7))
    standard = jit(standardize_logits)(student)
    np.testing.assert_allclose(jit(standardize_logits)(5.0 * student - 3.0), standard, rtol=1e-6)
    np.testing.assert_allclose(standard.mean(-1), 0.0, atol=1e-12)
    half = student.astype(jnp.bfloat16)
    assert jit(standardize_logits)(half).dtype == jnp.float32
    np.testing.assert_array_equal(jit(standardize_logits)(half), jit(standardize_logits)(half.astype(jnp.float32)))


def test_wrong_input_is_refused_with_what_came():
    with pytest.raises(ValueError, match="floating point, got int"):
        standardize_logits(np.zeros((2, 3), int))
    for shape in ((), (2, 0)):
        with pytest.raises(ValueError, match=r"K >= 1, got \("):
            standardize_logits(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        standardized(kd_loss)(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))
