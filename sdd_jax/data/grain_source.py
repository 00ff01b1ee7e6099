"""Batches of a data set on disk: Grain reads ahead, decodes in threads or processes, and feeds the device."""

import functools
import gc
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdd_jax.data.memory import check_positions
from sdd_jax.data.streamed import StreamedDataset, StreamedSplit, eval_batch, eval_example, train_batch, train_example
from sdd_jax.mesh import DATA, SEEDS, seed_keys
from sdd_jax.processes import end_second_script, end_with_parent, processors

AHEAD = 2  # batches that wait on the device
WORTH_A_PROCESS = 500  # images of an evaluation: about as many are decoded while a process starts
MOST_THREADS = 16


class GrainData:
    """As ``MemoryData``, in the order of Grain's shuffle; every process reads its stretch of a batch.

    Only batches read ahead are kept between steps: a run that goes on from step s reads from there.
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
        if processes > 1 and mesh.shape[SEEDS] > 1:
            raise ValueError(f"several seeds of images on disk train in one process, got {processes} processes")
        self._dataset, self._batch_size = dataset, batch_size
        runs = []
        for seed in seeds:
            example = functools.partial(train_example, dataset=dataset, seed=seed)
            examples = _rows(dataset, seed).map_with_index(example)
            runs.append(examples.batch(batch_size // processes)[share::processes])
        self._batches = grain.experimental.ZipMapDataset(runs).map(
            lambda parts: {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        )
        self._sharding = NamedSharding(mesh, PartitionSpec(SEEDS, DATA))
        self._keys = seed_keys(seeds, mesh)
        self._next = -1
        self._iterator: grain.DatasetIterator | None = None

    def own(self, step: int) -> dict[str, jax.Array]:
        """Each run's key and batch, ``[runs, ...]``."""
        if self._iterator is None or step != self._next:
            self.close()
            self._iterator = _start(self._batches[step:], self._dataset.workers, self._sharding)
        self._next = step + 1
        return {"key": self._keys, **_take(self._iterator)}

    def indices(self, seed: int, step: int) -> np.ndarray:
        positions = step * self._batch_size + np.arange(self._batch_size)
        return self._dataset.train.index[order_rows(self._dataset, seed, positions)]

    def batch_function(self, dtype: Any) -> Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
        return functools.partial(train_batch, source=self._dataset, dtype=dtype)

    def close(self) -> None:
        if self._iterator is not None:
            _end(self._iterator)
        self._iterator = None


class GrainEval:
    """A split for evaluation, in its order, padded to whole batches; as ``MemoryEval``."""

    def __init__(self, dataset: StreamedDataset, split: StreamedSplit, *, batch_size: int, mesh: Mesh):
        self._dataset = dataset
        share, processes = jax.process_index(), jax.process_count()
        example = functools.partial(eval_example, dataset=dataset, split=split)
        self._count = -(-len(split.index) // batch_size)
        examples = grain.MapDataset.range(self._count * batch_size).map(example)
        self._batches = examples.batch(batch_size // processes)[share::processes]
        self._sharding = NamedSharding(mesh, PartitionSpec((SEEDS, DATA)))
        self._workers = min(dataset.workers, len(split.index) // processes // WORTH_A_PROCESS)

    def batches(self) -> Iterator[dict[str, jax.Array]]:
        iterator = _start(self._batches, self._workers, self._sharding)
        try:
            for _ in range(self._count):
                yield _take(iterator)
        finally:
            _end(iterator)

    def batch_function(self, dtype: Any) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
        return functools.partial(eval_batch, source=self._dataset, dtype=dtype)


def order_rows(dataset: StreamedDataset, seed: int, positions: np.ndarray) -> np.ndarray:
    """The rows of the training split at some positions of a run of ``seed``, int64."""
    rows = _rows(dataset, seed)
    return np.array([rows[position] for position in positions.tolist()], np.int64)


def _rows(dataset: StreamedDataset, seed: int) -> grain.MapDataset:
    """Infinite stream of rows of the training split, in the order of a run of ``seed``."""
    return grain.MapDataset.range(len(dataset.train.index)).seed(seed).shuffle().repeat(None)


def _start(batches: grain.MapDataset, workers: int, sharding: NamedSharding) -> grain.DatasetIterator:
    """Reads ahead, in order: threads or processes make batches, and another thread puts them on the device."""
    threads = 1 if workers else min(processors(), MOST_THREADS)
    read = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        end_second_script()
        if not flags.FLAGS.is_parsed():  # Grain reads its own flags, which a program that uses no absl never parses
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        read = read.mp_prefetch(options, worker_init_fn=_begin)

    def put(arrays):  # copies, as a CPU's array would alias and keep the shared memory that worker processes hand over
        return jax.make_array_from_process_local_data(sharding, {name: np.array(arrays[name]) for name in arrays})

    return iter(grain.experimental.ThreadPrefetchIterDataset(read.map(put), prefetch_buffer_size=AHEAD))


def _take(iterator: grain.DatasetIterator) -> dict[str, jax.Array]:
    """The next batch. An error ends the reading and is raised anew: Grain's frames in it would keep shared memory."""
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


def _begin(number: int, workers: int) -> None:
    """Of a worker process; Grain's would wait for ever for its batch to be taken.

    A signal for the whole group, as Ctrl-C in a terminal, is the parent's: it saves first, and ends its workers itself.
    """
    del number, workers
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.SIG_IGN)
    end_with_parent()
