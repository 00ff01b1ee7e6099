"""ABKD, RLD, LDRLD, WKD-L and MLKD: against their authors' code, against their formulas, and their special cases.

`tests/test_losses.py` has what these share with the others: finite differences, extremes, wrong input.
"""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from test_losses import EXTREMES, example, jit, softmax

from sdd_jax import (
    abkd_loss,
    class_cost,
    complementary_mask,
    kd_loss,
    ldrld_loss,
    mlkd_loss,
    rld_loss,
    sdd_loss,
    standardized,
    wkd_loss,
)

GOLDEN = np.load(Path(__file__).parent / "golden" / "new_losses.npz")


def cases(*names):
    return [key.removesuffix("/value") for key in GOLDEN if key.split("/")[0] in names and key.endswith("/value")]


@cache  # one program for all cases of a shape: numbers are arguments
def program(name):
    def mean(student, teacher, labels, numbers, static):
        return jnp.mean(CALLS[name](student, teacher, labels, *numbers, **dict(static)))

    return jax.jit(jax.value_and_grad(mean), static_argnames="static")


def abkd(student, teacher, labels, temperature, alpha, beta):
    return abkd_loss(student, teacher, temperature=temperature, alpha=alpha, beta=beta)


def ablsd(student, teacher, labels, temperature, alpha, beta):
    return temperature**2 * standardized(abkd_loss)(student, teacher, temperature=temperature, alpha=alpha, beta=beta)


def rld(student, teacher, labels, alpha, beta, temperature, target_temperature, standardise):
    options = dict(temperature=temperature, target_temperature=target_temperature, alpha=alpha, beta=beta)
    return (standardized(rld_loss) if standardise else rld_loss)(student, teacher, labels, **options)


def ldrld(student, teacher, labels, temperature, alpha, beta, task_weight, depth):
    task = -jnp.take_along_axis(jax.nn.log_softmax(student), labels[:, None], axis=-1)[:, 0]
    options = dict(temperature=temperature, alpha=alpha, beta=beta, depth=depth)
    return task_weight * task + ldrld_loss(student, teacher, **options)


def wkd(student, teacher, labels, temperature, gamma, epsilon, cost, iterations):
    options = dict(cost=cost, temperature=temperature, gamma=gamma, epsilon=epsilon, iterations=iterations)
    return wkd_loss(student, teacher, labels, **options)


def mlkd(student, teacher, labels, temperature, instances, beta, gamma, **options):
    both = (student, teacher)
    alone = mlkd_loss(*both, temperature=temperature, beta=beta, gamma=gamma, **options)
    kl = mlkd_loss(*both, temperature=temperature, beta=0.0, gamma=0.0, **options)
    return alone + (instances - 1.0) * kl


CALLS = {"abkd": abkd, "ablsd": ablsd, "rld": rld, "ldrld": ldrld, "wkd_l": wkd, "mlkd": mlkd}


def arguments(case):
    """The numbers and the static options of a case, and the ending of its keys."""
    name, params = case.split("/")[0], GOLDEN[f"{case}/params"]
    if name == "rld":
        return params[[0, 1, 2, 4]], {"standardise": bool(params[3])}, ""
    if name == "ldrld":
        ending = "_lowest_first" if case.endswith("/tied") else ""
        return params[[0, 1, 2, 4]], {"depth": int(params[3])}, ending
    if name == "wkd_l":
        return (*params[:3], GOLDEN[f"{case}/cost"]), {"iterations": int(params[3])}, ""
    return params, {}, ""


def assert_golden(case, name, numbers, static, ending="", standardise=False):
    student, teacher, labels = (GOLDEN[f"{case}/{key}"] for key in ("student", "teacher", "labels"))
    value, gradient = program(name)(student, teacher, labels, tuple(numbers), tuple(static.items()))
    expected = GOLDEN[f"{case}/grad{ending}"]
    np.testing.assert_allclose(value, GOLDEN[f"{case}/value{ending}"], rtol=1e-9)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("case", cases("abkd", "ablsd", "rld", "ldrld", "wkd_l"))
