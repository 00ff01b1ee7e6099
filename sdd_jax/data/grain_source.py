"""A data set on disk as the loop's source: Grain reads ahead, decodes in threads or processes, and feeds the device."""

import functools
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdd_jax.data import augment
from sdd_jax.data.arrays import check_positions, eval_batches
from sdd_jax.data.streamed import EvalExample, StreamedDataset, StreamedSplit, TrainExample
from sdd_jax.mesh import DATA, SEEDS, seed_keys

AHEAD = 2  # batches that wait on the device
WORTH_A_PROCESS = 500  # images of an evaluation: about as many are decoded while a process starts
MOST_THREADS = 16


class GrainData:
    """The batches of runs over ``dataset.train``, one for each of ``seeds``, as ``MemoryData`` is for sets in memory.

    Order: position p of a run is entry ``p % N`` of a permutation that is a function of (seed, ``p // N``), Grain's
    shuffle. Every process reads its share of a batch. Nothing is kept between steps but what was read ahead: a run that
    goes on from step s reads from there.
    """

    shared: dict[str, jax.Array] = {}

    def __init__(
        self,
        dataset: StreamedDataset,
        *,
        seeds: Sequence[int],
        epochs: int,
        batch_size: int,
        steps_per_call: int,
        mesh: Mesh,
    ):
        if steps_per_call != 1:
            raise ValueError(f"images that are read from disk need steps_per_call 1, got {steps_per_call}")
        check_positions(epochs, len(dataset.train.index), batch_size)
        share, processes = jax.process_index(), jax.process_count()
        if batch_size % processes:
            raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {batch_size}")
        self._dataset, self._mesh, self._batch_size = dataset, mesh, batch_size
        runs = [_positions(dataset, seed)[share::processes] for seed in seeds]
        batches = [run.batch(batch_size // processes) for run in runs]
        self._batches = grain.experimental.ZipMapDataset(batches).map(_stack)
        if processes > 1 and mesh.shape[SEEDS] > 1:
            raise ValueError(f"several seeds of images on disk train in one process, got {processes} processes")
        self._keys = seed_keys(seeds, mesh)
        self._next = -1
        self._iterator: grain.DatasetIterator | None = None

    def own(self, step: int) -> dict[str, jax.Array]:
        """Each run's key, and its batch of ``step``, ``[runs, B, ...]``."""
        if self._iterator is None or step != self._next:
            self.close()
            self._iterator = _start(self._batches[step:], self._dataset.workers, self._put)
        self._next = step + 1
        return {"key": self._keys, **_take(self._iterator)}

    def indices(self, seed: int, step: int) -> np.ndarray:
        """Which examples a run of ``seed`` takes in ``step``, by their numbers for good."""
        rows = _rows(self._dataset, seed)
        start = step * self._batch_size
        places = np.array([rows[position] for position in range(start, start + self._batch_size)], np.int64)
        return self._dataset.train.index[places]

    def batch_function(self, dtype: Any) -> Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
        """``batch(arrays, step)``, to be called inside ``jit``."""
        return train_batch_function(self._dataset, dtype)

    def close(self) -> None:
        """Ends threads and processes."""
        if self._iterator is not None:
            _end(self._iterator)
        self._iterator = None

    def _put(self, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return _put_share(arrays, NamedSharding(self._mesh, PartitionSpec(SEEDS, DATA)), axis=1)


def train_batch_function(source: Any, dtype: Any) -> Callable[..., dict[str, jax.Array]]:
    """``batch(arrays, step)`` of a ``source`` with mean and std: only normalisation is left to do."""

    def batch(arrays, step):
        del step
        rest = {name: array for name, array in arrays.items() if name not in ("key", "image")}
        valid = jnp.ones(rest["label"].shape, bool)
        return {"image": augment.normalize(arrays["image"], source.mean, source.std, dtype), **rest, "valid": valid}

    return batch


class GrainEval:
    """A split for evaluation, in its order, padded to whole batches; as ``MemoryEval`` is for sets in memory."""

    def __init__(self, dataset: StreamedDataset, split: StreamedSplit, *, batch_size: int, mesh: Mesh):
        self._dataset, self._mesh = dataset, mesh
        share, processes = jax.process_index(), jax.process_count()
        example = EvalExample(split, dataset.augment, dataset.image_size, dataset.num_classes, seed=0)
        self._count = eval_batches(len(split.index), batch_size)
        positions = grain.MapDataset.range(self._count * batch_size)[share::processes]
        self._batches = positions.map(example).batch(batch_size // processes)
        self._workers = min(dataset.workers, len(split.index) // processes // WORTH_A_PROCESS)

    def batches(self) -> Iterator[dict[str, jax.Array]]:
        """The batches' arrays, each once."""
        sharding = NamedSharding(self._mesh, PartitionSpec((SEEDS, DATA)))
        iterator = _start(self._batches, self._workers, functools.partial(_put_share, sharding=sharding, axis=0))
        try:
            for _ in range(self._count):
                yield _take(iterator)
        finally:
            _end(iterator)

    def batch_function(self, dtype: Any) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
        """``batch(arrays)``, to be called inside ``jit``."""
        mean, std = self._dataset.mean, self._dataset.std
        return lambda arrays: {**arrays, "image": augment.normalize(arrays["image"], mean, std, dtype)}


def _positions(dataset: StreamedDataset, seed: int) -> grain.MapDataset:
    """The endless row of a run's examples, position by position."""
    split = dataset.train
    example = TrainExample(split, dataset.augment, dataset.image_size, dataset.num_classes, seed)
    return _rows(dataset, seed).map_with_index(example)


def _rows(dataset: StreamedDataset, seed: int) -> grain.MapDataset:
    """The endless row of a run's examples as places in the split."""
    return grain.MapDataset.range(len(dataset.train.index)).seed(seed).shuffle().repeat(None)


def _stack(runs: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def _put_share(arrays: dict[str, np.ndarray], sharding: NamedSharding, axis: int) -> dict[str, jax.Array]:
    """This process's share of a batch, which is shared out along ``axis``, onto its devices.

    The copy: worker processes hand over shared memory, which a CPU's array would alias, and hold on to.
    """

    def put(array):
        whole = tuple(size * (jax.process_count() if n == axis else 1) for n, size in enumerate(array.shape))
        return jax.make_array_from_process_local_data(sharding, np.array(array), whole)

    return {name: put(array) for name, array in arrays.items()}


def _start(
    batches: grain.MapDataset, workers: int, put: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]
) -> grain.DatasetIterator:
    """Reads ahead: batches are made in threads or in processes, in the same order, and put on the device in another."""
    threads = 1 if workers else min(processors(), MOST_THREADS)
    read = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain asks its own flags, which a program that uses no absl never parses
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        read = read.mp_prefetch(options, worker_init_fn=_end_with_parent)
    return iter(grain.experimental.ThreadPrefetchIterDataset(read.map(put), prefetch_buffer_size=AHEAD))


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _take(iterator: grain.DatasetIterator) -> dict[str, jax.Array]:
    """The next batch; an image that cannot be read ends what reads ahead, and its error comes without Grain's frames.

    They would keep shared memory alive beyond the end of the process.
    """
    try:
        return next(iterator)
    except (ValueError, OSError, MemoryError) as error:
        kind, message = type(error), str(error)
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        kind = ChildProcessError
        message = f"a process that decodes images was lost: {str(error).partition('. ')[0]}"
    _end(iterator)
    raise kind(message)


def _end(iterator: grain.DatasetIterator) -> None:
    """Ends threads and processes, and frees the shared memory that the last exception's frames hold on to."""
    iterator.close()
    gc.collect()


def _end_with_parent(number: int, workers: int) -> None:
    """In a worker process: it ends when the run is killed; Grain's would wait for ever for someone to take a batch."""
    del number, workers
    parent = multiprocessing.parent_process()

    def watch():
        assert parent is not None  # this runs in no other process
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
