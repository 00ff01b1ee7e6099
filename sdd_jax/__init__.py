"""Scale decoupled distillation in JAX: the losses, for anyone with arrays. It loads neither Flax nor a data library.

``train``, ``distill`` and ``load_run`` are loaded when they are first used. Networks are in ``sdd_jax.models``, data in
``sdd_jax.data``, the training loop in ``sdd_jax.training``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sdd_jax.batch_relations import dist_loss, mlkd_loss
from sdd_jax.class_relations import class_cost, ldrld_loss, rld_loss, wkd_loss
from sdd_jax.losses import abkd_loss, dkd_loss, kd_loss, nkd_as_released_loss, nkd_loss, ttm_loss, wttm_loss
from sdd_jax.regions import Regions, pool_regions
from sdd_jax.sdd import complementary_mask, sdd_loss
from sdd_jax.standardize import standardize_logits, standardized

if TYPE_CHECKING:
    from sdd_jax.from_python import distill, load_run, train

__all__ = [
    "Regions",
    "__version__",
    "abkd_loss",
    "class_cost",
    "complementary_mask",
    "distill",
    "dist_loss",
    "dkd_loss",
    "kd_loss",
    "ldrld_loss",
    "load_run",
    "mlkd_loss",
    "nkd_as_released_loss",
    "nkd_loss",
    "pool_regions",
    "rld_loss",
    "sdd_loss",
    "standardize_logits",
    "standardized",
    "train",
    "ttm_loss",
    "wkd_loss",
    "wttm_loss",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("distill", "load_run", "train"):
        return getattr(importlib.import_module("sdd_jax.from_python"), name)
    raise AttributeError(f"module 'sdd_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
