"""The residual trunks: ResNets of three and of four stages, and wide residual networks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.classifier import HEAD, LAST_STAGE, stage
from sdd_jax.models.layers import BatchNorm, conv, conv_bn, stem_options


class ResidualBlock(nn.Module):
    """Convolutions around a shortcut, before the ReLU that follows: [B,H,W,C] -> [B,H/stride,W/stride,C'].

    C' is the width, or four times that with a bottleneck.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer = partial(conv_bn, dtype=self.dtype, train=train)
        if self.bottleneck:
            y = layer(x, self.width, 1, name="conv1")
            y = layer(y, self.width, 3, self.stride, name="conv2")
            y = layer(y, 4 * self.width, 1, name="conv3", relu=False)
        else:
            y = layer(x, self.width, 3, self.stride, name="conv1")
            y = layer(y, self.width, 3, name="conv2", relu=False)
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            x = layer(x, y.shape[-1], 1, self.stride, name="shortcut_conv", relu=False)
        return x + y


class ResNet(nn.Module):
    """images [B,H,W,C] -> feature map [B,h,w,C'], after ReLU: "Deep Residual Learning" (2016).

    Each stage but the first halves the map, and so do the stems: "cifar" (3x3 convolution) not at all, "cub200"
    (7x7 convolution) once, "imagenet" (7x7 convolution, max-pooling) twice; halves are rounded up.

    Three stages are the networks for small images of section 4.2, four those for large ones, both as "Contrastive
    Representation Distillation" (2020) has them: its shortcuts are 1x1 convolutions where the shape changes. With
    "imagenet" the network is torchvision's: a bottleneck's stride sits in its 3x3 convolution.
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int
    bottleneck: bool = False
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        x = conv_bn(images, self.stem_width, **stem_options(self.stem), dtype=self.dtype, train=train, name="stem_conv")
        maps = {stage(0): x}
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for number, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True), start=1):
            before = x
            for block in range(size):
                stride = 2 if number > 1 and block == 0 else 1
                unit = ResidualBlock(width, stride, self.bottleneck, self.dtype, name=f"stage{number}_block{block}")
                before = unit(x, train=train)
                x = nn.relu(before)
            maps |= {stage(number): x, stage(number, before_relu=True): before}
        return maps | {HEAD: x}


class PreActivationBlock(nn.Module):
    """Normalise, ReLU, convolve, twice: [B,H,W,C] -> [B,H/stride,W/stride,width], and the first before its ReLU.

    Where the width changes, the shortcut is a 1x1 convolution of the activated input.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        before = BatchNorm(self.dtype, name="bn1")(x, train=train)
        active = nn.relu(before)
        y = conv_bn(active, self.width, 3, self.stride, name="conv1", norm="bn2", dtype=self.dtype, train=train)
        y = conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(active)
        return x + y, before


class WideResNet(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/4,W/4,64*widening] (rounded up), after ReLU.

    "Wide Residual Networks" (2016), without dropout. `depth` is 6n + 4: n blocks of two convolutions in each
    of three stages, the stem, two shortcuts and the head as the paper counts them. With the "cub200" stem,
    which the official code has for ResNets but not for these, the map is H/8 and W/8. Its last stage is the same map
    before the last batch normalisation and ReLU. "Before its ReLU", a stage's map is normalised by what follows it.

    A student of the official code collects features by calling three of the batch normalisations again, which
    moves their running statistics twice a step. That is a side effect and is not done here.
    """

    depth: int
    widening: int
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        x = conv(16, **stem_options(self.stem), dtype=self.dtype, name="stem_conv")(images)
        maps = {stage(0): x}
        for number, width in enumerate((16, 32, 64), start=1):
            for block in range((self.depth - 4) // 6):
                stride = 2 if number > 1 and block == 0 else 1
                name = f"stage{number}_block{block}"
                unit = PreActivationBlock(width * self.widening, stride, self.dtype, name=name)
                x, before = unit(x, train=train)
                if block == 0 and number > 1:
                    maps[stage(number - 1, before_relu=True)] = before
            maps[stage(number)] = x
        before = BatchNorm(self.dtype, name="final_bn")(x, train=train)
        return maps | {stage(3, before_relu=True): before, LAST_STAGE: x, HEAD: nn.relu(before)}
