"""Batches of a data set in memory, made on the device inside ``jit``, so that the host does nothing per step.

The order is a contract, in docs/layout.md: no batch is partial, none is dropped, each example comes once an epoch.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from sdd_jax.data import augment
from sdd_jax.data.dataset import Dataset, Split
from sdd_jax.mesh import by_seed, put, replicated, seed_keys

# Views are drawn from fold_in(key, epoch); epochs stay below this number, so the two streams never meet.
_ORDER_STREAM = 0x7FFF_FFFF


def check_positions(epochs: int, num_examples: int, batch_size: int) -> None:
    """``ValueError`` if the positions of a run, ``ceil(epochs * N / B) * B``, do not fit in int32."""
    positions = -(-epochs * num_examples // batch_size) * batch_size
    if positions >= 2**31:
        need = f"{epochs} epochs of {num_examples} examples need {positions} positions"
        raise ValueError(f"{need}: at most {2**31 - 1} fit int32")


def epochs_per_chunk(steps: int, batch_size: int, num_examples: int) -> int:
    """The most epochs that ``steps`` consecutive steps can touch, wherever they start."""
    latest_start = num_examples - math.gcd(batch_size, num_examples)
    return -(-(latest_start + steps * batch_size) // num_examples)


@functools.partial(jax.jit, static_argnames="num_examples")
def epoch_order(key: jax.Array, epochs: ArrayLike, num_examples: int) -> jax.Array:
    """The permutation of the examples in each of the epochs, int32 ``[E, N]``; 50,000 take about 15 ms on a CPU."""
    stream = jax.random.fold_in(key, _ORDER_STREAM)
    keys = jax.vmap(lambda epoch: jax.random.fold_in(stream, epoch))(jnp.asarray(epochs, jnp.int32))
    return jax.vmap(jax.random.permutation, (0, None))(keys, jnp.arange(num_examples, dtype=jnp.int32))


def locate(
    positions: jax.Array, num_examples: int, first_epoch: ArrayLike, order: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The epoch and the row of the split for each of the positions, int32 ``[B]``, of a run.

    ``order`` has the permutations of ``first_epoch`` and the next ones; a row of an epoch that it does not hold is N.
    """
    epochs = positions // num_examples
    held = epochs - first_epoch
    order = jnp.asarray(order)
    rows = jnp.where((held >= 0) & (held < order.shape[0]), order[held, positions % num_examples], num_examples)
    return epochs, rows


def train_batch(
    arrays: dict[str, jax.Array], step: ArrayLike, *, source: Any, batch_size: int, dtype: DTypeLike = jnp.float32
) -> dict[str, jax.Array]:
    """The augmented batch of a step; ``arrays`` are the split's and the run's key, order and first_epoch."""
    position = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    epochs, rows = locate(position, arrays["labels"].shape[0], arrays["first_epoch"], arrays["order"])
    index = arrays["index"][rows]
    view = augment.draw_views(arrays["key"], epochs, index, pad=source.pad, flip=source.flip)
    image = augment.crop_flip(arrays["images"][rows], view, pad=source.pad)
    return {
        "image": augment.normalize(image, source.mean, source.std, dtype),
        # A stale order must not train on wrong examples unnoticed: the label -1 makes the loss NaN, which stops a run.
        "label": jnp.take(arrays["labels"], rows, mode="fill", fill_value=-1),
        "index": index,
        "row": rows,
        "view": view,
        "position": position,
        "valid": jnp.ones(batch_size, bool),
    }


def eval_batch(
    arrays: dict[str, jax.Array], *, source: Any, batch_size: int, dtype: DTypeLike = jnp.float32
) -> dict[str, jax.Array]:
    """Evaluation batch ``arrays["number"]``; rows past the end repeat the last example, with ``valid`` False."""
    examples = arrays["labels"].shape[0]
    positions = jnp.asarray(arrays["number"], jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    rows = jnp.minimum(positions, examples - 1)
    return {
        "image": augment.normalize(arrays["images"][rows], source.mean, source.std, dtype),
        "label": arrays["labels"][rows],
        "index": arrays["index"][rows],
        "view": jnp.full(batch_size, augment.identity_view(source.pad), jnp.int32),
        "valid": positions < examples,
    }


class MemoryData:
    """The training batches of runs over ``dataset.train``, one run for each of ``seeds``.

    ``batch_function(dtype)`` gives ``batch(arrays, step)``, to be called inside ``jit``; a run's arrays are ``shared``
    and its part of ``own(step)``, and its batch is a function of (seed, step).
    """

    def __init__(
        self, dataset: Dataset, *, seeds: Sequence[int], epochs: int, batch_size: int, steps_per_call: int, mesh: Mesh
    ):
        self._dataset, self._batch_size = dataset, batch_size
        self._num_examples = num_examples = len(dataset.train.index)
        check_positions(epochs, num_examples, batch_size)
        covered = epochs_per_chunk(steps_per_call, batch_size, num_examples)

        def own(keys, first_epoch):
            epochs = first_epoch + jnp.arange(covered, dtype=jnp.int32)
            order = jnp.stack([epoch_order(key, epochs, num_examples) for key in keys])
            return {"key": keys, "order": order, "first_epoch": jnp.full(len(seeds), first_epoch)}

        self._keys, self._on_all = seed_keys(seeds, mesh), replicated(mesh)
        self._make_own = jax.jit(own, out_shardings=by_seed(mesh))
        self._first_epoch, self._own = -1, {}
        self.shared = put(dataset.train._asdict(), self._on_all)

    def own(self, step: int) -> dict[str, jax.Array]:
        """Each run's key and order, ``[runs, ...]``, for the chunk that starts at ``step``; renewed once an epoch."""
        first_epoch = step * self._batch_size // self._num_examples
        if first_epoch != self._first_epoch:
            self._own = self._make_own(self._keys, put(np.int32(first_epoch), self._on_all))
            self._first_epoch = first_epoch
        return self._own

    def indices(self, seed: int, step: int) -> np.ndarray:
        """The numbers in the original set of the examples that a run of ``seed`` takes in ``step``, on the host."""
        positions = step * self._batch_size + np.arange(self._batch_size)
        epochs, places = np.divmod(positions, self._num_examples)
        touched = np.arange(epochs[0], epochs[-1] + 1)
        order = np.asarray(epoch_order(jax.random.key(seed), touched, self._num_examples))
        return self._dataset.train.index[order[epochs - epochs[0], places]]

    def close(self) -> None:
        """Nothing was opened."""

    def batch_function(self, dtype: Any) -> Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
        return functools.partial(train_batch, source=self._dataset, batch_size=self._batch_size, dtype=dtype)


class MemoryEval:
    """A split for evaluation, in its order, the last batch padded: ``batch(arrays)`` for each of ``batches()``."""

    def __init__(self, dataset: Dataset, split: Split, *, batch_size: int, mesh: Mesh):
        on_all = replicated(mesh)
        self._dataset, self._batch_size = dataset, batch_size
        self._arrays = put(split._asdict(), on_all)
        self._numbers = [put(np.int32(number), on_all) for number in range(-(-len(split.index) // batch_size))]

    def batches(self) -> Iterator[dict[str, jax.Array]]:
        return ({**self._arrays, "number": number} for number in self._numbers)

    def batch_function(self, dtype: Any) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
        return functools.partial(eval_batch, source=self._dataset, batch_size=self._batch_size, dtype=dtype)
