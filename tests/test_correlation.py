"""DIST: against its formula, its derivative, batches and rows without variation, and many devices."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from test_losses import example, jit, softmax

from sdd_jax import complementary_mask, dist_loss, sdd_loss

ROWS, COLUMNS = partial(jit(dist_loss), gamma=0.0), partial(jit(dist_loss), beta=0.0)


def correlation(first, second):
    first, second = first - first.mean(), second - second.mean()
    return np.sum(first * second) / (np.sqrt(np.sum(first**2)) * np.sqrt(np.sum(second**2)) + 1e-8)


def by_definition(student, teacher, temperature, beta, gamma):
    """A batch of one region ``[B, K]``: what each example has to pay."""
    student, teacher = (softmax(np.asarray(logits, np.float64) / temperature) for logits in (student, teacher))
    rows = np.array([1 - correlation(s, t) for s, t in zip(student, teacher, strict=True)])
    columns = np.mean([1 - correlation(s, t) for s, t in zip(student.T, teacher.T, strict=True)])
    return temperature**2 * (beta * rows + gamma * columns)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_is_that_of_the_definition_in_every_region(temperature, x64):
    student, teacher, _ = example((8, 2, 3, 5))
    student, teacher = np.asarray(student), np.asarray(teacher)
    ours = np.asarray(jit(dist_loss)(student, teacher, temperature=temperature, beta=0.7, gamma=1.3))
    assert ours.shape == (8, 2, 3)
    for place in np.ndindex(2, 3):
        region = (slice(None), *place)
        expected = by_definition(student[region], teacher[region], temperature, 0.7, 1.3)
        np.testing.assert_allclose(ours[region], expected, rtol=1e-9)


def test_under_sdd_each_example_has_its_regions_columns(x64):
    student, teacher, _ = example((6, 5, 4))
    labels = jnp.array([0, 1, 2, 3, 0, 1], jnp.int32)
    base = partial(dist_loss, temperature=2.0)
    value = jax.jit(partial(sdd_loss, base=base, complementary_weight=3.0))(student, teacher, labels)
    student, teacher = np.asarray(student), np.asarray(teacher)
    regions = [by_definition(student[:, r], teacher[:, r], 2.0, 1.0, 1.0) for r in range(5)]
    weights = np.where(complementary_mask(teacher, labels), 3.0, 1.0)
    np.testing.assert_allclose(value, np.mean(weights * np.stack(regions, axis=1), axis=1), rtol=1e-9)


def test_gradient_is_that_of_finite_differences(x64):
    student, teacher, _ = example((3, 2, 4))
    check_grads(jit(dist_loss), (student, teacher), order=1, modes=("rev", "fwd"), rtol=1e-6)


def test_equal_networks_cost_next_to_nothing_and_opposite_ones_the_most(x64):
    student, _, _ = example((8, 2))
    np.testing.assert_allclose(jit(dist_loss)(student, student), 0.0, atol=1e-4)
    # Of two classes the probabilities mirror each other: every correlation is minus one.
    np.testing.assert_allclose(jit(dist_loss)(student, -student), 4.0**2 * 4.0, rtol=1e-4)


def test_rows_are_of_each_example_and_columns_of_all(x64):
    student, teacher, _ = example((6, 5))
    moved = student.at[2].add(jnp.arange(5.0))
    assert (np.asarray(ROWS(moved, teacher) == ROWS(student, teacher)) == (np.arange(6) != 2)).all()
    assert (np.asarray(COLUMNS(moved, teacher)) != np.asarray(COLUMNS(student, teacher))).all()
    assert np.unique(COLUMNS(student, teacher)).size == 1


def test_a_batch_of_one_has_no_columns_to_relate(x64):
    student, teacher, _ = example((1, 2, 5))
    np.testing.assert_allclose(COLUMNS(student, teacher), 4.0**2 * np.ones((1, 2)), rtol=1e-12)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda s: jnp.sum(COLUMNS(s, teacher))))(student), 0.0)
    np.testing.assert_allclose(jit(dist_loss)(student, teacher), ROWS(student, teacher) + 16.0, rtol=1e-12)


def test_a_row_without_variation_is_uncorrelated_and_its_derivative_exact(x64):
    student, (_, teacher, _) = jnp.zeros((1, 4)), example((1, 4))
    np.testing.assert_allclose(ROWS(student, teacher, temperature=1.0), [1.0], rtol=1e-12)
    gradient = jax.jit(jax.grad(lambda s: ROWS(s, teacher, temperature=1.0)[0]))(student)
    centred = softmax(np.asarray(teacher)) - 0.25
    np.testing.assert_allclose(gradient, -1e8 * centred / 4, rtol=1e-9)  # softmax's own derivative there is 1/4
    step = 1e-14 * np.array([[1.0, -2.0, 0.5, 0.5]])
    slope = np.asarray(ROWS(step, teacher, temperature=1.0) - ROWS(-step, teacher, temperature=1.0)).item() / 2
    np.testing.assert_allclose(slope, np.sum(gradient * step), rtol=1e-2)  # eight digits are lost in the difference
    value, gradient = jax.jit(jax.value_and_grad(lambda s: jnp.sum(dist_loss(s, s))))(jnp.zeros((3, 4)))
    assert value == 3 * 32.0 and (gradient == 0).all()  # neither varies: nothing is asked of either


def test_columns_without_variation_are_uncorrelated():
    student, teacher = jnp.tile(jnp.arange(4.0), (5, 1)), example((5, 4))[1].astype(jnp.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda s: jnp.mean(COLUMNS(s, teacher))))(student)
    np.testing.assert_allclose(value, 16.0, rtol=1e-5)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


EXTREMES = {
    "large": ([[1e4, -1e4, 0.0], [0.0, 1.0, 2.0]], [[-1e4, 1e4, 1e4], [3.0, 1.0, 2.0]]),
    "saturated": ([[500.0, 0.0, 0.0], [0.0, 500.0, 0.0]], [[0.0, 500.0, 0.0], [1.0, 2.0, 0.5]]),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_logits_give_finite_values_and_gradients(dtype, case):
    student, teacher = (jnp.asarray(logits, dtype) for logits in EXTREMES[case])
    value, gradient = jax.jit(jax.value_and_grad(lambda s: jnp.sum(dist_loss(s, teacher))))(student)
    assert value.dtype == jnp.float32 and np.isfinite(value)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_a_class_that_both_leave_out_is_as_if_it_did_not_exist(x64):
    pair = np.stack(example((6, 3, 5))[:2])
    total = jax.jit(jax.value_and_grad(lambda *arrays: jnp.sum(dist_loss(*arrays))))
    fewer, _ = total(*pair[..., :4])
    pair[..., 4] = -np.inf
    value, gradient = total(*pair)
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    assert np.isfinite(gradient).all()


def test_a_class_that_one_leaves_out_has_probability_zero_there(x64):
    student, teacher, _ = example((6, 5))
    left_out = student.at[:, 4].set(-jnp.inf)
    expected = by_definition(left_out, teacher, 4.0, 1.0, 1.0)
    np.testing.assert_allclose(jit(dist_loss)(left_out, teacher), expected, rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_a_number_is_not_hidden(bad, which):
    pair = list(example((4, 2, 5))[:2])
    pair[which] = pair[which].at[1, 0, 2].set(bad)
    np.testing.assert_array_equal(np.isnan(jit(dist_loss)(*pair)), np.array([[True, False]] * 4))
    np.testing.assert_array_equal(np.isnan(ROWS(*pair, gamma=0.0))[:, 1], [False] * 4)


def test_wrong_input_is_refused_with_what_came():
    with pytest.raises(ValueError, match=r"batch: it needs \[B, ..., K\], got \(3,\)"):
        dist_loss(np.zeros(3, np.float32), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="temperature must be greater than 0, got 0.0"):
        dist_loss(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), temperature=0.0)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        dist_loss(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


ON_EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sdd_jax import dist_loss, mlkd_loss, sdd_loss
student, teacher = np.random.default_rng(0).normal(size=(2, 16, 5, 4))
labels = np.arange(16) % 4
# JAX refuses MLKD's products over the batch where axes are explicit; the project's are automatic.
for base, kind in ((dist_loss, AxisType.Explicit), (dist_loss, AxisType.Auto), (mlkd_loss, AxisType.Auto)):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    split = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (student, teacher, labels)]
    assert len(split[0].sharding.device_set) == 8
    loss = jax.jit(jax.value_and_grad(lambda s, t, y: sdd_loss(s, t, y, base=base).mean()))
    for one, eight in zip(loss(student, teacher, labels), loss(*split)):
        np.testing.assert_allclose(eight, one, rtol=1e-9)
"""


@pytest.mark.slow
def test_a_batch_over_eight_devices_is_one_batch():
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_ENABLE_X64": "1",
    }
    subprocess.run([sys.executable, "-c", ON_EIGHT_DEVICES], env=environment, check=True, capture_output=True)
