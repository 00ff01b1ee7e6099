"""Data sets by name or of a user's own arrays, in memory or read from disk as they are needed, and their batches."""

import dataclasses
import functools
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from sdd_jax.data import arrays, cifar, decoded, folders, images, mnist, tiny_imagenet
from sdd_jax.data.dataset import Dataset, Split, data_root, from_arrays
from sdd_jax.data.folders import PREFIX
from sdd_jax.data.images import BOXED
from sdd_jax.data.memory import MemoryData, MemoryEval
from sdd_jax.data.streamed import Skipped, StreamedDataset, eval_example, from_records
from sdd_jax.processes import memory_bytes

__all__ = [
    "ARRAYS", "FOLDER", "INFO", "PREFIX", "AnyDataset", "Dataset", "Info", "Skipped", "Split", "StreamedDataset",
    "check_name", "class_names", "decides_in_memory", "describe", "eval_data", "from_arrays", "from_records", "load",
    "on_disk", "read_test_examples", "train_data", "usual_side",
]  # fmt: skip

AnyDataset = Dataset | StreamedDataset


class Info(NamedTuple):
    """Facts of a set that are known without reading it.

    ``augment`` says how a training image is cropped: "pad_crop" (padded, then a window of its own size) of sets in
    memory, "resize_crop" (resized to a square, then a smaller window) or "random_resized_crop" of sets on disk, and
    "box_pad_crop" (brought to its size by a box filter, then as the first) of those that are decoded into memory.
    """

    num_classes: int
    image_shape: tuple[int, int, int]  # (H, W, C) as networks see it
    train_examples: int  # of the official training set, before any validation split
    test_examples: int
    mean: tuple[float, ...]  # per channel, in units of [0, 1], as std
    std: tuple[float, ...]
    pad: int  # pixels of zero padding before the random crop
    flip: bool
    augment: str = "pad_crop"


# Mean and std: digits, MNIST and Fashion-MNIST measured on their training images (the latter two before padding, the
# usual convention); CIFAR-10 the usual values; CIFAR-100 as in the official code's mdistiller/dataset/cifar100.py;
# ImageNet as torchvision's, which the official code takes for CUB-200 as well; Tiny-ImageNet as in
# mdistiller/dataset/tiny_imagenet.py of megvii-research/mdistiller (commit a08d46f). A mirrored digit is no digit:
# digits and MNIST are not flipped.
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TINY = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
INFO = {
    "digits": Info(10, (32, 32, 1), 1438, 359, (0.3048,), (0.3754,), 4, False),
    "mnist": Info(10, (32, 32, 1), 60_000, 10_000, (0.1307,), (0.3081,), 4, False),
    "fashion_mnist": Info(10, (32, 32, 1), 60_000, 10_000, (0.2860,), (0.3530,), 4, True),
    "cifar10": Info(10, (32, 32, 3), 50_000, 10_000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 4, True),
    "cifar100": Info(100, (32, 32, 3), 50_000, 10_000, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 4, True),
    "cub200": Info(200, (224, 224, 3), 5994, 5794, *_IMAGENET, 0, True, "resize_crop"),
    "imagenet": Info(1000, (224, 224, 3), 1_281_167, 50_000, *_IMAGENET, 0, True, "random_resized_crop"),
    "tiny_imagenet": Info(200, (64, 64, 3), 100_000, 10_000, *_TINY, 0, True, "random_resized_crop"),
}
TINY = "tiny_imagenet"  # which may have fewer classes on disk

_MEMORY = {  # name: its reader, what its classes are called
    "digits": (mnist.read_digits, mnist.DIGITS),
    "mnist": (lambda path: mnist.read_mnist("mnist", path), mnist.DIGITS),
    "fashion_mnist": (lambda path: mnist.read_mnist("fashion_mnist", path), mnist.FASHION_CLASSES),
    "cifar10": (lambda path: cifar.read_cifar("cifar10", path), cifar.CIFAR10_CLASSES),
    "cifar100": (lambda path: cifar.read_cifar("cifar100", path), cifar.CIFAR100_CLASSES),
}