def test_value_and_gradient_are_those_of_the_authors_code(case, x64):
    numbers, static, ending = arguments(case)
    ending = "_paper" if f"{case}/value_paper" in GOLDEN else ending  # where these are not the code's: a mistake of it
    assert_golden(case, case.split("/")[0], numbers, static, ending)


ALONE = {"mlkd_kd": (1.0, 0.0, 0.0), "mlkd_cc": (0.0, 1.0, 0.0), "mlkd_bc": (0.0, 0.0, 1.0)}


@pytest.mark.parametrize("case", [case for case in cases(*ALONE) if not case.endswith("/standardised")])
def test_the_terms_of_mlkd_are_those_of_the_authors_code(case, x64):
    numbers = (GOLDEN[f"{case}/params"][0], *ALONE[case.split("/")[0]])
    assert_golden(case, "mlkd", numbers, {"further_temperatures": ()})


@pytest.mark.parametrize("case", [case for case in cases("mlkd") if not case.endswith("/standardised")])
def test_mlkd_is_that_of_the_authors_code_whose_masks_are_factors(case, x64):
    temperature, weight, _ = GOLDEN[f"{case}/params"]
    assert_golden(case, "mlkd_weighted", (weight, temperature, 1.0, 1.0, 1.0), {}, "_unmasked")
    examples, classes = GOLDEN[f"{case}/fractions"]
    assert_golden(case, "mlkd_weighted", (weight, temperature, examples, classes, examples), {})


CALLS["mlkd_weighted"] = lambda student, teacher, labels, weight, *numbers: (
    weight * mlkd(student, teacher, labels, *numbers)
)


# ---------------------------------------------------------------------- the formulas, written another way


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


def abkd_by_definition(student, teacher, temperature, alpha, beta):
    p, q, total = softmax(teacher / temperature), softmax(student / temperature), alpha + beta
    if alpha == beta == 0:
        return 0.5 * np.sum((np.log(p) - np.log(q)) ** 2)
    if beta == 0:
        return np.sum(p**alpha * np.log((p / q) ** alpha) - p**alpha + q**alpha) / alpha**2
    if alpha == 0:
        return np.sum(q**beta * np.log((q / p) ** beta) - q**beta + p**beta) / beta**2
    if total == 0:
        return np.sum(np.log((q / p) ** alpha) + (p / q) ** alpha - 1) / alpha**2
    mixed = p**alpha * q**beta - alpha / total * p**total - beta / total * q**total
    return -np.sum(mixed) / (alpha * beta)


POWERS = [(0.8, 0.3), (1.0, 0.0), (0.0, 1.0), (0.7, 0.0), (0.0, 0.7), (0.5, -0.5), (-0.5, 0.5), (0.0, 0.0), (1.2, -0.2)]


@pytest.mark.parametrize("powers", POWERS)
def test_abkd_is_that_of_its_definition_and_never_negative(powers, x64):
    student, teacher, _ = map(np.asarray, example((2, 3, 7)))
    ours = np.asarray(of_powers(student, teacher, *powers))
    for place in np.ndindex(2, 3):
        np.testing.assert_allclose(
            ours[place], abkd_by_definition(student[place], teacher[place], 4.0, *powers), rtol=1e-9
        )
    assert (ours > 0).all()


of_powers = jax.jit(lambda student, teacher, alpha, beta: abkd_loss(student, teacher, alpha=alpha, beta=beta))


def test_abkd_of_equal_networks_is_zero_however_far_their_logits_are_apart():
    both = jax.jit(jax.value_and_grad(of_powers))
    for powers in ((0.5, -1.0), (-1.0, -1.0), (1.0, -2.0), (0.8, 0.3)):
        for logits in (jnp.array([0.0, 800.0, -2000.0]), jnp.array([0.0, 4.0, 8.0])):
            value, gradient = both(logits, logits, *powers)
            assert value == 0
            np.testing.assert_array_equal(gradient, np.zeros(3))
        assert np.isnan(both(logits.at[0].set(jnp.nan), logits, *powers)[0])
        assert np.isnan(both(logits, logits.at[2].set(jnp.nan), *powers)[0])
    assert both(jnp.array([0.0, 800.0, -2000.0]), jnp.array([0.0, 800.0, -1600.0]), 0.5, -1.0)[0] == jnp.inf


