"""Sets of images on disk: CUB-200-2011, class folders (ImageNet's or one's own), and TFDS directories.

Nothing is decoded here: a reader lists the encoded images and their classes. TFDS sets have to be in the ArrayRecord
format, and are read without TensorFlow.
"""

import errno
import hashlib
import os
import stat
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.data.dataset import data_root, not_found
from sdd_jax.files import read_mapping, walk

# What the folder of test images may be called, in this order.
TEST = ("test", "val", "valid", "validation")
NAMES = ("classes.txt", "words.txt")  # beside them: what class folders are called
TEST_OF = {"imagenet": TEST[1:]}  # its test set is published without labels
SUFFIXES = (
    ".apng", ".avif", ".avifs", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf",
    ".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
MOST_BYTES = 2**30  # of one file
BROKEN_LINK = (errno.ENOENT, errno.ELOOP)  # it leads nowhere, or in a circle
_CUB_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"

PREFIX = "tfds:"
IMAGENET_TFDS = "imagenet2012"
_INSTALL = "pip install tensorflow-datasets importlib_resources"  # it imports the latter and does not require it


class Files:
    """Image files below one folder, with their labels."""

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[int]):
        self._root = os.fspath(root)
        self._names = np.asarray([os.fsencode(name) for name in names], dtype=np.bytes_)  # a million paths, compactly
        self.labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, number: int) -> str:
        return os.path.join(self._root, os.fsdecode(self._names[number]))

    def read(self, number: int) -> tuple[bytes, int]:
        name = self.name(number)
        found = os.stat(name)
        if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for ever
            raise ValueError(f"{name} is no regular file")
        if found.st_size > MOST_BYTES:
            raise ValueError(f"{name} has {found.st_size} bytes, the limit for an image is {MOST_BYTES}")
        with open(name, "rb") as file:
            return file.read(), int(self.labels[number])

    def fingerprint(self, times: bool = False) -> str:
        """SHA-256, in hex, over names, labels and sizes of the files, and their times; their content is not read.

        A broken link has the size and the time -1.
        """
        digest = hashlib.sha256(self.labels.astype("<i4").tobytes())
        for number, name in enumerate(self._names):
            try:
                found = os.stat(self.name(number))
                size, changed = found.st_size, found.st_mtime_ns
            except OSError as error:
                if error.errno not in BROKEN_LINK:
                    raise
                size, changed = -1, -1
            digest.update(b"%d %d " % (size, len(name)) + name)
            if times:
                digest.update(b"%d " % changed)
        return digest.hexdigest()

    def listing(self) -> str:
        """SHA-256, in hex, over names below the folder and labels: no file is asked for, wherever the folder lies."""
        return hashlib.sha256(self.labels.astype("<i4").tobytes() + b"\n".join(self._names)).hexdigest()


class TfdsRecords:
    """One split of a TFDS set; it opens nothing before the first read."""

    labels = None  # they stand in the records
    _opening = threading.Lock()  # threads that decode would each open the directory

    def __init__(self, directory: Path, split: str, keys: tuple[str, str], length: int):
        self._directory, self._split, self._keys, self._length = os.fspath(directory), split, keys, length
        self._source: Any = None

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}

    def name(self, number: int) -> str:
        return f"record {number} of {self._split} in {self._directory}"

    def read(self, number: int) -> tuple[Any, int]:
        if self._source is None:
            with self._opening:
                self._source = self._source or self._open()
        example = self._source[number]
        return example[self._keys[0]], int(example[self._keys[1]])

    def fingerprint(self, times: bool = False) -> str:
        digest = hashlib.sha256(Path(self._directory, "dataset_info.json").read_bytes() + self._split.encode())
        for path in sorted(Path(self._directory).iterdir()) if times else ():
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns} ".encode())
        return digest.hexdigest()

    def listing(self) -> str:
        return self.fingerprint()

    def _open(self) -> Any:
        tfds = import_tfds()
        builder = tfds.builder_from_directory(self._directory)
        images = (key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image))
        decoders = {key: tfds.decode.SkipDecoding() for key in images}  # masks and the like too: nobody reads them
        return builder.as_data_source(split=self._split, decoders=decoders)


# Encoded images in a fixed order; worker processes can be sent it. labels are int32 [N], or None if they stand in the
# records; read returns the bytes of an image (or its uint8 pixels) and its label, name what errors call it.
Records = Files | TfdsRecords


