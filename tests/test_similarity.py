"""SP, whole and region by region: against its formula, its derivative, and maps that do not fit each other."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdd_jax.regions import Regions
from sdd_jax.training.features import similarity, similarity_loss


def maps(student=(6, 4, 4, 5), teacher=(6, 8, 8, 7), seed=0):
    """Feature maps almost as they come after a ReLU: no location is without features."""
    rng = np.random.default_rng(seed)
    return tuple(np.maximum(rng.normal(size=shape), 0.01) for shape in (student, teacher))


def by_formula(student, teacher):
    """``|G_t - G_s|^2`` row by row over B: what each example has to pay."""
    rows = []
    for features in (student, teacher):
        gram = features @ features.T
        rows.append(gram / np.sqrt(np.sum(gram**2, axis=1, keepdims=True)))
    return np.sum((rows[1] - rows[0]) ** 2, axis=1) / len(student)


def cell_means(features, side):
    """``[B, side * side, C]``, cell by cell, for maps that the cells tile."""
    step = features.shape[1] // side
    cells = [
        features[:, y * step : (y + 1) * step, x * step : (x + 1) * step].mean((1, 2))
        for y in range(side)
        for x in range(side)
    ]
    return np.stack(cells, axis=1)


def applied(objective, student, teacher):
    student, teacher = (SimpleNamespace(feature_maps={"last_stage": jnp.asarray(one)}) for one in (student, teacher))
    params, state = objective.init(jax.random.key(0), student, teacher, np.zeros(100, int))
    return objective.apply(params, state, student, teacher, {}, epoch=0, epochs_done=0.0, key=None)


def test_value_is_that_of_the_formula_for_maps_of_any_size(x64):
    student, teacher = maps()
    loss, metrics, state = applied(similarity(10.0), student, teacher)
    expected = by_formula(student.reshape(6, -1), teacher.reshape(6, -1))
    np.testing.assert_allclose(metrics["similarity_loss"], expected, rtol=1e-9)
    np.testing.assert_allclose(loss, 10.0 * expected, rtol=1e-9)
    assert state == {} and similarity().needs == {"feature_maps"}


@pytest.mark.parametrize(("reduction", "reduce"), [("mean", np.mean), ("sum", np.sum)])
def test_regions_are_compared_each_by_itself(reduction, reduce, x64):
    student, teacher = maps()
    regions = Regions((1, 2, 4), "nested")
    loss, _, _ = applied(similarity(2.0, regions=regions, reduction=reduction), student, teacher)
    cells = [np.concatenate([cell_means(one, side) for side in (1, 2, 4)], axis=1) for one in (student, teacher)]
    each = [by_formula(cells[0][:, r], cells[1][:, r]) for r in range(21)]
    np.testing.assert_allclose(loss, 2.0 * reduce(each, axis=0), rtol=1e-9)


def test_gradient_is_that_of_finite_differences(x64):
    student, teacher = (jnp.asarray(one) for one in maps((4, 2, 2, 3), (4, 2, 2, 5)))
    check_grads(similarity_loss, (student, teacher), order=1, modes=("rev", "fwd"), rtol=1e-5)


def test_scale_and_rotation_of_features_do_not_matter(x64):
    student, teacher = (one.reshape(6, -1) for one in maps())
    value = similarity_loss(student, teacher)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(80, 80)))
    np.testing.assert_allclose(similarity_loss(3.0 * student @ rotation, teacher), value, rtol=1e-9)
    np.testing.assert_allclose(similarity_loss(5.0 * teacher, teacher), 0.0, atol=1e-15)


def test_an_example_without_features_is_similar_to_none():
    student, teacher = (one.reshape(6, -1).astype(np.float32) for one in maps())
    student[2] = 0.0
    value, gradient = jax.value_and_grad(lambda s: similarity_loss(s, teacher)[2])(jnp.asarray(student))
    np.testing.assert_allclose(value, 1 / 6, rtol=1e-5)  # the teacher's row has length 1
    assert np.isfinite(gradient).all()
    dead = jnp.zeros((6, 80))
    assert np.isfinite(jax.grad(lambda s: jnp.sum(similarity_loss(s, teacher)))(dead)).all()


def test_a_single_example_is_like_itself():
    np.testing.assert_allclose(similarity_loss(jnp.ones((1, 3)), 5.0 * jnp.ones((1, 4))), [0.0], atol=1e-6)


def test_half_precision_is_computed_in_float32_and_what_is_not_a_number_is_seen():
    student, teacher = (jnp.asarray(one.reshape(6, -1), jnp.bfloat16) for one in maps())
    value = similarity_loss(student, teacher)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, similarity_loss(student.astype(jnp.float32), teacher.astype(jnp.float32)))
    assert np.isnan(similarity_loss(student.at[1, 0].set(jnp.nan), teacher)).all()


def test_wrong_input_is_refused_with_what_came():
    with pytest.raises(ValueError, match=r"\(4, 2, 3\) and \(5, 2, 3\)"):
        similarity_loss(jnp.ones((4, 2, 3)), jnp.ones((5, 2, 3)))
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        similarity_loss(jnp.ones(4), jnp.ones(4))
    features = SimpleNamespace(feature_maps={"last_stage": jnp.ones((2, 1, 1, 3))})
    with pytest.raises(ValueError, match="reads the feature map 'last_stage', but the teacher gives no feature maps"):
        similarity().init(jax.random.key(0), features, SimpleNamespace(feature_maps={}), np.zeros(10, int))
    with pytest.raises(ValueError, match="reduction must be one of mean, sum; got 'Sum'"):
        applied(similarity(regions=Regions(), reduction="Sum"), jnp.ones((2, 1, 1, 3)), jnp.ones((2, 1, 1, 3)))
    with pytest.raises(ValueError, match="similarity reads the feature map 'stem', but the student has last_stage"):
        similarity(feature_map="stem").init(jax.random.key(0), features, features, np.zeros(10, int))