@pytest.mark.parametrize("powers", POWERS)
def test_abkd_is_continuous_in_its_powers(powers, x64):
    student, teacher, _ = example((4, 5))
    near = of_powers(student, teacher, powers[0] + 1e-9, powers[1] - 2e-9)
    np.testing.assert_allclose(near, of_powers(student, teacher, *powers), rtol=1e-7)


@pytest.mark.parametrize("powers", [(0.8, 0.3), (0.8, 0.01), (0.0, 0.0), (1.0, 1e-6)])
def test_abkd_of_close_networks_loses_no_digits_in_float32(powers):
    teacher = np.asarray(example((4, 6))[1], np.float32)
    student = teacher + np.float32(1e-3) * np.asarray(example((4, 6), seed=1)[0], np.float32)
    value = of_powers(student, teacher, *powers)
    with jax.enable_x64(True):
        exact = of_powers(np.float64(student), np.float64(teacher), *powers)
    np.testing.assert_allclose(value, exact, rtol=1e-3)


def test_special_powers_are_divergences_that_have_names(x64):
    student, teacher, _ = example((6, 5))
    p, q = (softmax(np.asarray(logits) / 4.0) for logits in (teacher, student))
    np.testing.assert_allclose(16.0 * of_powers(student, teacher, 1.0, 0.0), jit(kd_loss)(student, teacher), rtol=1e-12)
    np.testing.assert_allclose(16.0 * of_powers(student, teacher, 0.0, 1.0), jit(kd_loss)(teacher, student), rtol=1e-12)
    hellinger = 2 * np.sum((np.sqrt(p) - np.sqrt(q)) ** 2, axis=-1)
    np.testing.assert_allclose(of_powers(student, teacher, 0.5, 0.5), hellinger, rtol=1e-12)
    np.testing.assert_allclose(of_powers(student, teacher, 1.0, 1.0), np.sum((p - q) ** 2, axis=-1) / 2, rtol=1e-12)


def rld_by_definition(student, teacher, label, temperature, target_temperature, alpha, beta):
    p, q = softmax(teacher / target_temperature), softmax(student / target_temperature)
    scd = kl(np.array([p.max(), 1 - p.max()]), np.array([q[label], 1 - q[label]]))
    below = [k for k in range(len(teacher)) if teacher[k] < teacher[label]]
    mcd = kl(softmax(teacher[below] / temperature), softmax(student[below] / temperature)) if below else 0.0
    return alpha * target_temperature**2 * scd + beta * temperature**2 * mcd


def test_rld_is_that_of_its_definition(x64):
    student, teacher, labels = map(np.array, example((2, 4, 7)))
    teacher[0, 0] = 1.0  # every class ties with the label: none is below it
    options = dict(temperature=3.0, target_temperature=2.0, alpha=0.5, beta=4.0)
    ours = np.asarray(jit(rld_loss)(student, teacher, labels, **options))
    for place in np.ndindex(2, 4):
        expected = rld_by_definition(student[place], teacher[place], labels[place], **options)
        np.testing.assert_allclose(ours[place], expected, rtol=1e-9)


def test_rld_learns_nothing_from_classes_that_the_teacher_puts_before_the_label(x64):
    teacher, label = jnp.array([[5.0, 4.0, 1.0, 0.0, -1.0]]), jnp.array([2])
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(rld_loss(s, teacher, label, alpha=0.0))))(jnp.zeros((1, 5)))
    np.testing.assert_array_equal(np.asarray(gradient)[0, :3], 0.0)
    assert (np.asarray(gradient)[0, 3:] != 0).all()


def ldrld_by_definition(student, teacher, temperature, alpha, beta, depth):
    order = sorted(range(len(student)), key=lambda k: (-student[k], k))

    def divergence(classes):
        return kl(softmax(teacher[classes] / temperature), softmax(student[classes] / temperature)) if classes else 0.0

    parts = [divergence(order[:depth])]
    for j in range(1, depth):
        for i in range(j):
            weight = 1 / (1.5 + (j - i)) * 2 * np.exp(-0.05 * (i + 1 + j + 1))
            parts.append(weight * divergence([order[i], order[j]]))
    return temperature**2 * (alpha * np.mean(parts) + beta * divergence(order[depth:]))


