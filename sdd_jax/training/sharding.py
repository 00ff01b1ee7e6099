"""Data parallelism over one mesh axis: state replicated, batches split; ``jit`` derives the rest."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or of ``devices``) along one axis, "data"."""
    return Mesh(np.asarray(devices or jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(batch: Any, mesh: Mesh) -> Any:
    """Inside ``jit``: the leading axis of every leaf is shared out over the devices."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(AXIS)))
