"""Regions, their verdicts and the loss over them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from benchmarks.golden import LOSSES, POOLING, bases
from sdd_jax import complementary_mask, dkd_loss, kd_loss, pool_regions, sdd_loss
from sdd_jax.regions import Regions, _averaging_matrix, average_grid

MAPS = [(1, 1), (2, 2), (3, 5), (4, 4), (7, 7), (8, 8), (14, 14), (16, 8), (5, 4), (1, 9)]
SCALES = [(1,), (1, 2), (1, 2, 4), (1, 3), (1, 2, 3, 6), (1, 5)]


pooled = jax.jit(pool_regions, static_argnames=("scales", "pooling"))


def a_map(height, width, channels=3, batch=2, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, height, width, channels))


@pytest.mark.parametrize("key", [key for key in POOLING if not key.startswith("input")])
def test_pooling_is_that_of_the_official_code(key, x64):
    kind, size, of = key.split("_")
    grid = jnp.asarray(POOLING[f"input_{size}"].transpose(0, 2, 3, 1))
    if kind == "cells":
        ours = pool_regions(grid, tuple(int(scale) for scale in of.split("-")), pooling="nested")
        expected = POOLING[key].transpose(0, 2, 1)
    else:
        ours, expected = average_grid(grid, int(of)), POOLING[key].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def slow_regions(grid, scales):
    """Cell by cell, from the definition of its rows and columns."""
    _, height, width, _ = grid.shape
    cells = []
    for scale in scales:
        for i in range(scale):
            for j in range(scale):
                rows = slice(int(np.floor(i * height / scale)), int(np.ceil((i + 1) * height / scale)))
                columns = slice(int(np.floor(j * width / scale)), int(np.ceil((j + 1) * width / scale)))
                cells.append(np.asarray(grid)[:, rows, columns].mean((1, 2)))
    return np.stack(cells, axis=1)


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize("scales", SCALES)
def test_direct_pooling_is_that_of_its_definition(size, scales, x64):
    grid = a_map(*size)
    regions = pooled(grid, scales)
    assert regions.shape[1] == Regions(scales).count
    np.testing.assert_allclose(regions, slow_regions(grid, scales), atol=1e-12)
    np.testing.assert_allclose(regions[:, 0], np.mean(grid, (1, 2)), atol=1e-12)


@pytest.mark.parametrize("size", MAPS)
def test_nested_pooling_pools_a_four_by_four_grid(size, x64):
    grid = a_map(*size)
    cells = slow_regions(grid, (4,)).reshape(2, 4, 4, 3)
    np.testing.assert_allclose(pooled(grid, (1, 2, 4), pooling="nested"), slow_regions(cells, (1, 2, 4)), atol=1e-12)


def test_nested_and_direct_differ_where_four_does_not_divide_the_map(x64):
    differs = {}
    for side in (1, 2, 4, 7, 8, 14, 28):
        grid = a_map(side, side)
        nested, direct = (np.asarray(pooled(grid, (1, 2, 4), pooling=pooling)) for pooling in ("nested", "direct"))
        differs[side] = bool(np.max(np.abs(nested - direct)) > 1e-9)
    assert differs == {1: False, 2: False, 4: False, 7: True, 8: False, 14: True, 28: False}


def test_windows_and_matrices_agree_where_both_apply(x64):
    grid = a_map(12, 8)
    rows, columns = (_averaging_matrix(size, 4) for size in (12, 8))
    by_matrix = np.einsum("ih,jw,bhwk->bijk", rows, columns, grid)
    np.testing.assert_allclose(average_grid(grid, 4), by_matrix, atol=1e-14)


@pytest.mark.parametrize("pooling", ["direct", "nested"])
@pytest.mark.parametrize("size", [(7, 7), (8, 8), (2, 2)])
def test_pooling_commutes_with_an_affine_head(size, pooling, x64):
    features = a_map(*size, channels=6)
    kernel, bias = a_map(1, 6, channels=4, batch=1)[0, 0], jnp.arange(4.0)
    before = pool_regions(features, pooling=pooling) @ kernel + bias[None, None]
    after = pool_regions(features @ kernel + bias[None, None, None], pooling=pooling)
    np.testing.assert_allclose(before, after, atol=1e-12)


def test_places_are_numbered_scale_by_scale_and_row_by_row():
    assert Regions(np.array([1, 2])) == Regions([1, 2]) == Regions((1, 2))
    assert Regions((1, 2)).places() == [(1, 0, 0), (2, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1)]
    marks = np.arange(16.0).reshape(1, 4, 4, 1)
    regions = Regions((1, 4), "nested")
    pooled = np.asarray(regions.pool(marks))[0, :, 0]
    assert len(regions.places()) == regions.count == 17
    for value, (scale, row, column) in zip(pooled, regions.places(), strict=True):
        assert value == (7.5 if scale == 1 else 4 * row + column)


def test_the_grid_that_every_region_is_an_average_of():
    assert Regions((1, 2, 4), "nested").grid(7, 7) == 4
    assert Regions((1, 2, 4), "direct").grid(8, 8) == 4
    assert Regions((1, 2), "direct").grid(8, 16) == 2
    assert Regions((1, 2), "direct").grid(7, 7) is None
    assert Regions((1, 2, 3), "direct").grid(6, 6) is None  # 2 does not divide 3
    assert Regions((1,), "direct").grid(3, 5) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("pooling", ["direct", "nested"])
def test_half_precision_is_averaged_in_float32(dtype, pooling):
    grid = (100 + a_map(14, 14)).astype(dtype)
    regions = pool_regions(grid, pooling=pooling)
    assert regions.dtype == jnp.float32
    np.testing.assert_array_equal(regions, pool_regions(grid.astype(jnp.float32), pooling=pooling))


def one_hot_regions(rows):
    """Teacher regions ``[B, R, K]`` that predict the given classes."""
    return jax.nn.one_hot(jnp.array(rows), 3) * 5.0


def test_complementary_regions_by_hand():
    #                          whole | regions                 label
    teacher = one_hot_regions([[0, 0, 1, 2], [1, 0, 1, 2], [2, 2, 2, 2]])
    labels = jnp.array([0, 0, 2])
    by_label = [[False, False, True, True], [False, True, False, False], [False] * 4]
    by_class = [[False, False, True, True], [False, True, False, True], [False] * 4]
    assert complementary_mask(teacher, labels).tolist() == by_label
    assert complementary_mask(teacher, labels, consistency="class").tolist() == by_class


@pytest.mark.parametrize("case", "abcd")
@pytest.mark.parametrize("name", ["kd", "dkd", "nkd"])
def test_loss_and_gradient_are_those_of_the_official_code(case, name, x64):
    base = bases(case)[name]
    student, teacher = (jnp.asarray(LOSSES[f"{case}/{role}"].transpose(0, 2, 1)) for role in ("student", "teacher"))
    labels = jnp.asarray(LOSSES[f"{case}/labels"])
    value, gradient = jax.jit(jax.value_and_grad(lambda s: jnp.mean(sdd_loss(s, teacher, labels, base=base))))(student)
    expected = LOSSES[f"{case}/sdd_{name}_grad"].transpose(0, 2, 1)
    np.testing.assert_allclose(value, LOSSES[f"{case}/sdd_{name}"], rtol=1e-9)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.fixture
def regions():
    """Of a student's and a teacher's map of different sizes, and labels."""
    student, teacher = pool_regions(2 * a_map(8, 8, 5, 6)), pool_regions(3 * a_map(7, 7, 5, 6, seed=1))
    return student, teacher, jnp.array([0, 1, 2, 3, 4, 0], jnp.int32)


@pytest.mark.parametrize("consistency", ["label", "class"])
@pytest.mark.parametrize("weights", [(2.0, 1.0), (0.0, 1.0), (1.0, 0.0), (5.0, 0.5)])
def test_the_loss_is_a_weighted_mean_that_divides_by_the_number_of_regions(regions, weights, consistency):
    student, teacher, labels = regions
    options = dict(zip(("complementary_weight", "consistent_weight"), weights, strict=True), consistency=consistency)
    mask = np.asarray(complementary_mask(teacher, labels, consistency=consistency))
    assert mask.any() and not mask[:, 0].any()
    losses = np.asarray(jax.jit(jax.vmap(kd_loss, 1, 1))(student, teacher))
    expected = np.where(mask, weights[0], weights[1]) * losses
    value = jax.jit(partial(sdd_loss, base=kd_loss, **options))(student, teacher, labels)
    np.testing.assert_allclose(value, expected.sum(1) / 21, rtol=1e-5)
    total = jax.jit(partial(sdd_loss, base=kd_loss, reduction="sum", **options))(student, teacher, labels)
    np.testing.assert_allclose(total, expected.sum(1), rtol=1e-5)


def test_gradient_is_that_of_finite_differences(x64):
    labels = jnp.array([1, 0])
    teacher = pool_regions(3 * a_map(4, 4, 3, seed=1))
    check_grads(
        jax.jit(lambda grid: sdd_loss(pool_regions(grid), teacher, labels, base=partial(dkd_loss, beta=2.0))),
        (a_map(7, 5),),
        order=1,
        modes=("rev",),
        rtol=1e-5,
    )


@pytest.mark.parametrize("scales", [(2, 4), (1, 1), (4, 2, 1), (1, 2.5), "124", (), (0, 1), (1, True), 2])
def test_scales_that_do_not_increase_from_one_are_refused(scales):
    with pytest.raises(ValueError, match="increase and start with 1"):
        pool_regions(a_map(4, 4), scales)


def test_other_wrong_input_is_refused(regions):
    student, teacher, labels = regions
    with pytest.raises(ValueError, match="above 4 needs pooling='direct'"):
        pool_regions(a_map(8, 8), (1, 8), pooling="nested")
    with pytest.raises(ValueError, match="pooling must be one of direct, nested; got 'max'"):
        pool_regions(a_map(8, 8), pooling="max")
    with pytest.raises(ValueError, match=r"\[B, h, w, K\].*\(2, 3\)"):
        pool_regions(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="base must return one value per region"):
        sdd_loss(student, teacher, labels, base=lambda *arrays: jnp.mean(kd_loss(*arrays)))
    with pytest.raises(ValueError, match="one shape"):
        sdd_loss(student, teacher[:, :5], labels, base=kd_loss)
    with pytest.raises(ValueError, match="labels must lie in 0..4, got 9"):
        sdd_loss(student, teacher, labels + 9, base=kd_loss)
    for option in ("consistency", "reduction"):
        with pytest.raises(ValueError, match=f"{option} must be one of"):
            sdd_loss(student, teacher, labels, base=kd_loss, **{option: "both"})


def test_a_label_out_of_range_is_not_a_number_inside_jit(regions):
    student, teacher, labels = regions
    value = jax.jit(partial(sdd_loss, base=dkd_loss))(student, teacher, labels.at[0].set(5))
    assert np.isnan(value).tolist() == [True] + [False] * 5