@pytest.mark.parametrize("depth", [2, 4, 7])
def test_ldrld_is_that_of_its_definition(depth, x64):
    student, teacher, _ = map(np.array, example((2, 3, 7)))
    student[1] = np.round(student[1] / 3)  # ties: the first class comes first
    options = dict(temperature=2.0, alpha=10.5, beta=7.0, depth=depth)
    ours = np.asarray(jax.jit(partial(ldrld_loss, **options))(student, teacher))
    for place in np.ndindex(2, 3):
        np.testing.assert_allclose(
            ours[place], ldrld_by_definition(student[place], teacher[place], **options), rtol=1e-9
        )


@pytest.mark.parametrize("depth", [1, 6, 0])
def test_a_depth_that_the_classes_do_not_have_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth must be from 2 to the number of classes, 5: got {depth}"):
        ldrld_loss(np.zeros((2, 5), np.float32), np.zeros((2, 5), np.float32), depth=depth)


def wkd_by_definition(student, teacher, label, cost, temperature, gamma, epsilon, iterations):
    others = np.arange(len(student)) != label
    a, b = softmax(student[others] / temperature), softmax(teacher[others] / temperature)
    distances = np.maximum(cost, 0)[others][:, others] + 1e-8
    kernel = np.exp(-distances / epsilon)
    u = np.full(len(a), 1 / len(a))
    for _ in range(iterations):
        v = b / (kernel.T @ u + 1e-8)
        u = a / (kernel @ v + 1e-8)
    flow = np.diag(u) @ kernel @ np.diag(v)
    return -softmax(teacher)[label] * np.log(softmax(student)[label]) + gamma * np.sum(flow * distances)


def test_wkd_is_that_of_its_definition_also_where_cost_is_not_symmetric(x64):
    student, teacher, labels = map(np.asarray, example((2, 3, 7)))
    cost = np.random.default_rng(3).uniform(-0.1, 1.0, (7, 7))
    options = dict(temperature=2.0, gamma=10.0, epsilon=0.1, iterations=5)
    ours = np.asarray(jax.jit(partial(wkd_loss, cost=cost, **options))(student, teacher, labels))
    for place in np.ndindex(2, 3):
        expected = wkd_by_definition(student[place], teacher[place], labels[place], cost, **options)
        np.testing.assert_allclose(ours[place], expected, rtol=1e-9)


def test_transport_of_two_classes_costs_what_is_moved(x64):
    """With a label and two classes, all that can be done is to move the difference from one to the other."""
    student, teacher, labels = jnp.array([[9.0, 1.0, -1.0]]), jnp.array([[9.0, -1.0, 2.0]]), jnp.array([0])
    cost, options = np.full((3, 3), 0.7) - 0.7 * np.eye(3), dict(temperature=1.0, epsilon=0.08, iterations=200)
    moved = abs(softmax(np.array([1.0, -1.0]))[0] - softmax(np.array([-1.0, 2.0]))[0])
    both = [wkd_loss(student, teacher, labels, cost=cost, gamma=gamma, **options) for gamma in (0.0, 1.0)]
    np.testing.assert_allclose(both[1] - both[0], 0.7 * moved, rtol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cost": np.zeros((4, 4))}, r"cost must be \[K, K\] for the 3 classes, got \(4, 4\)"),
        ({"epsilon": 0.0}, "epsilon must be greater than 0, got 0.0"),
        ({"iterations": 0}, "iterations must be greater than 0, got 0"),
    ],
)
def test_wrong_transport_is_refused(wrong, message):
    zeros = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        wkd_loss(
            zeros, zeros, np.zeros(2, int), **({"cost": np.zeros((3, 3)), "temperature": 1.0, "gamma": 1.0} | wrong)
        )


@pytest.mark.parametrize("case", [case for case in cases("wkd_l") if not case.endswith("/plain_cost")])
def test_class_cost_is_that_of_the_authors_code(case, x64):
    ours = class_cost(GOLDEN[f"{case}/proto"], kappa=GOLDEN[f"{case}/params"][4])
    np.testing.assert_allclose(ours, GOLDEN[f"{case}/cost"], rtol=0, atol=1e-12)


