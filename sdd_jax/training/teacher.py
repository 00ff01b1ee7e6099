"""A teacher as one value, which a step asks: the network itself, or the rows of a cache.

Where the rows that a run needs fit on the device they lie there, and a step gathers its own by example and view.
Otherwise they stay in the memory-mapped files, and the rows of a chunk of steps go to the device with it.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import Dataset
from sdd_jax.data.augment import crop_flip, draw_views, normalize, num_views
from sdd_jax.data.memory import epoch_order
from sdd_jax.processes import from_first
from sdd_jax.regions import Regions
from sdd_jax.training import optim
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.teacher_cache import Cache, Layout, outputs_of_rows, slot_table, teacher_rows, unpack


class Teacher(NamedTuple):
    """Whoever answers the student's questions: a network, a cache, or nobody (``apply`` is None).

    ``apply({**arrays, **chunk(seed, step)}, batch) -> Outputs`` is called inside ``jit``.
    """

    apply: Callable[..., Any] | None = None
    arrays: Mapping[str, Any] = {}  # what it reads through the whole run
    chunk: Callable[[int, int], Mapping[str, Any]] | None = None  # what else in the chunk that starts at a step


def live_teacher(model: Any, variables: Any, regions: Regions | None) -> Teacher:
    """The network itself, in evaluation mode, on the batch's images."""

    def apply(arrays, batch):
        return model.apply(arrays, batch["image"], train=False, regions=regions)

    return Teacher(apply, variables)


def variables_hash(variables: Any) -> str:
    """SHA-256, in hex, over the name, dtype, shape and bytes of every leaf of ``variables``."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype.str} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def run_keys(dataset: Dataset, *, seed: int, epochs: int, batch_size: int) -> np.ndarray:
    """The key ``index * views + view`` at every position of a run, int64: what the jitted program will draw."""
    num_examples, views = len(dataset.train.index), num_views(dataset.pad, dataset.flip)
    end = optim.total_steps(epochs, num_examples, batch_size) * batch_size

    @jax.jit
    def draw(key, index, epoch):
        view = draw_views(key, jnp.full(num_examples, epoch), index, pad=dataset.pad, flip=dataset.flip)
        return view, epoch_order(key, epoch[None], num_examples)[0]

    key, index = jax.device_put((jax.random.key(seed), dataset.train.index))
    keys = []
    for epoch in range(math.ceil(end / num_examples)):
        view, order = jax.device_get(draw(key, index, np.int32(epoch)))
        keys.append((dataset.train.index.astype(np.int64) * views + view)[order])
    return np.concatenate(keys)[:end]


def make_compute(
    model: Any, variables: Any, dataset: Dataset, layout: Layout, dtype: Any, batch: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """``compute(index [batch], view [batch]) -> rows [batch, layout.rows, K]`` by the teacher itself."""
    split = dataset.train
    row_of = np.full(split.index.max() + 1, -1)
    row_of[split.index] = np.arange(len(split.index))
    images, variables = jax.device_put((split.images, variables))

    def rows(variables, images, row, view):
        pictures = crop_flip(images[row], view, pad=dataset.pad)
        return teacher_rows(model, variables, normalize(pictures, dataset.mean, dataset.std, dtype), layout)

    rows = jit_network(rows)

    def compute(index, view):
        assert len(index) == batch, "one shape, one program: a row depends on nothing but its image"
        row, view = jax.device_put((row_of[index].astype(np.int32), view.astype(np.int32)))
        return jax.device_get(rows(variables, images, row, view))

    return compute


def cached_teacher(
    cache: Cache,
    layout: Layout,
    dataset: Dataset,
    *,
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    steps_per_call: int,
    on_device: bool | None = None,
) -> Teacher:
    """The teacher of runs that differ in their seed alone; ``ValueError`` if ``cache`` lacks rows that they need.

    ``on_device`` says whether the rows lie on the device; None: if they fill less than half of what is free there.
    """
    kept = cache.keys()
    asked = {seed: run_keys(dataset, seed=seed, epochs=epochs, batch_size=batch_size) for seed in seeds}
    for seed, keys in asked.items():
        if missing := len(np.setdiff1d(keys, kept)):
            raise ValueError(
                f"the cache in {cache.folder} lacks {missing} of the {len(np.unique(keys))} views that this run (seed "
                f"{seed}, {epochs} epochs) needs: the cache command with this config adds them"
            )
    needed = np.unique(np.concatenate(list(asked.values())))

    def apply(arrays, batch):
        if "table" in arrays:
            slot = arrays["table"][batch["index"], batch["view"]]
        else:
            slot = batch["position"] - arrays["first"]
        rows = unpack(arrays["values"][slot], arrays["scales"][slot] if "scales" in arrays else None)
        rows = jnp.where((slot >= 0)[:, None, None], rows, jnp.nan)  # a row that is not there stops the run
        return outputs_of_rows(rows, layout)

    table = slot_table(kept, int(dataset.train.index.max()) + 1, cache.views)
    if on_device is None:
        on_device = from_first(lambda: len(needed) * cache.view_bytes < _free_bytes() / 2)
    if on_device:
        rows = cache.read(table.reshape(-1)[needed])
        return Teacher(apply, rows | {"table": slot_table(needed, *table.shape)})

    slots, size = table.reshape(-1), steps_per_call * batch_size

    def chunk(seed: int, step: int) -> dict[str, Any]:
        start = step * batch_size
        keys = asked[seed][start : start + size]
        keys = np.pad(keys, (0, size - len(keys)), mode="edge")  # a chunk's steps past the run's end are not taken
        return cache.read(slots[keys]) | {"first": np.int32(start)}

    return Teacher(apply, {}, chunk)


def _free_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # a CPU's memory is the machine's
