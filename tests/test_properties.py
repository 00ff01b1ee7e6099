"""What the docstrings of losses and regions promise, under drawn input: extreme, equal, infinite, NaN, of every dtype.

The suite draws a few examples a property, the same ones each time (tests/conftest.py has the profiles). The long form
draws 2,000 new ones: ``python -m pytest --hypothesis-profile=long tests/test_properties.py``.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_losses import even_wkd_loss, shallow_ldrld_loss

from sdd_jax import complementary_mask, methods, pool_regions, sdd_loss, standardize_logits, standardized
from sdd_jax.regions import Regions, average_grid

# Every base loss of the table, with the first of its options: a traced number, so that it costs no compilation.
ANY_CLASSES = {  # of those that need to know the number of classes, and one that would take five times as long
    "ldrld": shallow_ldrld_loss,
    "wkd": even_wkd_loss,
    "mlkd": partial(methods.BASES["mlkd"].function, further_temperatures=()),
}
PLAIN = {
    name: (ANY_CLASSES.get(name, base.function), next(iter(methods.options_of(base))))
    for name, base in methods.BASES.items()
    if not name.startswith("ls_")  # those are standardized below
}
NEWER = ("abkd", "rld", "ldrld", "wkd", "mlkd")  # standardised in tests/test_newer_losses.py
LOSSES = PLAIN | {
    f"standardized_{name}": (standardized(loss), option) for name, (loss, option) in PLAIN.items() if name not in NEWER
}
SOME = (*PLAIN, "standardized_kd")  # where a dtype or a shape is what matters
RELATED = {name for name in LOSSES if name.endswith("dist") or name == "mlkd"}  # these relate the examples of a batch
ORDERED = {"rld", "ldrld"}  # these jump where classes change places, which rounding may make them do

options = st.sampled_from([0.1, 0.5, 1.0, 4.0, 20.0])
dtypes = st.sampled_from(["float16", "bfloat16", "float32", "float64"])
LARGEST = {"float16": 65504.0, "bfloat16": 1e30, "float32": 1e30, "float64": 1e30}
B, K = SHAPE = (4, 5)  # one shape for most properties: each is a program with all the losses and their gradients
OTHER_SHAPES = [(0, 3), (1, 2), (2, 40), (2, 2, 5)]
tame = st.integers(-160, 160).map(lambda eighths: eighths / 8)  # sums and differences of these are exact


def call(name, student, teacher, labels, option):
    loss, keyword = LOSSES[name]
    return loss(student, teacher, labels, **{keyword: option})


@partial(jax.jit, static_argnames="names")
def all_gradients(student, teacher, labels, option, names):
    """Of every loss the value and the gradient of each example."""
    found = {}
    for name in names:
        value, pull_back = jax.vjp(lambda s, name=name: call(name, s, teacher, labels, option), student)
        found[name] = value, pull_back(jnp.ones_like(value))[0]
    return found


@partial(jax.jit, static_argnames="names")
def all_values(student, teacher, labels, option, names):
    return {name: call(name, student, teacher, labels, option) for name in names}


def in_numpy(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float64), tree)


def run(student, teacher, labels, option, dtype="float64", names=tuple(LOSSES)):
    """``all_gradients`` in NumPy, of logits in ``dtype``."""
    with jax.enable_x64(dtype == "float64"):
        pair = [np.asarray(logits).astype(jnp.dtype(dtype)) for logits in (student, teacher)]
        return in_numpy(all_gradients(*pair, np.asarray(labels, np.int32), option, names=names))


def values_of(student, teacher, labels, option, names=tuple(LOSSES)):
    with jax.enable_x64(True):
        return in_numpy(all_values(student, teacher, labels, option, names=names))


@cache
def extreme(largest):
    """From equal to as large as the type goes, with the points where exp, squares and small types end."""
    points = [0.0, 1e-40, 1e-20, 1e-7, 1.0, 10.0, 88.0, 104.0, 710.0, 1e4, 65504.0, 1e10, 1e19, 1e20, 1e30]
    points = [point for point in points if point <= largest]
    return st.one_of(
        st.sampled_from(points + [-point for point in points]),
        st.floats(-3, 3, width=16),
        st.floats(-200, 200, width=16),
        st.floats(-largest, largest),
    )


def pairs(elements, shape=SHAPE):
    return arrays(np.float64, (2, *shape), elements=elements)


def labels_of(shape, classes):
    return arrays(np.int32, shape, elements=st.integers(0, classes - 1))


labels_drawn = labels_of((B,), K)


def assert_alike(ours, expected, names, option):
    """Up to rounding in float64; what DIST's correlations divide by may be small."""
    for name in names:
        tolerance = 1e-5 * option**2 if name.endswith("dist") else 1e-9
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-9, atol=tolerance, err_msg=name)


