"""The three-stage ResNet trunks for 32x32 images, and for CUB-200 under a 7x7 stem.

"Deep Residual Learning for Image Recognition" (2016), section 4.2, with two differences that came
with "Contrastive Representation Distillation" (2020), whose teachers are used everywhere: the
shortcuts that change the shape are 1x1 convolutions, and the x4 networks are four times as wide
after a stem of twice the width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import BatchNorm, stem_conv
from sdd_jax.models.resnet import BasicBlock


class ResNetCifar(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/4,W/4,widths[2]] (rounded up), after ReLU.

    With the "cub200" stem, H/8 and W/8.
    `depth` is 6n + 2: n blocks of two convolutions in each of three stages, stem and head.
    """

    depth: int
    stem_width: int = 16
    widths: tuple[int, int, int] = (16, 32, 64)
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = stem_conv(self.stem_width, self.stem, dtype=self.dtype)(images)
        x = nn.relu(BatchNorm(self.dtype, name="stem_bn")(x, train=train))
        for stage, width in enumerate(self.widths, start=1):
            for block in range((self.depth - 2) // 6):
                x = BasicBlock(
                    width=width,
                    stride=2 if stage > 1 and block == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, train=train)
        return x
