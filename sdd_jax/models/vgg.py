"""VGG trunks with batch normalisation: "Very Deep Convolutional Networks" (2015).

`VGG` is the network of the distillation papers: three max-poolings and an affine head over the mean,
as in "Contrastive Representation Distillation" (2020). `TorchvisionVGG` is torchvision's: five
max-poolings and two dense layers before the head.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import Affine, BatchNorm, conv, small_normal_affine_init
from sdd_jax.regions import average_grid

_WIDTHS = (64, 128, 256, 512, 512)


def _block(x: jax.Array, block: int, size: int, *, batch_norm: bool, dtype: DTypeLike, train: bool) -> jax.Array:
    """`size` 3x3 convolutions with ReLU; called within a module, whose parameters they are."""
    for layer in range(size):
        x = conv(_WIDTHS[block], use_bias=True, dtype=dtype, name=f"block{block}_conv{layer}")(x)
        if batch_norm:
            x = BatchNorm(dtype, name=f"block{block}_bn{layer}")(x, train=train)
        x = nn.relu(x)
    return x


def _pool(x: jax.Array, smallest: int) -> jax.Array:
    """2x2 max-pooling; an odd last row or column is dropped, as PyTorch's does."""
    if min(x.shape[1:3]) < 2:
        raise ValueError(f"images are too small for a VGG: it needs at least {smallest} pixels a side")
    return nn.max_pool(x, (2, 2), strides=(2, 2))


class VGG(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/8,W/8,512] (rounded down), after ReLU.

    Images of exactly 64 rows are pooled once more before the last block, as the official code does:
    H/16 and W/16. At every other size, 224 included, the last two blocks share one resolution.
    """

    block_sizes: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        pooled = (0, 1, 2, 3) if images.shape[1] == 64 else (0, 1, 2)
        for block, size in enumerate(self.block_sizes):
            x = _block(x, block, size, batch_norm=True, dtype=self.dtype, train=train)
            if block in pooled:
                x = _pool(x, 2 ** len(pooled))
        return x


class TorchvisionVGG(nn.Module):
    """images [B,H,W,C] -> feature map [B,1,1,4096], after ReLU.

    torchvision's head is not affine over locations: it averages its map onto 7x7 and flattens that
    into two dense layers. What remains under an affine head is one vector, so the logit map has one
    location and every region of it says the same: as a teacher, this network gives what plain
    distillation has. No dropout in training, which torchvision puts after both dense layers.
    """

    block_sizes: tuple[int, ...]
    batch_norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for block, size in enumerate(self.block_sizes):
            x = _block(x, block, size, batch_norm=self.batch_norm, dtype=self.dtype, train=train)
            x = _pool(x, 2 ** len(self.block_sizes))
        x = average_grid(x, 7).transpose(0, 3, 1, 2)  # channels first, the order of PyTorch's flattening
        x = x.reshape(x.shape[0], 1, 1, -1).astype(self.dtype)
        for name in ("dense0", "dense1"):
            x = nn.relu(Affine(4096, small_normal_affine_init, self.dtype, name=name)(x)).astype(self.dtype)
        return x
