"""Methods: what their names say, that a line of a table is all that a loss needs, and that random keys differ."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pages import ROOT

from docs import values
from sdd_jax import class_cost, methods, wkd_loss
from sdd_jax.build import check, make_objective
from sdd_jax.build_shapes import trace
from sdd_jax.configs import cifar100
from sdd_jax.methods import Base, Method, parse
from sdd_jax.models import Outputs
from sdd_jax.training.objective import Objective, added, no_variables
from sdd_jax.training.step import init_state, make_train_step


@pytest.mark.parametrize(
    ("name", "method"),
    {
        "plain": Method(),
        "kd": Method("kd"),
        "sdd_dkd": Method("dkd", regions=True),
        "wttm+crd": Method("wttm", features="crd"),
        "sdd_dkd+sdd_sp": Method("dkd", regions=True, features="sdd_sp"),
        "sdd_sp": Method(features="sdd_sp"),
        "sdd_own+sp": Method("own", regions=True, features="sp"),
    }.items(),
)
def test_a_name_says_what_a_method_is(name, method):
    assert parse(name) == method


@pytest.mark.parametrize("name", ["", "kdd", "sdd_", "sdd_plain", "kd+", "+sp", "kd+kd", "sp+crd", "kd+sp+crd", "KD"])
def test_an_unknown_method_is_refused_with_what_there_is(name):
    with pytest.raises(ValueError, match=r"the closest is .*\[sdd_\]BASE\[\+FEATURES\].*wttm.*crd"):
        parse(name)


@pytest.mark.parametrize(("old", "new"), methods.RENAMED.items())
def test_the_old_name_of_a_method_is_answered_with_the_new_one(old, new):
    with pytest.raises(ValueError, match=f"{old!r} is called '{new.replace('+', '[+]')}' now"):
        cifar100.get_config(f"method={old}")


def test_the_page_says_how_the_gradient_goes_with_the_temperature(x64):
    page = (ROOT / "docs" / "methods.md").read_text().partition("| loss | T 1 |")
    head, _, *rows = "".join(page[1:]).partition("\n\n")[0].splitlines()
    temperatures = [float(cell.strip().removeprefix("T ")) for cell in head.split("|")[2:-1]]
    teacher, student = 3 * np.random.default_rng(1).normal(size=(2, 64, 100))
    for row in rows:
        name, *told = (cell.strip() for cell in row.split("|")[1:-1])
        function = methods.BASES[name.split("`")[1]].function
        option = "gamma" if "gamma" in name else "temperature"

        def mean(logits, value, function=function, option=option):
            return jnp.mean(function(logits, teacher, teacher.argmax(-1), **{option: value}))

        gradient_of = jax.jit(jax.grad(mean))
        for temperature, number in zip(temperatures, map(float, told), strict=True):
            gradient = gradient_of(student, 1 / temperature if option == "gamma" else temperature)
            assert jnp.linalg.norm(gradient) == pytest.approx(number, rel=0.05), (name, temperature)


def root_loss(student_logits, teacher_logits, labels, *, power=0.5, floor: float = 1):
    """A loss of the test's own, with two options."""
    if power <= 0:
        raise ValueError(f"power must be greater than 0, got {power}")
    difference = jnp.abs(student_logits - teacher_logits)
    return jnp.sum((difference + floor) ** power, axis=-1)


def test_one_line_of_the_table_is_all_that_a_loss_needs(monkeypatch):
    monkeypatch.setitem(methods.BASES, "root", Base(root_loss, "a paper, table 3", distill_weight=2.5))
    for method in ("root", "sdd_root", "root+sp"):
        config = cifar100.get_config(f"teacher=resnet8,student=resnet8,method={method}")
        settings = check(config)
        assert settings["loss.distill_weight"] == 2.5 and settings["loss.base"] == "root"
        options = {name: value for name, value in settings.items() if name.startswith("loss.options.")}
        assert options == {"loss.options.power": 0.5, "loss.options.floor": 1.0}
        _, metrics = trace(config)
        assert "distill_loss" in metrics and ("complementary_share" in metrics) == method.startswith("sdd_")
        for name, value, message in (
            ("power", "hot", "loss.options.power must be a finite number, got 'hot'"),
            ("power", -1.0, "loss.base root: power must be greater than 0, got -1.0"),
            ("flor", 1.0, "no field 'loss.options.flor'; the closest is 'loss.options.floor'"),
        ):
            tree = config.to_dict()
            tree["loss"]["options"][name] = value
            with pytest.raises(ValueError, match=message):
                check(tree)
    assert "| root | CIFAR-100, resnet32x4 -> resnet8x4 | power 0.5 " in values.page()
    assert "a paper, table 3" in values.page()


