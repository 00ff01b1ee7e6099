"""Vision transformers: "An Image is Worth 16x16 Words" (2021), in the sizes of "DeiT" (Touvron et al., ICML 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.classifier import CLASS_TOKEN, HEAD
from sdd_jax.models.layers import param_dtype

PATCH = 16  # pixels
GRID = 14  # patches a side of the images that the position embeddings are made for: 224 pixels
_INIT = nn.initializers.normal(0.02)  # DeiT's; PyTorch cuts it off at 100 standard deviations


class Attention(nn.Module):
    """Self-attention in `heads` parts: tokens [B,T,C] -> [B,T,C]."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        parts = jnp.split(_dense(3 * width, self.dtype, "qkv")(x), 3, axis=-1)
        query, key, value = (part.reshape(batch, tokens, self.heads, -1) for part in parts)
        wide = jnp.dtype(self.dtype) == jnp.bfloat16  # softmax in at least float32
        mixed = nn.dot_product_attention(query, key, value, dtype=self.dtype, force_fp32_for_softmax=wide)
        return _dense(width, self.dtype, "out")(mixed.reshape(x.shape))


class Block(nn.Module):
    """Attention, then two dense layers with a GELU between them, each normalised before and added: [B,T,C]."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + Attention(self.heads, self.dtype, name="attention")(layer_norm(self.dtype, "norm1")(x))
        y = _dense(4 * x.shape[-1], self.dtype, "dense1")(layer_norm(self.dtype, "norm2")(x))
        return x + _dense(x.shape[-1], self.dtype, "dense2")(nn.gelu(y, approximate=False))


class VisionTransformer(nn.Module):
    """images [B,H,W,C] -> patches [B,H/16,W/16,width], normalised; with a class token that too, [B,1,1,width].

    With a class token it is DeiT without the distillation token, timm's `deit_*_patch16_224` and `vit_*_patch16_224`
    and torchvision's `vit_b_16`: the head reads the class token, and that is the prediction. The patches are the map,
    and the head is applied to them as it is. Where it has been trained on the class token alone, as in all released
    weights, nobody has told it what to say of a patch: those logits are on no scale that was ever fitted, and may say
    little of what a region shows. SDD with such a teacher hands them on; a student is trained on them, and then they
    mean something.

    Without it the prediction is the mean over the patches, which are normalised before: timm's
    `vit_base_patch16_gap_224`. Then a region's logits are part of what was trained, as in a convolutional network.

    Images of another size than 224 have the position embeddings interpolated (bicubic, as timm does: released weights
    then serve at any size). ``ValueError`` for images that are not whole patches, which timm and torchvision refuse
    too. No dropout and no stochastic depth in training.
    """

    width: int
    depth: int
    heads: int
    class_token: bool = True
    stem: str = "imagenet"  # the only one
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        del train
        if images.shape[1] % PATCH or images.shape[2] % PATCH:
            size = "x".join(map(str, images.shape[1:3]))
            raise ValueError(f"a vision transformer needs images of whole patches of {PATCH} pixels, got {size}")
        stored, first = param_dtype(self.dtype), int(self.class_token)  # where the patches begin
        options = {"dtype": self.dtype, "param_dtype": stored, "kernel_init": _INIT}
        patches = (PATCH, PATCH)
        x = nn.Conv(self.width, patches, patches, padding="VALID", **options, name="patch_conv")(images)
        batch, height, width, channels = x.shape
        positions = self.param("positions", _INIT, (1, first + GRID**2, channels), stored)
        of_token, of_patches = jnp.split(positions, [first], axis=1)
        grid = of_patches.reshape(1, GRID, GRID, channels)
        if (height, width) != (GRID, GRID):
            grid = jax.image.resize(grid, (1, height, width, channels), "cubic")
        x = (x + grid.astype(self.dtype)).reshape(batch, height * width, channels)
        if first:
            token = (self.param("class_token", _INIT, (1, 1, channels), stored) + of_token).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, channels)), x], axis=1)
        for number in range(self.depth):
            x = Block(self.heads, self.dtype, name=f"block{number}")(x)
        token, x = jnp.split(layer_norm(self.dtype, "norm")(x), [first], axis=1)
        maps = {HEAD: x.reshape(batch, height, width, channels)}
        return maps | {CLASS_TOKEN: token[:, None]} if first else maps


def layer_norm(dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """A layer normalisation with the epsilon of transformers and ConvNeXt, 1e-6; the variance in a second pass."""
    stored = param_dtype(dtype)
    return nn.LayerNorm(1e-6, dtype=dtype, param_dtype=stored, use_fast_variance=False, name=name)


def _dense(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, param_dtype=param_dtype(dtype), kernel_init=_INIT, name=name)
