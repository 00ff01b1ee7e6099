"""The MobileNet trunks of the distillation papers: V1 for large images, half a V2 for small ones."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import TORCH_CONV_INIT, conv_bn, stem_options

# Width and stride of each depthwise separable convolution.
_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

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


class MobileNetV1(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/32,W/32,1024] (rounded up), after ReLU: "MobileNets" (2017).

    The student of the distillation papers on ImageNet. The official SDD code calls it MobileNetV2; its
    author says that it is this network. Convolutions keep PyTorch's own initial values.
    """

    grouped_convolutions = True  # read by sdd_jax/training/compiling.py

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        layer = partial(conv_bn, init=TORCH_CONV_INIT, dtype=self.dtype, train=train)
        x = layer(images, 32, 3, 2, name="stem_conv")
        for block, (width, stride) in enumerate(_V1_BLOCKS, start=1):
            x = layer(x, x.shape[-1], 3, stride, groups=x.shape[-1], name=f"block{block}_depthwise_conv")
            x = layer(x, width, 1, name=f"block{block}_pointwise_conv")
        return x


class InvertedResidual(nn.Module):
    """Expand 1x1, filter each channel 3x3, project 1x1: [B,H,W,C] -> [B,H/stride,W/stride,width].

    The projection is linear: no ReLU after it.
    """

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
    """images [B,H,W,C] -> feature map [B,H/16,W/16,1280] (rounded up), after ReLU.

    "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018) as the distillation papers have it
    ("mobile_half"): half of the channels, ReLU in place of ReLU6, a first bottleneck that keeps its 1x1
    expansion, a second stage without stride, and 1280 channels at the end whatever the width.
    With the "cub200" stem, a 7x7 convolution and max-pooling, the map is H/32 and W/32.
    """

    grouped_convolutions = True  # read by sdd_jax/training/compiling.py

    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        layer = partial(conv_bn, dtype=self.dtype, train=train)
        x = layer(images, 16, **stem_options(self.stem, small=(3, 2)), name="stem_conv")
        if self.stem == "cub200":
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        for stage, (expansion, width, size, first_stride) in enumerate(_V2_STAGES):
            for block in range(size):
                stride = first_stride if block == 0 else 1
                x = InvertedResidual(width, expansion, stride, self.dtype, name=f"stage{stage}_block{block}")(
                    x, train=train
                )
        return layer(x, 1280, 1, name="last_conv")