def test_options_change_what_is_computed(monkeypatch):
    seen = []

    def spy(student_logits, teacher_logits, labels, *, power=0.5):
        seen.append(power)
        return jnp.sum((student_logits - teacher_logits) ** 2, axis=-1)

    monkeypatch.setitem(methods.BASES, "spy", Base(spy, "a test", options={"power": 0.75}))
    config = cifar100.get_config("teacher=resnet8,student=resnet8,method=sdd_spy")
    trace(config)
    assert set(seen) == {0.75}
    config.loss.options.power = 3.0
    trace(config)
    assert seen[-1] == 3.0


def test_a_loss_that_needs_it_is_given_the_cost_of_the_teachers_classes():
    config = cifar100.get_config("teacher=resnet8,student=resnet8,method=wkd")
    config.loss.options.kappa = 2.0
    settings, rng = check(config), np.random.default_rng(0)
    kernel = rng.normal(size=(64, 100)).astype(np.float32)
    pair = rng.normal(size=(2, 4, 100)).astype(np.float32)
    student, teacher = (Outputs(logits, None, None, {}) for logits in pair)
    batch, now = {"label": jnp.arange(4)}, {"epoch": 0, "epochs_done": 0.0, "key": None}

    def distilled(variables):
        objective = make_objective(settings, 100, variables)
        return jax.jit(lambda *both: objective.apply({}, {}, *both, batch, **now)[1]["distill_loss"])(student, teacher)

    cost = class_cost(kernel.T, kappa=2.0)
    expected = jax.jit(partial(wkd_loss, temperature=8.0, gamma=600.0))(*pair, np.arange(4), cost=cost)
    np.testing.assert_allclose(distilled({"params": {"head": {"kernel": kernel}}}), expected, rtol=1e-5)
    assert np.isnan(distilled(None)).all()  # without the teacher's variables: for shapes alone
    with pytest.raises(ValueError, match="loss.base wkd: reads the head of the teacher, and resnet8 has none"):
        distilled({"params": {"network": {}}})
    with pytest.raises(ValueError, match="wkd: reads the head of the teacher, which has 7 classes, and the data 100"):
        distilled({"params": {"head": {"kernel": kernel[:, :7]}}})
    config.loss.options.kappa = 0.0
    with pytest.raises(ValueError, match="loss.base wkd: kappa must be greater than 0, got 0.0"):
        check(config)


def test_no_two_random_keys_of_a_step_are_equal():
    """Dropout and both terms of a sum: fold_in(key, 0) can be split(key, 2)[0]."""
    keys = []

    def recording():
        def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
            keys.append(key)
            return student.logits[:, 0], {}, state

        return Objective(no_variables, apply)

    class Student:
        """One number for each class."""

        def init(self, key, images, *, train):
            return {"params": {"logits": jnp.zeros(3)}}

        def apply(self, variables, images, *, train, regions=None, mutable=None, rngs=None):
            keys.extend((rngs or {}).values())
            logits = jnp.broadcast_to(variables["params"]["logits"], (len(images), 3))
            outputs = Outputs(logits, logits[:, None, None], None, None)
            return (outputs, {}) if mutable else outputs

    student, optimizer, key = Student(), optax.sgd(0.1), jax.random.key(1)
    objective = added(logits=recording(), features=recording())
    shape = {"image_shape": (2, 2, 1), "labels": np.arange(8) % 3}
    state = init_state(jax.random.key(0), student, None, {}, objective, optimizer, **shape)
    keys.clear()
    batch = {"image": jnp.zeros((4, 2, 2, 1)), "label": jnp.zeros(4, jnp.int32)}
    make_train_step(student, None, objective, optimizer, num_examples=8)(state, {}, batch, key)
    assert len(keys) == 3
    assert len({jax.random.key_data(one).tobytes() for one in [*keys, key]}) == 4
