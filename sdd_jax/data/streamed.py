"""Data sets that are read from disk as they are needed: which images belong to which split, and what becomes of one."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sdd_jax.data import bad_images, images
from sdd_jax.data.bad_images import Skipped
from sdd_jax.data.dataset import split_rows

__all__ = ["EvalExample", "Records", "StreamedDataset", "StreamedSplit", "TrainExample", "from_records"]


class Records(Protocol):
    """Encoded images in a fixed order; can be pickled for worker processes."""

    @property
    def labels(self) -> np.ndarray | None:
        """int32 ``[N]``; None if they are known only once an image has been read."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> tuple[Any, int]:
        """The bytes of an image (or its uint8 pixels), and its label."""

    def name(self, number: int) -> str:
        """What errors call it."""

    def fingerprint(self) -> str:
        """A hash of what is there, cheap to make."""


class StreamedSplit(NamedTuple):
    """One split.

    Attributes:
      records: the original set that its images are in.
      index: int32 ``[N]``, each example's number there.
    """

    records: Records
    index: np.ndarray


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
    """A data set on disk; what it shares with a :class:`~sdd_jax.data.dataset.Dataset` in memory means the same.

    Attributes:
      image_size: S; images are ``[S, S, 3]``.
      augment: one of ``images.AUGMENTS``.
      workers: processes that decode; 0 decodes in threads of this one.
      skipped: the images that ``train`` and ``selection`` lack as they cannot be decoded; None if nobody looked.
    """

    name: str
    class_names: tuple[str, ...]
    train: StreamedSplit
    selection: StreamedSplit
    test: StreamedSplit
    select_on: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    augment: str
    workers: int
    skipped: Skipped | None = None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return (self.image_size, self.image_size, 3)

    def fingerprint(self, *splits: str) -> str:
        """SHA-256, in hex, over the named splits (all three by default): names and sizes of files, not their pixels."""
        digest = hashlib.sha256(f"{self.image_size} {self.augment}".encode())
        for name in splits or ("train", "selection", "test"):
            split = getattr(self, name)
            digest.update(split.records.fingerprint().encode() + np.ascontiguousarray(split.index, "<i4").tobytes())
        return digest.hexdigest()


def from_records(
    train: Records,
    test: Records,
    *,
    name: str,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    augment: str,
    select_on: str,
    train_examples: int | None = None,
    workers: int = 0,
    on_bad_image: str = "error",
    skipped: Skipped | None = None,
) -> StreamedDataset:
    """A :class:`StreamedDataset` of records.

    ``select_on`` and ``train_examples`` are as in :func:`~sdd_jax.data.dataset.from_arrays`; where labels are not known
    before reading, a tenth of all images is held out, and a subset drawn from all, without regard to the classes.

    Args:
      train: the images of training and validation.
      test: those of tests; one that cannot be decoded is an error when it is read, whatever ``on_bad_image`` is.
      name: what the set is called in logs.
      class_names: a name per class.
      mean: per channel, in units of [0, 1].
      std: likewise.
      image_size: S; images are ``[S, S, 3]``.
      augment: one of ``images.AUGMENTS``.
      select_on: as above.
      train_examples: as above.
      workers: processes that decode; 0 decodes in threads of this one.
      on_bad_image: "error" raises when a training image that cannot be decoded is read; "skip" decodes each of them
        now and leaves the bad ones out, after all draws, which therefore fall as they would without them.
      skipped: what an earlier start of the same run found; None looks.

    Raises:
      ValueError: if an argument is not what it should be, ``skipped`` is of other images, or no image of a class is
        left.
    """
    if augment not in images.AUGMENTS:
        raise ValueError(f"augment must be one of {', '.join(images.AUGMENTS)}, got {augment!r}")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    labels = np.zeros(len(train), np.int32) if train.labels is None else train.labels
    if on_bad_image not in bad_images.POLICIES:
        raise ValueError(f"on_bad_image must be one of {', '.join(bad_images.POLICIES)}, got {on_bad_image!r}")
    rows, held = split_rows(labels, select_on, train_examples)
    if on_bad_image == "skip":
        skipped = _skipped(train, rows if held is None else np.union1d(rows, held), skipped)
        bad = list(skipped.images)
        left = rows[~np.isin(rows, bad)]
        _check_classes(train, labels, class_names, rows, left)
        rows, held = left, None if held is None else held[~np.isin(held, bad)]
        if held is not None and not len(held):
            raise ValueError(f'every held-out image of {name} is skipped: repair them, or use select_on="test"')
    whole_test = StreamedSplit(test, np.arange(len(test), dtype=np.int32))
    return StreamedDataset(
        name=name,
        class_names=tuple(class_names),
        train=StreamedSplit(train, rows.astype(np.int32)),
        selection=whole_test if held is None else StreamedSplit(train, held.astype(np.int32)),
        test=whole_test,
        select_on=select_on,
        mean=tuple(mean),
        std=tuple(std),
        image_size=image_size,
        augment=augment,
        workers=workers,
        skipped=skipped,
    )


