"""The views that runs will see, known before they are trained: which they are, and their pixels.

A view has a key, ``index * views + number``. Of images in memory the number is that of `sdd_jax.data.augment`, and runs
that draw the same view share it. Of images on disk, whose crops are too many to number, it is ``seed * EPOCHS +
epoch``, which decides the crop: an example has one view for every epoch of every seed.
"""

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import AnyDataset, Dataset, StreamedDataset
from sdd_jax.data.augment import crop_flip, draw_views, num_views
from sdd_jax.data.memory import epoch_order
from sdd_jax.data.streamed import draw_view, generator, read_image
from sdd_jax.training import optim

# Of images on disk: 62 bits of a key.
EPOCHS, SEEDS, EXAMPLES = 2**12, 2**26, 2**24


def views_header(dataset: AnyDataset) -> dict[str, Any]:
    """What a cache says of the views that it numbers: how many numbers an example has, and by which rule.

    Of images on disk that holds some random draws as well: NumPy may make others of a seed in another version.
    """
    if isinstance(dataset, Dataset):
        return {"pad": dataset.pad, "flip": dataset.flip, "count": num_views(dataset.pad, dataset.flip)}
    draws = hashlib.sha256(generator(1, 2, 3).random(8).tobytes()).hexdigest()[:16]
    rule = {"augment": dataset.augment, "image_size": dataset.image_size, "of": "seed and epoch"}
    rule |= {"randaugment": list(dataset.randaugment)} if dataset.randaugment else {}
    return {**rule, "draws": draws, "count": SEEDS * EPOCHS}


def needed_keys(dataset: AnyDataset, *, seed: int, epochs: int, batch_size: int) -> np.ndarray:
    """The keys of all views that a run sees, int64, in increasing order."""
    if isinstance(dataset, Dataset):
        return np.unique(run_keys(dataset, seed=seed, epochs=epochs, batch_size=batch_size))
    index, seen = dataset.train.index, epochs * len(dataset.train.index)
    end = optim.total_steps(epochs, len(index), batch_size) * batch_size  # in whole batches, the last reaches further
    numbers = {
        "seed": (seed, SEEDS),
        "epoch": ((end - 1) // len(index), EPOCHS),
        "image's number": (int(index.max()), EXAMPLES),
    }
    for name, (largest, most) in numbers.items():
        if largest >= most:
            raise ValueError(f"in a cache of images on disk a {name} must be below {most}, got {largest}")
    whole = _disk_keys(index[:, None], seed, np.arange(epochs)).ravel()
    rest = keys_at(dataset, seed=seed, epochs=epochs, batch_size=batch_size)(seen, end)
    return np.unique(np.concatenate([whole, rest]))


def keys_at(dataset: AnyDataset, *, seed: int, epochs: int, batch_size: int) -> Callable[[int, int], np.ndarray]:
    """``keys(start, end)``: those at the positions ``start`` to ``end - 1`` of a run, int64."""
    if isinstance(dataset, Dataset):
        found = run_keys(dataset, seed=seed, epochs=epochs, batch_size=batch_size)
        return lambda start, end: found[start:end]
    from sdd_jax.data.grain_source import order_rows  # Grain takes a second to import

    def keys(start, end):
        positions = np.arange(start, end)
        index = dataset.train.index[order_rows(dataset, seed, positions)]
        return _disk_keys(index, seed, positions // len(dataset.train.index))

    return keys


def _disk_keys(index: np.ndarray, seed: int, epoch: np.ndarray) -> np.ndarray:
    return index.astype(np.int64) * (SEEDS * EPOCHS) + (seed * EPOCHS + epoch)


def run_keys(dataset: Dataset, *, seed: int, epochs: int, batch_size: int) -> np.ndarray:
    """The keys at every position of a run over images in memory, int64: what the jitted program will draw."""
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


def make_pictures(dataset: AnyDataset) -> Callable[[np.ndarray, np.ndarray], Any]:
    """``pictures(index [B], number [B]) -> uint8 [B,H,W,C]``: training images, augmented, before normalisation."""
    row_of = np.full(dataset.train.index.max() + 1, -1)
    row_of[dataset.train.index] = np.arange(len(dataset.train.index))
    if isinstance(dataset, StreamedDataset):
        return lambda index, number: _draw_from_disk(dataset, row_of[index], number)
    images = jax.device_put(dataset.train.images)
    crop = jax.jit(lambda images, row, view: crop_flip(images[row], view, pad=dataset.pad))

    def pictures(index, view):
        return crop(images, *jax.device_put((row_of[index].astype(np.int32), view.astype(np.int32))))

    return pictures


def _draw_from_disk(dataset: StreamedDataset, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The pixels of the views; an image of which several stand together is decoded once."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))

    def draw(part):
        image, _ = read_image(dataset, dataset.train, int(part[0][0]))
        views = ((int(row), *divmod(int(number), EPOCHS)) for row, number in zip(*part, strict=True))
        return [draw_view(dataset, image, *view)[0] for view in views]

    parts = zip(np.split(rows, starts[1:]), np.split(numbers, starts[1:]), strict=True)
    with ThreadPoolExecutor() as pool:
        return np.stack([pixels for found in pool.map(draw, parts) for pixels in found])
