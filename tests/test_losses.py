"""The base losses against the official code's numbers, independent formulas, special cases and extremes."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from benchmarks.golden import LOSSES as GOLDEN
from benchmarks.golden import bases
from sdd_jax import (
    abkd_loss,
    dkd_loss,
    kd_loss,
    ldrld_loss,
    nkd_as_released_loss,
    nkd_loss,
    rld_loss,
    ttm_loss,
    wkd_loss,
    wttm_loss,
)

OF_LABELS = {"dkd": dkd_loss, "nkd": nkd_loss, "nkd_as_released": nkd_as_released_loss}
OF_TEMPERATURE = {"kd": kd_loss, **OF_LABELS}
OF_POWERS = {"ttm": ttm_loss, "wttm": wttm_loss}


def shallow_ldrld_loss(student, teacher, labels=None, *, temperature=4.0):
    """LDRLD of the first classes, three or as many as there are."""
    return ldrld_loss(student, teacher, labels, temperature=temperature, depth=min(3, jnp.shape(student)[-1]))


def even_wkd_loss(student, teacher, labels, *, temperature=4.0):
    """WKD-L where all classes lie equally far apart, so that their number and order do not matter."""
    cost = 1.0 - np.eye(jnp.shape(student)[-1])
    return wkd_loss(student, teacher, labels, cost=cost, temperature=temperature, gamma=10.0)


ALL_OF_LABELS = OF_LABELS | {"rld": rld_loss, "wkd": even_wkd_loss}
LOSSES = OF_TEMPERATURE | OF_POWERS | ALL_OF_LABELS | {"abkd": abkd_loss, "ldrld": shallow_ldrld_loss}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
each_of_labels = pytest.mark.parametrize("loss", ALL_OF_LABELS.values(), ids=ALL_OF_LABELS)
jit = cache(jax.jit)  # one program instead of one for each operation, and one for all cases of a shape


def example(shape=(6, 5), seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    student, teacher = scale * rng.normal(size=(2, *shape))
    return jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(rng.integers(0, shape[-1], shape[:-1]), jnp.int32)


@pytest.mark.parametrize("case", "abcd")
@pytest.mark.parametrize("name", ["kd", "dkd", "nkd"])
def test_value_and_gradient_are_those_of_the_official_code(case, name, x64):
    base = bases(case)[name]
    student, teacher = (jnp.asarray(GOLDEN[f"{case}/{role}"][:, :, 0]) for role in ("student", "teacher"))
    labels = jnp.asarray(GOLDEN[f"{case}/labels"])
    value, gradient = jax.jit(jax.value_and_grad(lambda s: jnp.mean(base(s, teacher, labels))))(student)
    expected = GOLDEN[f"{case}/{name}_grad"]
    np.testing.assert_allclose(value, GOLDEN[f"{case}/{name}"], rtol=1e-9)
    assert np.abs(expected[:, :, 1:]).max(initial=0.0) == 0.0  # these see cell 0 alone
    np.testing.assert_allclose(gradient, expected[:, :, 0], rtol=0, atol=1e-9 * np.abs(expected).max())


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def by_definition(name, student, teacher, label, temperature, alpha=1.0, beta=8.0, gamma=1.5):
    """One example's loss from probabilities, as the papers write it."""
    s, t = softmax(student / temperature), softmax(teacher / temperature)
    others = np.arange(len(student)) != label
    s_others, t_others = softmax(student[others] / temperature), softmax(teacher[others] / temperature)

    def kl(p, q):
        return float(np.sum(p * np.log(p / q)))

    if name == "kd":
        return temperature**2 * kl(t, s)
    if name == "dkd":
        binary = [np.array([p[label], 1 - p[label]]) for p in (t, s)]
        return temperature**2 * (alpha * kl(*binary) + beta * kl(t_others, s_others))
    target = -softmax(teacher)[label] * np.log(softmax(student)[label])
    if name == "nkd":
        return target - gamma * temperature**2 * np.sum(t_others * np.log(s_others))
    return target - gamma * temperature**2 * np.sum(t * np.log(s))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", OF_TEMPERATURE)
