"""VGG trunks: "Very Deep Convolutional Networks" (2015), with batch normalisation unless it is turned off."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.classifier import HEAD, stage
from sdd_jax.models.layers import Affine, conv, conv_bn, small_normal_affine_init
from sdd_jax.models.pooling import max_pool
from sdd_jax.regions import average_grid

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """images [B,H,W,C] -> feature map, after ReLU. Poolings drop an odd last row or column, as PyTorch's do.

    "cifar" and "cub200": [B,H/8,W/8,512], as in "Contrastive Representation Distillation" (2020). Images of exactly
    64 rows are pooled once more before the last block, as the official code does: H/16 and W/16. At every other
    size, 224 included, the last two blocks share one resolution.

    "imagenet": [B,1,1,4096], torchvision's network, which averages its map onto 7x7 and flattens that into two dense
    layers: under the head is one vector, so the logit map has one location and every region of it says the same.
    No dropout in training, which torchvision puts after both dense layers.

    The first block is stage 0; each block's map is the one before its pooling.
    """

    block_sizes: tuple[int, ...]
    batch_norm: bool = True
    stem: str = "cifar"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        x, maps = images, {}
        poolings = 5 if self.stem == "imagenet" else 4 if images.shape[1] == 64 else 3
        for block, size in enumerate(self.block_sizes):
            before = x
            for layer in range(size):
                name = f"block{block}_conv{layer}"
                options = {"use_bias": True, "dtype": self.dtype, "name": name}
                if self.batch_norm:
                    before = conv_bn(x, _WIDTHS[block], relu=False, train=train, **options)
                else:
                    before = conv(_WIDTHS[block], **options)(x)
                x = nn.relu(before)
            maps |= {stage(block): x, stage(block, before_relu=True): before}
            if block < poolings:
                if min(x.shape[1:3]) < 2:
                    raise ValueError(f"images are too small for a VGG: it needs at least {2**poolings} pixels a side")
                x = max_pool(x)
        if self.stem != "imagenet":
            return maps | {HEAD: x}
        x = average_grid(x, 7).transpose(0, 3, 1, 2)  # channels first, the order of PyTorch's flattening
        x = x.reshape(x.shape[0], 1, 1, -1).astype(self.dtype)
        for name in ("dense0", "dense1"):
            x = nn.relu(Affine(4096, small_normal_affine_init, self.dtype, name=name)(x)).astype(self.dtype)
        return maps | {HEAD: x}
