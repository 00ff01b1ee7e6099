"""The EfficientNet trunk: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), B0."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.classifier import HEAD, LAST_STAGE
from sdd_jax.models.layers import conv, conv_bn, param_dtype

# Table 1: expansion, output channels, blocks, stride of the first block, kernel size
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class Block(nn.Module):
    """Expand 1x1 unless by 1, filter each channel, weigh the channels, project 1x1: [B,H,W,C] -> [B,H',W',width].

    The weights of the channels are read from their means over the whole image: "Squeeze-and-Excitation Networks"
    (2018), down to a quarter of the block's input channels.
    """

    width: int
    expansion: int
    stride: int
    kernel_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layer = partial(conv_bn, dtype=self.dtype, train=train, relu=False)
        inner = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = nn.silu(layer(y, inner, 1, name="expand_conv"))
        y = nn.silu(layer(y, inner, self.kernel_size, self.stride, groups=inner, name="depthwise_conv"))
        mean = jnp.mean(y, (1, 2), keepdims=True, dtype=param_dtype(self.dtype)).astype(self.dtype)
        squeeze = partial(conv, kernel_size=1, use_bias=True, dtype=self.dtype)
        weights = squeeze(inner, name="excite_conv")(nn.silu(squeeze(x.shape[-1] // 4, name="squeeze_conv")(mean)))
        y = layer(y * nn.sigmoid(weights), self.width, 1, name="project_conv")
        return x + y if x.shape == y.shape else y


class EfficientNet(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/32,W/32,1280] (rounded up), after SiLU: B0, as torchvision and timm have it.

    Batch normalisation has PyTorch's epsilon and momentum, as there. Its last stage, [B,H/32,W/32,320], comes before
    the last 1x1 convolution. No dropout before the head and no stochastic depth in training.
    """

    stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
    stem: str = "imagenet"  # the only one
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        layer = partial(conv_bn, dtype=self.dtype, train=train, relu=False)
        x = nn.silu(layer(images, 32, 3, 2, name="stem_conv"))
        for stage, (expansion, width, size, first_stride, kernel_size) in enumerate(self.stages):
            for block in range(size):
                stride = first_stride if block == 0 else 1
                name = f"stage{stage}_block{block}"
                x = Block(width, expansion, stride, kernel_size, self.dtype, name=name)(x, train=train)
        return {LAST_STAGE: x, HEAD: nn.silu(layer(x, 1280, 1, name="last_conv"))}
