"""The MobileNetV1 trunk for large images: "MobileNets" (2017).

The student of the distillation papers on ImageNet. The official SDD code calls it MobileNetV2; its
author says that it is this network. Convolutions keep PyTorch's own initial values.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import TORCH_CONV_INIT, BatchNorm, conv

# Width and stride of each depthwise separable convolution.
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/32,W/32,1024] (rounded up), after ReLU."""

    grouped_convolutions = True  # read by sdd_jax/training/compiling.py

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        def layer(x, name, features, size, stride=1, groups=1):
            x = conv(
                features, size, stride, groups=groups, init=TORCH_CONV_INIT, dtype=self.dtype, name=f"{name}_conv"
            )(x)
            return nn.relu(BatchNorm(self.dtype, name=f"{name}_bn")(x, train=train))

        x = layer(images, "stem", 32, 3, 2)
        for block, (width, stride) in enumerate(_BLOCKS, start=1):
            x = layer(x, f"block{block}_depthwise", x.shape[-1], 3, stride, groups=x.shape[-1])
            x = layer(x, f"block{block}_pointwise", width, 1)
        return x