class Listed(NamedTuple):
    """What a reader of a set on disk returns."""

    train: Records
    test: Records
    class_names: tuple[str, ...]


def read_cub200(path: str | PathLike[str] | None) -> Listed:
    """CUB-200-2011 with the official split, from its folder or the one that holds it."""
    lists = [place / "images.txt" for place in (data_root(path), data_root(path) / "CUB_200_2011")]
    folder = next((file.parent for file in lists if file.is_file()), None)
    if folder is None:
        raise not_found("cub200", lists, [f"mkdir -p data && curl -fL {_CUB_URL} | tar -xz -C data"])
    names = ("images", "classes", "image_class_labels", "train_test_split")
    images, classes, class_of, trained_on = (_numbered(folder / f"{name}.txt") for name in names)
    for name, table in (("image_class_labels", class_of), ("train_test_split", trained_on)):
        if table.keys() != images.keys():
            raise ValueError(f"{folder}: {name}.txt and images.txt do not number the same images")
    labels = {number: label for label, number in enumerate(classes)}
    for number in images:
        if class_of[number] not in labels:
            raise ValueError(f"{folder}: image {number} has class {class_of[number]}, not listed")

    def part(train):
        numbers = [number for number in images if (trained_on[number] == "1") == train]
        names = [images[number] for number in numbers]
        return Files(folder / "images", names, [labels[class_of[number]] for number in numbers])

    return Listed(part(True), part(False), tuple(classes.values()))


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
    """``PATH/train/CLASS/*.jpg`` and ``PATH/test/CLASS/*.jpg``; or ``val``, ``valid``, ``validation``: the first found.

    Classes are numbered in the order of their names, images likewise; folders within a class are searched as well.
    What is hidden is left out, and so are files without a suffix of ``SUFFIXES``, whose number is told on stderr. Every
    class needs an image in both parts.
    """
    train, classes = find_part(name, path)
    test, others = find_part(name, path, TEST_OF.get(name, TEST))
    if classes != others and not set(others) - {"images"}:
        raise ValueError(
            f"{train} and {test} must have the same classes: {test} has no folders of classes. Put each of its images "
            "into that of its class (the script valprep.sh of soumith/imagenetloader.torch sorts ImageNet's), or move "
            "a folder without labels away. Tiny-ImageNet's layout is read as it comes, with its wnids.txt and "
            "val/val_annotations.txt"
        )
    if classes != others:
        only = sorted(set(classes) ^ set(others))
        raise ValueError(f"{train} and {test} must have the same classes: only one of them has {', '.join(only[:5])}")
    return Listed(_files(train, classes), _files(test, classes), read_names(data_root(path), classes))


