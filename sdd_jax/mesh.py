"""Devices in two axes: "seeds", for runs that train together, and "data", over which a run's batch is divided.

Several runs share one program: their states are stacked along "seeds", and each group of devices trains its own runs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

SEEDS, DATA = "seeds", "data"


def make_mesh(devices: list[jax.Device] | None = None, *, seeds: int = 1) -> Mesh:
    """A mesh of all devices (or of ``devices``); the number of groups is the largest that divides devices and seeds.

    Those of a process stand together, so that its part of a batch is one stretch of it.
    """
    devices = devices or sorted(jax.devices(), key=lambda device: device.process_index)
    groups = math.gcd(seeds, len(devices))
    return Mesh(np.asarray(devices).reshape(groups, -1), (SEEDS, DATA), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_seed(mesh: Mesh) -> NamedSharding:
    """A leading axis with one entry for each run, along "seeds"."""
    return NamedSharding(mesh, PartitionSpec(SEEDS))


def seed_keys(seeds: Sequence[int], mesh: Mesh) -> jax.Array:
    """Each run's key, along "seeds"; made on the devices, as no process can put a key on those of another."""
    return jax.jit(lambda: jnp.stack([jax.random.key(seed) for seed in seeds]), out_shardings=by_seed(mesh))()


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays, the same in every process, on the devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def whole(leaf):  # jax.device_put would gather every process's copy to compare them
        array = np.asarray(leaf)
        places = sharding.addressable_devices_indices_map(array.shape).items()
        parts = [jax.device_put(array[index], device) for device, index in places]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, parts)

    return jax.tree.map(whole, tree)


def split_batch(batch: Any, mesh: Mesh, axes: tuple[str, ...] = (SEEDS, DATA)) -> Any:
    """Inside ``jit``: divides the leading axis of every leaf over the devices."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(axes)))


def over_seeds(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """``function(states, shared, own, count)`` in every group of devices, on its part of ``states`` and ``own``."""
    if mesh.shape[SEEDS] == 1:
        return function
    whole, part = PartitionSpec(), PartitionSpec(SEEDS)
    return jax.shard_map(
        function, mesh=mesh, in_specs=(part, whole, part, whole), out_specs=part, axis_names={SEEDS}, check_vma=False
    )


def stack(trees: list[Any]) -> Any:
    """Trees of arrays as one, with a leading axis of ``len(trees)``."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def pick(tree: Any, number: Any) -> Any:
    """Entry ``number`` of the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[number], tree)
