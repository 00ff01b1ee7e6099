"""Convolutions: the CPU's forms against the native one, values and gradients; what each platform gets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from sdd_jax.models.layers import conv
from sdd_jax.models.pooling import max_pool

# kernel size, stride, channels, groups, features
CASES = {
    "depthwise": (3, 1, 6, 6, 6),
    "depthwise with stride": (3, 2, 6, 6, 6),
    "depthwise, five wide": (5, 2, 4, 4, 4),
    "depthwise, one wide": (1, 1, 4, 4, 4),
    "1x1": (1, 1, 6, 1, 9),
    "1x1 with stride": (1, 2, 6, 1, 9),
    "1x1 in groups": (1, 1, 6, 3, 9),
    "1x1 in groups with stride": (1, 2, 6, 3, 9),
    "3x3 in groups": (3, 1, 6, 3, 9),
    "one channel, one group more": (3, 1, 4, 4, 8),
}


def native(x, kernel, *, size, stride, groups):
    pad = (size // 2, size // 2)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_native_convolution(case, x64):
    size, stride, channels, groups, features = CASES[case]
    layer = conv(features, size, stride, groups=groups, dtype=jnp.float64, name="conv")
    kernel = jax.random.normal(jax.random.key(1), (size, size, channels // groups, features))
    images = [jax.random.normal(jax.random.key(0), (2, *shape, channels)) for shape in ((8, 7), (1, 2))]

    def ours(x, kernel):
        return layer.apply({"params": {"kernel": kernel}}, x)

    expected = partial(native, size=size, stride=stride, groups=groups)

    @jax.jit
    def both(images, kernel):
        """Values, and the gradients of a sum with weights, by each of the two."""
        found = []
        for function in (ours, expected):
            values, pull = jax.vjp(lambda images, kernel: [function(x, kernel) for x in images], images, kernel)  # noqa: B023
            found.append((values, pull([jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape) for y in values])))
        return found

    got, want = both(images, kernel)
    assert len(jax.tree.leaves(got)) == 5
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", ["depthwise", "depthwise with stride", "1x1 in groups", "1x1 with stride"])
def test_each_platform_gets_its_own_form(case):
    """Lowered for a TPU, forward and backward are native convolutions; on CPU none of them is."""
    size, stride, channels, groups, features = CASES[case]
    layer = conv(features, size, stride, groups=groups, dtype=jnp.float32, name="conv")
    x = jnp.zeros((2, 8, 8, channels))
    variables = layer.init(jax.random.key(0), x)
    traced = jax.jit(jax.grad(lambda v, x: jnp.sum(layer.apply(v, x) ** 2), (0, 1))).trace(variables, x)
    counts = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")
        for platform in ("cpu", "tpu", "cuda")
    }
    assert counts == {"cpu": 0, "tpu": 3, "cuda": 3}


def test_bfloat16_sums_are_taken_in_float32():
    """Nine products, and the thousands of a kernel's gradient, would lose most digits in bfloat16."""
    layer = conv(4, 3, groups=4, dtype=jnp.bfloat16, name="conv")
    x = jax.random.normal(jax.random.key(0), (16, 16, 16, 4)).astype(jnp.bfloat16)
    variables = layer.init(jax.random.key(1), x)

    def loss(variables, x, apply):
        return jnp.sum(apply(variables, x).astype(jnp.float32))

    exact_layer = conv(4, 3, groups=4, dtype=jnp.float32, name="conv")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), variables)
    y, exact = jax.jit(layer.apply)(variables, x), exact_layer.apply(rounded, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
    gradient = jax.jit(jax.grad(partial(loss, apply=layer.apply)))(variables, x)["params"]["kernel"]
    exact = jax.grad(partial(loss, apply=exact_layer.apply))(rounded, x.astype(jnp.float32))["params"]["kernel"]
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, exact, rtol=2**-8, atol=2**-8 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 5, 2), (2, 2, 3, 1)])
def test_poolings_gradient_is_the_native_one_to_the_bit(shape, dtype):
    """Of equal values, as after a ReLU, the first has it; a NaN is no less than anything."""
    images = jnp.maximum(jnp.round(2 * jax.random.normal(jax.random.key(0), shape)), 0).astype(dtype)
    for x in (images, images.at[0, 1, 1, 0].set(jnp.nan), jnp.full(shape, -jnp.inf, dtype)):
        y, pull = jax.vjp(max_pool, x)
        expected, native_pull = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
        dy = jax.random.normal(jax.random.key(1), y.shape).astype(dtype)
        for got, wanted in ((y, expected), (pull(dy)[0], native_pull(dy)[0])):
            np.testing.assert_array_equal(np.float32(got), np.float32(wanted))
    both = jax.vmap(jax.grad(lambda x: jnp.sum(max_pool(x) ** 2)))(jnp.stack([images, images[::-1]]))
    np.testing.assert_array_equal(both[0], both[1][::-1])