# ---------------------------------------------------------------------- losses: finite in, finite out


@given(data=st.data(), dtype=dtypes, option=options, labels=labels_drawn)
def test_finite_logits_give_finite_values_and_gradients(data, dtype, option, labels):
    student, teacher = data.draw(pairs(extreme(LARGEST[dtype]))).astype(jnp.dtype(dtype))
    half = dtype in ("float16", "bfloat16")
    found = run(student, teacher, labels, option, "float32" if half else dtype)
    for name, (value, gradient) in found.items():
        assert np.isfinite(value).all() and np.isfinite(gradient).all(), (name, value, gradient)
    if half:
        for name, (value, gradient) in run(student, teacher, labels, option, dtype, SOME).items():
            np.testing.assert_allclose(value, found[name][0], rtol=1e-5, atol=1e-5, err_msg=name)
            held = np.abs(found[name][1]) < 65000  # float16 ends at 65504: there the gradient may
            assert np.isfinite(gradient[held]).all(), (name, gradient)
            assert not np.isnan(gradient).any(), (name, gradient)


@given(data=st.data(), option=options, labels=labels_drawn)
def test_float32_is_float64_up_to_rounding(data, option, labels):
    student, teacher = data.draw(pairs(extreme(1e30))).astype(np.float32)
    wide = run(student, teacher, labels, option)
    spread = np.maximum(*(np.ptp(logits.astype(np.float64), axis=-1) for logits in (student, teacher)))
    for name, (value, _) in run(student, teacher, labels, option, "float32").items():
        if name not in RELATED | ORDERED:  # DIST divides by norms that may be as small as what rounding leaves of them
            lost = 100 * np.finfo(np.float32).eps * (1 + option) ** 2 * (1 + spread)
            assert (np.abs(value - wide[name][0]) <= lost).all(), (name, value, wide[name][0])


@given(data=st.data(), shape=st.sampled_from(OTHER_SHAPES), option=options)
def test_so_they_do_in_other_shapes(data, shape, option):
    student, teacher = data.draw(pairs(extreme(LARGEST["float32"]), shape))
    labels = data.draw(labels_of(shape[:-1], shape[-1]))
    for name, (value, gradient) in run(student, teacher, labels, option, "float32", SOME).items():
        assert value.shape == shape[:-1] and np.isfinite(value).all(), (name, value)
        assert np.isfinite(gradient).all(), (name, gradient)


@given(data=st.data(), option=options, labels=labels_drawn, dtype=st.sampled_from(["float32", "float64"]))
def test_divergences_and_cross_entropies_are_not_negative(data, option, labels, dtype):
    student, teacher = data.draw(pairs(extreme(1e4)))
    spread = max(np.ptp(student), np.ptp(teacher))
    rounding = 100 * np.finfo(dtype).eps * (1 + option) ** 2 * (1 + spread)
    for name, (value, _) in run(student, teacher, labels, option, dtype).items():
        assert (value >= -rounding).all(), (name, value)
        if name.endswith("dist"):  # each correlation lies between -1 and 1
            assert (value <= 4 * option**2 + rounding).all(), (name, value)


