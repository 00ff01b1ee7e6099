"""The trunks with depthwise convolutions, MobileNets and ShuffleNets, as the distillation papers have them.

All but MobileNetV2 keep PyTorch's own initial values.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.classifier import HEAD, LAST_STAGE, stage
from sdd_jax.models.layers import TORCH_CONV_INIT, conv_bn, stem_options
from sdd_jax.models.pooling import max_pool

_layer = partial(conv_bn, init=TORCH_CONV_INIT)

# Width and stride of each depthwise separable convolution.
_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
_V1_STAGES = (3, 5, 11, 13)  # the blocks that end one, those of one resolution

# expansion, output channels, blocks, stride of the first block
_V2_STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
_V2_ENDS = (1, 2, 4, 6)  # the rows above that end a stage, as mdistiller's networks count them


class MobileNetV1(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/32,W/32,1024] (rounded up), after ReLU: "MobileNets" (2017).

    The student on ImageNet. The official SDD code calls it MobileNetV2; its author says that it is this network.
    """

    stem: str = "imagenet"  # the only one
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        layer = partial(_layer, dtype=self.dtype, train=train)
        x = layer(images, 32, 3, 2, name="stem_conv")
        maps = {}
        for block, (width, stride) in enumerate(_V1_BLOCKS, start=1):
            x = layer(x, x.shape[-1], 3, stride, groups=x.shape[-1], name=f"block{block}_depthwise_conv")
            before = layer(x, width, 1, name=f"block{block}_pointwise_conv", relu=False)
            x = nn.relu(before)
            if block in _V1_STAGES:
                number = 1 + _V1_STAGES.index(block)
                maps |= {stage(number): x, stage(number, before_relu=True): before}
        return maps | {HEAD: x}


class InvertedResidual(nn.Module):
    """Expand 1x1, filter each channel 3x3, project 1x1 without ReLU: [B,H,W,C] -> [B,H/stride,W/stride,width]."""

    width: int
    expansion: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer = partial(conv_bn, dtype=self.dtype, train=train)
        inner = x.shape[-1] * self.expansion
        y = layer(x, inner, 1, name="expand_conv")
        y = layer(y, inner, 3, self.stride, groups=inner, name="depthwise_conv")
        y = layer(y, self.width, 1, name="project_conv", relu=False)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/16,W/16,1280] (rounded up), after ReLU; "cub200": H/32, W/32.

    The latter's max-pooling rounds down: of 34 pixels it leaves 1 place, of 66 pixels 2.

    "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018) as "mobile_half": half of the channels, ReLU in
    place of ReLU6, a first bottleneck that keeps its 1x1 expansion, a second stage without stride, and 1280 channels
    at the end whatever the width. Its last stage, [B,H/16,W/16,160], comes before the 1x1 convolution and has no ReLU.
    """

    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        layer = partial(conv_bn, dtype=self.dtype, train=train)
        x = layer(images, 16, **stem_options(self.stem, small=(3, 2)), name="stem_conv")
        if self.stem == "cub200":
            x = max_pool(x)
        maps = {stage(0): x}
        for part, (expansion, width, size, first_stride) in enumerate(_V2_STAGES):
            for block in range(size):
                stride = first_stride if block == 0 else 1
                unit = InvertedResidual(width, expansion, stride, self.dtype, name=f"stage{part}_block{block}")
                x = unit(x, train=train)
            if part in _V2_ENDS:
                maps[stage(1 + _V2_ENDS.index(part))] = x
        return {**maps, LAST_STAGE: x, HEAD: layer(x, 1280, 1, name="last_conv")}


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """x [..., C]: the channels of all groups in turn, the first of each, the second of each."""
    y = x.reshape(*x.shape[:-1], groups, -1)
    return jnp.swapaxes(y, -1, -2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """Version 1: grouped 1x1, shuffle, 3x3 on each channel, grouped 1x1: [B,H,W,C] -> [B,H/stride,W/stride,width].

    With stride 2 the input, averaged over 3x3, takes its C channels of the result beside the branch.
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
    """images [B,H,W,C] -> feature map [B,H/8,W/8,960] (rounded up), after ReLU; "cub200": H/16, W/16.

    "ShuffleNet" (2018), with three groups and a 1x1 stem without max-pooling.
    """

    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        stem = stem_options(self.stem, small=(1, 1), init=TORCH_CONV_INIT)
        x = conv_bn(images, 24, **stem, name="stem_conv", dtype=self.dtype, train=train)
        maps = {stage(0): x}
        for number, (width, size) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            for block in range(size):
                unit = ShuffleUnit(width, 2 if block == 0 else 1, self.dtype, name=f"stage{number}_block{block}")
                x = unit(x, train=train)
            maps[stage(number)] = x
        return maps | {HEAD: x}


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
    """images [B,H,W,C] -> feature map [B,H/8,W/8,1024] (rounded up), after ReLU; "cub200": H/16, W/16.

    "ShuffleNet V2" (2018), at width 1, with a 1x1 stem without max-pooling. Its last stage, [B,H/8,W/8,464], comes
    before the last 1x1 convolution.
    """

    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        stem = stem_options(self.stem, small=(1, 1), init=TORCH_CONV_INIT)
        x = conv_bn(images, 24, **stem, name="stem_conv", dtype=self.dtype, train=train)
        maps = {stage(0): x}
        for number, (width, size) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
            x = DownUnit(width, self.dtype, name=f"stage{number}_block0")(x, train=train)
            for block in range(1, size + 1):
                x = SplitUnit(self.dtype, name=f"stage{number}_block{block}")(x, train=train)
            maps[stage(number)] = x
        return {**maps, LAST_STAGE: x, HEAD: _layer(x, 1024, 1, name="last_conv", dtype=self.dtype, train=train)}
