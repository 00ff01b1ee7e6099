"""A batch in parts: the whole batch's update without batch normalisation, and the documented difference with it."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from sdd_jax.data.mixing import mix
from sdd_jax.losses import kd_loss
from sdd_jax.models import Classifier
from sdd_jax.models.layers import conv, torch_affine_init
from sdd_jax.training import optim
from sdd_jax.training.objective import Objective, distill
from sdd_jax.training.step import init_state, make_train_step
from sdd_jax.training.teacher import live_teacher

BATCH, PARTS, EXAMPLES = 16, 4, 48
OBJECTIVE = distill(kd_loss, regions=tiny.REGIONS, sdd=tiny.SDD, task_weight=0.1, distill_weight=0.9, warmup_epochs=2)
TEACHER = live_teacher(tiny.model(12, jnp.float64), {}, tiny.REGIONS).apply


class Convolutions(nn.Module):
    """A trunk without batch normalisation."""

    @nn.compact
    def __call__(self, x, *, train):
        del train
        return nn.relu(conv(8, 3, 2, dtype=jnp.float64, name="conv")(x))


def without_batch_norm():
    return Classifier(trunk=Convolutions(), num_classes=tiny.CLASSES, head_init=torch_affine_init, dtype=jnp.float64)


def batch(step=0):
    rng = np.random.default_rng(step)
    return {
        "image": jnp.asarray(rng.normal(size=(BATCH, 16, 16, 3))),
        "label": jnp.asarray(rng.integers(0, tiny.CLASSES, BATCH)),
    }


def begin(model, objective=OBJECTIVE):
    optimizer = optim.sgd(0.05, momentum=0.9, weight_decay=5e-4, clip_norm=1.0)
    arrays = tiny.model(12, jnp.float64).init(jax.random.key(99), jnp.zeros((1, 16, 16, 3)), train=False)
    shape = {"image_shape": (16, 16, 3), "labels": np.arange(EXAMPLES) % tiny.CLASSES}
    state = init_state(jax.random.key(0), model, TEACHER, arrays, objective, optimizer, **shape)
    make = partial(make_train_step, model, TEACHER, objective, optimizer, num_examples=EXAMPLES)
    return state, arrays, make


@pytest.mark.parametrize("rolled", [True, False])
def test_without_batch_norm_parts_make_the_update_of_the_whole(x64, rolled):
    state, arrays, make = begin(without_batch_norm())
    states, measured = {1: state, PARTS: state}, {}
    for accumulate in states:
        step = jax.jit(make(accumulate=accumulate, rolled=rolled))
        for number in range(5):  # momentum, clipping, decay and warm-up among them
            key = jax.random.key(number)
            states[accumulate], measured[accumulate] = step(states[accumulate], arrays, batch(number), key)
    chex.assert_trees_all_close(states[PARTS], states[1], rtol=1e-9, atol=1e-14)
    for name, value in measured[1].items():  # shares and accuracies are counted in float32
        np.testing.assert_allclose(measured[PARTS][name], value, rtol=1e-9 if value.dtype == jnp.float64 else 1e-6)
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), states[1].params, state.params)
    assert min(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.slow
def test_a_batch_is_mixed_before_it_is_divided(x64):
    state, arrays, make = begin(without_batch_norm())
    whole = mix(batch(), jax.random.key(2), mixup=1.0)
    states = {
        parts: jax.jit(make(accumulate=parts))(state, arrays, whole, jax.random.key(0))[0] for parts in (1, PARTS)
    }
    chex.assert_trees_all_close(states[PARTS], states[1], rtol=1e-9, atol=1e-14)


def test_with_batch_norm_statistics_are_those_of_the_parts(x64):
    model = tiny.model(8, jnp.float64)
    state, arrays, make = begin(model)
    step = jax.jit(make())
    whole, _ = step(state, arrays, batch(), jax.random.key(0))
    parts, _ = jax.jit(make(accumulate=PARTS))(state, arrays, batch(), jax.random.key(0))

    batch_stats = state.batch_stats
    for number in range(PARTS):  # rows i, i + 4, ...: each part after the other
        rows = {name: array[number::PARTS] for name, array in batch().items()}
        plain = state.replace(batch_stats=batch_stats)
        single, _ = step(plain, arrays, rows, jax.random.key(0))
        batch_stats = single.batch_stats
    chex.assert_trees_all_close(parts.batch_stats, batch_stats, rtol=1e-9)

    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), parts, whole)
    assert max(jax.tree.leaves(difference.batch_stats)) > 1e-3
    assert max(jax.tree.leaves(difference.params)) > 1e-6


def test_an_objective_sees_one_part_after_the_other_each_with_a_key_of_its_own(x64):
    def init(key, student, teacher, labels):
        del key, student, teacher, labels
        return {}, {"calls": jnp.zeros((), jnp.int32), "drawn": jnp.zeros(PARTS), "seen": jnp.zeros(PARTS, int)}

    def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
        loss, terms, _ = OBJECTIVE.apply(
            params, {}, student, teacher, batch, epoch=epoch, epochs_done=epochs_done, key=key
        )
        state = {
            "calls": state["calls"] + 1,
            "drawn": state["drawn"].at[state["calls"]].set(jax.random.uniform(key)),
            "seen": state["seen"].at[state["calls"]].set(jnp.sum(batch["label"])),
        }
        return loss, terms, state

    state, arrays, make = begin(without_batch_norm(), Objective(init, apply, OBJECTIVE.needs, OBJECTIVE.regions))
    state, _ = jax.jit(make(accumulate=PARTS, rolled=True))(state, arrays, batch(), jax.random.key(0))
    memory = jax.device_get(state.objective_state)
    assert memory["calls"] == PARTS and len(set(memory["drawn"].tolist())) == PARTS
    assert memory["seen"].tolist() == [int(batch()["label"][number::PARTS].sum()) for number in range(PARTS)]


def test_unrolled_parts_leave_no_loop_in_the_program(x64):
    """XLA's CPU convolutions are slow inside one."""
    state, arrays, make = begin(without_batch_norm())
    programs = {
        rolled: jax.jit(make(accumulate=PARTS, rolled=rolled)).lower(state, arrays, batch(), jax.random.key(0))
        for rolled in (True, False)
    }
    assert "stablehlo.while" in programs[True].as_text() and "stablehlo.while" not in programs[False].as_text()