@given(data=st.data(), dtype=dtypes, option=options, labels=labels_drawn)
def test_equal_logits_cost_nothing(data, dtype, option, labels):
    logits = data.draw(arrays(np.float64, SHAPE, elements=extreme(LARGEST[dtype])))
    found = run(logits, logits, labels, option, dtype)
    for name in ("kd", "dkd", "abkd", "ldrld", "mlkd", "standardized_kd", "standardized_dkd"):
        np.testing.assert_array_equal(found[name][0], np.zeros(B), err_msg=name)


@given(logits=arrays(np.float64, SHAPE, elements=extreme(1e30)))
def test_standardised_logits_are_those_of_the_formula(logits):
    logits = logits.astype(np.float32)
    exact = logits.astype(np.longdouble)
    centred = exact - exact.mean(-1, keepdims=True)
    expected = centred / (1e-7 + exact.std(-1, ddof=1, keepdims=True))
    # What float32 loses in the differences to the largest is a part of those differences; 1e-7 may magnify it.
    np.testing.assert_allclose(standardize(logits), expected.astype(np.float64), rtol=1e-4, atol=1e-5)


standardize = jax.jit(standardize_logits)


# ---------------------------------------------------------------------- losses: what is not finite, labels


@given(
    data=st.data(),
    option=options,
    labels=labels_drawn,
    bad=st.sampled_from([np.nan, np.inf]),
    place=st.tuples(st.integers(0, 1), st.integers(0, B - 1), st.integers(0, K - 1)),
)
def test_nan_and_inf_are_never_hidden(data, option, labels, bad, place):
    pair, row = data.draw(pairs(tame)), place[1]
    pair[:, row] = data.draw(arrays(np.float64, (2, K), elements=extreme(1e30) | st.just(-np.inf)))
    pair[place] = bad
    for name, (value, _) in run(*pair, labels, option, "float32").items():
        expected = np.ones(B, bool) if name in RELATED else np.arange(B) == row
        np.testing.assert_array_equal(np.isnan(value), expected, err_msg=name)


@given(
    pair=pairs(tame),
    kept=arrays(bool, (2, *SHAPE)),
    option=st.sampled_from([0.5, 1.0, 4.0]),  # with these no probability underflows
    labels=labels_drawn,
)
def test_minus_infinity_leaves_a_class_out(pair, kept, option, labels):
    student_kept, teacher_kept = kept
    others = kept & (np.arange(K) != labels[:, None])
    empty, no_others = (~which.any(-1).all(0) for which in (kept, others))
    missed = (teacher_kept & ~student_kept).any(-1)
    pair = np.where(kept, pair, -np.inf)
    for name, (value, gradient) in run(*pair, labels, option).items():
        undefined = np.broadcast_to(empty.any(), (B,)) if name in RELATED else empty
        if name.endswith(("dkd", "_nkd")) or name in ("nkd", "wkd"):
            undefined = no_others | empty
        infinite = MISSED.get(name, lambda *_: missed)(*kept, pair[1], labels) & ~undefined
        np.testing.assert_array_equal(np.isnan(value), undefined, err_msg=name)
        np.testing.assert_array_equal(np.isposinf(value), infinite, err_msg=name)
        assert np.isfinite(gradient[np.isfinite(value)]).all(), (name, gradient)


def nothing_missed(student_kept, teacher_kept, teacher, labels):
    """Of losses for which a class left out has probability zero, and costs a finite amount."""
    return np.zeros(B, bool)


def target_missed(student_kept, teacher_kept, teacher, labels):
    return (teacher_kept & ~student_kept)[np.arange(B), labels]


def label_or_lower_missed(student_kept, teacher_kept, teacher, labels):
    """Of RLD: the label; a class that the teacher puts below it; all but the label, where the teacher has several."""
    lower = teacher_kept & (teacher < teacher[np.arange(B), labels][:, None])
    only = (student_kept.sum(-1) == 1) & (teacher_kept.sum(-1) > 1)
    return ~student_kept[np.arange(B), labels] | (lower & ~student_kept).any(-1) | only


