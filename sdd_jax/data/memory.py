"""An in-memory data set as the loop's source: everything on the device, nothing renewed but an epoch's order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data.arrays import Dataset, Split, check_positions, epoch_order, epochs_per_chunk, train_batch


class MemoryData:
    """The batches of a run over ``dataset.train``: ``batch(arrays(step), step)`` is a function of (seed, step)."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        steps_per_call: int,
        sharding: jax.sharding.Sharding,
    ):
        self._dataset, self._batch_size, self._sharding = dataset, batch_size, sharding
        self._num_examples = num_examples = len(dataset.train.labels)
        check_positions(epochs, num_examples, batch_size)
        covered = epochs_per_chunk(steps_per_call, batch_size, num_examples)

        def order(key, first_epoch):
            return epoch_order(key, first_epoch + jnp.arange(covered, dtype=jnp.int32), num_examples)

        self._order = jax.jit(order, out_shardings=sharding)
        key = jax.device_put(jax.random.key(seed), sharding)
        self._fixed = {"key": key, **put_split(dataset.train, sharding)}
        self._first_epoch, self._ordered = -1, {}

    def arrays(self, step: int) -> dict[str, jax.Array]:
        """What ``batch`` reads for the chunk that starts at ``step``; the order is made anew once an epoch."""
        first_epoch = step * self._batch_size // self._num_examples
        if first_epoch != self._first_epoch:
            first = jax.device_put(np.int32(first_epoch), self._sharding)
            order = self._order(self._fixed["key"], first)
            self._first_epoch, self._ordered = first_epoch, {"order": order, "first_epoch": first}
        return {**self._fixed, **self._ordered}

    def batch_function(self, dtype: Any) -> Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
        """``batch(arrays, step)``, to be called inside ``jit``."""
        dataset, batch_size = self._dataset, self._batch_size

        def batch(arrays, step):
            return train_batch(
                arrays,
                step,
                arrays["key"],
                batch_size=batch_size,
                mean=dataset.mean,
                std=dataset.std,
                pad=dataset.pad,
                flip=dataset.flip,
                dtype=dtype,
            )

        return batch


def put_split(split: Split, sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """A split's images, labels and index on the device."""
    return jax.device_put(split._asdict(), sharding)
