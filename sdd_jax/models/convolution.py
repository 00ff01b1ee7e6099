"""Convolutions, in the form that each backend is good at.

TPU and GPU have kernels for all of them. XLA's CPU backend has not: a 3x3 depthwise convolution
takes it more than ten times as long as nine shifted products, a 1x1 convolution in three groups five
times as long backward as three matrix products, and one in a single group two to four times as long
in its kernel's gradient as a matrix product. The form is chosen when a program is lowered for its
platform, so that one program means the same everywhere.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, *, feature_group_count: int, **rest: Any
) -> jax.Array:
    """`lax.conv_general_dilated` as `nn.Conv` calls it: x [B,H,W,C], kernel [n,n,C/groups,features].

    Undilated, n odd, one stride for both axes, padding n // 2 on every side. Reverse-mode
    differentiable.
    """
    native = partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        feature_group_count=feature_group_count,
        **rest,
    )
    size, _, group_size, features = kernel.shape
    if size == 1:
        products = partial(_products, feature_group_count, strides[0])
        return lax.platform_dependent(x, kernel, cpu=products, default=native)
    if group_size == 1 and features == feature_group_count:
        return lax.platform_dependent(x, kernel, cpu=partial(_shifted, strides[0]), default=native)
    return native(x, kernel)


def _products(groups: int, stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution in groups, as a matrix product for each."""
    x = x[:, ::stride, ::stride]
    blocks = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel[0, 0], groups, axis=-1), strict=True)
    return jnp.concatenate([block @ weights for block, weights in blocks], axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _shifted(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A depthwise convolution as a sum of shifted products; kernel [n,n,1,C]."""
    taps = _taps(x.astype(_sum_dtype(x)), kernel.shape[0], stride)
    return reduce(jnp.add, (tap * kernel[i, j, 0] for (i, j), tap in taps.items())).astype(x.dtype)


def _shifted_forward(stride, x, kernel):
    return _shifted(stride, x, kernel), (x, kernel)


def _shifted_backward(stride, residuals, dy):
    x, kernel = residuals
    size, dtype = kernel.shape[0], _sum_dtype(x)
    dy = dy.astype(dtype)

    # The image: dy, with stride - 1 zeros between its values, under the kernel turned half round.
    below = size - 1 - size // 2
    edges = [(below, want + size // 2 - 1 - (got - 1) * stride, stride - 1) for want, got in _sizes(x, dy)]
    spread = lax.pad(dy, jnp.zeros((), dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    height, width = x.shape[1:3]
    turned = kernel[::-1, ::-1, 0]
    shifts = (spread[:, i : i + height, j : j + width] * turned[i, j] for i in range(size) for j in range(size))
    dx = reduce(jnp.add, shifts)

    # The kernel: every tap in one pass over the image, then a sum over the batch. One pass over
    # everything would add up in sequence and lose two digits; a sum for each tap is several passes.
    taps = tuple(tap * dy for tap in _taps(x.astype(dtype), size, stride).values())
    zeros = (jnp.zeros((), dtype),) * len(taps)
    sums = lax.reduce(taps, zeros, lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)), (1, 2))
    dkernel = jnp.sum(jnp.stack(sums), axis=1).reshape(kernel.shape)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _sum_dtype(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _sizes(x: jax.Array, y: jax.Array) -> list[tuple[int, int]]:
    return list(zip(x.shape[1:3], y.shape[1:3], strict=True))


def _taps(x: jax.Array, size: int, stride: int) -> dict[tuple[int, int], jax.Array]:
    """What each of the kernel's size**2 weights sees: {(i, j): [B,ceil(H/stride),ceil(W/stride),C]}."""
    pad = size // 2
    ends = [stride * (-(-length // stride) - 1) + 1 for length in x.shape[1:3]]
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return {
        (i, j): padded[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(size) for j in range(size)
    }
