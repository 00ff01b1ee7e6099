"""The half-width MobileNetV2 trunk of the distillation papers ("mobile_half").

"MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), except: half of the channels,
ReLU in place of ReLU6, a first bottleneck that keeps its 1x1 expansion, a second stage without
stride, and 1280 channels at the end whatever the width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import BatchNorm, conv, stem_conv

# expansion, output channels, blocks, stride of the first block
_STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


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
        inner = x.shape[-1] * self.expansion
        y = conv(inner, 1, dtype=self.dtype, name="expand_conv")(x)
        y = nn.relu(BatchNorm(self.dtype, name="expand_bn")(y, train=train))
        y = conv(inner, 3, self.stride, groups=inner, dtype=self.dtype, name="depthwise_conv")(y)
        y = nn.relu(BatchNorm(self.dtype, name="depthwise_bn")(y, train=train))
        y = conv(self.width, 1, dtype=self.dtype, name="project_conv")(y)
        y = BatchNorm(self.dtype, name="project_bn")(y, train=train)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/16,W/16,1280] (rounded up), after ReLU.

    With the "cub200" stem, a 7x7 convolution and max-pooling, H/32 and W/32.
    """

    grouped_convolutions = True  # read by sdd_jax/training/compiling.py

    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = stem_conv(16, self.stem, small=(3, 2), dtype=self.dtype)(images)
        x = nn.relu(BatchNorm(self.dtype, name="stem_bn")(x, train=train))
        if self.stem == "cub200":
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        for stage, (expansion, width, size, stride) in enumerate(_STAGES):
            for block in range(size):
                x = InvertedResidual(
                    width=width,
                    expansion=expansion,
                    stride=stride if block == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, train=train)
        x = conv(1280, 1, dtype=self.dtype, name="last_conv")(x)
        return nn.relu(BatchNorm(self.dtype, name="last_bn")(x, train=train))
