"""Pooling of 2x2 squares, with a gradient that XLA's CPU backend is fast at."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 square: [B,H,W,C] -> [B,H//2,W//2,C]; of equal ones the first has the gradient.

    That is PyTorch's as well. XLA's CPU backend finds the gradient's places by a second pooling, of indices, and
    scatters into them: an eighth of the step of a VGG8. Here it is a comparison for each corner, to the same bits.
    """
    return nn.max_pool(x, (2, 2), (2, 2))


def _max_pool_forward(x):
    y = max_pool(x)
    return y, (x, y)


def _max_pool_backward(residuals, dy):
    return (lax.platform_dependent(*residuals, dy, cpu=_to_corners, default=_by_scatter),)


def _by_scatter(x: jax.Array, y: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient as XLA has it, which TPU and GPU are fast at."""
    del y
    return jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)[1](dy)[0]


def _to_corners(x: jax.Array, y: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of `max_pool`: dy at the first corner that is the largest, or NaN."""
    (batch, height, width, channels), (_, rows, columns, _) = x.shape, y.shape
    corners, free = [], jnp.ones(y.shape, bool)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = x[:, i : 2 * rows : 2, j : 2 * columns : 2]
        here = free & ((corner == y) | jnp.isnan(corner))
        corners.append(jnp.where(here, dy, 0))
        free = free & ~here
    squares = jnp.stack([jnp.stack(corners[:2], 3), jnp.stack(corners[2:], 3)], 2)  # [B,rows,2,columns,2,C]
    dx = squares.reshape(batch, 2 * rows, 2 * columns, channels)
    return jnp.pad(dx, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
