"""Networks ready to be exported or asked for pictures, without training: variables drawn by a fixed rule."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sdd_jax import saved
from sdd_jax.data import Info
from sdd_jax.models import Classifier, create_model
from sdd_jax.models.layers import BatchNorm, conv, torch_affine_init
from sdd_jax.regions import Regions
from sdd_jax.serving.network import Served


class Trunk(nn.Module):
    """Two strided convolutions: a map of 8x8 for images of 32x32."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        for number in range(2):
            x = conv(16, 3, 2, dtype=self.dtype, name=f"conv{number}")(x)
            x = nn.relu(BatchNorm(name=f"bn{number}")(x, train=train))
        return x


def small(*, num_classes, stem, dtype):
    """A network that costs nothing, for configs: "served:small"."""
    return Classifier(Trunk(dtype), num_classes, torch_affine_init)


MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def variables(model, shape, seed=5):
    """Of ``model`` for images of ``shape``: kernels keep the scale of what passes, no statistics are trivial."""
    images = jnp.zeros((1, *shape))
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "var":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if name == "scale":
            return rng.uniform(0.4, 1.1, leaf.shape).astype(np.float32)
        fan_in = math.prod(leaf.shape[:-1]) if name == "kernel" else 100
        return (rng.standard_normal(leaf.shape) * math.sqrt(2 / fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def served(name, *, stem="cifar", size=32, channels=3, classes=7, dtype="float32"):
    """The network called ``name`` for images of ``size``."""
    shape = (size, size, channels)
    model = create_model(name, classes, stem, jnp.dtype(dtype))
    return Served(
        network=saved.Saved(Path("run"), name, stem, classes, dtype, None, model),
        variables=variables(model, shape),
        step=3,
        data_name="test_set",
        info=Info(classes, shape, 0, 0, MEAN[:channels], STD[:channels], 0, False),
        class_names=tuple(f"class {label}" for label in range(classes)),
        regions=Regions((1, 2, 4), "nested"),
    )


def images(one, count=3):
    """Raw uint8 images for it."""
    return np.random.default_rng(11).integers(0, 256, (count, *one.info.image_shape), dtype=np.uint8)


def live(one, pixels):
    """Its logits, normalised by hand and by the model as training runs it."""
    x = (pixels.astype(np.float32) / 255 - np.float32(one.info.mean)) / np.float32(one.info.std)
    return np.asarray(jax.jit(lambda v, x: one.network.model.apply(v, x, train=False).logits)(one.variables, x))
