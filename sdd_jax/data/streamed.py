"""Data sets read from disk as they are needed: their splits, the images they skip, and how an image is prepared."""

import dataclasses
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.typing import ArrayLike, DTypeLike
from PIL import Image

from sdd_jax.data import augment as device
from sdd_jax.data import images
from sdd_jax.data.dataset import describe_images, split_rows
from sdd_jax.data.folders import BROKEN_LINK, Records
from sdd_jax.regions import check_name

ON_BAD_IMAGE = ("error", "skip")
SHOWN = 20  # paths that a report names
_AT_A_TIME = 32  # images of one task: a million tasks would be gigabytes


class Skipped(NamedTuple):
    """The training images that a run leaves out; ``skipped.json`` in its folder holds them."""

    listing: str  # of the records that the numbers belong to
    images: Mapping[int, str]  # the reason for each number, which names the file; in increasing order

    def same(self, other: "Skipped") -> bool:
        """Whether a run without these images has the same order as one without the ``other`` ones."""
        return self.listing == other.listing and self.images.keys() == other.images.keys()

    def to_json(self) -> dict[str, Any]:
        return {"listing": self.listing, "images": {str(number): reason for number, reason in self.images.items()}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Skipped":
        return cls(content["listing"], {int(number): reason for number, reason in content["images"].items()})

    def report(self) -> str:
        """Their number and the first reasons, for the start of a run."""
        count = len(self.images)
        lines = [f"{count} training image{'' if count == 1 else 's'} skipped"]
        lines += list(self.images.values())[:SHOWN]
        return "\n  ".join(lines + ([f"and {count - SHOWN} more"] if count > SHOWN else []))


class StreamedSplit(NamedTuple):
    """One split: the original set that its images are in, and the number of each there, int32 ``[N]``."""

    records: Records
    index: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """int32 ``[N]``; -1 where labels are not known before the images are read."""
        labels = self.records.labels
        return np.full(len(self.index), -1, np.int32) if labels is None else labels[self.index]


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
    """A data set on disk; fields that a :class:`~sdd_jax.data.dataset.Dataset` in memory has too mean the same."""

    name: str
    class_names: tuple[str, ...]
    train: StreamedSplit
    selection: StreamedSplit
    test: StreamedSplit
    select_on: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    augment: str  # one of images.AUGMENTS
    workers: int  # processes that decode; 0: threads of this process
    skipped: Skipped | None  # None if bad images are an error
    randaugment: tuple[int, ...] = ()  # its number of operations and their magnitude; empty: none

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def test_place(self, number: int) -> str:
        """The file of a test image by its number in the set."""
        return self.test.records.name(number)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 3)

    def fingerprint(self, *splits: str) -> str:
        """SHA-256, in hex, over the named splits (all three by default): names and sizes of files, not their pixels."""
        digest = hashlib.sha256(f"{self.image_size} {self.augment}".encode())
        for name in splits or ("train", "selection", "test"):
            split = getattr(self, name)
            digest.update(split.records.fingerprint().encode() + np.ascontiguousarray(split.index, "<i4").tobytes())
        return digest.hexdigest()

    def identity(self, split: str) -> str:
        """By what a run and its processes know the images of ``split`` again: their names and labels."""
        return getattr(self, split).records.listing()

    def about(self) -> dict[str, Any]:
        """How images are normalised and what classes are called, JSON-ready; the config has the rest."""
        return describe_images(self)


def from_records(
    train: Records,
    test: Records,
    class_names: tuple[str, ...],
    *,
    name: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: int,
    augment: str,
    select_on: str,
    train_examples: int | None = None,
    workers: int = 0,
    on_bad_image: str = "error",
    skipped: Skipped | None = None,
    randaugment: tuple[int, ...] = (),
) -> StreamedDataset:
    """A :class:`StreamedDataset` of records; arguments as in :func:`~sdd_jax.data.load` and :func:`from_arrays`.

    Where labels are not known before reading, a tenth of all images is held out, and a subset drawn from all, without
    regard to the classes. ``ValueError`` if ``skipped`` is of other images, or no image of a class is left.
    """
    if not (len(train) and len(test)):
        raise ValueError(f"{name} needs training and test images, got {len(train)} and {len(test)}")
    check_name("augment", augment, images.AUGMENTS)
    check_name("on_bad_image", on_bad_image, ON_BAD_IMAGE)
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    labels = np.zeros(len(train), np.int32) if train.labels is None else train.labels
    rows, held = split_rows(labels, select_on, train_examples)
    if on_bad_image == "skip":
        if skipped is None:
            skipped = find_bad_images(train, rows if held is None else np.union1d(rows, held))
        elif skipped.listing != train.listing():
            raise ValueError(
                "training images were added, removed or renamed since this run began, so that its order would be "
                "another: put them back, or begin another run"
            )
        bad = list(skipped.images)
        left = rows[~np.isin(rows, bad)]
        lost = np.setdiff1d(labels[rows], labels[left])
        if lost.size:
            first = train.name(int(rows[labels[rows] == lost[0]][0]))
            of = "the set" if train.labels is None else f"class {class_names[lost[0]]!r}"
            raise ValueError(f"no training image of {of} can be decoded; the first is {first}")
        rows, held = left, None if held is None else held[~np.isin(held, bad)]
        if held is not None and not len(held):
            raise ValueError(f'every held-out image of {name} is skipped: repair them, or use select_on="test"')
    tested = StreamedSplit(test, np.arange(len(test), dtype=np.int32))
    trained = StreamedSplit(train, rows.astype(np.int32))
    selection = tested if held is None else StreamedSplit(train, held.astype(np.int32))
    splits, how = (trained, selection, tested), (image_size, augment, workers, skipped, randaugment)
    return StreamedDataset(name, class_names, *splits, select_on, mean, std, *how)


