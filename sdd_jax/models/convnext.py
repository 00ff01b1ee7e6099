"""ConvNeXt trunks: "A ConvNet for the 2020s" (Liu et al., CVPR 2022)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.classifier import HEAD, LAST_STAGE
from sdd_jax.models.layers import conv, param_dtype
from sdd_jax.models.vit import layer_norm

EPSILON = 1e-6
_INIT = nn.initializers.normal(0.02)  # the released code's; PyTorch cuts it off at 100 standard deviations


class Block(nn.Module):
    """A 7x7 convolution of each channel, normalisation, two dense layers with a GELU between: [B,H,W,C], added."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, stored = x.shape[-1], param_dtype(self.dtype)
        options = {"dtype": self.dtype, "param_dtype": stored, "kernel_init": _INIT}
        y = conv(width, 7, groups=width, use_bias=True, init=_INIT, dtype=self.dtype, name="depthwise_conv")(x)
        y = layer_norm(self.dtype, "norm")(y)
        y = nn.gelu(nn.Dense(4 * width, **options, name="dense1")(y), approximate=False)
        y = nn.Dense(width, **options, name="dense2")(y)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (width,), stored)
        return x + gamma.astype(self.dtype) * y


class PooledNorm(nn.Module):
    """Layer normalisation of the mean feature, as something that is done to each location: x [B,H,W,C] -> [B,H,W,C].

    Each location is centred over its channels, and divided by the deviation of the image's mean feature: one number
    for all its locations. So the mean over the locations of what comes out is the layer normalisation of the mean.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, stored = x.shape[-1:], param_dtype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, shape, stored)
        bias = self.param("bias", nn.initializers.zeros, shape, stored)
        wide = x.astype(stored)
        variance = jnp.var(jnp.mean(wide, (1, 2), keepdims=True), -1, keepdims=True)
        centred = wide - jnp.mean(wide, -1, keepdims=True)
        return (centred * (scale * jax.lax.rsqrt(variance + EPSILON)) + bias).astype(self.dtype)


class ConvNeXt(nn.Module):
    """images [B,H,W,C] -> feature map [B,H/32,W/32,C'] (rounded down at each halving); 32 pixels a side at least.

    The released networks average the map, normalise that, and apply the head. Normalisation and averaging do not
    commute, so the map under the head is defined by what keeps their predictions: `PooledNorm`. A region's logits are
    then the head of its mean feature, centred by itself, in units of the whole image's deviation.

    The last stage is the map before that. No stochastic depth in training.
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    stem: str = "imagenet"  # the only one
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        del train
        if min(images.shape[1:3]) < 32:
            size = "x".join(map(str, images.shape[1:3]))
            raise ValueError(f"a ConvNeXt needs images of at least 32 pixels a side, got {size}")
        x = layer_norm(self.dtype, "stem_norm")(self._shrink(images, self.widths[0], 4, "stem_conv"))
        for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            if stage:
                x = layer_norm(self.dtype, f"stage{stage}_norm")(x)
                x = self._shrink(x, width, 2, f"stage{stage}_conv")
            for block in range(size):
                x = Block(self.dtype, name=f"stage{stage}_block{block}")(x)
        return {LAST_STAGE: x, HEAD: PooledNorm(self.dtype, name="norm")(x)}

    def _shrink(self, x: jax.Array, width: int, size: int, name: str) -> jax.Array:
        """One location of each square of size x size; what is left at the edges is dropped, as PyTorch does."""
        options = {"dtype": self.dtype, "param_dtype": param_dtype(self.dtype), "kernel_init": _INIT}
        return nn.Conv(width, (size, size), (size, size), padding="VALID", **options, name=name)(x)
