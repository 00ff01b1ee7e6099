"""The four-stage ResNet trunks: "Deep Residual Learning for Image Recognition" (2016).

With the "imagenet" stem they are torchvision's, so that its weights fit: the bottleneck's stride
sits in its 3x3 convolution. With "cifar" they are the ones that "Contrastive Representation
Distillation" (2020) and those after it use as teachers on CIFAR-100.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import BatchNorm, conv, stem_conv


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


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut: [B,H,W,C] -> [B,H/stride,W/stride,4*width].

    Its shortcut and its ReLU are those of `BasicBlock`.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        wide = 4 * self.width
        y = conv(self.width, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(self.dtype, name="bn1")(y, train=train))
        y = conv(self.width, 3, self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(BatchNorm(self.dtype, name="bn2")(y, train=train))
        y = conv(wide, 1, dtype=self.dtype, name="conv3")(y)
        y = BatchNorm(self.dtype, name="bn3")(y, train=train)
        if self.stride != 1 or x.shape[-1] != wide:
            x = conv(wide, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = BatchNorm(self.dtype, name="shortcut_bn")(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """images [B,H,W,C] -> feature map [B,h,w,C'], after ReLU; C' is 512, or 2048 of bottlenecks.

    h is H/32 with the "imagenet" stem (7x7 convolution, max-pooling), H/16 with "cub200" (7x7
    convolution) and H/8 with "cifar" (3x3 convolution), each rounded up.
    """

    stage_sizes: tuple[int, ...]
    bottleneck: bool = False
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = stem_conv(64, self.stem, dtype=self.dtype)(images)
        x = nn.relu(BatchNorm(self.dtype, name="stem_bn")(x, train=train))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        kind = Bottleneck if self.bottleneck else BasicBlock
        for stage, size in enumerate(self.stage_sizes, start=1):
            for block in range(size):
                x = kind(
                    width=64 * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, train=train)
        return x
