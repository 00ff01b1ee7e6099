"""An in-memory data set as the loop's source: everything on the device, nothing renewed but an epoch's order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sdd_jax.data.arrays import (
    Dataset,
    Split,
    check_positions,
    epoch_order,
    epochs_per_chunk,
    eval_batch,
    eval_batches,
    train_batch,
)
from sdd_jax.mesh import by_seed, put, replicated, seed_keys


class MemoryData:
    """The batches of runs over ``dataset.train``, one for each of ``seeds``.

    ``batch({**shared, **run's part of own(step)}, step)`` is a function of (seed, step).
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seeds: Sequence[int],
        epochs: int,
        batch_size: int,
        steps_per_call: int,
        mesh: Mesh,
    ):
        self._dataset, self._batch_size = dataset, batch_size
        self._on_all, each = replicated(mesh), by_seed(mesh)
        self._num_examples = num_examples = len(dataset.train.index)
        check_positions(epochs, num_examples, batch_size)
        covered = epochs_per_chunk(steps_per_call, batch_size, num_examples)

        def own(keys, first_epoch):
            epochs = first_epoch + jnp.arange(covered, dtype=jnp.int32)
            order = jnp.stack([epoch_order(key, epochs, num_examples) for key in keys])
            return {"key": keys, "order": order, "first_epoch": jnp.full(len(seeds), first_epoch)}

        self._keys = seed_keys(seeds, mesh)
        self._make_own = jax.jit(own, out_shardings=each)
        self._first_epoch, self._own = -1, {}
        self.shared = put_split(dataset.train, self._on_all)

    def own(self, step: int) -> dict[str, jax.Array]:
        """Each run's key and order, ``[runs, ...]``, for the chunk that starts at ``step``; made anew once an epoch."""
        first_epoch = step * self._batch_size // self._num_examples
        if first_epoch != self._first_epoch:
            self._own = self._make_own(self._keys, put(np.int32(first_epoch), self._on_all))
            self._first_epoch = first_epoch
        return self._own

    def indices(self, seed: int, step: int) -> np.ndarray:
        """Which examples a run of ``seed`` takes in ``step``, by their numbers for good."""
        positions = step * self._batch_size + np.arange(self._batch_size)
        key, size = jax.random.key(seed), self._num_examples
        orders = {epoch: np.asarray(epoch_order(key, [epoch], size)[0]) for epoch in {*(positions // size)}}
        rows = [orders[position // size][position % size] for position in positions]
        return self._dataset.train.index[rows]

    def close(self) -> None:
        """Nothing was opened."""

    def batch_function(self, dtype: Any) -> Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
        """``batch(arrays, step)``, to be called inside ``jit``."""
        return train_batch_function(self._dataset, self._batch_size, dtype)


def train_batch_function(source: Any, batch_size: int, dtype: Any) -> Callable[..., dict[str, jax.Array]]:
    """``batch(arrays, step)`` of a ``source`` with mean, std, pad and flip, to be called inside ``jit``."""

    def batch(arrays, step):
        return train_batch(
            arrays,
            step,
            arrays["key"],
            batch_size=batch_size,
            mean=source.mean,
            std=source.std,
            pad=source.pad,
            flip=source.flip,
            dtype=dtype,
        )

    return batch


class MemoryEval:
    """A split for evaluation: in its order, the last batch padded."""

    def __init__(self, dataset: Dataset, split: Split, *, batch_size: int, mesh: Mesh):
        on_all = replicated(mesh)
        self._dataset, self._batch_size = dataset, batch_size
        self._arrays = put_split(split, on_all)
        count = eval_batches(len(split.index), batch_size)
        self._numbers = [put(np.int32(number), on_all) for number in range(count)]

    def batches(self) -> Iterator[dict[str, jax.Array]]:
        """The arrays that ``batch`` makes a batch of, for each of them."""
        return ({**self._arrays, "number": number} for number in self._numbers)

    def batch_function(self, dtype: Any) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
        """``batch(arrays)``, to be called inside ``jit``."""
        dataset, batch_size = self._dataset, self._batch_size

        def batch(arrays):
            return eval_batch(
                arrays,
                arrays["number"],
                batch_size=batch_size,
                mean=dataset.mean,
                std=dataset.std,
                pad=dataset.pad,
                dtype=dtype,
            )

        return batch


def put_split(split: Split, sharding: NamedSharding) -> dict[str, jax.Array]:
    """A split's images, labels and index on the device."""
    return put(split._asdict(), sharding)
