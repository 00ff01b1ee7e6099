"""The ShuffleNet trunks of the distillation papers: 1x1 stem, no max-pooling, three stages.

"ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (2018), with
three groups, and "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (2018),
at width 1. Convolutions keep PyTorch's own initial values.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import TORCH_CONV_INIT, conv_bn, stem_options

_layer = partial(conv_bn, init=TORCH_CONV_INIT)


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """x [..., C]: the channels of all groups in turn, the first of each, the second of each."""
    y = x.reshape(*x.shape[:-1], groups, -1)
    return jnp.swapaxes(y, -1, -2).reshape(x.shape)


def _stem(images: jax.Array, stem: str, dtype: DTypeLike, train: bool) -> jax.Array:
    options = stem_options(stem, small=(1, 1), init=TORCH_CONV_INIT)
    return conv_bn(images, 24, **options, name="stem_conv", dtype=dtype, train=train)


class ShuffleUnit(nn.Module):
    """Version 1: grouped 1x1, shuffle, 3x3 on each channel, grouped 1x1.

    [B,H,W,C] -> [B,H,W,width] with C = width, or [B,H/2,W/2,width] (rounded up) with stride 2: then
    the input, averaged over 3x3, takes its C channels of the result beside the branch.
    """

    width: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer = partial(_layer, dtype=self.dtype, train=train)
        branch = self.width - x.shape[-1] if self.stride == 2 else self.width
        inner = branch // 4
        first_groups = 1 if x.shape[-1] == 24 else 3  # the unit after the stem
        y = channel_shuffle(layer(x, inner, 1, groups=first_groups, name="conv1"), first_groups)
        y = layer(y, inner, 3, self.stride, groups=inner, name="conv2")
        y = layer(y, branch, 1, groups=3, name="conv3", relu=False)
        if self.stride == 2:
            x = nn.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # the rim counts as zeros
            return nn.relu(jnp.concatenate([y, x], axis=-1))
        return nn.relu(x + y)


class ShuffleNetV1(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/8,W/8,960] (rounded up), after ReLU; "cub200": H/16, W/16."""

    grouped_convolutions = True  # read by sdd_jax/training/compiling.py

    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = _stem(images, self.stem, self.dtype, train)
        for stage, (width, size) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            for block in range(size):
                unit = ShuffleUnit(width, 2 if block == 0 else 1, self.dtype, name=f"stage{stage}_block{block}")
                x = unit(x, train=train)
        return x


class SplitUnit(nn.Module):
    """Version 2, [B,H,W,C] -> [B,H,W,C]: the first half of the channels passes, the second is filtered."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer = partial(_layer, dtype=self.dtype, train=train)
        kept, y = jnp.split(x, 2, axis=-1)
        half = y.shape[-1]
        y = layer(y, half, 1, name="conv1")
        y = layer(y, half, 3, groups=half, name="conv2", relu=False)
        y = layer(y, half, 1, name="conv3")
        return channel_shuffle(jnp.concatenate([kept, y], axis=-1), 2)


class DownUnit(nn.Module):
    """Version 2, [B,H,W,C] -> [B,H/2,W/2,width] (rounded up): two branches, each half of the result."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer = partial(_layer, dtype=self.dtype, train=train)
        channels, half = x.shape[-1], self.width // 2
        left = layer(x, channels, 3, 2, groups=channels, name="conv1", relu=False)
        left = layer(left, half, 1, name="conv2")
        right = layer(x, half, 1, name="conv3")
        right = layer(right, half, 3, 2, groups=half, name="conv4", relu=False)
        right = layer(right, half, 1, name="conv5")
        return channel_shuffle(jnp.concatenate([left, right], axis=-1), 2)


class ShuffleNetV2(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/8,W/8,1024] (rounded up), after ReLU; "cub200": H/16, W/16."""

    grouped_convolutions = True  # read by sdd_jax/training/compiling.py

    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = _stem(images, self.stem, self.dtype, train)
        for stage, (width, size) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
            x = DownUnit(width, self.dtype, name=f"stage{stage}_block0")(x, train=train)
            for block in range(1, size + 1):
                x = SplitUnit(self.dtype, name=f"stage{stage}_block{block}")(x, train=train)
        return _layer(x, 1024, 1, name="last_conv", dtype=self.dtype, train=train)
