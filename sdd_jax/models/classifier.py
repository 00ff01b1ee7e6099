"""A classifier that shows its logits at every location: trunk, feature map, pooling, affine head.

The head is affine and pooling is an average, so the two commute: a region's logits are the head of its mean feature
and the mean of its locations' logits alike. The whole image's are so too, unless the trunk has a class token.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import Affine, AffineInit, param_dtype
from sdd_jax.regions import EVERY_SCALE, Regions, average_grid

HEAD, LAST_STAGE = "head", "last_stage"  # names of feature maps that every trunk has
CLASS_TOKEN = "class_token"  # the name of one, [B,1,1,C], that says what the whole image is


def stage(number: int, *, before_relu: bool = False) -> str:
    """The name of a stage's feature map, from 1; 0 is the stem's. Some trunks name it before its last ReLU as well."""
    return f"stage{number}_before_relu" if before_relu else f"stage{number}"


class Outputs(NamedTuple):
    """What a classifier gives for B images with K classes; all logits in at least float32.

    A cached teacher has no maps.

    Attributes:
      logits: [B,K] of the whole image.
      logit_map: [B,h,w,K] of every location of the feature map.
      region_logits: [B,R,K] of every region; None where no regions were asked for.
      feature_maps: [B,h,w,C] by name, in the compute dtype: "head", which the head is applied to, "last_stage", and
        those that the trunk names besides, such as `stage(1)`; none where there is only a logit map.
    """

    logits: jax.Array
    logit_map: jax.Array | None
    region_logits: jax.Array | None
    feature_maps: Mapping[str, jax.Array]


class Classifier(nn.Module):
    """A trunk under one affine head; `create_model` makes one by name.

    The trunk is any Linen module: `trunk(images [B,H,W,C], train=...)` gives a feature map [B,h,w,C'], or feature maps
    by name, "head" among them. "last_stage" is what SP reads: the head's map, unless the trunk names another. With a
    "class_token" [B,1,1,C'] the head of that is the prediction, and the logits of region 0, the whole image; the map
    and all other regions are of the locations.
    """

    trunk: nn.Module
    num_classes: int
    head_init: AffineInit
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, regions: Regions | None = EVERY_SCALE) -> Outputs:
        """images [B,H,W,C], floating -> `Outputs`; without `regions` it has no region logits.

        Outputs that nobody reads cost nothing under `jit`: XLA drops them.
        """
        _check_images(images)
        given = self.trunk(images, train=train)
        maps = dict(given) if isinstance(given, Mapping) else {HEAD: given}
        if HEAD not in maps:
            raise ValueError(f"a trunk's feature maps must have {HEAD!r} among them, got {', '.join(maps) or 'none'}")
        for name, found in maps.items():
            _check_map("trunk", f"feature map [B,h,w,C] called {name!r}", found, images)
        feature_map = maps[HEAD]
        maps = {LAST_STAGE: feature_map, **maps}
        head = Affine(self.num_classes, self.head_init, self.dtype, name="head")

        # Not region 0: that is an average of averages under nested pooling, which differs from the
        # mean where the grid does not tile the map. Pooled features stay in at least float32.
        whole = maps.get(CLASS_TOKEN, feature_map)
        logits = head(jnp.mean(whole, (1, 2), dtype=param_dtype(self.dtype)))
        logit_map = head(feature_map)

        if regions is None:
            return Outputs(logits, logit_map, None, maps)
        # The head goes to the grid, or to the regions, where they are fewer than the locations.
        height, width = feature_map.shape[1:3]
        grid = regions.grid(height, width)
        if (grid**2 if grid else regions.count) >= height * width:
            region_logits = regions.pool(logit_map)
        elif grid:
            region_logits = regions.pool(head(average_grid(feature_map, grid)))
        else:
            region_logits = head(regions.pool(feature_map))
        if CLASS_TOKEN in maps:
            region_logits = jnp.concatenate([logits[:, None], region_logits[:, 1:]], axis=1)
        return Outputs(logits, logit_map, region_logits, maps)


def first_rngs(key: jax.Array) -> dict[str, jax.Array]:
    """The rngs that a network's ``init`` takes: NNX modules made by ``to_linen`` ask for that of dropout here too."""
    return {"params": key, "dropout": key}


class LogitMapClassifier(nn.Module):
    """A network that gives its logit map itself: images [B,H,W,C] -> [B,h,w,num_classes].

    It is any Linen module that is called as `network(images, train=...)`. The prediction is the mean
    over all locations. One without locations gives [B,1,1,K]: every region is then the image.
    """

    network: nn.Module
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, regions: Regions | None = EVERY_SCALE) -> Outputs:
        """As `Classifier`, without feature maps."""
        _check_images(images)
        logit_map = self.network(images, train=train)
        _check_map("network", f"logit map [B,h,w,{self.num_classes}]", logit_map, images, self.num_classes)
        logit_map = logit_map.astype(param_dtype(logit_map.dtype))
        region_logits = None if regions is None else regions.pool(logit_map)
        return Outputs(jnp.mean(logit_map, (1, 2)), logit_map, region_logits, {})


class FunctionNetwork(nn.Module):
    """A pair of plain functions as a Linen module, to stand under one of the classifiers.

    init_fn(key, images) -> params, a nested dictionary of arrays; apply_fn(params, images) -> a feature map or a
    logit map, in training and evaluation alike.
    """

    init_fn: Callable[[jax.Array, jax.Array], Any]
    apply_fn: Callable[[Any, jax.Array], jax.Array]

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        del train
        return self.apply_fn(self.param("function", self.init_fn, images), images)


def _check_images(images: jax.Array) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must be [B,H,W,C], got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating and normalised, got {images.dtype}: convert them first")


def _check_map(who: str, what: str, got: Any, images: jax.Array, channels: int | None = None) -> None:
    fits = getattr(got, "ndim", None) == 4 and got.shape[0] == images.shape[0] and 0 not in got.shape
    if not fits or channels not in (None, got.shape[-1]):
        found = getattr(got, "shape", type(got).__name__)
        raise ValueError(f"the {who} must give a {what} for images {images.shape}, got {found}")
