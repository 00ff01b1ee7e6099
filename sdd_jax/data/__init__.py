"""Data sets by name, and a user's own arrays: ``load(name)`` and ``from_arrays(...)``, both a :class:`Dataset`."""

import difflib
from collections.abc import Mapping
from os import PathLike
from typing import NamedTuple

from sdd_jax.data.arrays import Dataset, Split, from_arrays
from sdd_jax.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, read_cifar
from sdd_jax.data.digits import read_digits
from sdd_jax.data.idx import FASHION_CLASSES, read_mnist

__all__ = ["INFO", "Dataset", "Info", "Split", "describe", "from_arrays", "load"]


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
      resized: whether training crops are random in size; then no pad, and no finite number of views.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    train_examples: int
    test_examples: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    resized: bool = False


# Mean and std: digits, MNIST and Fashion-MNIST measured on their training images (the latter two before padding, the
# usual convention); CIFAR-10 the usual values; CIFAR-100 as in the official code's mdistiller/dataset/cifar100.py;
# ImageNet as torchvision's. Digits lose their meaning in a mirror, so neither set of them is flipped.
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
    "imagenet": Info(
        1000, (224, 224, 3), 1_281_167, 50_000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0, True,
        resized=True,
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


def describe(name: str) -> Info:
    """The :class:`Info` of a set, for a caller that has no data at hand.

    Raises:
      ValueError: if no set has this name.
    """
    if name not in INFO:
        close = difflib.get_close_matches(str(name), INFO, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no data set is called {name!r}: known are {', '.join(INFO)}{hint}")
    return INFO[name]


def load(
    name: str,
    *,
    path: str | PathLike[str] | None = None,
    select_on: str = "validation",
    train_examples: int | None = None,
) -> Dataset:
    """A data set by name, in memory.

    Args:
      name: digits, mnist, fashion_mnist, cifar10 or cifar100.
      path: where its files are; None looks in ``data`` (and, for Fashion-MNIST, where Debian's package puts it).
      select_on: as in :func:`from_arrays`.
      train_examples: as in :func:`from_arrays`.

    Raises:
      ValueError: for an unknown name, a set that cannot be read yet, damaged files, what :func:`from_arrays` refuses.
      FileNotFoundError: if the files are not there; it says where it looked and how to get them.
      ImportError: if a package is missing; it says which.
    """
    info = describe(name)
    if name not in _MEMORY:
        raise ValueError(f"{name} is described, for planning, but loading it from disk is not part of this release yet")
    if name == "digits" and path is not None:
        raise ValueError(f"digits come with scikit-learn and have no path, got {str(path)!r}")
    read, class_names = _MEMORY[name]
    return from_arrays(
        *read(path),
        name=name,
        class_names=class_names,
        mean=info.mean,
        std=info.std,
        pad=info.pad,
        flip=info.flip,
        select_on=select_on,
        train_examples=train_examples,
    )
