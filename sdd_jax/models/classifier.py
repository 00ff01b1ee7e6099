"""A classifier that shows its logits at every location: trunk, feature map, pooling, affine head.

Scale Decoupled Distillation (CVPR 2024) compares the logits of image regions. The head is affine
and pooling is an average, so the two commute: a region's logits are the head of its mean feature
and the mean of its locations' logits alike.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.layers import Affine, AffineInit, param_dtype
from sdd_jax.sdd import average_grid, num_regions, pool_regions, shared_grid


class Outputs(NamedTuple):
    """What a classifier gives for B images with K classes; all logits in at least float32.

    logits [B,K]: of the whole image.
    logit_map [B,h,w,K]: of every location of the feature map.
    region_logits [B,R,K]: of every region of every scale, R = sum of scale**2.
    feature_map [B,h,w,C]: the trunk's output, in the compute dtype.
    """

    logits: jax.Array
    logit_map: jax.Array
    region_logits: jax.Array
    feature_map: jax.Array


class Classifier(nn.Module):
    """A trunk (images [B,H,W,C] -> feature map [B,h,w,C']) under one affine head.

    `create_model` makes one by name.
    """

    trunk: nn.Module
    num_classes: int
    head_init: AffineInit
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        scales: tuple[int, ...] = (1, 2, 4),
        pooling: str = "direct",
    ) -> Outputs:
        """images [B,H,W,C], floating -> `Outputs`; `scales` and `pooling` as in `pool_regions`.

        Outputs that nobody reads cost nothing under `jit`: XLA drops them.
        """
        if images.ndim != 4:
            raise ValueError(f"images must be [B,H,W,C], got shape {images.shape}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be floating and normalised, got {images.dtype}: convert them first")
        feature_map = self.trunk(images, train=train)
        head = Affine(self.num_classes, self.head_init, self.dtype, name="head")

        # Not region 0: that is an average of averages under nested pooling, which differs from the
        # mean where the grid does not tile the map. Pooled features stay in at least float32.
        logits = head(jnp.mean(feature_map, (1, 2), dtype=param_dtype(self.dtype)))
        logit_map = head(feature_map)

        height, width = feature_map.shape[1:3]
        grid = shared_grid(height, width, scales, pooling)
        needed = grid**2 if grid else num_regions(scales)
        if needed >= height * width:
            region_logits = pool_regions(logit_map, scales, pooling=pooling)
        elif grid:
            cells = head(average_grid(feature_map, grid))
            region_logits = pool_regions(cells, scales, pooling=pooling)
        else:
            region_logits = head(pool_regions(feature_map, scales, pooling=pooling))
        return Outputs(logits, logit_map, region_logits, feature_map)
