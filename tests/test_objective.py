"""Objectives: how the terms are weighed, and what is reported of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.losses import kd_loss
from sdd_jax.regions import Regions, pool_regions
from sdd_jax.sdd import sdd_loss
from sdd_jax.training.objective import Objective, added, distill, plain

REGIONS = Regions((1, 2))
SDD = {"complementary_weight": 3.0, "consistent_weight": 0.5, "consistency": "class", "reduction": "sum"}


class Out(NamedTuple):
    logits: jax.Array
    region_logits: jax.Array


@pytest.fixture
def networks():
    keys = jax.random.split(jax.random.key(3), 2)
    maps = [3 * jax.random.normal(key, (6, 4, 4, 5)) for key in keys]
    outputs = [Out(jnp.mean(m, (1, 2)), pool_regions(m, (1, 2))) for m in maps]
    return *outputs, {"label": jnp.array([0, 1, 2, 3, 4, 0], jnp.int32)}


def apply(objective, networks, epoch, epochs_done=0.0):
    now = {"epoch": jnp.int32(epoch), "epochs_done": jnp.float32(epochs_done)}
    return objective.apply({}, {}, *networks, **now, key=jax.random.key(0))


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]


def test_plain_is_cross_entropy_and_reads_no_teacher(networks):
    student, _, batch = networks
    loss, metrics, state = plain().apply({}, {}, student, None, batch, epoch=0, epochs_done=0.1, key=None)
    np.testing.assert_allclose(loss, cross_entropy(student.logits, batch["label"]), rtol=1e-5)
    assert set(metrics) == {"task_loss"} and state == {} and plain().needs == frozenset()


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.25), (1, 0.5), (3, 1.0), (40, 1.0)])
def test_distillation_warms_up_linearly_from_the_first_epoch(networks, epoch, factor):
    student, teacher, batch = networks
    loss, metrics, _ = apply(distill(kd_loss, task_weight=0.1, distill_weight=0.9, warmup_epochs=4), networks, epoch)
    term = kd_loss(student.logits, teacher.logits)
    np.testing.assert_allclose(metrics["distill_loss"], term, rtol=1e-6)  # as it is, before weights
    expected = 0.1 * cross_entropy(student.logits, batch["label"]) + 0.9 * factor * np.asarray(term)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(("done", "factor"), [(0.05, 0.1), (0.25, 0.5), (0.5, 1.0), (3.0, 1.0)])
def test_a_warmup_by_step_grows_within_an_epoch(networks, done, factor):
    objective = distill(kd_loss, task_weight=0.0, warmup_epochs=0.5, warmup_by_step=True)
    loss, metrics, _ = apply(objective, networks, int(done), done)
    np.testing.assert_allclose(loss, factor * metrics["distill_loss"], rtol=1e-6)


def test_without_warmup_the_first_epoch_has_full_weight(networks):
    first, later = (apply(distill(kd_loss), networks, epoch)[0] for epoch in (0, 9))
    np.testing.assert_array_equal(first, later)


def test_sdd_reads_regions_with_its_options_and_reports_the_share(networks):
    student, teacher, batch = networks
    objective = distill(kd_loss, regions=REGIONS, sdd=SDD, task_weight=0.0)
    loss, metrics, _ = apply(objective, networks, 0)
    expected = sdd_loss(student.region_logits, teacher.region_logits, batch["label"], base=kd_loss, **SDD)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    verdicts = np.argmax(teacher.region_logits, -1)
    np.testing.assert_allclose(metrics["complementary_share"], np.mean(verdicts != verdicts[:, :1], axis=1), rtol=1e-6)
    assert objective.needs == {"region_logits"} and distill(kd_loss).needs == {"logits"}


def test_without_options_regions_weigh_as_the_released_code_has_them(networks):
    released = {"complementary_weight": 2.0, "consistent_weight": 1.0, "consistency": "label", "reduction": "mean"}
    losses = [apply(distill(kd_loss, regions=REGIONS, sdd=sdd), networks, 0)[0] for sdd in (None, released)]
    np.testing.assert_array_equal(*losses)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"regions": REGIONS, "sdd": {"reduction": "Mean"}}, "reduction must be one of mean, sum; got 'Mean'"),
        ({"regions": REGIONS, "sdd": {"consistency": "labels"}}, "consistency must be one of label, class"),
        ({"sdd": {"complementary_weight": 3.0}}, "sdd weighs regions, and there are none.*3.0"),
        ({"warmup_epochs": -4}, "warm-up epochs of at least 0, got -4"),
    ],
)
def test_what_would_be_computed_as_something_else_is_refused(networks, given, message):
    with pytest.raises(ValueError, match=message):
        apply(distill(kd_loss, **given), networks, 0)


def test_a_base_that_takes_the_mean_is_refused(networks):
    with pytest.raises(ValueError, match="base must return one value per example"):
        apply(distill(lambda *given: jnp.mean(kd_loss(*given))), networks, 0)


def test_a_sum_of_objectives_gives_each_its_own(networks):
    """Parameters, memory and keys by name: a term sees nothing of another's."""

    def counting(name):
        def init(key, student, teacher, labels):
            return {"scale": jnp.float32(len(labels))}, {"steps": jnp.int32(0), "drawn": jax.random.uniform(key)}

        def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
            loss = params["scale"] * jnp.ones(6)
            return loss, {name: loss}, {"steps": state["steps"] + 1, "drawn": jax.random.uniform(key)}

        return Objective(init, apply, frozenset({name}))

    objective = added(task=plain(0.5), first=counting("one"), second=counting("two"))
    student, teacher, batch = networks
    params, state = objective.init(jax.random.key(0), student, teacher, np.arange(3))
    assert params["task"] == state["task"] == {} and objective.needs == {"one", "two"}
    assert state["first"]["drawn"] != state["second"]["drawn"]
    params["second"]["scale"] = jnp.float32(5.0)
    loss, metrics, later = objective.apply(
        params, state, student, teacher, batch, epoch=0, epochs_done=0.1, key=jax.random.key(1)
    )
    np.testing.assert_allclose(loss, 0.5 * cross_entropy(student.logits, batch["label"]) + 3.0 + 5.0, rtol=1e-5)
    assert metrics.keys() == {"task_loss", "one", "two"} and later["first"]["steps"] == 1
    assert later["first"]["drawn"] != later["second"]["drawn"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_each_scale_says_its_share_and_its_part_of_the_loss(networks, reduction):
    """Teacher's verdicts written down: of image 0 the global one is right, of image 1 it is wrong."""
    student, _, _ = networks
    verdicts = np.array([[0, 0, 3, 0, 0], [2, 2, 1, 1, 4]])  # the whole, then 2x2
    teacher = Out(None, 5.0 * jax.nn.one_hot(verdicts, 5))
    student, batch = Out(student.logits[:2], student.region_logits[:2]), {"label": jnp.array([0, 1], jnp.int32)}
    options = SDD | {"consistency": "label", "reduction": reduction}
    objective = distill(kd_loss, regions=REGIONS, sdd=options, task_weight=0.0)
    _, metrics, _ = apply(objective, (student, teacher, batch), 0)
    complementary = np.array([[False, False, True, False, False], [False, False, True, True, False]])
    losses = np.asarray(kd_loss(student.region_logits, teacher.region_logits), np.float64) / (
        5 if reduction == "mean" else 1
    )
    expected = {
        "consistent_loss_1x1": 0.5 * losses[:, 0],
        "consistent_loss_2x2": 0.5 * np.where(complementary, 0, losses)[:, 1:].sum(1),
        "complementary_loss_2x2": 3.0 * np.where(complementary, losses, 0)[:, 1:].sum(1),
        "complementary_share_2x2": [0.25, 0.5],
        "complementary_share": [0.2, 0.4],
    }
    assert metrics.keys() == {"task_loss", "distill_loss", *expected}
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name], values, rtol=1e-5, err_msg=name)
    parts = sum(value for name, value in metrics.items() if "_loss_" in name)
    np.testing.assert_allclose(parts, metrics["distill_loss"], rtol=1e-6)
