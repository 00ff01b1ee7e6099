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

from sdd_jax.models import layers
from sdd_jax.models.layers import TORCH_CONV_INIT, BatchNorm, stem_conv

conv = partial(layers.conv, init=TORCH_CONV_INIT)


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """x [..., C]: the channels of all groups in turn, the first of each, the second of each."""
    y = x.reshape(*x.shape[:-1], groups, -1)
    return jnp.swapaxes(y, -1, -2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """Version 1: grouped 1x1, shuffle, 3x3 on each channel, grouped 1x1.

    [B,H,W,C] -> [B,H,W,width] with C = width, or [B,H/2,W/2,width] (rounded up) with stride 2: then
    the input, averaged over 3x3, takes its C channels of the result beside the branch.
    """

    width: int
    stride: int
    groups: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        branch = self.width - x.shape[-1] if self.stride == 2 else self.width
        inner = branch // 4
        first_groups = 1 if x.shape[-1] == 24 else self.groups  # the unit after the stem
        y = conv(inner, 1, groups=first_groups, dtype=self.dtype, name="conv1")(x)
        y = channel_shuffle(nn.relu(BatchNorm(self.dtype, name="bn1")(y, train=train)), first_groups)
        y = conv(inner, 3, self.stride, groups=inner, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(BatchNorm(self.dtype, name="bn2")(y, train=train))
        y = conv(branch, 1, groups=self.groups, dtype=self.dtype, name="conv3")(y)
        y = BatchNorm(self.dtype, name="bn3")(y, train=train)
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
        x = stem_conv(24, self.stem, small=(1, 1), init=TORCH_CONV_INIT, dtype=self.dtype)(images)
        x = nn.relu(BatchNorm(self.dtype, name="stem_bn")(x, train=train))
        for stage, (width, size) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            for block in range(size):
                unit = ShuffleUnit(width, 2 if block == 0 else 1, dtype=self.dtype, name=f"stage{stage}_block{block}")
                x = unit(x, train=train)
        return x


class SplitUnit(nn.Module):
    """Version 2, [B,H,W,C] -> [B,H,W,C]: the first half of the channels passes, the second is filtered."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        kept, y = jnp.split(x, 2, axis=-1)
        half = y.shape[-1]
        y = conv(half, 1, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(BatchNorm(self.dtype, name="bn1")(y, train=train))
        y = conv(half, 3, groups=half, dtype=self.dtype, name="conv2")(y)
        y = BatchNorm(self.dtype, name="bn2")(y, train=train)
        y = conv(half, 1, dtype=self.dtype, name="conv3")(y)
        y = nn.relu(BatchNorm(self.dtype, name="bn3")(y, train=train))
        return channel_shuffle(jnp.concatenate([kept, y], axis=-1), 2)


class DownUnit(nn.Module):
    """Version 2, [B,H,W,C] -> [B,H/2,W/2,width] (rounded up): two branches, each half of the result."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels, half = x.shape[-1], self.width // 2
        left = conv(channels, 3, 2, groups=channels, dtype=self.dtype, name="conv1")(x)
        left = BatchNorm(self.dtype, name="bn1")(left, train=train)
        left = conv(half, 1, dtype=self.dtype, name="conv2")(left)
        left = nn.relu(BatchNorm(self.dtype, name="bn2")(left, train=train))
        right = conv(half, 1, dtype=self.dtype, name="conv3")(x)
        right = nn.relu(BatchNorm(self.dtype, name="bn3")(right, train=train))
        right = conv(half, 3, 2, groups=half, dtype=self.dtype, name="conv4")(right)
        right = BatchNorm(self.dtype, name="bn4")(right, train=train)
        right = conv(half, 1, dtype=self.dtype, name="conv5")(right)
        right = nn.relu(BatchNorm(self.dtype, name="bn5")(right, train=train))
        return channel_shuffle(jnp.concatenate([left, right], axis=-1), 2)


class ShuffleNetV2(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/8,W/8,1024] (rounded up), after ReLU; "cub200": H/16, W/16."""

    grouped_convolutions = True  # read by sdd_jax/training/compiling.py

    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = stem_conv(24, self.stem, small=(1, 1), init=TORCH_CONV_INIT, dtype=self.dtype)(images)
        x = nn.relu(BatchNorm(self.dtype, name="stem_bn")(x, train=train))
        for stage, (width, size) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
            x = DownUnit(width, self.dtype, name=f"stage{stage}_block0")(x, train=train)
            for block in range(1, size + 1):
                x = SplitUnit(self.dtype, name=f"stage{stage}_block{block}")(x, train=train)
        x = conv(1024, 1, dtype=self.dtype, name="last_conv")(x)
        return nn.relu(BatchNorm(self.dtype, name="last_bn")(x, train=train))
