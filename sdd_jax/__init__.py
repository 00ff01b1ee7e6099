"""Scale decoupled distillation in JAX: the losses, for anyone with arrays. It loads neither Flax nor a data library.

Networks are in ``sdd_jax.models``, data in ``sdd_jax.data``, the training loop in ``sdd_jax.training``.
"""

from sdd_jax.batch_relations import dist_loss
from sdd_jax.losses import dkd_loss, kd_loss, nkd_as_released_loss, nkd_loss, ttm_loss, wttm_loss
from sdd_jax.regions import Regions, pool_regions
from sdd_jax.sdd import complementary_mask, sdd_loss
from sdd_jax.standardize import standardize_logits, standardized

__all__ = [
    "Regions",
    "__version__",
    "complementary_mask",
    "dist_loss",
    "dkd_loss",
    "kd_loss",
    "nkd_as_released_loss",
    "nkd_loss",
    "pool_regions",
    "sdd_loss",
    "standardize_logits",
    "standardized",
    "ttm_loss",
    "wttm_loss",
]

__version__ = "0.1.0"