ARRAYS, FOLDER = arrays.NAME, "image_folder"
# Of sets whose size is unknown before they are read: photographs, so ImageNet's numbers and augmentation.
_ANY = INFO["imagenet"]._replace(num_classes=0, train_examples=0, test_examples=0)
# Of sets on disk that are decoded into memory: CIFAR's crop, and which of them are so if nobody says (this project's).
_PAD = 4
_UNSET = (None, "error", ())  # options that say nothing
_SMALL = 64  # pixels a side at most
_SHARE = 1 / 4  # of the memory at most


def check_name(name: str) -> None:
    """``ValueError`` if no set can have this name."""
    if name in INFO or name in (ARRAYS, FOLDER) or (name.startswith(PREFIX) and len(name) > len(PREFIX)):
        return
    raise ValueError(
        f"no data set is called {name!r}: known are {', '.join(INFO)}, {ARRAYS}, {FOLDER} and {PREFIX}NAME"
    )


def on_disk(name: str) -> bool:
    """Whether it is a set of image files, and not one that is held in memory as it is."""
    return name not in _MEMORY and name != ARRAYS


def _refuse_in_memory(name: str, option: str, value: Any) -> None:
    """``ValueError`` if the option is set of a set held in memory, which does not have it."""
    if not on_disk(name) and value not in _UNSET:
        raise ValueError(f"{name} is held in memory as it is: data.{option} cannot be chosen for it, got {value!r}")


def decides_in_memory(
    name: str,
    chosen: bool | None,
    *,
    path: str | PathLike[str] | None = None,
    image_size: int | None = None,
    augment: str | None = None,
    on_bad_image: str = "error",
    randaugment: tuple[int, ...] = (),
) -> bool | None:
    """Whether a set on disk is decoded into memory: as ``chosen``, or else as its size says; arguments as in `load`.

    None for a set that is held in memory as it is. ``ValueError`` for what does not go with the choice, or the set.
    """
    read: dict[str, Any] = {"augment": augment, "on_bad_image": on_bad_image, "randaugment": randaugment}
    if not on_disk(name):
        for option, value in {"in_memory": chosen, "image_size": image_size, **read}.items():
            _refuse_in_memory(name, option, value)
        return None
    named = [f"data.{option} {value!r}" for option, value in read.items() if value not in _UNSET]
    if chosen and named:
        raise ValueError(f"{' and '.join(named)} cannot be chosen with data.in_memory: it is for images read from disk")
    size = INFO.get(name, _ANY).image_shape[0] if image_size is None else image_size
    if chosen is not None or named or size > _SMALL:
        return bool(chosen)
    try:
        return decoded.array_bytes(_count_images(name, path), size) <= _SHARE * memory_bytes()
    except (FileNotFoundError, ImportError):  # it is not there: most sets of small images are small
        return True


@functools.cache
def _count_images(name: str, path: str | PathLike[str] | None) -> int:
    if name in INFO:
        return INFO[name].train_examples + INFO[name].test_examples
    listed = _read_listed(name, path)
    return len(listed.train) + len(listed.test)


