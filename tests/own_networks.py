"""Networks that the package does not have, as a user would bring them: Linen, NNX, a plain function."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from sdd_jax.models import Classifier, FunctionNetwork, LogitMapClassifier
from sdd_jax.models.layers import torch_affine_init


class VisionTransformer(nn.Module):
    """A small vision transformer without a class token; its patch grid is the feature map."""

    patch: int = 8
    width: int = 32
    depth: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, strides=size, dtype=self.dtype, name="patches")(images)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height * width, channels)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, height * width, channels))
        for block in range(self.depth):
            y = nn.LayerNorm(name=f"norm{block}_0")(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4, name=f"attention{block}")(y)
            y = nn.LayerNorm(name=f"norm{block}_1")(x)
            y = nn.gelu(nn.Dense(2 * channels, name=f"dense{block}_0")(y))
            y = nn.Dropout(0.1, deterministic=not train)(y)
            x = x + nn.Dense(channels, name=f"dense{block}_1")(y)
        return nn.LayerNorm(name="norm")(x).reshape(batch, height, width, channels)


def vit(*, num_classes, stem, dtype):
    del stem
    return Classifier(VisionTransformer(dtype=dtype), num_classes, torch_affine_init, dtype)


class NNXConvNet(nnx.Module):
    """Convolution, batch normalisation and a 1x1 convolution that is the head: a logit map."""

    def __init__(self, channels, num_classes, rngs):
        self.conv = nnx.Conv(channels, 16, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Conv(16, num_classes, (1, 1), rngs=rngs)

    def __call__(self, images, *, train):
        return self.head(nnx.relu(self.norm(self.conv(images), use_running_average=not train)))


def nnx_convnet(*, num_classes, stem, dtype):
    del stem, dtype
    return LogitMapClassifier(nnx.bridge.to_linen(NNXConvNet, 1, num_classes), num_classes)


def _init(key, images, num_classes):
    fan_in = 64 * images.shape[-1]
    return {"weights": jax.random.normal(key, (fan_in, num_classes)) / fan_in**0.5, "bias": jnp.zeros(num_classes)}


def _apply(params, images):
    """A linear classifier of every 8x8 patch."""
    batch, height, width, channels = images.shape
    patches = images.reshape(batch, height // 8, 8, width // 8, 8, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, height // 8, width // 8, -1) @ params["weights"] + params["bias"]


def plain_function(*, num_classes, stem, dtype):
    del stem, dtype

    def init(key, images):
        return _init(key, images, num_classes)

    return LogitMapClassifier(FunctionNetwork(init, _apply), num_classes)


def not_a_network(**arguments):
    return lambda images: images


def of_three_classes(**arguments):
    return vit(**arguments | {"num_classes": 3})


def without_stem(num_classes, dtype):
    return vit(num_classes=num_classes, stem=None, dtype=dtype)


CONSTANT = 3
