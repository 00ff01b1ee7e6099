"""Sets of image files: CUB-200-2011 as it is published, ImageNet's class folders, and anybody's own.

Nothing is decoded here; a reader lists the files and says which class each belongs to.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdd_jax.data.dataset import not_found

__all__ = ["Files", "Listed", "class_folders", "read_cub200", "read_folder"]

# What a folder of training and of test images may be called, in this order.
TRAIN, TEST = ("train",), ("test", "val", "valid", "validation")
TEST_OF = {"imagenet": ("val", "valid", "validation")}  # its test set is published without labels
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MOST_BYTES = 2**30  # of one file
_CUB_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"


class Files:
    """Image files below one folder, with their labels; small, and can be pickled for worker processes.

    Attributes:
      labels: int32 ``[N]``.
    """

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[int]):
        self._root = os.fspath(root)
        self._names = np.asarray([os.fsencode(name) for name in names], dtype=np.bytes_)  # a million paths, compactly
        self.labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, number: int) -> str:
        """The path of a file: what errors call it."""
        return os.path.join(self._root, os.fsdecode(self._names[number]))

    def read(self, number: int) -> tuple[bytes, int]:
        """The content of a file, and its label."""
        name = self.name(number)
        found = os.stat(name)
        if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for ever
            raise ValueError(f"{name} is no regular file")
        if found.st_size > MOST_BYTES:
            raise ValueError(f"{name} has {found.st_size} bytes, the limit for an image is {MOST_BYTES}")
        with open(name, "rb") as file:
            return file.read(), int(self.labels[number])

    def fingerprint(self) -> str:
        """SHA-256, in hex, over names, labels and sizes of the files; their content is not read."""
        digest = hashlib.sha256(self.labels.astype("<i4").tobytes())
        for number, name in enumerate(self._names):
            digest.update(b"%d %d " % (os.stat(self.name(number)).st_size, len(name)) + name)
        return digest.hexdigest()


class Listed(NamedTuple):
    """What a reader of folders returns."""

    train: Files
    test: Files
    class_names: tuple[str, ...]


def read_cub200(path: str | PathLike[str] | None) -> Listed:
    """CUB-200-2011 with the official split, from its folder or the one that holds it.

    Raises:
      FileNotFoundError: if it is not there; it says how to get it.
      ValueError: if its lists do not fit together.
    """
    root = Path("data" if path is None else path).expanduser()
    places = [root, root / "CUB_200_2011"]
    folder = next((place for place in places if (place / "images.txt").is_file()), None)
    if folder is None:
        lists = [place / "images.txt" for place in places]
        raise not_found("cub200", lists, [f"mkdir -p data && curl -fL {_CUB_URL} | tar -xz -C data"])
    tables = {name: _numbered(folder / f"{name}.txt") for name in _CUB_LISTS}
    images, classes = tables["images"], tables["classes"]
    for name in ("image_class_labels", "train_test_split"):
        if tables[name].keys() != images.keys():
            raise ValueError(f"{folder}: {name}.txt and images.txt do not number the same images")
    numbers = {number: label for label, number in enumerate(classes)}
    names, labels, trains = [], [], []
    for number, name in images.items():
        if tables["image_class_labels"][number] not in numbers:
            raise ValueError(f"{folder}: image {number} has class {tables['image_class_labels'][number]}, not listed")
        names.append(name)
        labels.append(numbers[tables["image_class_labels"][number]])
        trains.append(tables["train_test_split"][number] == "1")

    def part(wanted):
        rows = [row for row, trained in enumerate(trains) if trained == wanted]
        return Files(folder / "images", [names[row] for row in rows], [labels[row] for row in rows])

    return _checked(Listed(part(True), part(False), tuple(classes.values())), folder)


_CUB_LISTS = ("images", "classes", "image_class_labels", "train_test_split")


def _numbered(path: Path) -> dict[str, str]:
    """``{number: rest}`` of a list whose lines are a number and the rest."""
    table = {}
    for line in path.read_text().splitlines():
        number, separator, rest = line.strip().partition(" ")
        if not separator or number in table:
            raise ValueError(f"{path}: expected a new number and a value, got the line {line!r}")
        table[number] = rest
    return table


def read_folder(name: str, path: str | PathLike[str] | None) -> Listed:
    """A folder with one for training and one for tests, each with a folder of images for every class.

    ``PATH/train/CLASS/*.jpg`` and ``PATH/test/CLASS/*.jpg`` (or ``val``, ``valid``, ``validation``), ImageNet's form.
    Classes are numbered in the order of their names, images likewise; folders within a class are searched as well.
    Hidden files, and those without a suffix of ``SUFFIXES``, are left out. Of several folders for tests the first
    counts.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if train and test have different classes, or a class has no image.
    """
    train, test = (_part(name, path, names) for names in (TRAIN, TEST_OF.get(name, TEST)))
    classes, others = (class_folders(folder) for folder in (train, test))
    if classes != others:
        only = sorted(set(classes) ^ set(others))
        raise ValueError(f"{train} and {test} must have the same classes: only one of them has {', '.join(only[:5])}")
    return _checked(Listed(_files(train, classes), _files(test, classes), classes), train.parent)


def class_folders(path: Path) -> tuple[str, ...]:
    """The names of the classes: of the folders in ``path``, sorted."""
    return tuple(sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")))


def train_folder(name: str, path: str | PathLike[str] | None) -> Path:
    """Where a folder's training images are; ``FileNotFoundError`` if it has none."""
    return _part(name, path, TRAIN)


def _part(name: str, path: str | PathLike[str] | None, names: Sequence[str]) -> Path:
    root = Path("data" if path is None else path).expanduser()
    places = [root / part for part in names]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        form = f"{root}/{{{TRAIN[0]},{TEST_OF.get(name, TEST)[0]}}}/CLASS/IMAGE"
        raise not_found(name, places, [f"put the images there as {form}, or name their folder by --config.data.path"])
    return found


def _files(folder: Path, classes: Sequence[str]) -> Files:
    names, labels = [], []
    for label, name in enumerate(classes):
        before, seen = len(names), set()
        for place, subfolders, files in os.walk(folder / name, followlinks=True):
            if os.path.realpath(place) in seen:  # a link that leads back
                subfolders.clear()
                continue
            seen.add(os.path.realpath(place))
            subfolders.sort()
            for file in sorted(files):
                if not file.startswith(".") and file.lower().endswith(SUFFIXES):
                    names.append(os.path.relpath(os.path.join(place, file), folder))
                    labels.append(label)
        if len(names) == before:
            raise ValueError(f"{folder / name} holds no image: every class needs one, or remove the folder")
    return Files(folder, names, labels)


def _checked(listed: Listed, folder: Path) -> Listed:
    if not listed.class_names:
        raise ValueError(f"{folder} has no class")
    for what, files in (("training", listed.train), ("test", listed.test)):
        if not len(files):
            raise ValueError(f"{folder} has no {what} image")
    return listed