def find_bad_images(records: Records, numbers: np.ndarray) -> Skipped:
    """Decodes the records of ``numbers`` in threads; each of several processes takes a share.

    Only a fault of the image skips it; an error of the machine (of the file system, too little memory) is raised.
    """
    processes = jax.process_count()
    share = numbers[jax.process_index() :: processes]
    parts = [share[start : start + _AT_A_TIME] for start in range(0, len(share), _AT_A_TIME)]

    def look(part):
        problems = ((number, _problem(records, number)) for number in part.tolist())
        return [(number, reason) for number, reason in problems if reason is not None]

    with ThreadPoolExecutor() as pool:
        bad = {number: reason for found in pool.map(look, parts) for number, reason in found}
    if processes > 1:
        mine = np.zeros(-(-len(numbers) // processes), bool)
        mine[: len(share)] = np.isin(share, list(bad))
        for process, row in enumerate(multihost_utils.process_allgather(mine)):
            theirs = numbers[process::processes]
            for number in set(theirs[row[: len(theirs)]].tolist()) - bad.keys():  # few: read again to get the reason
                bad[number] = _problem(records, number) or f"{records.name(number)} cannot be read by process {process}"
    return Skipped(records.listing(), dict(sorted(bad.items())))


def _problem(records: Records, number: int) -> str | None:
    """Why an image is bad; None if it is not."""
    try:
        content, _ = records.read(number)
        images.decode(content, records.name(number))
    except OSError as error:
        if error.errno not in BROKEN_LINK:
            raise
        return f"{records.name(number)} cannot be opened: {error.strerror}"
    except ValueError as error:
        return str(error)
    return None


def train_example(position: int, row: int, *, dataset: StreamedDataset, seed: int) -> dict[str, Any]:
    """A row of the training split as it is seen at a position of a run.

    Its augmentation is a function of (seed, epoch, number of the example) alone, drawn by NumPy's Philox, as worker
    processes should not start JAX. NumPy keeps the generator's bits for good, the numbers made of them for one version.
    """
    image, label = read_image(dataset, dataset.train, row)
    pixels, view = draw_view(dataset, image, row, seed, position // len(dataset.train.index))
    number = int(dataset.train.index[row])
    return _as_arrays(image=pixels, label=label, index=number, row=row, view=view, position=position)


def draw_view(dataset: StreamedDataset, image: Image.Image, row: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    """The pixels of a row's ``image`` as a run of ``seed`` sees it in ``epoch``, and its view."""
    rng = generator(seed, epoch, int(dataset.train.index[row]))
    return images.train_image(image, dataset.augment, dataset.image_size, rng, dataset.randaugment)


def generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """What the augmentation of an example is drawn by."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, number))))


def eval_example(position: int, *, dataset: StreamedDataset, split: StreamedSplit) -> dict[str, Any]:
    """An example in the order of the split; past the end the last one, with ``valid`` False."""
    row = min(position, len(split.index) - 1)
    image, label = read_image(dataset, split, row)
    pixels = images.eval_image(image, dataset.augment, dataset.image_size)
    arrays = _as_arrays(image=pixels, label=label, index=int(split.index[row]), view=images.NO_VIEW)
    return {**arrays, "valid": np.bool_(position == row)}


def read_image(dataset: StreamedDataset, split: StreamedSplit, row: int) -> tuple[Image.Image, int]:
    """The decoded image of a row and its label; ``ValueError`` names a bad one."""
    number = int(split.index[row])
    name, (data, label) = split.records.name(number), split.records.read(number)
    if not 0 <= label < dataset.num_classes:
        raise ValueError(f"{name} has the label {label}, expected 0 to {dataset.num_classes - 1}")
    return images.decode(data, name), label


def _as_arrays(*, image: np.ndarray, **numbers: int) -> dict[str, Any]:
    return {"image": np.ascontiguousarray(image), **{name: np.int32(number) for name, number in numbers.items()}}


def train_batch(
    arrays: dict[str, jax.Array], step: ArrayLike, *, source: Any, dtype: DTypeLike = jnp.float32
) -> dict[str, jax.Array]:
    """The batch of a step, of examples augmented on the host: it is normalised. To be called inside ``jit``."""
    del step
    batch = eval_batch({name: array for name, array in arrays.items() if name != "key"}, source=source, dtype=dtype)
    return {**batch, "valid": jnp.ones(arrays["label"].shape, bool)}


def eval_batch(arrays: dict[str, jax.Array], *, source: Any, dtype: DTypeLike = jnp.float32) -> dict[str, jax.Array]:
    """An evaluation batch, normalised by mean and std of ``source``; to be called inside ``jit``."""
    return {**arrays, "image": device.normalize(arrays["image"], source.mean, source.std, dtype)}
