"""The views that runs will see, known before they are trained: which they are, and their pixels."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import Dataset
from sdd_jax.data.augment import crop_flip, draw_views, num_views
from sdd_jax.data.memory import epoch_order
from sdd_jax.training import optim


def views_header(dataset: Dataset) -> dict[str, Any]:
    """What a cache says of the views that it numbers: ``count`` of each example, and by which rule."""
    return {"pad": dataset.pad, "flip": dataset.flip, "count": num_views(dataset.pad, dataset.flip)}


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


def make_pictures(dataset: Dataset) -> Callable[[np.ndarray, np.ndarray], Any]:
    """``pictures(index [B], view [B]) -> uint8 [B,H,W,C]``: training images, augmented, before normalisation."""
    split = dataset.train
    row_of = np.full(split.index.max() + 1, -1)
    row_of[split.index] = np.arange(len(split.index))
    images = jax.device_put(split.images)
    crop = jax.jit(lambda images, row, view: crop_flip(images[row], view, pad=dataset.pad))

    def pictures(index, view):
        return crop(images, *jax.device_put((row_of[index].astype(np.int32), view.astype(np.int32))))

    return pictures