def _skipped(records: Records, numbers: np.ndarray, earlier: Skipped | None) -> Skipped:
    """The bad images among ``numbers``, or those that were found ``earlier``, if these are still the same images."""
    if earlier is None:
        return bad_images.find(records, numbers)
    if earlier.listing != bad_images.listing(records):
        raise ValueError(
            "training images were added, removed or renamed since this run began, so that its order would be another: "
            "put them back, or begin another run"
        )
    return earlier


def _check_classes(
    records: Records, labels: np.ndarray, class_names: Sequence[str], rows: np.ndarray, left: np.ndarray
) -> None:
    """``ValueError`` if a class that had images in ``rows`` has none ``left``; it names one of them."""
    lost = np.setdiff1d(labels[rows], labels[left])
    if lost.size:
        first = records.name(int(rows[labels[rows] == lost[0]][0]))
        of = "the set" if records.labels is None else f"class {class_names[lost[0]]!r}"
        raise ValueError(f"no training image of {of} can be decoded; the first is {first}")


class _Example(NamedTuple):
    """What makes an example of a row; can be pickled for worker processes."""

    split: StreamedSplit
    augment: str
    size: int
    classes: int
    seed: int

    def read(self, row: int) -> tuple[Any, int]:
        """The decoded image of a row of the split, and its label."""
        records, number = self.split.records, int(self.split.index[row])
        data, label = records.read(number)
        if not 0 <= label < self.classes:
            raise ValueError(f"{records.name(number)} has the label {label}, expected 0 to {self.classes - 1}")
        return images.decode(data, records.name(number)), label


class TrainExample(_Example):
    """``example(position, row)``: the row's image as it is seen at a position of the run.

    Chance is a function of (seed, epoch, number of the example) and of nothing else, as that of images in memory is,
    but drawn by NumPy's Philox: worker processes have no business with JAX. NumPy promises the generator's bits for
    good, the numbers made of them for one version.
    """

    def __call__(self, position: int, row: int) -> dict[str, Any]:
        number = int(self.split.index[row])
        entropy = np.random.SeedSequence((self.seed, position // len(self.split.index), number))
        image, label = self.read(row)
        pixels, view = images.train_image(
            image, self.augment, self.size, np.random.Generator(np.random.Philox(entropy))
        )
        return _as_arrays(image=pixels, label=label, index=number, row=row, view=view, position=position)


class EvalExample(_Example):
    """``example(position)``: an example in the order of the split; past the end the last one, with ``valid`` False."""

    def __call__(self, position: int) -> dict[str, Any]:
        last = len(self.split.index) - 1
        row = min(position, last)
        image, label = self.read(row)
        pixels = images.eval_image(image, self.augment, self.size)
        arrays = _as_arrays(image=pixels, label=label, index=int(self.split.index[row]), view=images.NO_VIEW)
        return {**arrays, "valid": np.bool_(position <= last)}


def _as_arrays(*, image: np.ndarray, **numbers: int) -> dict[str, Any]:
    return {"image": np.ascontiguousarray(image), **{name: np.int32(number) for name, number in numbers.items()}}
