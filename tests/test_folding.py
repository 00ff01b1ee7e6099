"""Folded batch normalisations: the outputs of the network as it was, and what must stay unfolded."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from test_models import quick_first

from sdd_jax.models import Classifier, create_model
from sdd_jax.models.classifier import HEAD
from sdd_jax.models.layers import BatchNorm, conv, conv_bn, fold, torch_affine_init

# How many normalisations of each network are folded, counted by hand.
FOLDED = {
    "resnet8": 1 + 3 * 2 + 2,  # stem, blocks, shortcuts
    "wrn_16_1": 6,  # the second of each block: before the first stands a sum, or the stem that a shortcut reads too
    "vgg8": 5,
    "shufflenet_v1": 1 + 16 * 3,
    "shufflenet_v2": 1 + 3 * 5 + 13 * 3 + 1,
    "mobilenet_v2": 1 + 17 * 3 + 1,
    "resnet18": 1 + 8 * 2 + 3,
    "resnet50": 1 + 16 * 3 + 4,
}


def filled(model, images):
    """Variables of the size that trained ones have, none of them trivial."""
    rng = np.random.default_rng(5)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            values = rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            low, high = {"var": (0.5, 2), "scale": (0.5, 1.5)}.get(path[-1].key, (-0.3, 0.3))
            values = rng.uniform(low, high, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    shapes = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def images_of(dtype, size=16):
    return jnp.asarray(np.random.default_rng(6).standard_normal((2, size, size, 3)), dtype)


def check_fold(model, variables, images, tolerance):
    """Folds, compares all outputs, and gives the folded variables and the paths of the folded normalisations."""
    folded = fold(model, variables, jax.ShapeDtypeStruct(images.shape, images.dtype))
    run = jax.jit(partial(model.apply, train=False))
    expected, got = run(variables, images), run(folded, images)
    expected, got = (flatten_dict(outputs._asdict()) for outputs in (expected, got))
    for name, right in expected.items():
        wrong = np.asarray(got[name], np.float64) - np.asarray(right, np.float64)
        largest = np.max(np.abs(np.asarray(right, np.float64)))
        assert largest > 0.01 and got[name].dtype == right.dtype
        assert np.max(np.abs(wrong)) < tolerance * largest, name
    before, after = flatten_dict(variables), flatten_dict(folded)
    gone = before.keys() - after.keys()
    norms = {path[1:-1] for path in gone}
    whole = {(room, *norm, leaf) for norm in norms for room, leaf in (("params", "scale"), *STATISTICS)}
    assert gone == whole and after.keys() < before.keys() | {()}
    assert all((leaf.shape, leaf.dtype) == (before[path].shape, before[path].dtype) for path, leaf in after.items())
    return folded, norms


STATISTICS = (("batch_stats", "mean"), ("batch_stats", "var"))


@pytest.mark.parametrize("name", quick_first(FOLDED, ["resnet8", "wrn_16_1", "vgg8"]))
def test_a_folded_network_gives_the_same_outputs(x64, name):
    model, images = create_model(name, 7, dtype=jnp.float64), images_of(jnp.float64)
    _, norms = check_fold(model, filled(model, images), images, 1e-9)
    assert len(norms) == FOLDED[name]


def test_bfloat16_folds_float32_kernels():
    model, images = create_model("vgg8", 7, dtype=jnp.bfloat16), images_of(jnp.bfloat16)
    folded, norms = check_fold(model, filled(model, images), images, 0.03)
    assert len(norms) == 5
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype("float32")}


class Layer(nn.Module):
    """A convolution with a bias under its normalisation."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, _=None):
        x = conv_bn(x, 4, 3, use_bias=True, dtype=self.dtype, train=False, name="conv")
        return x, None


class Trunk(nn.Module):
    """A 4-channel convolution, and another layer in the way that `kind` says."""

    kind: str
    dtype: jnp.dtype = jnp.float64

    @nn.compact
    def __call__(self, x, *, train):
        x = conv(4, dtype=self.dtype, name="first")(x)
        if self.kind == "apart":  # nothing says that the convolution is read here alone
            return BatchNorm(self.dtype, name="norm")(x, train=train)
        if self.kind == "remat":
            return nn.remat(Layer)(self.dtype, name="layer")(x)[0]
        if self.kind == "scan":  # kernels and statistics have an axis of layers
            layers = nn.scan(Layer, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2)
            return layers(self.dtype, name="layer")(x, None)[0]
        y, _ = Layer(self.dtype, name="layer")(x)
        if self.kind == "beside another":  # a network of its own, in which the same paths mean other variables
            other: Any = Classifier(Trunk("plain"), 3, torch_affine_init, self.dtype)
            variables = self.param("other", lambda key: other.init(key, x, train=False))
            y = y - other.apply(variables, x, train=False).feature_maps[HEAD]
        return y


@pytest.mark.parametrize("kind", ["apart", "remat", "scan"])
def test_what_cannot_be_folded_stays_as_it_is(x64, kind):
    model, images = Classifier(Trunk(kind), 3, torch_affine_init, jnp.float64), images_of(jnp.float64, 8)
    variables = filled(model, images)
    folded, norms = check_fold(model, variables, images, 1e-12)
    assert not norms
    jax.tree.map(np.testing.assert_array_equal, folded, variables)


@pytest.mark.parametrize("kind", ["plain", "beside another"])
def test_a_convolution_with_a_bias(x64, kind):
    model, images = Classifier(Trunk(kind), 3, torch_affine_init, jnp.float64), images_of(jnp.float64, 8)
    folded, norms = check_fold(model, filled(model, images), images, 1e-12)
    assert norms == {("trunk", "layer", "bn")}
    # Folding the folded changes nothing.
    jax.tree.map(np.testing.assert_array_equal, fold(model, folded, images), folded)


def test_folded_variables_are_not_trained():
    model, images = create_model("resnet8", 7), images_of(jnp.float32)
    folded = jax.eval_shape(partial(fold, model, images=images), filled(model, images))
    with pytest.raises(ValueError, match="no training mode"):
        jax.eval_shape(partial(model.apply, train=True, mutable=["batch_stats"]), folded, images)


def test_a_folded_network_computes_less():
    model, images = create_model("resnet8", 7), images_of(jnp.float32)
    variables = filled(model, images)

    def count_roots(variables):
        return str(jax.make_jaxpr(partial(model.apply, train=False))(variables, images)).count("rsqrt")

    assert count_roots(variables) == 9 and count_roots(fold(model, variables, images)) == 0
