"""Data sets in memory: a user's arrays, checked, split and measured on the host."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax.regions import check_name

# Keys of the fixed draws. They are constants and never a run's seed, so that a teacher, its students and every seed
# hold out the same images. Changing one changes every published split.
_VALIDATION_KEY = 20_240_617
_SUBSET_KEY = 20_240_618

# What the reader of a set in memory returns: the first arguments of from_arrays.
Raw = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def data_root(path: str | PathLike[str] | None) -> Path:
    """Where a data set is looked for: ``path``, or the folder ``data`` if that is None."""
    try:
        return Path("data" if path is None else path).expanduser()
    except RuntimeError as error:  # ~NAME of nobody
        raise ValueError(f"{path}: {error}") from error


def not_found(name: str, places: Sequence[Path], ways: Sequence[str]) -> FileNotFoundError:
    """The error for a data set that is missing: the places that were searched, and the commands that get it."""
    looked = "".join(f"\n  {place}" for place in places)
    commands = "".join(f"\n  {way}" for way in ways)
    return FileNotFoundError(f'no data set "{name}" found; looked in{looked}\nTo get it, one of{commands}')


class Split(NamedTuple):
    """One split on the host: images uint8 ``[N, H, W, C]``, labels and numbers in the original set int32 ``[N]``."""

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory, as :func:`from_arrays` makes it.

    The best epoch is chosen on ``selection``, which is ``test`` itself when ``select_on`` is "test".
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    selection: Split
    test: Split
    select_on: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    test_place: Callable[[int], str] | None = None  # the file of a test image by its number; None: arrays have none

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.images.shape[1:]

    def fingerprint(self, *splits: str) -> str:
        """SHA-256, in hex, over the arrays of the named splits (all three by default), not mean, std, pad and flip."""
        digest = hashlib.sha256()
        for name in splits or ("train", "selection", "test"):
            for array, dtype in zip(getattr(self, name), ("u1", "<i4", "<i4"), strict=True):
                digest.update(repr(array.shape).encode())
                digest.update(np.ascontiguousarray(array, dtype).data)
        return digest.hexdigest()

    def identity(self, split: str) -> str:
        """By what a run and its processes know the images of ``split`` again: their pixels and labels."""
        return self.fingerprint(split)

    def about(self) -> dict[str, Any]:
        """What becomes of images before a network sees them, and what classes are called, JSON-ready."""
        return {**describe_images(self), "pad": int(self.pad), "flip": bool(self.flip)}


def describe_images(dataset: Any) -> dict[str, Any]:
    """What ``about`` says of any data set."""
    numbers = {name: list(map(float, getattr(dataset, name))) for name in ("mean", "std")}
    return {"class_names": list(dataset.class_names), "image_shape": list(map(int, dataset.image_shape)), **numbers}


def from_arrays(
    train_images: np.ndarray,
    train_labels: ArrayLike,
    test_images: np.ndarray,
    test_labels: ArrayLike,
    *,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pad: int = 4,
    flip: bool = True,
    select_on: str = "validation",
    train_examples: int | None = None,
) -> Dataset:
    """A :class:`Dataset` of a user's own arrays.

    Args:
      train_images: uint8 ``[N, H, W, C]``, or ``[N, H, W]`` for grey.
      train_labels: integers ``[N]`` in ``0 .. K-1``.
      test_images: uint8, of the same H, W and C; ``test_labels`` as ``train_labels``.
      class_names: K names; None: K is one more than the largest training label, the names are numbers, and each class
        has an example.
      mean: per channel in units of [0, 1]; None measures it on all training images, before any split, so that a teacher
        and a student with different splits see the same numbers. So does ``std``.
      pad: pixels of zero padding before the random crop of training images.
      flip: whether training images are flipped horizontally at random.
      select_on: "validation" holds out a tenth of each class (at least one image where it has two, never the whole
        class), the same for every seed; "test" trains on everything and selects the best epoch on the test set.
      train_examples: how many training images to keep, drawn after the validation split in the proportions of the
        classes, the same for every seed.

    Raises:
      ValueError: if an argument is not as described.
    """
    whole, test = _checked(train_images, train_labels, "train"), _checked(test_images, test_labels, "test")
    shapes = whole.images.shape[1:], test.images.shape[1:]
    if shapes[0] != shapes[1]:
        raise ValueError(f"train and test images must have one shape, got {shapes[0]} and {shapes[1]}")
    if class_names is None:
        there = np.unique(whole.labels[whole.labels >= 0])
        if (absent := np.flatnonzero(there != np.arange(len(there)))).size:
            got = f"train_labels has {there[-1]} at position {whole.labels.argmax()}, and none is {absent[0]}"
            raise ValueError(f"{got}: labels count from 0; if a class is meant to have no example, give class_names")
        class_names = [str(label) for label in range(max(len(there), 1))]
    names = () if isinstance(class_names, str) or not np.iterable(class_names) else tuple(map(str, class_names))
    if not names or len(set(names)) != len(names):
        raise ValueError(f"class_names must be a sequence of names that differ, one per class, got {class_names!r}")
    for labels, what in ((whole.labels, "train_labels"), (test.labels, "test_labels")):
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if wrong.size:
            got = f"got {labels[wrong[0]]} at position {wrong[0]}"
            raise ValueError(f"{what} must be in 0 .. {len(names) - 1} ({len(names)} classes), {got}")
    if not isinstance(flip, bool | np.bool_):
        raise ValueError(f"flip must be True or False, got {flip!r}")
    if isinstance(pad, bool) or not isinstance(pad, int | np.integer) or pad < 0:
        raise ValueError(f"pad must be a whole number of pixels, 0 or more, got {pad!r}")
    if mean is None or std is None:
        measured_mean, measured_std = _moments(whole.images)
        mean, std = measured_mean if mean is None else mean, measured_std if std is None else std
    mean, std = _check_moments(mean, shapes[0][-1], "mean"), _check_moments(std, shapes[0][-1], "std")

    whole, test = (split._replace(labels=split.labels.astype(np.int32)) for split in (whole, test))
    rows, held = split_rows(whole.labels, select_on, train_examples)
    train = whole if len(rows) == len(whole.labels) else Split(*(array[rows] for array in whole))
    selection = test if held is None else Split(*(array[held] for array in whole))
    return Dataset(name, names, train, selection, test, select_on, mean, std, int(pad), bool(flip))


def stratified_draw(labels: np.ndarray, counts: ArrayLike, key: int) -> np.ndarray:
    """Positions of ``counts[c]`` examples of each class c, drawn by a fixed key, in increasing order.

    The draw of a class depends on the key, the class and its size only, and a larger count contains a smaller one.
    NumPy's ``RandomState`` is frozen: its stream is promised not to change between releases.
    """
    counts, chosen = np.asarray(counts).tolist(), []
    sizes = np.bincount(labels, minlength=len(counts))
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes))  # in one pass, for many classes
    for label, (count, members) in enumerate(zip(counts, by_class, strict=False)):
        chosen.append(members[np.random.RandomState([key, label]).permutation(len(members))[:count]])
    return np.sort(np.concatenate(chosen))


def split_rows(labels: np.ndarray, select_on: str, train_examples: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows of the official training set to train on, and those held out to choose the best epoch on.

    The latter are None if the best epoch is chosen on the test set. Arguments as in :func:`from_arrays`.
    """
    check_name("select_on", select_on, ("validation", "test"))
    rows, held = np.arange(len(labels)), None
    if select_on == "validation":
        sizes = np.bincount(labels)
        counts = np.where(sizes >= 2, np.maximum((sizes + 5) // 10, 1), 0)
        if not counts.any():
            raise ValueError('no class has the two examples that a validation split needs: use select_on="test"')
        held = stratified_draw(labels, counts, _VALIDATION_KEY)
        rows = np.delete(rows, held)
    if train_examples is not None:
        rows = rows[_subset(labels[rows], train_examples)]
    return rows, held


def _subset(labels: np.ndarray, examples: int) -> np.ndarray:
    available = len(labels)
    if isinstance(examples, bool) or not isinstance(examples, int | np.integer) or not 1 <= examples <= available:
        raise ValueError(f"train_examples must be a whole number from 1 to {available}, got {examples!r}")
    sizes = np.bincount(labels).astype(np.int64)
    counts, remainders = np.divmod(sizes * examples, available)
    # Largest remainders first, the lowest class first among equals; in integers, so that no rounding can matter.
    short = examples - int(counts.sum())
    counts[np.argsort(-remainders, kind="stable")[:short]] += 1
    return stratified_draw(labels, counts, _SUBSET_KEY)


def _checked(images: np.ndarray, labels: ArrayLike, what: str) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        expected = f"{what}_images must be uint8 (0 to 255), [N, H, W, C] or [N, H, W] and not empty"
        raise ValueError(f"{expected}, got {images.dtype} {list(images.shape)}")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] > 4:
        got = f"{what}_images look like [N, C, H, W], got {images.dtype} {list(images.shape)}"
        raise ValueError(f"{got}: they must be [N, H, W, C]")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        expected = f"{what}_labels must be integers, one label per image, [{len(images)}]"
        raise ValueError(f"{expected}, got {labels.dtype} {list(labels.shape)}")
    images = images if images.ndim == 4 else images[..., None]
    return Split(np.ascontiguousarray(images), labels, np.arange(len(images), dtype=np.int32))


def _check_moments(values: Sequence[float], channels: int, what: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(f"{what} needs {channels} numbers, one for each channel, got {values!r}") from None
    lowest = 0.0 if what == "mean" else np.finfo(np.float32).tiny
    if len(numbers) != channels or not all(lowest <= number <= 1 for number in numbers):
        positive = "" if what == "mean" else " above zero"
        raise ValueError(f"{what} needs {channels} finite number(s){positive} in units of [0, 1], got {numbers}")
    return numbers


def _moments(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel from the counts of the 256 values: exact, without a float copy."""
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        parts = (
            images[first : first + 1000, ..., channel] for first in range(0, len(images), 1000)
        )  # NumPy casts them
        counts = sum(np.bincount(part.ravel(), minlength=256) for part in parts)
        shares = counts / images[..., channel].size
        means.append(float(shares @ values))
        deviations.append(math.sqrt(float(shares @ (values - means[-1]) ** 2)))
    return means, deviations