def read_names(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """What the class folders are called: as ``classes.txt`` or ``words.txt`` in ``root`` says, else as they are.

    A line is a folder's name, a tab or a space, and what it is called; of the words of ``words.txt`` (ImageNet's) the
    first counts. Folders that no line names keep their names; ``ValueError`` if the file names none of them.
    """
    path = next((root / name for name in NAMES if (root / name).is_file()), None)
    if path is None:
        return classes
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # as some editors on Windows write it
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    parted = (line.partition("\t" if "\t" in line else " ") for line in lines)
    names = {folder.strip(): called.strip() for folder, _, called in parted}
    if not {*names, *map(str.strip, lines)} & set(classes):
        raise ValueError(
            f"{path} names none of the class folders, such as {classes[0]}: each line must be a folder's name, a tab "
            "or a space, and what the class is called; if the file is something else, move it away"
        )
    if path.name == NAMES[1]:
        names = {folder: called.split(",")[0].strip() for folder, called in names.items()}
    return called_by(names, classes)


def called_by(names: Mapping[str, str], classes: Sequence[str]) -> tuple[str, ...]:
    """What classes are called by ``names``, with their own name where two share it; or their own name alone."""
    first = [names.get(name) or name for name in classes]
    counts = Counter(first)
    return tuple(word if counts[word] == 1 else f"{word} ({name})" for word, name in zip(first, classes, strict=True))


def find_part(
    name: str, path: str | PathLike[str] | None, names: Sequence[str] = ("train",)
) -> tuple[Path, tuple[str, ...]]:
    """The first of these folders that is there, and the classes in it, of which training images have one or more."""
    root = data_root(path)
    places = [root / part for part in names]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        form = f"{root}/{{train,{TEST_OF.get(name, TEST)[0]}}}/CLASS/IMAGE"
        raise not_found(name, places, [f"put the images there as {form}, or name their folder by --config.data.path"])
    classes = (entry.name for entry in os.scandir(found) if entry.is_dir() and not entry.name.startswith("."))
    classes = tuple(sorted(classes))
    if not classes and "train" in names:
        raise ValueError(f"{found} has no folders of classes: expected {root}/train/CLASS/IMAGE")
    return found, classes


def _files(folder: Path, classes: Sequence[str]) -> Files:
    names, labels, others = [], [], Counter()
    for label, name in enumerate(classes):
        before = len(names)
        for place, files in walk(folder / name):
            for file in files:
                if file.lower().endswith(SUFFIXES):
                    names.append(os.path.relpath(os.path.join(place, file), folder))
                    labels.append(label)
                else:
                    others[os.path.splitext(file)[1].lower() or "without a suffix"] += 1
        if len(names) == before:
            raise ValueError(f"{folder / name} holds no image: every class needs one, or remove the folder")
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        _tell(f"{folder}: left out by the suffix, {others.total()} in all: {kinds}")
    return Files(folder, names, labels)


@cache
def _tell(line: str) -> None:
    """On stderr, once: the files are listed several times before a run begins."""
    print(line, file=sys.stderr, flush=True)


def read_tfds(name: str, path: str | PathLike[str] | None) -> Listed:
    """The set ``name`` (with a config, as ``NAME/CONFIG``) of a TFDS data directory; it must be of labelled images."""
    directory = find_tfds(name, path)
    # From the directory, not by name (tfds.data_source): the version on disk need not be the installed package's.
    info = import_tfds().builder_from_directory(str(directory)).info
    image_key, label_key = keys = (info.supervised_keys or ("image", "label"))[:2]
    for key in keys:
        if key not in info.features:
            raise ValueError(f"{directory} has no {key!r}: its features are {', '.join(info.features)}")
    class_names = getattr(info.features[label_key], "names", None)
    if not class_names:
        raise ValueError(f"{directory}: {label_key!r} is not a class label, which this package needs")
    tests = [split for split in ("test", "validation") if split in info.splits]
    if "train" not in info.splits or not tests:
        raise ValueError(f"{directory} needs a split train, and test or validation; it has {', '.join(info.splits)}")

    def records(split):
        return TfdsRecords(directory, split, (image_key, label_key), info.splits[split].num_examples)

    # ImageNet's test set has no labels, and some other set's may have none.
    labelled = [split for split in tests if 0 <= records(split).read(0)[1] < len(class_names)]
    if not labelled:
        raise ValueError(f"{directory}: the images of {' and '.join(tests)} have no labels")
    return Listed(records("train"), records(labelled[0]), tuple(class_names))


def has_tfds(name: str, path: str | PathLike[str] | None) -> bool:
    """Whether a TFDS data directory holds ``name``, in whatever format."""
    return any((data_root(path) / name).glob("*/dataset_info.json"))


def find_tfds(name: str, path: str | PathLike[str] | None) -> Path:
    """The directory of the newest version of ``name``; an error with the command that prepares it if there is none."""
    root = data_root(path)
    versions = [file.parent for file in (root / name).glob("*/dataset_info.json")]
    if not versions:
        place = root / name / "VERSION" / "dataset_info.json"
        raise not_found(f"{PREFIX}{name}", [place], [prepare_command(name, root)])
    directory = max(versions, key=lambda version: [int(part) for part in version.name.split(".") if part.isdigit()])
    if read_mapping(directory / "dataset_info.json").get("fileFormat") != "array_record":
        raise ValueError(
            f"{directory} holds no ArrayRecord files, the only format that can be read at random: prepare the set as "
            f"such\n  {prepare_command(name, root)}"
        )
    return directory


def import_tfds() -> Any:
    """tensorflow_datasets, or ``ImportError`` with the command that installs it."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(f"reading a TFDS directory needs: {_INSTALL}") from error
    return tensorflow_datasets


def prepare_command(name: str, data_dir: str | PathLike[str] = "data") -> str:
    """The command that downloads a set and prepares it as this package reads it, and what it needs."""
    builder = f"tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
    command = f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'
    return f"{command}  (needs TensorFlow: {_INSTALL} tensorflow)"