def test_class_cost_of_a_vector_of_zeros_and_what_it_refuses():
    cost = class_cost(np.array([[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0]], np.float32))
    np.testing.assert_allclose(cost[0], [0.0, 1 - np.exp(-1), 1 - np.exp(-2)], rtol=1e-6)
    with pytest.raises(ValueError, match=r"class vectors must be \[K, C\], got \(3,\)"):
        class_cost(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="kappa must be greater than 0, got 0"):
        class_cost(np.zeros((3, 2), np.float32), kappa=0)


# ---------------------------------------------------------------------- MLKD, which relates the examples of a batch


def mlkd_by_definition(student, teacher, beta, gamma, temperatures):
    """A batch of one region ``[B, K]``: what each example has to pay."""
    total = np.zeros(len(student))
    for number in temperatures:
        p, q = softmax(teacher / number), softmax(student / number)
        total += number**2 * np.sum(p * np.log(p / q), axis=-1)
        total += beta * np.sum((p.T @ p - q.T @ q) ** 2) / p.shape[1]
        total += gamma * np.sum((p @ p.T - q @ q.T) ** 2, axis=1)
    return total


def test_mlkd_is_that_of_its_definition_in_every_region_also_under_sdd(x64):
    student, teacher, _ = map(np.asarray, example((5, 5, 4)))
    base = partial(mlkd_loss, beta=0.7, gamma=1.3)
    ours = np.asarray(jax.jit(base)(student, teacher))
    temperatures = (4.0, 2.0, 3.0, 5.0, 6.0)
    regions = [mlkd_by_definition(student[:, r], teacher[:, r], 0.7, 1.3, temperatures) for r in range(5)]
    np.testing.assert_allclose(ours, np.stack(regions, axis=1), rtol=1e-9)
    labels = np.array([0, 1, 2, 3, 0], np.int32)
    value = jax.jit(partial(sdd_loss, base=base, complementary_weight=3.0))(student, teacher, labels)
    weights = np.where(complementary_mask(teacher, labels), 3.0, 1.0)
    np.testing.assert_allclose(value, np.mean(weights * np.stack(regions, axis=1), axis=1), rtol=1e-9)


SINGLE = partial(mlkd_loss, further_temperatures=())


def test_mlkd_gradient_is_that_of_finite_differences(x64):
    student, teacher, _ = example((3, 2, 4))
    check_grads(jax.jit(SINGLE), (student, teacher), order=1, modes=("rev", "fwd"), rtol=1e-6)


def test_a_class_that_both_leave_out_does_not_count_in_mlkd(x64):
    pair = np.stack(example((6, 5))[:2])
    total = jax.jit(jax.value_and_grad(lambda *both: jnp.sum(SINGLE(*both))))
    fewer, _ = total(*pair[..., :4])
    pair[..., 4] = -np.inf
    value, gradient = total(*pair)
    np.testing.assert_allclose(value, fewer, rtol=1e-12)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("case", EXTREMES)
def test_mlkd_of_extreme_logits_has_finite_values_and_gradients(case):
    student, teacher = (jnp.stack([jnp.asarray(logits), jnp.arange(4.0)]) for logits in EXTREMES[case])
    value, gradient = extremes(student, teacher)
    assert np.isfinite(value) and np.isfinite(gradient).all()


extremes = jax.jit(jax.value_and_grad(lambda *both: jnp.sum(SINGLE(*both))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be greater than 0, got 0.0"),
        ({"further_temperatures": (2, 0)}, r"further_temperatures\[1\] must be greater than 0, got 0"),
    ],
)
def test_mlkd_refuses_a_temperature_of_zero_and_logits_without_a_batch(options, message):
    with pytest.raises(ValueError, match=message):
        mlkd_loss(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), **options)
    with pytest.raises(ValueError, match=r"relates the examples of a batch: it needs \[B, ..., K\], got \(3,\)"):
        mlkd_loss(np.zeros(3, np.float32), np.zeros(3, np.float32))