# Where a class that the student alone leaves out costs an infinite amount: elsewhere any such class does.
MISSED = {"abkd": nothing_missed, "rld": label_or_lower_missed, "wkd": target_missed}
MISSED |= {name: nothing_missed for name in ("dist", "standardized_dist")}
LABEL_TYPES = ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"]


@given(
    data=st.data(),
    kind=st.sampled_from(LABEL_TYPES),
    name=st.sampled_from(["dkd", "nkd", "nkd_as_released", "rld", "wkd"]),
)
def test_a_label_out_of_range_is_refused_or_not_a_number(data, kind, name):
    student, teacher = data.draw(pairs(tame)).astype(np.float32)
    limits = np.iinfo(kind)
    anything = st.integers(max(int(limits.min), -3), K + 2) | st.integers(int(limits.min), int(limits.max))
    labels = data.draw(arrays(kind, (B,), elements=anything))
    wrong = (labels < 0) | (labels >= K)
    if wrong.any():
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got"):
            PLAIN[name][0](student, teacher, labels)
    with jax.enable_x64(limits.bits == 64):
        np.testing.assert_array_equal(np.isnan(jitted(name)(student, teacher, labels)), wrong)


@cache
def jitted(name):
    return jax.jit(PLAIN[name][0])


# ---------------------------------------------------------------------- losses: what does not matter


@given(
    pair=pairs(tame),
    shifts=arrays(np.float64, (2, B, 1), elements=st.integers(-1000, 1000).map(float)),
    order=st.permutations(range(K)),
    option=options,
    labels=labels_drawn,
)
def test_a_shift_and_the_order_of_classes_do_not_matter(pair, shifts, order, option, labels):
    values = {name: value for name, (value, _) in run(*pair, labels, option).items()}
    shifted = {name: value for name, (value, _) in run(*(pair + shifts), labels, option).items()}
    moved = run(*pair[..., order], np.argsort(order)[labels], option)
    assert_alike(shifted, values, LOSSES, option)
    tied = any(len(set(row)) < K for row in pair[0].tolist())  # of equal logits LDRLD takes the first class
    held = [name for name in LOSSES if not (tied and name == "ldrld")]
    assert_alike({name: value for name, (value, _) in moved.items()}, values, held, option)


@given(pair=pairs(tame, (2, 2, K)), option=options, labels=labels_of((2, 2), K))
def test_a_batch_is_its_rows_one_by_one(pair, option, labels):
    student, teacher = pair
    together = values_of(student, teacher, labels, option)
    alone = tuple(name for name in LOSSES if name not in RELATED)
    for place in np.ndindex(2, 2):
        row = values_of(student[place], teacher[place], labels[place], option, alone)
        assert_alike(row, {name: together[name][place] for name in alone}, alone, option)
    for region in range(2):  # what relates examples does so within a region
        batch = values_of(student[:, region], teacher[:, region], labels[:, region], option, tuple(sorted(RELATED)))
        assert_alike(batch, {name: together[name][:, region] for name in RELATED}, RELATED, option)


# ---------------------------------------------------------------------- the loss over regions

REGIONS = (3, 5, 4)  # [B, R, K] of scales (1, 2)
BASES = ("dist", "dkd", "kd", "wttm")
weight = st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0])


@partial(jax.jit, static_argnames="consistency")
def all_sdd(student, teacher, labels, option, weights, consistency="label"):
    """With every base the mean and the sum over regions."""
    how = dict(complementary_weight=weights[0], consistent_weight=weights[1], consistency=consistency)

    def of(name, reduction):
        loss, keyword = LOSSES[name]
        base = partial(loss, **{keyword: option})
        return sdd_loss(student, teacher, labels, base=base, reduction=reduction, **how)

    return {name: (of(name, "mean"), of(name, "sum")) for name in BASES}


def sdd(*arguments, **names):
    with jax.enable_x64(True):
        return in_numpy(all_sdd(*arguments, **names))


