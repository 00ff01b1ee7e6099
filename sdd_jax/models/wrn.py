"""Wide residual trunks: "Wide Residual Networks" (2016), without dropout.

When the official code trains one of these as a student, it collects intermediate features by
calling three of the batch normalisations again, which moves their running statistics twice a step.
That is a side effect, not a part of the network, and is not done here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import BatchNorm, conv, stem_conv


class PreActivationBlock(nn.Module):
    """Normalise, ReLU, convolve, twice: [B,H,W,C] -> [B,H/stride,W/stride,width], no ReLU after.

    A block that changes the width has a 1x1 convolution as its shortcut, which reads the activated
    input as the first convolution does; the others pass their input on untouched.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        active = nn.relu(BatchNorm(self.dtype, name="bn1")(x, train=train))
        y = conv(self.width, 3, self.stride, dtype=self.dtype, name="conv1")(active)
        y = nn.relu(BatchNorm(self.dtype, name="bn2")(y, train=train))
        y = conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(active)
        return x + y


class WideResNet(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/4,W/4,64*widening] (rounded up), after ReLU.

    With the "cub200" stem, H/8 and W/8: the official code has none for these networks, this one is
    made as its ResNets' is. `depth` is 6n + 4: n blocks of two convolutions in each of three stages, the stem, two
    shortcuts and the head as the paper counts them.
    """

    depth: int
    widening: int
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = stem_conv(16, self.stem, dtype=self.dtype)(images)
        for stage, width in enumerate((16, 32, 64), start=1):
            for block in range((self.depth - 4) // 6):
                x = PreActivationBlock(
                    width=width * self.widening,
                    stride=2 if stage > 1 and block == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, train=train)
        return nn.relu(BatchNorm(self.dtype, name="final_bn")(x, train=train))