def test_value_is_that_of_the_definition(name, temperature, x64):
    student, teacher, labels = map(np.asarray, example((2, 3, 7)))
    ours = np.asarray(jit(LOSSES[name])(student, teacher, labels, temperature=temperature))
    for place in np.ndindex(2, 3):
        expected = by_definition(name, student[place], teacher[place], labels[place], temperature)
        np.testing.assert_allclose(ours[place], expected, rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_teacher_matching_is_that_of_its_definition(gamma, x64):
    student, teacher, _ = example((2, 3, 7))
    powers = softmax(np.asarray(teacher)) ** gamma
    total = powers.sum(-1)
    q, p = powers / total[..., None], softmax(np.asarray(student))
    divergence = np.sum(q * np.log(q / p), axis=-1)
    np.testing.assert_allclose(jit(ttm_loss)(student, teacher, gamma=gamma), divergence, rtol=1e-9)
    np.testing.assert_allclose(jit(wttm_loss)(student, teacher, gamma=gamma), total * divergence, rtol=1e-9)


def test_the_power_of_one_is_kd_without_temperature(x64):
    student, teacher, _ = example((50, 11))
    for loss in OF_POWERS.values():
        kd = jit(kd_loss)(student, teacher, temperature=1.0)
        np.testing.assert_allclose(jit(loss)(student, teacher, gamma=1.0), kd)


def test_an_unsure_teacher_weighs_more(x64):
    teacher = jnp.array([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, -1.0, 2.0], [800.0, 0.0, 0.0, 0.0]])
    student = jnp.tile(jnp.array([0.5, -1.0, 0.0, 2.0]), (3, 1))
    weighted, plain = (np.asarray(jit(loss)(student, teacher, gamma=0.5)) for loss in (wttm_loss, ttm_loss))
    weights = weighted / plain
    np.testing.assert_allclose(weights[[0, 2]], [4**0.5, 1.0], rtol=1e-12)
    assert 1.0 < weights[1] < 2.0


@pytest.mark.parametrize("loss", OF_POWERS.values(), ids=OF_POWERS)
@pytest.mark.parametrize("gamma", [0.0, -1.0])
def test_a_power_that_is_not_positive_is_refused(loss, gamma):
    with pytest.raises(ValueError, match=f"gamma must be greater than 0, got {gamma}"):
        loss(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), gamma=gamma)


@each_loss
def test_gradient_is_that_of_finite_differences(loss, x64):
    student, teacher, labels = example((3, 4))
    check_grads(jax.jit(lambda s, t: loss(s, t, labels)), (student, teacher), order=1, modes=("rev", "fwd"), rtol=1e-6)


def test_dkd_with_its_weights_set_so_is_kd(x64):
    """KD = TCKD + (1 - p_t(target)) NCKD: the identity that DKD was derived from (its equation 6)."""
    student, teacher, labels = example((9, 6))
    p_target = softmax(np.asarray(teacher) / 4.0)[np.arange(9), np.asarray(labels)]
    tckd = jit(dkd_loss)(student, teacher, labels, alpha=1.0, beta=0.0)
    nckd = np.asarray(jit(dkd_loss)(student, teacher, labels, alpha=0.0, beta=1.0))
    np.testing.assert_allclose(jit(kd_loss)(student, teacher), tckd + (1 - p_target) * nckd, rtol=1e-12)


def test_two_classes_leave_nothing_to_compare_among_the_others(x64):
    student, teacher, labels = example((8, 2))
    np.testing.assert_allclose(jit(dkd_loss)(student, teacher, labels), jit(kd_loss)(student, teacher), rtol=1e-12)
    target = jit(nkd_loss)(student, teacher, labels, gamma=0.0)
    np.testing.assert_array_equal(jit(nkd_loss)(student, teacher, labels, gamma=7.0), target)


EXTREMES = {
    "large": ([1e4, -1e4, 0.0, 5e3], [-1e4, 1e4, 1e4, 0.0]),
    "a saturated student": ([500.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.5, 0.0]),
    "a saturated teacher": ([1.0, 2.0, 0.5, 0.0], [0.0, 500.0, 0.0, 0.0]),
    "both saturated": ([0.0, 500.0, 0.0, 0.0], [500.0, 0.0, 0.0, 0.0]),
    "equal logits": ([0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0]),
}