@given(
    pair=pairs(tame, REGIONS),
    labels=labels_of(REGIONS[:1], REGIONS[-1]),
    option=options,
    weights=st.tuples(weight, weight),
    consistency=st.sampled_from(["label", "class"]),
)
def test_the_loss_is_linear_in_its_weights_and_the_parts_make_the_whole(pair, labels, option, weights, consistency):
    of_weights = partial(sdd, *pair, labels, option, consistency=consistency)
    first, second, both = (of_weights(which) for which in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)))
    base = values_of(*pair, np.broadcast_to(labels[:, None], REGIONS[:2]), option, BASES)
    for name, (mean, total) in of_weights(weights).items():
        alike = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9, err_msg=name)
        alike(mean, weights[0] * first[name][0] + weights[1] * second[name][0])
        alike(total, REGIONS[1] * mean)
        alike(both[name][0], base[name].mean(1))


@given(maps=pairs(tame, (3, 2, 3, 4)), labels=labels_of((3,), 4), option=options)
def test_one_scale_is_the_base_loss_of_the_mean(maps, labels, option):
    with jax.enable_x64(True):
        regions = [np.asarray(pooled(grid, (1,))) for grid in maps]
    value = {name: mean for name, (mean, _) in sdd(*regions, labels, option, (3.0, 1.0)).items()}
    expected = values_of(*maps.mean((2, 3)), labels, option, BASES)
    assert_alike(value, expected, BASES, option)


@given(
    pair=pairs(tame, REGIONS),
    labels=labels_of(REGIONS[:1], REGIONS[-1]),
    bad=st.sampled_from([np.nan, np.inf]),
    place=st.tuples(*(st.integers(0, size - 1) for size in (2, *REGIONS))),
    weights=st.tuples(weight, weight),
)
def test_nan_in_one_region_is_nan_in_its_example_whatever_it_weighs(pair, labels, bad, place, weights):
    pair[place] = bad
    for name, (value, _) in sdd(*pair, labels, 4.0, weights).items():
        expected = np.ones(3, bool) if name in RELATED else np.arange(3) == place[1]
        np.testing.assert_array_equal(np.isnan(value), expected, err_msg=name)


@given(
    teacher=arrays(np.float64, REGIONS, elements=st.integers(-4, 4).map(float)),
    labels=labels_of(REGIONS[:1], REGIONS[-1]),
    shift=arrays(np.float64, (*REGIONS[:2], 1), elements=tame),
    order=st.permutations(range(REGIONS[-1])),
)
def test_the_two_verdicts_differ_only_where_both_are_wrong_in_different_ways(teacher, labels, shift, order):
    by_label, by_class = (complementary(teacher, labels, how) for how in ("label", "class"))
    predicted = teacher.argmax(-1)
    wrong = predicted != labels[:, None]
    assert not by_label[:, 0].any() and not by_class[:, 0].any()
    assert not (by_label & ~by_class).any()
    differently = wrong & wrong[:, :1] & (predicted != predicted[:, :1])
    np.testing.assert_array_equal(by_class & ~by_label, differently)
    np.testing.assert_array_equal(complementary(teacher + shift, labels, "class"), by_class)
    single = ((teacher == teacher.max(-1, keepdims=True)).sum(-1) == 1).all(-1)  # ties go to the first class
    moved = complementary(teacher[..., order], np.argsort(order)[labels], "label")
    np.testing.assert_array_equal(moved[single], by_label[single])


def complementary(teacher, labels, consistency):
    return np.asarray(complementary_mask(teacher.astype(np.float32), labels, consistency=consistency))


# ---------------------------------------------------------------------- regions

pooled = jax.jit(pool_regions, static_argnames=("scales", "pooling"))
SIZES = [(1, 1), (2, 3), (4, 4), (7, 7), (8, 4)]
POOLINGS = [((1, 2, 4), "nested"), ((1, 2, 4), "direct"), ((1, 3), "direct")]
KINDS = [(size, *pooling) for size in SIZES for pooling in POOLINGS]
kinds = st.sampled_from(KINDS)
of_dtype = st.sampled_from(["float16", "bfloat16", "float32"])


