"""Tiny-ImageNet-200 in the layout of its own archive, from the folder or from the zip file as it comes.

``wnids.txt`` names the classes (all 200, or as many as are wanted), ``words.txt`` says what they are called,
``train/WNID/images/`` has their training images; those of ``val/images/`` are the test images, with their classes in
``val/val_annotations.txt``. The archive's ``test/`` has no labels and is left alone.
"""

import functools
import hashlib
import os
import threading
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax.data.dataset import data_root, not_found
from sdd_jax.data.folders import MOST_BYTES, SUFFIXES, Files, Listed, called_by
from sdd_jax.files import DAMAGED_ZIP

LISTS = ("wnids.txt", "words.txt", "val/val_annotations.txt")
_ARCHIVE = "tiny-imagenet-200"
_URL = f"http://cs231n.stanford.edu/{_ARCHIVE}.zip"


class Zipped(Files):
    """Image files within one zip file, with their labels; it opens nothing before the first read."""

    _opening = threading.Lock()  # threads that decode would each open the archive

    def __init__(self, archive: Path, entries: Sequence[zipfile.ZipInfo], labels: Sequence[int]):
        super().__init__(archive, [entry.filename for entry in entries], labels)
        self._entries = np.asarray([(entry.file_size, entry.CRC) for entry in entries], np.int64)
        self._archive: zipfile.ZipFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archive": None}

    def read(self, number: int) -> tuple[bytes, int]:
        if self._archive is None:
            with self._opening:
                self._archive = self._archive or open_zip(Path(self._root))
        member = os.fsdecode(self._names[number])
        return read_member(self._archive, member), int(self.labels[number])

    def fingerprint(self, times: bool = False) -> str:
        """SHA-256, in hex, over names, labels, sizes and checksums of the files in it, and the zip file's time."""
        digest = hashlib.sha256(self.labels.astype("<i4").tobytes() + self._entries.astype("<i8").tobytes())
        for name in self._names:
            digest.update(b"%d " % len(name) + name)
        return digest.hexdigest() + (f" {os.stat(self._root).st_mtime_ns}" if times else "")


def open_zip(path: Path) -> zipfile.ZipFile:
    """The zip file; ``ValueError`` if it is none."""
    try:
        return zipfile.ZipFile(path)
    except DAMAGED_ZIP as error:
        raise ValueError(f"{path} does not read as a zip file: {error}") from error


def read_member(archive: zipfile.ZipFile, member: str) -> bytes:
    """A file in it; ``ValueError`` if it is not there, damaged or too large."""
    name = f"{archive.filename}/{member}"
    try:
        size = archive.getinfo(member).file_size
    except KeyError:
        raise ValueError(f"{name} is missing, though others of the set are there") from None
    if size > MOST_BYTES:
        raise ValueError(f"{name} has {size} bytes, the limit is {MOST_BYTES}")
    try:
        return archive.read(member)
    except Exception as error:  # each way to compress has errors of its own
        raise ValueError(f"{name} does not read: {error}") from error


def has_layout(path: str | PathLike[str] | None) -> bool:
    """Whether ``path`` is a folder in the archive's layout."""
    return all((data_root(path) / name).is_file() for name in (LISTS[0], LISTS[2]))


def read_tiny_imagenet(path: str | PathLike[str] | None) -> Listed:
    """Classes and images in the order of their names, as folders of classes have them.

    ``path`` is the folder, the zip file, or the folder that holds ``tiny-imagenet-200`` or ``tiny-imagenet-200.zip``.
    """
    place = _place(path)
    return _from_folder(place) if place.is_dir() else _from_zip(place)


def count_classes(path: str | PathLike[str] | None) -> int | None:
    """How many classes the set has, read once for each state of its list; None where it is not there."""
    try:
        place = _place(path)
    except FileNotFoundError:
        return None
    return _count(place, (place / LISTS[0] if place.is_dir() else place).stat().st_mtime_ns)


@functools.cache
def _count(place: Path, changed: int) -> int:
    del changed
    return len(read_tiny_imagenet(place).class_names)


