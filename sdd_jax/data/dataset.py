"""Data sets in memory: a user's arrays, checked, split and measured on the host."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Keys of the fixed draws. They are constants and never a run's seed, so that a teacher, its students and every seed
# hold out the same images. Changing one changes every published split.
_VALIDATION_KEY = 20_240_617
_SUBSET_KEY = 20_240_618


class Raw(NamedTuple):
    """What the reader of a set in memory returns, in the order of :func:`from_arrays`."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def data_root(path: str | PathLike[str] | None) -> Path:
    """Where a data set is looked for: ``path``, or the folder ``data`` if that is None."""
    return Path("data" if path is None else path).expanduser()


def not_found(name: str, places: Sequence[Path], ways: Sequence[str]) -> FileNotFoundError:
    """The error for a data set that is missing: the places that were searched, and the commands that get it."""
    looked = "".join(f"\n  {place}" for place in places)
    commands = "".join(f"\n  {way}" for way in ways)
    return FileNotFoundError(f'no data set "{name}" found; looked in{looked}\nTo get it, one of{commands}')


class Split(NamedTuple):
    """One split on the host.

    Attributes:
      images: uint8 ``[N, H, W, C]``.
      labels: int32 ``[N]``.
      index: int32 ``[N]``, each example's number in its original set, kept through subsets.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory; fields not listed as in :func:`from_arrays`.

    Attributes:
      train: what is trained on.
      selection: what the best epoch is chosen on; the same object as ``test`` when ``select_on`` is "test".
      test: what is reported.
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

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return self.train.images.shape[1:]

    def fingerprint(self, *splits: str) -> str:
        """SHA-256, in hex, over images, labels and numbers of the named splits (all three by default), with shapes.

        Only the data count: mean, std, pad and flip are not in it.
        """
        digest = hashlib.sha256()
        for name in splits or ("train", "selection", "test"):
            for array, dtype in zip(getattr(self, name), ("u1", "<i4", "<i4"), strict=True):
                digest.update(repr(array.shape).encode())
                digest.update(np.ascontiguousarray(array, dtype).data)
        return digest.hexdigest()


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
      test_images: uint8, of the same H, W and C.
      test_labels: integers in ``0 .. K-1``.
      name: what the set is called.
      class_names: K names; None: K is one more than the largest training label, and the names are numbers.
      mean: per channel in units of [0, 1]; None measures it on all training images, before any split, so that a teacher
        and a student with different splits see the same numbers.
      std: likewise.
      pad: pixels of zero padding before the random crop of training images.
      flip: whether training images are flipped horizontally at random.
      select_on: "validation" holds out a tenth of each class (at least one image where it has two, never the whole
        class), the same for every seed; "test" trains on everything and selects the best epoch on the test set.
      train_examples: how many training images to keep, drawn after the validation split in the proportions of the
        classes, the same for every seed.

    Returns:
      The data set, with its splits in the order of the arrays.

    Raises:
      ValueError: if an argument is not as described.
    """
    train_images = _check_images(train_images, "train_images")
    test_images = _check_images(test_images, "test_images")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"train and test images must have one shape, got {train_images.shape[1:]} and {test_images.shape[1:]}"
        )
    class_names = _check_class_names(class_names, train_labels)
    train_labels = _check_labels(train_labels, len(train_images), len(class_names), "train_labels")
    test_labels = _check_labels(test_labels, len(test_images), len(class_names), "test_labels")
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
        raise ValueError(f"pad must be a whole number of pixels, 0 or more, got {pad!r}")

    channels = train_images.shape[-1]
    if mean is None or std is None:
        measured_mean, measured_std = _moments(train_images)
        mean, std = measured_mean if mean is None else mean, measured_std if std is None else std
    mean, std = _check_moments(mean, channels, "mean"), _check_moments(std, channels, "std")

    whole = Split(train_images, train_labels, np.arange(len(train_images), dtype=np.int32))
    test = Split(test_images, test_labels, np.arange(len(test_images), dtype=np.int32))
    rows, held = split_rows(train_labels, select_on, train_examples)
    train = whole if len(rows) == len(train_labels) else _take(whole, rows)
    selection = test if held is None else _take(whole, held)
    return Dataset(name, class_names, train, selection, test, select_on, mean, std, pad, bool(flip))


