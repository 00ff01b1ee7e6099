"""Data sets by name, and a user's own arrays: ``load(name)`` and ``from_arrays(...)``.

Small sets are held in memory (:class:`Dataset`), large ones and sets of files are read from disk as they are needed
(:class:`StreamedDataset`).
"""

import difflib
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, NamedTuple

from sdd_jax.data.arrays import Dataset, Split, from_arrays
from sdd_jax.data.bad_images import Skipped
from sdd_jax.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, read_cifar
from sdd_jax.data.digits import read_digits
from sdd_jax.data.folders import class_folders, read_cub200, read_folder, train_folder
from sdd_jax.data.idx import FASHION_CLASSES, read_mnist
from sdd_jax.data.streamed import StreamedDataset, from_records
from sdd_jax.data.tfds_directory import PREFIX, find_tfds, read_tfds_set

__all__ = [
    "FOLDER", "INFO", "PREFIX", "Dataset", "Info", "Skipped", "Split", "StreamedDataset", "check_name", "class_names",
    "describe", "from_arrays", "from_records", "load", "refuse_in_memory",
]  # fmt: skip


class Info(NamedTuple):
    """What is known of a set without reading it.

    Attributes:
      num_classes: K.
      image_shape: ``(H, W, C)`` as networks see it.
      train_examples: images of the official training set, before any validation split.
      test_examples: images of the official test set.
      mean: per channel, in units of [0, 1].
      std: per channel, in units of [0, 1].
      pad: pixels of zero padding before the random crop.
      flip: whether training images are flipped.
      augment: how a training image is cropped: "pad_crop" (padded, then a window of its own size), "resize_crop"
        (resized to a square, then a smaller window) or "random_resized_crop" (a window of random size, resized). Sets
        of the last two are read from disk as they are needed, the others are held in memory.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    train_examples: int
    test_examples: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    augment: str = "pad_crop"


# Mean and std: digits, MNIST and Fashion-MNIST measured on their training images (the latter two before padding, the
# usual convention); CIFAR-10 the usual values; CIFAR-100 as in the official code's mdistiller/dataset/cifar100.py;
# ImageNet as torchvision's, which the official code takes for CUB-200 as well. Digits lose their meaning in a mirror,
# so neither set of them is flipped.
INFO: Mapping[str, Info] = {
    "digits": Info(10, (32, 32, 1), 1438, 359, (0.3048,), (0.3754,), 4, False),
    "mnist": Info(10, (32, 32, 1), 60_000, 10_000, (0.1307,), (0.3081,), 4, False),
    "fashion_mnist": Info(10, (32, 32, 1), 60_000, 10_000, (0.2860,), (0.3530,), 4, True),
    "cifar10": Info(
        10, (32, 32, 3), 50_000, 10_000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 4, True
    ),
    "cifar100": Info(
        100, (32, 32, 3), 50_000, 10_000, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 4, True
    ),
    "cub200": Info(
        200, (224, 224, 3), 5994, 5794, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0, True, "resize_crop"
    ),
    "imagenet": Info(
        1000, (224, 224, 3), 1_281_167, 50_000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0, True,
        "random_resized_crop",
    ),
}  # fmt: skip

_DIGITS = tuple("0123456789")
_MEMORY = {
    "digits": (lambda path: read_digits(), _DIGITS),
    "mnist": (lambda path: read_mnist("mnist", path), _DIGITS),
    "fashion_mnist": (lambda path: read_mnist("fashion_mnist", path), FASHION_CLASSES),
    "cifar10": (lambda path: read_cifar("cifar10", path), CIFAR10_CLASSES),
    "cifar100": (lambda path: read_cifar("cifar100", path), CIFAR100_CLASSES),
}


FOLDER = "image_folder"
_IMAGENET_TFDS = "imagenet2012"
# Of sets whose size nobody knows before they are read: photographs, so ImageNet's numbers and augmentation.
_ANY = INFO["imagenet"]._replace(num_classes=0, train_examples=0, test_examples=0)


def check_name(name: str) -> None:
    """``ValueError`` if no set can have this name."""
    if name in INFO or name == FOLDER or (name.startswith(PREFIX) and len(name) > len(PREFIX)):
        return
    known = (*INFO, FOLDER)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no data set is called {name!r}: known are {', '.join(known)} and {PREFIX}NAME{hint}")


def describe(
    name: str,
    *,
    path: str | PathLike[str] | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> Info:
    """The :class:`Info` of a set, for a caller that has no data at hand.

    Of an image folder or a TFDS set the classes are counted on disk, and the numbers of images are 0, unknown.

    Args:
      name: as :func:`load` takes it.
      path: as :func:`load` takes it.
      image_size: as :func:`load` takes it.
      num_classes: where it is known, nothing is counted.

    Raises:
      ValueError: if no set has this name or not so many classes, or ``image_size`` cannot be chosen for it.
      FileNotFoundError: if the classes have to be counted and the set is not there.
    """
    check_name(name)
    info = INFO.get(name, _ANY)
    if name in INFO:
        if num_classes not in (None, info.num_classes):
            raise ValueError(f"{name} has {info.num_classes} classes, data.num_classes says {num_classes}")
    elif num_classes is not None:
        info = info._replace(num_classes=num_classes)
    elif name == FOLDER:
        info = info._replace(num_classes=len(class_folders(train_folder(name, path))))
    else:
        info = info._replace(num_classes=len(read_tfds_set(name.removeprefix(PREFIX), path).class_names))
    if image_size is None:
        return info
    refuse_in_memory(name, "image_size", image_size)
    return info._replace(image_shape=(image_size, image_size, 3))


def class_names(name: str, path: str | PathLike[str] | None = None) -> tuple[str, ...]:
    """What the classes of a set are called, in their order; ``path`` as :func:`load` takes it.

    Raises:
      ValueError: if no set has this name.
      FileNotFoundError: if the names are on disk, as those of image folders, and the set is not there.
    """
    check_name(name)
    if name in _MEMORY:
        return _MEMORY[name][1]
    if name == FOLDER or (name == "imagenet" and not _is_tfds(_IMAGENET_TFDS, path)):
        return class_folders(train_folder(name, path))
    return tuple(_reader(name)(path).class_names)


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
) -> Dataset | StreamedDataset:
    """A data set by name.

    Args:
      name: digits, mnist, fashion_mnist, cifar10 or cifar100, held in memory; cub200, imagenet, image_folder or
        "tfds:NAME", read from disk as they are needed.
      path: where its files are; None looks in ``data`` (and, for Fashion-MNIST, where Debian's package puts it). For
        imagenet it holds class folders or TFDS's imagenet2012, for image_folder class folders
        (:func:`~sdd_jax.data.folders.read_folder`), for "tfds:NAME" it is the TFDS data directory.
      select_on: as in :func:`from_arrays`.
      train_examples: as in :func:`from_arrays`.
      image_size: the side of the images of a set on disk; None: 224.
      augment: how a set on disk is augmented, "resize_crop" or "random_resized_crop"; None: as is usual for it.
      workers: processes that decode the images of a set on disk; 0: threads of this process.
      on_bad_image: what becomes of a training image of a set on disk that cannot be decoded: "error" or "skip", as in
        :func:`~sdd_jax.data.streamed.from_records`.
      skipped: as there.

    Raises:
      ValueError: for an unknown name, damaged files, what :func:`from_arrays` refuses, an option that the set has not.
      FileNotFoundError: if the files are not there; it says where it looked and how to get them.
      ImportError: if a package is missing; it says which.
    """
    check_name(name)
    if name == "digits" and path is not None:
        raise ValueError(f"digits come with scikit-learn and have no path, got {str(path)!r}")
    for option, value in (("image_size", image_size), ("augment", augment)):
        if value is not None:
            refuse_in_memory(name, option, value)
    if on_bad_image != "error":
        refuse_in_memory(name, "on_bad_image", on_bad_image)
    info = INFO.get(name, _ANY)
    shared = {"name": name, "mean": info.mean, "std": info.std}
    if name in _MEMORY:
        read, class_names = _MEMORY[name]
        options = {"pad": info.pad, "flip": info.flip, "select_on": select_on, "train_examples": train_examples}
        return from_arrays(*read(path), class_names=class_names, **shared, **options)
    listed = _reader(name)(path)
    return from_records(
        listed.train,
        listed.test,
        class_names=listed.class_names,
        image_size=info.image_shape[0] if image_size is None else image_size,
        augment=info.augment if augment is None else augment,
        select_on=select_on,
        train_examples=train_examples,
        workers=workers,
        on_bad_image=on_bad_image,
        skipped=skipped,
        **shared,
    )


def _reader(name: str) -> Callable[[str | PathLike[str] | None], Any]:
    if name == "cub200":
        return read_cub200
    if name == "imagenet":
        return _read_imagenet
    if name == FOLDER:
        return lambda path: read_folder(name, path)
    return lambda path: read_tfds_set(name.removeprefix(PREFIX), path)


def _read_imagenet(path: str | PathLike[str] | None) -> Any:
    return read_tfds_set(_IMAGENET_TFDS, path) if _is_tfds(_IMAGENET_TFDS, path) else read_folder("imagenet", path)


def _is_tfds(name: str, path: str | PathLike[str] | None) -> bool:
    try:
        find_tfds(name, path)
    except FileNotFoundError:
        return False
    return True


def refuse_in_memory(name: str, option: str, value: Any) -> None:
    """``ValueError`` if ``name`` is held in memory, where there is nothing to choose."""
    if name in _MEMORY:
        raise ValueError(f"{name} is held in memory as it is: data.{option} cannot be chosen for it, got {value!r}")
