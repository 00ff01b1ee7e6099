"""Folded batch normalisations: the outputs of the network as it was, and what must stay unfolded."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sdd_jax.models import Classifier, create_model
from sdd_jax.models.folding import fold
from sdd_jax.models.layers import BatchNorm, conv, torch_affine_init
from sdd_jax.regions import Regions
from sdd_jax.training.teacher import live_teacher

# The pairs of each network, counted by hand.
PAIRS = {
    "resnet8": 1 + 3 * 2 + 2,  # stem, blocks, shortcuts
    "wrn_16_1": 6,  # the second of each block: before the first stands a sum, or the stem that a shortcut reads too
    "wrn_16_2": 1 + 6,  # the first block changes the width: its shortcut does not read the stem
    "vgg8": 5,
    "shufflenet_v1": 1 + 16 * 3,
    "shufflenet_v2": 1 + 3 * 5 + 13 * 3 + 1,
    "mobilenet_v2": 1 + 17 * 3 + 1,
    "resnet18": 1 + 8 * 2 + 3,
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
    """Folds, compares all outputs, and gives the folded model and its variables."""
    folded, new = fold(model, variables, images)
    expected = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    got = jax.jit(lambda v, x: folded.apply(v, x, train=False))(new, images)
    for name, right in expected._asdict().items():
        wrong = np.asarray(getattr(got, name), np.float64) - np.asarray(right, np.float64)
        largest = np.max(np.abs(np.asarray(right, np.float64)))
        assert largest > 0.01 and getattr(got, name).dtype == right.dtype
        assert np.max(np.abs(wrong)) < tolerance * largest, name
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), variables)
    return folded, new


@pytest.mark.parametrize("name", PAIRS)
def test_a_folded_network_gives_the_same_outputs(x64, name):
    model, images = create_model(name, 7, dtype=jnp.float64), images_of(jnp.float64)
    folded, _ = check_fold(model, filled(model, images), images, 1e-9)
    assert len(set(folded.pairs)) == PAIRS[name]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8"])
def test_in_float32_up_to_rounding(name):
    model, images = create_model(name, 7), images_of(jnp.float32)
    check_fold(model, filled(model, images), images, 1e-5)


def test_bfloat16_folds_float32_kernels():
    model, images = create_model("vgg8", 7, dtype=jnp.bfloat16), images_of(jnp.bfloat16)
    folded, variables = check_fold(model, filled(model, images), images, 0.03)
    assert len(folded.pairs) == 5
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


class Trunk(nn.Module):
    """One 4-channel convolution and a batch normalisation, put together in the way that `kind` says."""

    kind: str
    dtype: jnp.dtype = jnp.float64

    @nn.compact
    def __call__(self, x, *, train):
        first = conv(4, dtype=self.dtype, name="first")(x)
        if self.kind == "no_norm":
            return first
        if self.kind == "shared_conv":
            again = conv(4, dtype=self.dtype, name="second")
            norm = BatchNorm(self.dtype, name="norm")(again(nn.relu(first)), train=train)
            return norm + again(jnp.sin(first))
        norm = BatchNorm(self.dtype, name="norm")
        if self.kind == "shared_norm":
            return norm(first, train=train) + norm(conv(4, dtype=self.dtype, name="second")(x), train=train)
        if self.kind == "read_elsewhere":
            return norm(first, train=train) + nn.sigmoid(first)
        if self.kind == "two_norms":
            return norm(first, train=train) + BatchNorm(self.dtype, name="other")(first, train=train)
        if self.kind == "relu_between":
            return norm(nn.relu(first), train=train)
        if self.kind == "kernel_elsewhere":
            kernel = self.variables["params"]["first"]["kernel"] if not self.is_initializing() else 1.0
            return norm(first, train=train) + jnp.mean(kernel)
        if self.kind == "weight_norm":
            return norm(nn.WeightNorm(nn.Conv(4, (3, 3), param_dtype=self.dtype, name="inner"))(first), train=train)
        if self.kind == "own_kernel":  # what is a convolution to Linen, and is not linear in its kernel

            def cubed(x, kernel, *args, **kwargs):
                return jax.lax.conv_general_dilated(x, kernel**3, *args, **kwargs)

            odd = nn.Conv(4, (3, 3), param_dtype=self.dtype, conv_general_dilated=cubed)
            return norm(odd(first), train=train)
        if self.kind == "coarser_kernel":  # float32 under float64
            return norm(nn.Conv(4, (3, 3))(first), train=train)
        if self.kind == "remat":
            return nn.remat(Pair)(self.dtype, name="pair")(first)
        y = Pair(self.dtype, name="pair")(first)  # within a module, 1-sided padding, with a bias
        if self.kind == "pair_and_another":  # a network of its own, in which the same paths mean other variables
            other: Any = Classifier(Trunk("pair"), 3, torch_affine_init, self.dtype)
            variables = self.param("other", lambda key: other.init(key, x, train=False))
            y = y - other.apply(variables, x, train=False).feature_map
        return y


class Pair(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (2, 3), padding="SAME", strides=2, kernel_dilation=2, param_dtype=self.dtype, name="c")(x)
        return nn.relu(BatchNorm(self.dtype, name="n")(x, train=False))


@pytest.mark.parametrize(
    "kind",
    [
        "no_norm",
        "shared_conv",
        "shared_norm",
        "read_elsewhere",
        "two_norms",
        "relu_between",
        "kernel_elsewhere",
        "weight_norm",
        "own_kernel",
        "coarser_kernel",
        "remat",
    ],
)
def test_what_cannot_be_folded_stays_as_it_is(x64, kind):
    model, images = Classifier(Trunk(kind), 3, torch_affine_init, jnp.float64), images_of(jnp.float64, 8)
    variables = filled(model, images)
    folded, new = check_fold(model, variables, images, 1e-12)
    assert folded.pairs == ()
    jax.tree.map(np.testing.assert_array_equal, new, variables)


@pytest.mark.parametrize("kind", ["pair", "pair_and_another"])
def test_a_convolution_of_linen_with_a_bias(x64, kind):
    model, images = Classifier(Trunk(kind), 3, torch_affine_init, jnp.float64), images_of(jnp.float64, 8)
    folded, variables = check_fold(model, filled(model, images) | {"empty": {}}, images, 1e-12)
    assert folded.pairs == ((("trunk", "pair", "c"), ("trunk", "pair", "n")),)
    # The variables mean the same to the model itself, and folding them again changes nothing.
    again, twice = fold(model, variables, jax.ShapeDtypeStruct(images.shape, images.dtype))
    assert again == folded
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), twice, variables)
    plain, quick = (live_teacher(which, variables, Regions((1, 2), "nested")).apply for which in (model, folded))
    for a, b in zip(plain(variables, {"image": images}), quick(variables, {"image": images}), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_a_folded_model_is_not_trained():
    model, images = Classifier(Trunk("pair", jnp.float32), 3, torch_affine_init), images_of(jnp.float32, 8)
    folded, variables = fold(model, filled(model, images), images)
    with pytest.raises(ValueError, match="training"):
        folded.apply(variables, images, train=True)


def test_a_folded_model_computes_less(x64):
    model, images = Classifier(Trunk("pair"), 3, torch_affine_init, jnp.float64), images_of(jnp.float64, 8)
    folded, variables = fold(model, filled(model, images), images)

    def count_roots(which):
        return str(jax.make_jaxpr(lambda v, x: which.apply(v, x, train=False))(variables, images)).count("rsqrt")

    assert count_roots(model) == 1 and count_roots(folded) == 0