def _place(path: str | PathLike[str] | None) -> Path:
    """The zip file, or the folder with the lists."""
    root = data_root(path)
    archive = root / f"{_ARCHIVE}.zip"
    if root.is_file():
        return root
    for place in (root, root / _ARCHIVE):
        if (place / LISTS[0]).is_file():
            return place
    if archive.is_file():
        return archive
    places = [root / LISTS[0], root / _ARCHIVE / LISTS[0], archive]
    raise not_found("tiny_imagenet", places, [f"curl -fL --create-dirs -o data/{_ARCHIVE}.zip {_URL}"])


def _from_folder(folder: Path) -> Listed:
    texts = {name: (folder / name).read_bytes() for name in LISTS if (folder / name).is_file()}
    parts = {part: [] for part in ("train", "val")}
    for place in [*sorted((folder / "train").glob("*/images")), folder / "val" / "images"]:
        if place.is_dir():
            start = place.relative_to(folder).as_posix()
            parts[start.partition("/")[0]] += sorted(f"{start}/{entry.name}" for entry in os.scandir(place))
    return _list(folder, texts, parts, lambda names, labels: Files(folder, names, labels))


def _from_zip(path: Path) -> Listed:
    with open_zip(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        found = [name for name in entries if name.rpartition("/")[2] == LISTS[0]]
        if len(found) != 1:
            raise ValueError(
                f"{path} must hold one {LISTS[0]}, as the archive of Tiny-ImageNet does; it has {len(found)}"
            )
        top = found[0].removesuffix(LISTS[0])
        texts = {name: read_member(archive, top + name) for name in LISTS if top + name in entries}
    inside = sorted(name.removeprefix(top) for name in entries if name.startswith(top))
    parts = {part: [name for name in inside if name.startswith(f"{part}/")] for part in ("train", "val")}
    return _list(path, texts, parts, lambda names, labels: Zipped(path, [entries[top + n] for n in names], labels))


def _list(root: Path, texts: Mapping[str, bytes], parts: Mapping[str, Sequence[str]], records: Any) -> Listed:
    """The set of the lists ``texts`` and the names in ``parts``; ``records(names, labels)`` makes one of its splits."""
    tables = {name: _lines(root, name, text) for name, text in texts.items()}
    for name in (LISTS[0], LISTS[2]):
        if name not in tables:
            raise ValueError(f"{root}/{name} is missing, though others of the set are there")
    wnids = sorted(line[0] for line in tables[LISTS[0]])
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    if not labels:
        raise ValueError(f"{root}/{LISTS[0]} names no class")
    if len(labels) != len(wnids):
        raise ValueError(f"{root}/{LISTS[0]} names a class twice")
    train: list[tuple[str, int]] = []
    for name in parts["train"]:
        _, wnid, *inner = name.split("/")
        is_image = name.lower().endswith(SUFFIXES) and "/." not in name  # which other systems leave
        if wnid in labels and len(inner) == 2 and inner[0] == "images" and is_image:
            train.append((name, labels[wnid]))
    train.sort(key=lambda example: example[1])  # by class; names stay in their order
    there, test = set(parts["val"]), []
    for name, *rest in tables[LISTS[2]]:
        if not rest:
            raise ValueError(f"{root}/{LISTS[2]} must have an image and its class in a line, got {name!r}")
        if rest[0] in labels:
            if (name := f"val/images/{name}") not in there:
                raise ValueError(f"{root}/{name} is missing, though {LISTS[2]} names it")
            test.append((name, labels[rest[0]]))
    for part, examples in (("train", train), ("val", test)):
        if empty := labels.keys() - {wnids[label] for _, label in examples}:
            raise ValueError(f"{root}/{part} holds no image of {min(empty)}, which {LISTS[0]} names")
    words = {line[0]: line[-1].split(",")[0].strip() for line in tables.get(LISTS[1], ())}
    splits = [records(*zip(*examples, strict=True)) for examples in (train, test)]
    return Listed(splits[0], splits[1], called_by(words, wnids))


def _lines(root: Path, name: str, text: bytes) -> list[list[str]]:
    try:
        return [line.split("\t") for line in text.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{root}/{name} is no text: {error}") from error