def describe(
    name: str,
    *,
    path: str | PathLike[str] | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    in_memory: bool | None = None,
) -> Info:
    """The :class:`Info` of a set; arguments and errors as in :func:`load`, but without ``in_memory`` it is on disk.

    The classes of an image folder or a TFDS set are counted on disk, unless ``num_classes`` is given; its numbers of
    images are 0, unknown. Those of Tiny-ImageNet are counted if it is there.
    """
    check_name(name)
    info = INFO.get(name, _ANY)
    if name == ARRAYS:
        found = arrays.facts(path)
        known = found.image_shape, found.train_examples, found.test_examples, found.mean, found.std
        info = Info(len(found.class_names), *known, found.pad, found.flip)
    elif name not in INFO:
        info = info._replace(num_classes=len(class_names(name, path)) if num_classes is None else num_classes)
    elif name == TINY:
        classes = num_classes or tiny_imagenet.count_classes(path) or info.num_classes
        train, test = (count * classes // info.num_classes for count in (info.train_examples, info.test_examples))
        info = info._replace(num_classes=classes, train_examples=train, test_examples=test)
    if num_classes not in (None, info.num_classes):
        raise ValueError(f"{name} has {info.num_classes} classes, data.num_classes says {num_classes}")
    _refuse_in_memory(name, "image_size", image_size)
    if in_memory:
        info = info._replace(augment=BOXED, pad=_PAD, flip=True)
    return info if image_size is None else info._replace(image_shape=(image_size, image_size, 3))


def class_names(name: str, path: str | PathLike[str] | None = None) -> tuple[str, ...]:
    """The names of a set's classes, in order, from disk if they are there; ``path`` and errors as in :func:`load`."""
    check_name(name)
    if name in _MEMORY:
        return _MEMORY[name][1]
    if name == ARRAYS:
        return arrays.facts(path).class_names
    if _has_class_folders(name, path):
        return folders.read_names(data_root(path), folders.find_part(name, path)[1])
    return _read_listed(name, path).class_names


def usual_side(name: str, path: str | PathLike[str] | None = None) -> int:
    """The median of the shorter sides, in pixels, of 50 training images of a set on disk; errors as in :func:`load`."""
    records = _read_listed(name, path).train
    if not len(records):
        raise ValueError(f"{name} needs training images, got none in {path}")
    sides, problem = [], None
    for number in np.linspace(0, len(records) - 1, min(len(records), 50)).astype(int).tolist():
        data = records.read(number)[0]
        try:
            sides.append(min(images.decode(data, records.name(number)).size))
        except ValueError as error:  # for those that read all images to refuse or to skip
            problem = error
    if problem is not None and not sides:
        raise problem
    return int(np.median(sides))


def load(
    name: str,
    *,
    path: str | PathLike[str] | None = None,
    select_on: str = "validation",
    train_examples: int | None = None,
    image_size: int | None = None,
    augment: str | None = None,
    workers: int = 0,
    on_bad_image: str = "error",
    skipped: Skipped | None = None,
    in_memory: bool | None = None,
    randaugment: tuple[int, ...] = (),
) -> AnyDataset:
    """A data set by name.

    Args:
      name: digits, mnist, fashion_mnist, cifar10, cifar100 or arrays, held in memory; tiny_imagenet, cub200, imagenet,
        image_folder or "tfds:NAME", which lie on disk.
      path: where its files are; None looks in ``data`` (and, for Fashion-MNIST, where Debian's package puts it). For
        arrays it is an ``.npz`` file (:mod:`sdd_jax.data.arrays`). For imagenet it holds class folders or TFDS's
        imagenet2012, for image_folder class folders (``train/CLASS/*.jpg``, ``test/CLASS/*.jpg``) or Tiny-ImageNet's
        layout, and for "tfds:NAME" it is the TFDS data directory.
      select_on: as in :func:`from_arrays`, like ``train_examples``; the others are of sets on disk alone.
      image_size: the side of the images; None: 224, of tiny_imagenet 64.
      augment: "resize_crop" or "random_resized_crop"; None: as is usual for the set.
      workers: processes that decode images; 0: threads of this process, or once, into memory, one for each processor.
      on_bad_image: "error" raises when a training image that cannot be decoded is read. "skip" decodes all of them now
        and leaves the bad ones out, after all draws, so that these do not depend on them.
      skipped: the images that an earlier start of the same run left out; None decodes all to find them.
      in_memory: of a set on disk: True decodes all of it once into a file (:mod:`sdd_jax.data.decoded`) and holds it as
        CIFAR is held; False reads images as they are needed. None: True if images of at most 64 pixels a side then take
        less than a quarter of the memory, and none of ``augment``, ``on_bad_image`` and ``randaugment`` is chosen.
      randaugment: the number of operations and their magnitude (:mod:`sdd_jax.data.randaugment`); empty: none.

    Raises:
      ValueError: for an unknown name, damaged files, a wrong argument, or an option that the set does not have.
      FileNotFoundError: if the files are not there; it says where it looked and how to get them.
      ImportError: if a package is missing; it says which.
    """
    check_name(name)
    read: dict[str, Any] = {"augment": augment, "on_bad_image": on_bad_image, "randaugment": randaugment}
    in_memory = decides_in_memory(name, in_memory, path=path, image_size=image_size, **read)
    if name == ARRAYS:
        return arrays.read(path, select_on=select_on, train_examples=train_examples)
    info = INFO.get(name, _ANY)
    shared: dict[str, Any] = {"name": name, "mean": info.mean, "std": info.std}
    shared |= {"select_on": select_on, "train_examples": train_examples}
    if name in _MEMORY:
        reader, names = _MEMORY[name]
        raw = reader(path)
        try:
            return from_arrays(*raw, class_names=names, pad=info.pad, flip=info.flip, **shared)
        except ValueError as error:  # such as a label that is none
            raise ValueError(f"{name}{f' in {path}' if path is not None else ''}: {error}") from error
    listed, size = _read_listed(name, path), info.image_shape[0] if image_size is None else image_size
    if in_memory:
        raw = decoded.read(listed, name=name, place=data_root(path), size=size, workers=workers)
        made = from_arrays(*raw, class_names=listed.class_names, pad=_PAD, flip=True, **shared)
        return dataclasses.replace(made, test_place=listed.test.name)
    return from_records(
        *listed,
        image_size=size,
        workers=workers,
        skipped=skipped,
        **read | {"augment": info.augment if augment is None else augment},
        **shared,
    )


def _read_listed(name: str, path: str | PathLike[str] | None) -> folders.Listed:
    if name == "cub200":
        return folders.read_cub200(path)
    if name == TINY or (name == FOLDER and tiny_imagenet.has_layout(path)):
        return tiny_imagenet.read_tiny_imagenet(path)
    if _has_class_folders(name, path):
        return folders.read_folder(name, path)
    return folders.read_tfds(folders.IMAGENET_TFDS if name == "imagenet" else name.removeprefix(PREFIX), path)


def _has_class_folders(name: str, path: str | PathLike[str] | None) -> bool:
    if name == FOLDER:
        return not tiny_imagenet.has_layout(path)
    return name == "imagenet" and not folders.has_tfds(folders.IMAGENET_TFDS, path)


def train_data(dataset: AnyDataset, **arguments: Any) -> Any:
    """The training batches of runs: a :class:`~sdd_jax.data.memory.MemoryData`, or what is called as one."""
    if isinstance(dataset, Dataset):
        return MemoryData(dataset, **arguments)
    from sdd_jax.data.grain_source import GrainData  # Grain takes a second to import

    return GrainData(dataset, **arguments)


def eval_data(dataset: AnyDataset, split: Any, *, batch_size: int, mesh: Mesh) -> Any:
    """The batches that cover ``split`` once: ``batches()`` and ``batch_function(dtype)``."""
    if isinstance(dataset, Dataset):
        return MemoryEval(dataset, split, batch_size=batch_size, mesh=mesh)
    from sdd_jax.data.grain_source import GrainEval

    return GrainEval(dataset, split, batch_size=batch_size, mesh=mesh)


def read_test_examples(dataset: AnyDataset, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Test images of some rows as networks see them, before normalisation, uint8 ``[n, H, W, C]``, and their labels."""
    if isinstance(dataset, Dataset):
        return dataset.test.images[np.asarray(rows, int)], dataset.test.labels[np.asarray(rows, int)]
    examples = [eval_example(int(row), dataset=dataset, split=dataset.test) for row in rows]
    return np.stack([example["image"] for example in examples]), np.stack([example["label"] for example in examples])