def maps_of(size, elements):
    return arrays(np.float64, (2, *size, 3), elements=elements)


@given(data=st.data(), kind=kinds, dtype=of_dtype)
def test_a_region_lies_within_the_map_and_a_constant_map_stays(data, kind, dtype):
    size, scales, pooling = kind
    grid = data.draw(maps_of(size, extreme(LARGEST[dtype]))).astype(jnp.dtype(dtype))
    constant = np.broadcast_to(grid[:, :1, :1], grid.shape)
    whole = grid.astype(np.float64)
    rounding = 1e-6 * np.abs(whole).max((1, 2))[:, None] + 1e-37
    regions = np.asarray(pooled(grid, scales, pooling=pooling))
    assert regions.dtype == np.float32 and regions.shape == (2, Regions(scales).count, 3)
    assert (regions >= whole.min((1, 2))[:, None] - rounding).all()
    assert (regions <= whole.max((1, 2))[:, None] + rounding).all()
    same = np.asarray(pooled(constant, scales, pooling=pooling), np.float64)
    np.testing.assert_allclose(same, np.broadcast_to(whole[:, :1, 0], same.shape), rtol=1e-6, atol=1e-37)


@given(data=st.data(), kind=kinds, order=st.permutations(range(3)), shift=st.integers(-1000, 1000).map(float))
def test_regions_move_with_the_map(data, kind, order, shift):
    size, scales, pooling = kind
    grid = data.draw(maps_of(size, tame)).astype(np.float32)
    regions = np.asarray(pooled(grid, scales, pooling=pooling))
    alike = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-3)  # of values up to 1020
    alike(pooled(grid[..., order] + np.float32(shift), scales, pooling=pooling), regions[..., order] + shift)
    cells = np.split(regions, np.cumsum([scale**2 for scale in scales])[:-1], axis=1)
    cells = [each.reshape(2, scale, scale, 3) for each, scale in zip(cells, scales, strict=True)]
    mirrored = [each[::-1, ::-1, ::-1].reshape(2, -1, 3) for each in cells]  # also the batch turned round
    alike(pooled(grid[::-1, ::-1, ::-1], scales, pooling=pooling), np.concatenate(mirrored, axis=1))


@given(data=st.data(), kind=kinds, bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_reaches_the_regions_that_hold_it(data, kind, bad):
    size, scales, pooling = kind
    grid = data.draw(maps_of(size, tame)).astype(np.float32)
    row, column = (data.draw(st.integers(0, side - 1)) for side in size)
    grid[0, row, column, 1] = bad
    regions = np.asarray(pooled(grid, scales, pooling=pooling))
    held, start = [], 0
    for scale in scales:
        rows, columns = (
            [i * side // scale <= at < -(-(i + 1) * side // scale) for i in range(scale)]
            for side, at in ((size[0], row), (size[1], column))
        )
        held += [start + i * scale + j for i in range(scale) for j in range(scale) if rows[i] and columns[j]]
        start += scale**2
    assert not np.isfinite(regions[0, held, 1]).any()
    assert np.isfinite(np.delete(regions[0], 1, axis=-1)).all() and np.isfinite(regions[1]).all()
    if bad == -np.inf:  # a class left out, never one that is likelier
        assert not np.isposinf(regions).any()


@given(data=st.data(), size=st.sampled_from(SIZES), side=st.sampled_from([1, 2, 5]))
def test_a_grid_lies_within_its_map_and_is_an_image_by_itself(data, size, side):
    grid = data.draw(maps_of(size, tame)).astype(np.float32)
    cells = np.asarray(averaged(grid, side))
    assert (cells >= grid.min((1, 2), keepdims=True) - 1e-4).all()
    assert (cells <= grid.max((1, 2), keepdims=True) + 1e-4).all()
    twice = np.asarray(averaged(np.stack([grid[1], grid[1]]), side))
    np.testing.assert_array_equal(twice, np.stack([cells[1], cells[1]]))


averaged = jax.jit(average_grid, static_argnames="side")
