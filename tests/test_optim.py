"""The optimizer against the rule of PyTorch's SGD written out, and the schedules at their edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from flax.traverse_util import unflatten_dict

from sdd_jax.models import Classifier
from sdd_jax.models.given import given_network
from sdd_jax.models.layers import torch_affine_init
from sdd_jax.training import optim

RATE, MOMENTUM, DECAY, CLIP = 0.1, 0.9, 0.02, 2.0


def test_sgd_is_clip_then_decay_then_momentum(x64):
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    optimizer = optim.sgd(lambda step: RATE * 0.5**step, momentum=MOMENTUM, weight_decay=DECAY, clip_norm=CLIP)
    ours, state = jax.tree.map(jnp.asarray, params), None
    state = optimizer.init(ours)
    buffers = {name: 0.0 for name in params}
    for step in range(5):
        grads = {name: rng.normal(size=value.shape) * 10.0 ** (1 - step) for name, value in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, ours)
        ours = optax.apply_updates(ours, updates)
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        scale = min(CLIP / (norm + 1e-6), 1.0)
        for name in params:
            buffers[name] = MOMENTUM * buffers[name] + scale * grads[name] + DECAY * params[name]
            params[name] = params[name] - RATE * 0.5**step * buffers[name]
        np.testing.assert_allclose(ours["kernel"], params["kernel"], rtol=1e-12)
        np.testing.assert_allclose(ours["bias"], params["bias"], rtol=1e-12)


def test_the_norm_of_many_small_and_large_arrays():
    """Within float32's rounding of float64's, and what is not finite in any array is seen."""
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=shape) * 10.0**scale for shape, scale in (((257, 1031), -3), ((3, 3, 5, 7), 1), ((), -1))]
    right = np.sqrt(sum(np.sum(array**2) for array in arrays))
    tree = {f"{number}": jnp.float32(array) for number, array in enumerate(arrays)}
    np.testing.assert_allclose(jax.jit(optim.global_norm)(tree), right, rtol=1e-6)
    for bad in (np.nan, np.inf):
        assert not np.isfinite(optim.global_norm(tree | {"2": jnp.float32(bad)}))


def test_without_a_clip_norm_gradients_are_left_alone():
    optimizer = optim.sgd(1.0, momentum=0.0, weight_decay=0.0, clip_norm=None)
    grads = {"w": jnp.array([3e4, -4e4])}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_array_equal(updates["w"], [-3e4, 4e4])


@pytest.mark.parametrize(("examples", "batch"), [(50_000, 64), (64, 64), (10, 64), (1293, 64)])
def test_the_rate_drops_with_the_first_step_of_the_epoch_after_a_milestone(examples, batch):
    schedule = optim.step_schedule(0.05, (3, 5), num_examples=examples, batch_size=batch)
    for step in range(optim.total_steps(7, examples, batch)):
        epoch = step * batch // examples
        expected = 0.05 * 0.1 ** ((epoch >= 3) + (epoch >= 5))
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-6)


def test_steps_of_a_run_cover_every_epoch_and_no_more():
    assert optim.total_steps(240, 50_000, 64) == 187_500
    assert optim.total_steps(1, 65, 64) == 2
    assert optim.total_steps(3, 10, 64) == 1
    assert [optim.first_step(epoch, 65, 64) for epoch in range(4)] == [0, 2, 3, 4]


def test_cosine_ends_at_zero():
    schedule = optim.cosine_schedule(0.1, 100)
    np.testing.assert_allclose([schedule(0), schedule(50), schedule(100)], [0.1, 0.05, 0.0], atol=1e-8)


PARAMS = {"kernel": (3, 2), "bias": (2, 2), "gamma": (2,), "positions": (1, 4, 2)}


def adamw_by_hand(params, grads, moments, step, rate, decayed):
    """Algorithm 2 of "Decoupled Weight Decay Regularization", the decay times the whole rate; ``step`` from 1."""
    norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
    for name, grad in grads.items():
        grad = grad * min(CLIP / (norm + 1e-6), 1.0)
        m, v = moments[name] = 0.9 * moments[name][0] + 0.1 * grad, 0.999 * moments[name][1] + 0.001 * grad**2
        ratio = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        params[name] = params[name] - rate * (ratio + DECAY * params[name] * (name in decayed))


@pytest.mark.parametrize("decayed", [tuple(PARAMS), ("kernel",)])
def test_adamw_is_the_papers_algorithm_and_decays_what_it_should(x64, decayed):
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape) for name, shape in PARAMS.items()}
    mask = None if len(decayed) == len(PARAMS) else optim.weights_alone
    optimizer = optim.adamw(lambda step: RATE * 0.5**step, weight_decay=DECAY, clip_norm=CLIP, decayed=mask)
    ours, moments = jax.tree.map(jnp.asarray, params), dict.fromkeys(PARAMS, (0.0, 0.0))
    state = optimizer.init(ours)
    for step in range(5):
        grads = {name: rng.normal(size=value.shape) * 10.0 ** (1 - step) for name, value in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, ours)
        ours = optax.apply_updates(ours, updates)
        adamw_by_hand(params, grads, moments, step + 1, RATE * 0.5**step, decayed)
        for name in params:
            np.testing.assert_allclose(ours[name], params[name], rtol=1e-12)


def test_sgd_too_decays_weights_alone(x64):
    params = {name: jnp.ones(shape) for name, shape in PARAMS.items()}
    optimizer = optim.sgd(1.0, momentum=0.0, weight_decay=DECAY, clip_norm=None, decayed=optim.weights_alone)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert {name: float(value.sum()) / value.size for name, value in updates.items()} == {
        "kernel": -DECAY, "bias": 0.0, "gamma": 0.0, "positions": 0.0
    }  # fmt: skip


def test_of_a_network_the_kernels_are_decayed():
    variables = jax.eval_shape(partial(tiny.model().init, train=False), jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    decayed = jax.tree_util.tree_flatten_with_path(optim.weights_alone({"student": variables["params"]}))[0]
    assert {path[-1].key for path, decays in decayed if decays} == {"kernel"}
    assert {path[-1].key for path, decays in decayed if not decays} == {"bias", "scale"}


class WithPositions(nnx.Module):
    def __init__(self, rngs):
        self.pos_embed = nnx.Param(jnp.zeros((1, 4, 8)))
        self.position_embedding = nnx.Embed(4, 8, rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, 8)))
        self.patches = nnx.Conv(3, 8, (8, 8), strides=8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=rngs)

    def __call__(self, images, *, train):
        x = self.patches(images).reshape(-1, 4, 8) + self.pos_embed + self.position_embedding(jnp.arange(4))
        return self.attention(x + self.cls).reshape(-1, 2, 2, 8)


@pytest.mark.parametrize("bridged", [False, True])
def test_of_an_nnx_module_the_kernels_are_decayed(bridged):
    linen = Classifier(nnx.bridge.to_linen(WithPositions), 10, torch_affine_init)
    model = linen if bridged else given_network(WithPositions(nnx.Rngs(0)), (16, 16, 3), 10).model
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    paths = jax.tree_util.tree_flatten_with_path(optim.weights_alone(variables["params"]))[0]
    decayed = {jax.tree_util.keystr(path) for path, decays in paths if decays}
    assert len(decayed) == 6 and all("kernel" in path for path in decayed)
    assert len(paths) == 15 and not any("kernel" in jax.tree_util.keystr(path) for path, decays in paths if not decays)


@pytest.mark.parametrize(
    ("path", "decays"),
    [
        ("pos_embed/embedding", False),
        ("block/relative_position_bias_table", False),
        ("encoder/posembed_input/pos_embedding", False),
        ("absolute_pos_embed", False),
        ("cls/kernel", True),
        ("embed/embedding", True),
        ("bias/kernel", True),
    ],
)
def test_a_name_says_what_is_no_weight_of_a_layer(path, decays):
    tree = unflatten_dict({tuple(path.split("/")): jnp.zeros((2, 2))})
    assert jax.tree.leaves(optim.weights_alone(tree)) == [decays]


def test_the_rate_rises_by_step_and_joins_the_schedule_where_it_is():
    cosine = optim.cosine_schedule(0.1, 100)
    schedule = jax.jit(optim.warmed_up(cosine, 0.1, 10))
    np.testing.assert_allclose([schedule(step) for step in range(10)], 0.01 * np.arange(1, 11), rtol=1e-6)
    for step in (10, 11, 50, 100):
        np.testing.assert_allclose(schedule(step), 0.05 * (1 + np.cos(np.pi * step / 100)), rtol=1e-5, atol=1e-8)
    assert optim.warmed_up(cosine, 0.1, 0) is cosine
