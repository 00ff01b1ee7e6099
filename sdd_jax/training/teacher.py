"""A teacher as one value, which a step asks: the network itself, or the rows of a cache.

Where the rows that a run needs fit on the device they lie there, and a step gathers its own by example and view.
Otherwise they stay in the files, and the rows of a chunk of steps go to the device with it.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import AnyDataset, Dataset
from sdd_jax.data.augment import normalize
from sdd_jax.ensemble import mean_of_teachers
from sdd_jax.models import Outputs
from sdd_jax.processes import from_first, memory_bytes
from sdd_jax.regions import Regions
from sdd_jax.training import optim
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.teacher_cache import Cache, Layout, outputs_of_rows, slot_table, teacher_rows, unpack
from sdd_jax.training.views import keys_at, make_pictures, needed_keys


class Teacher(NamedTuple):
    """Whoever answers the student's questions: a network, a cache, or nobody (``apply`` is None).

    ``apply({**arrays, **chunk(seed, step)}, batch) -> Outputs`` is called inside ``jit``.
    """

    apply: Callable[..., Any] | None = None
    arrays: Mapping[str, Any] = {}  # what it reads through the whole run
    chunk: Callable[[int, int], Mapping[str, Any]] | None = None  # what else in the chunk that starts at a step
    name: str | None = None  # what it is called, where that is known
    digest: str | None = None  # stands for its weights, where they are known
    stores: str | None = None  # how the cache, or that of each of several teachers, keeps logits; None: none has one


def live_teacher(
    model: Any, variables: Any, regions: Regions | None, look: Callable[[Any], Any] | None = None
) -> Teacher:
    """The network itself, in evaluation mode, on ``look`` of the batch's images."""

    def apply(arrays, batch):
        images = batch["image"] if look is None else look(batch["image"])
        return model.apply(arrays, images, train=False, regions=regions)

    return Teacher(apply, variables)


def as_normalized(dataset: AnyDataset, other: AnyDataset) -> Callable[[Any], Any] | None:
    """From images that ``dataset`` has normalised to the same as ``other`` does; None if that is no change."""
    if (dataset.mean, dataset.std) == (other.mean, other.std):
        return None
    mean, std, other_mean, other_std = map(np.asarray, (dataset.mean, dataset.std, other.mean, other.std))
    factor, shift = std / other_std, (mean - other_mean) / other_std
    return lambda images: images * jnp.asarray(factor, images.dtype) + jnp.asarray(shift, images.dtype)


def join_teachers(teachers: Sequence[Teacher], weights: Sequence[float], mean: str) -> Teacher:
    """One teacher of several, live and cached ones together, as `mean_of_teachers` says; it has no maps."""
    asks = [one.apply for one in teachers if one.apply is not None]
    chunks = {f"chunk{number}": one.chunk for number, one in enumerate(teachers) if one.chunk is not None}

    def apply(arrays, batch):
        own = [{**arrays[f"kept{number}"], **arrays.get(f"chunk{number}", {})} for number in range(len(asks))]
        found = [ask(one, batch) for ask, one in zip(asks, own, strict=True)]
        regions = [one.region_logits for one in found]
        whole = mean_of_teachers([one.logits for one in found], weights, mean)
        shown = not any(one is None for one in regions)
        return Outputs(whole, None, mean_of_teachers(regions, weights, mean) if shown else None, {})

    def chunk(seed, step):
        return {name: one(seed, step) for name, one in chunks.items()}

    arrays = {f"kept{number}": one.arrays for number, one in enumerate(teachers)}
    return Teacher(apply, arrays, chunk if chunks else None, " + ".join(str(one.name) for one in teachers))


def variables_hash(variables: Any) -> str:
    """SHA-256, in hex, over the name, dtype, shape and bytes of every leaf of ``variables``."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype.str} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def make_compute(
    model: Any, variables: Any, dataset: AnyDataset, layout: Layout, dtype: Any, batch: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """``compute(index [batch], view [batch]) -> rows [batch, layout.rows, K]`` by the teacher itself."""

    def rows(variables, pixels):
        return teacher_rows(model, variables, normalize(pixels, dataset.mean, dataset.std, dtype), layout)

    rows, variables, pictures = jit_network(rows), jax.device_put(variables), make_pictures(dataset)

    def compute(index, view):
        assert len(index) == batch, "one shape, one program: a row depends on nothing but its image"
        return jax.device_get(rows(variables, pictures(index, view)))

    return compute


def cached_teacher(
    cache: Cache,
    layout: Layout,
    dataset: AnyDataset,
    *,
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    steps_per_call: int,
    on_device: bool | None = None,
    caches: int = 1,
) -> Teacher:
    """The teacher of runs that differ in their seed alone; ``ValueError`` if ``cache`` lacks rows that they need.

    ``on_device`` says whether the rows lie on the device; None: if they fill less than half of what is free there, of
    which each of so many ``caches`` may take its share.
    """
    kept, length = cache.keys(), {"epochs": epochs, "batch_size": batch_size}
    asked = {seed: needed_keys(dataset, seed=seed, **length) for seed in seeds}
    for seed, keys in asked.items():
        if missing := len(np.setdiff1d(keys, kept)):
            raise ValueError(
                f"the cache in {cache.folder} lacks {missing} of the {len(keys)} views that this run (seed "
                f"{seed}, {epochs} epochs) needs: the cache command with this config adds them"
            )
    needed = np.unique(np.concatenate(list(asked.values())))

    def apply(arrays, batch):
        if "table" in arrays:
            slot = arrays["table"][batch["index"], batch["view"]]
        else:
            slot = batch["position"] - arrays["first"]
        rows = unpack({name: arrays[name][slot] for name in cache.packed}, cache.classes)
        rows = jnp.where((slot >= 0)[:, None, None], rows, jnp.nan)  # a row that is not there stops the run
        return outputs_of_rows(rows, layout)

    order = np.argsort(kept)

    def slots_of(keys):
        return order[np.searchsorted(kept, keys, sorter=order)]

    if not isinstance(dataset, Dataset):
        on_device = False  # a chunk is one step, and its rows are few beside its images
    if on_device is None:
        on_device = from_first(lambda: len(needed) * cache.view_bytes < _free_bytes() / (2 * caches))
    if on_device:
        table = slot_table(needed, int(dataset.train.index.max()) + 1, cache.views)
        return Teacher(apply, cache.read(slots_of(needed)) | {"table": table}, stores=cache.store)

    size = steps_per_call * batch_size
    runs = {seed: keys_at(dataset, seed=seed, **length) for seed in seeds}
    end = optim.total_steps(epochs, len(dataset.train.index), batch_size) * batch_size

    def chunk(seed: int, step: int) -> dict[str, Any]:
        start = step * batch_size
        keys = runs[seed](start, min(start + size, end))
        keys = np.pad(keys, (0, size - len(keys)), mode="edge")  # a chunk's steps past the run's end are not taken
        return cache.read(slots_of(keys)) | {"first": np.int32(start)}

    return Teacher(apply, {}, chunk, stores=cache.store)


def _free_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return min(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), memory_bytes())  # a CPU's is the machine's