def _take(split: Split, rows: np.ndarray) -> Split:
    return Split(*(array[rows] for array in split))


def stratified_draw(labels: np.ndarray, counts: ArrayLike, key: int) -> np.ndarray:
    """Positions of ``counts[c]`` examples of each class c, drawn by a fixed key, in increasing order.

    The draw of a class depends on the key, the class and its size only, and a larger count contains a smaller one.
    NumPy's ``RandomState`` is frozen: its stream is promised not to change between releases.
    """
    chosen = []
    for label, count in enumerate(np.asarray(counts).tolist()):
        members = np.flatnonzero(labels == label)
        chosen.append(members[np.random.RandomState([key, label]).permutation(len(members))[:count]])
    return np.sort(np.concatenate(chosen))


def split_rows(labels: np.ndarray, select_on: str, train_examples: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows of the official training set to train on, and those held out to choose the best epoch on.

    The latter are None if the best epoch is chosen on the test set. Arguments as in :func:`from_arrays`.
    """
    if select_on not in ("validation", "test"):
        raise ValueError(f'select_on must be "validation" or "test", got {select_on!r}')
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
    """Rows of so many examples, in the proportions of the classes as nearly as integers allow."""
    available = len(labels)
    if isinstance(examples, bool) or not isinstance(examples, int) or not 1 <= examples <= available:
        raise ValueError(f"train_examples must be a whole number from 1 to {available}, got {examples!r}")
    sizes = np.bincount(labels).astype(np.int64)
    counts, remainders = np.divmod(sizes * examples, available)
    # Largest remainders first, the lowest class first among equals; in integers, so that no rounding can matter.
    short = examples - int(counts.sum())
    counts[np.argsort(-remainders, kind="stable")[:short]] += 1
    return stratified_draw(labels, counts, _SUBSET_KEY)


def _check_images(images: np.ndarray, what: str) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"{what} must be uint8 (0 to 255), got {images.dtype}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise ValueError(f"{what} must be [N, H, W, C] or [N, H, W], got the shape {images.shape}")
    if 0 in images.shape:
        raise ValueError(f"{what} must not be empty, got the shape {images.shape}")
    return np.ascontiguousarray(images)


def _check_class_names(class_names: Sequence[str] | None, train_labels: ArrayLike) -> tuple[str, ...]:
    if class_names is None:
        labels = np.asarray(train_labels)
        if labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
            return ("0",)  # _check_labels refuses such labels, whatever the classes are
        largest = int(labels.argmax())
        if labels.flat[largest] >= labels.size:
            raise ValueError(
                f"train_labels has {labels.flat[largest]} at position {largest}, which would make more classes than "
                f"the {labels.size} examples: if that is meant, give class_names"
            )
        return tuple(str(label) for label in range(max(int(labels.flat[largest]), 0) + 1))
    names = tuple(str(name) for name in class_names)
    if isinstance(class_names, str) or not names:
        raise ValueError(f"class_names must be a sequence with a name per class, got {class_names!r}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"class_names must differ, got {twice!r} more than once")
    return names


def _check_labels(labels: ArrayLike, examples: int, classes: int, what: str) -> np.ndarray:
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} must be integers, got {labels.dtype}")
    if labels.shape != (examples,):
        raise ValueError(f"{what} must have one label per image, [{examples}], got the shape {list(labels.shape)}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"{what} must be in 0 .. {classes - 1} ({classes} classes), got {labels[wrong[0]]} at position {wrong[0]}"
        )
    return labels.astype(np.int32)


def _check_moments(values: Sequence[float], channels: int, what: str) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
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
        shares = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
        means.append(float(shares @ values))
        deviations.append(math.sqrt(float(shares @ (values - means[-1]) ** 2)))
    return means, deviations
