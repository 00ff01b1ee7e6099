"""ResNet trunks for large images: "Deep Residual Learning for Image Recognition" (2016).

The layout is torchvision's, so that its weights fit.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import BatchNorm, conv


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, ReLU last: [B,H,W,C] -> [B,H/stride,W/stride,width].

    Where the shape changes, the shortcut is a 1x1 convolution with a batch normalisation.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(self.dtype, name="bn1")(y, train=train))
        y = conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
        y = BatchNorm(self.dtype, name="bn2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = conv(self.width, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = BatchNorm(self.dtype, name="shortcut_bn")(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/32,W/32,512] (rounded up), after ReLU."""

    stage_sizes: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = conv(64, 7, 2, dtype=self.dtype, name="stem_conv")(images)
        x = nn.relu(BatchNorm(self.dtype, name="stem_bn")(x, train=train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, size in enumerate(self.stage_sizes, start=1):
            for block in range(size):
                x = BasicBlock(
                    width=64 * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, train=train)
        return x