@each_loss
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_logits_give_finite_values_and_gradients(loss, dtype, case):
    student, teacher = (jnp.asarray(logits, dtype) for logits in EXTREMES[case])
    value, gradient = for_each_label(loss)(student, teacher, np.arange(4))
    assert np.isfinite(value).all() and np.isfinite(np.asarray(gradient, np.float32)).all(), (value, gradient)


@cache
def for_each_label(loss):
    return jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, None, 0)))


@each_loss
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(loss, dtype):
    student, teacher, labels = (leaf if leaf.dtype == jnp.int32 else leaf.astype(dtype) for leaf in example((32, 100)))
    value = jit(loss)(student, teacher, labels)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, jit(loss)(student.astype(jnp.float32), teacher.astype(jnp.float32), labels))


@each_loss
def test_a_class_that_both_leave_out_is_as_if_it_did_not_exist(loss, x64):
    pair, labels = np.stack(example((6, 5))[:2]), np.array([0, 1, 2, 0, 1, 2], np.int32)
    total = jax.jit(jax.value_and_grad(lambda *arrays: jnp.sum(loss(*arrays))))
    fewer, _ = total(*pair[..., :4], labels)
    pair[..., 4] = -np.inf
    value, gradient = total(*pair, labels)
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    assert np.isfinite(gradient).all()


@each_of_labels
def test_labels_of_one_byte_count_past_255(loss):
    student, teacher, _ = example((2, 300))
    labels = np.array([3, 200])
    np.testing.assert_array_equal(
        jit(loss)(student, teacher, labels.astype(np.uint8)), jit(loss)(student, teacher, labels.astype(np.int32))
    )


@pytest.mark.parametrize("loss", [nkd_loss, nkd_as_released_loss])
def test_nan_at_the_target_shows_where_the_teacher_rules_the_target_out(loss):
    student, teacher = jnp.array([jnp.nan, 1.0, 2.0]), jnp.array([0.0, 1e4, 0.0])
    assert np.isnan(jit(loss)(student, teacher, jnp.int32(0)))


WRONG = {
    "shapes": (np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), np.zeros(2, int), {}, r"\(2, 3\).*\(2, 4\)"),
    "integers": (np.zeros((2, 3), int), np.zeros((2, 3), np.float32), np.zeros(2, int), {}, "floating point, got int"),
    "no classes": (np.zeros((2, 0), np.float32),) * 2 + (np.zeros(2, int), {}, "K >= 1"),
    "one class": (np.zeros((2, 1), np.float32),) * 2 + (np.zeros(2, int), {}, "K >= 2 classes, got 1"),
    "label shape": (np.zeros((2, 3), np.float32),) * 2 + (np.zeros(3, int), {}, r"shape \(2,\).*\(3,\)"),
    "label type": (np.zeros((2, 3), np.float32),) * 2 + (np.zeros(2), {}, "labels must be integers, got float"),
    "cold": (np.zeros((2, 3), np.float32),) * 2 + (np.zeros(2, int), {"temperature": 0.0}, "greater than 0, got 0.0"),
    "NumPy's": (np.zeros((2, 3), np.float32),) * 2
    + (np.zeros(2, int), {"temperature": np.float32(-1)}, "greater than 0, got -1.0"),
    "JAX's": (np.zeros((2, 3), np.float32),) * 2
    + (np.zeros(2, int), {"temperature": jnp.float32(-1)}, "greater than 0, got -1.0"),
}


@each_of_labels
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_with_what_came(loss, case):
    student, teacher, labels, options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        loss(student, teacher, labels, **options)
    with pytest.raises(ValueError, match=message):
        jax.jit(partial(loss, **options))(student, teacher, labels)


def test_kd_of_one_class_is_zero():
    np.testing.assert_array_equal(kd_loss(jnp.ones((3, 1)), jnp.zeros((3, 1))), np.zeros(3))


@each_loss
def test_new_values_do_not_compile_again(loss):
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(lambda *arrays: loss(*arrays), n=1))
    for seed in range(3):
        jitted(*example(seed=seed))
