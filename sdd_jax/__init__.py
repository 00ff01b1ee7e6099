"""Scale decoupled distillation in JAX: the losses, for anyone with arrays.

Importing this loads neither Flax nor a data library; networks are in ``sdd_jax.models``, data in ``sdd_jax.data``, the
training loop in ``sdd_jax.training``.
"""

from sdd_jax._version import __version__
from sdd_jax.losses import dkd_loss, kd_loss, nkd_as_released_loss, nkd_loss
from sdd_jax.sdd import complementary_mask, pool_regions, sdd_loss

__all__ = [
    "__version__",
    "complementary_mask",
    "dkd_loss",
    "kd_loss",
    "nkd_as_released_loss",
    "nkd_loss",
    "pool_regions",
    "sdd_loss",
]
