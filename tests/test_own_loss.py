"""A user's own base loss in a config, by "module:function"."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_build import config

from experiments import recipes
from sdd_jax.build import check, make_parts
from sdd_jax.build_shapes import trace
from sdd_jax.sdd import complementary_mask

MATCHING = "own_losses:logit_matching"


def own(method, base=MATCHING, **overrides):
    return config(f"teacher=resnet8,student=resnet8,method={method}", loss__base=base, **overrides)


def applied(method, **overrides):
    """The loss of some regions by the objective of that config, with the regions."""
    regions = np.random.default_rng(0).normal(size=(2, 6, 21, 10))
    student, teacher = (SimpleNamespace(logits=one[:, 0], region_logits=one) for one in map(jnp.asarray, regions))
    objective = make_parts(check(own(method, **overrides)), 10).objective
    batch = {"label": jnp.arange(6) % 10}
    loss, _, _ = objective.apply(
        {}, {}, student, teacher, batch, epoch=jnp.int32(0), epochs_done=0.1, key=jax.random.key(0)
    )
    return loss, regions, batch["label"]


def test_it_is_applied_to_the_global_logits_with_its_options(x64):
    numbers = {"loss__options__alpha": 3.0, "loss__task_weight": 0.0, "loss__distill_weight": 0.5}
    loss, (student, teacher), _ = applied("own", **numbers)
    np.testing.assert_allclose(loss, 1.5 * np.var(student[:, 0] - teacher[:, 0], axis=-1), rtol=1e-9)


def test_it_is_applied_region_by_region(x64):
    loss, (student, teacher), labels = applied("sdd_own", loss__task_weight=0.0)
    weights = np.where(complementary_mask(teacher, labels), 2.0, 1.0)
    np.testing.assert_allclose(loss, np.mean(weights * np.var(student - teacher, axis=-1), axis=1), rtol=1e-9)


def test_it_traces_and_a_change_of_what_it_reads_is_another_run():
    _, metrics = trace(own("sdd_own"))
    assert metrics["loss"].shape == () and "complementary_share" in metrics
    key = recipes.key(check(own("own")))
    default, other = (recipes.key(check(own("own", loss__options__power=power))) for power in (2.0, 3.0))
    assert default == key != other


def test_an_option_without_a_default_has_to_be_set():
    needed = "own_losses:with_a_needed_power"
    with pytest.raises(ValueError, match=f"loss.options.power has no default in {needed}: set it"):
        check(own("own", needed))
    assert check(own("own", needed, loss__options__power=3.0))["loss.options.power"] == 3.0


WRONG = {
    "no name": ("kd", "loss.base: a method with 'own' needs MODULE:FUNCTION, got 'kd'"),
    "no such module": ("no_such_losses:f", "loss.base: loss 'no_such_losses:f': No module named 'no_such_losses'"),
    "no such function": ("own_losses:f", "must be a function of student_logits, teacher_logits, labels .*got None"),
    "no function": ("own_losses:CONSTANT", "must be a function .*own_losses.py; got 3"),
    "a list": ("own_losses:with_a_list", r"loss.base: with_a_list has temperatures=\[1.0, 2.0\] as default; an option"),
    "fractions": ("own_losses:with_fractions", r"loss.base: with_fractions has temperatures=\(1.0, 2.0\) as default"),
    "None": ("own_losses:with_none", "loss.base: with_none has cutoff=None as default; .*like `float . None`"),
    "other arguments": ("own_losses:without_labels", "must be a function .*: too many positional arguments"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_found_before_anything_runs(case):
    base, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        check(own("own", base))


@pytest.mark.parametrize("unset", [None, "none"])
def test_an_option_that_may_be_none_is_a_number_or_unset(unset):
    kinds = "own_losses:with_kinds"
    settings = check(own("own", kinds))
    assert [settings[f"loss.options.{name}"] for name in ("cutoff", "floor", "steps")] == [None, 2.0, (1, 2)]
    settings = check(own("own", kinds, loss__options__cutoff=3, loss__options__floor=unset))
    assert (settings["loss.options.cutoff"], settings["loss.options.floor"]) == (3.0, None)
    assert settings == check(settings.nested())
    with pytest.raises(ValueError, match="loss.options.cutoff must be a finite number, got 'x'"):
        check(own("own", kinds, loss__options__cutoff="x"))
    with pytest.raises(ValueError, match=r"loss.options.steps must be integers, such as 1,2,4; got \(0.5,\)"):
        check(own("own", kinds, loss__options__steps=(0.5,)))


def test_a_function_does_not_stand_under_another_methods_name():
    with pytest.raises(ValueError, match="loss.base: the method 'kd' has kd, got 'own_losses:logit_matching'"):
        check(config(loss__base=MATCHING))


@pytest.mark.parametrize("method", ["own", "sdd_own"])
def test_a_loss_without_a_gradient_is_refused(method):
    with pytest.raises(ValueError, match="base must return floating numbers, which have a gradient, got int32"):
        check(own(method, "own_losses:signs"))


@pytest.mark.parametrize("method", ["own", "sdd_own"])
def test_a_loss_that_takes_the_mean_is_refused(method):
    with pytest.raises(ValueError, match=r"base must return one value per example, \(2,\), got \(\)"):
        check(own(method, "own_losses:mean_over_the_batch"))
