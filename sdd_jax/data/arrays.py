"""Own arrays in one ``.npz`` file, as ``numpy.savez`` writes it; MedMNIST's files are such.

It holds ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``. It may hold ``val_images`` and
``val_labels``, which then choose the best epoch in place of held-out training images, and what `from_arrays` takes
besides: ``class_names``, ``mean``, ``std``, ``pad``, ``flip``.
"""

import dataclasses
import functools
import io
import math
import re
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.data.dataset import Dataset, Split, data_root, from_arrays, not_found
from sdd_jax.files import DAMAGED_ZIP, size_text, write_whole
from sdd_jax.processes import memory_bytes

NAME = "arrays"
_NEEDED = ("train_images", "train_labels", "test_images", "test_labels")
_HELD_OUT = ("val_images", "val_labels")
_INDEX = ("train_index", "val_index", "test_index")  # numbers in the original set, for an image's random views
_FACTS = ("class_names", "mean", "std", "pad", "flip")


MOST = 2**24  # examples, as of a cache


class Facts(NamedTuple):
    """What is known of a file once it was read."""

    image_shape: tuple[int, int, int]
    train_examples: int  # with those that choose the best epoch
    test_examples: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool


def read(
    path: str | PathLike[str] | None, *, select_on: str = "validation", train_examples: int | None = None
) -> Dataset:
    """The data set in the file ``path``; arguments and errors as in :func:`from_arrays`, which name the file."""
    file = _place(path)
    content = _content(file)
    try:
        held_out = select_on == "validation" and _HELD_OUT[0] in content
        dataset = from_arrays(
            *(content[name] for name in _NEEDED),
            name=NAME,
            select_on="test" if held_out else select_on,
            train_examples=train_examples,
            **{name: content[name] for name in _FACTS if name in content},
        )
        if held_out:
            names = {"class_names": dataset.class_names, "mean": dataset.mean, "std": dataset.std}
            shape = (*content[_HELD_OUT[0]].shape[1:], 1)[:3]  # as grey images may come without channels
            if shape != dataset.image_shape:
                raise ValueError(f"val_images are {shape}, train_images {dataset.image_shape}")
            try:
                selection = from_arrays(*(content[name] for name in _HELD_OUT * 2), select_on="test", **names).test
            except ValueError as error:  # which calls them training images, as they are given as such
                raise ValueError(re.sub(r"\b(train|test)_", "val_", str(error))) from error
            first = len(content["train_labels"])
            selection = selection._replace(index=selection.index + np.int32(first))
            dataset = dataclasses.replace(dataset, selection=selection, select_on="validation")
        return _numbered(dataset, content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def facts(path: str | PathLike[str] | None) -> Facts:
    """What the file ``path`` holds, read once for each state of the file; errors as in ``read``."""
    file = _place(path)
    status = file.stat()
    return _facts(str(file), status.st_size, status.st_mtime_ns)


@functools.cache
def _facts(path: str, size: int, changed: int) -> Facts:
    del size, changed
    dataset = read(path, select_on="test")
    with np.load(path, allow_pickle=False) as content:
        held_out = len(content[_HELD_OUT[1]]) if _HELD_OUT[1] in content else 0
    examples = len(dataset.train.index) + held_out, len(dataset.test.index)
    about = dataset.class_names, dataset.mean, dataset.std, dataset.pad, dataset.flip
    return Facts(dataset.image_shape, *examples, *about)


def write(path: Path, dataset: Dataset) -> None:
    """Writes ``dataset`` to the file ``path``, from which ``read`` makes the same one."""
    content: dict[str, Any] = {name: getattr(dataset, name) for name in _FACTS}
    splits = {"train": dataset.train, "test": dataset.test}
    if dataset.select_on == "validation":
        splits["val"] = dataset.selection
    for name, split in splits.items():
        content |= {f"{name}_{part}": array for part, array in split._asdict().items()}
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def _place(path: str | PathLike[str] | None) -> Path:
    file = data_root(path)
    if not file.is_file():
        way = "numpy.savez('own.npz', train_images=..., train_labels=..., test_images=..., test_labels=...)"
        raise not_found(NAME, [file], [f"{way} and data.path=own.npz"])
    return file


def _content(file: Path) -> dict[str, Any]:
    """The file's arrays by name, and its facts as `from_arrays` takes them; ``ValueError`` if it is another file."""
    known = (*_NEEDED, *_HELD_OUT, *_INDEX, *_FACTS)
    try:
        with zipfile.ZipFile(file) as archive:
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            total = sum(info.file_size for info in archive.infolist())
            if missing := [name for name in _NEEDED if name not in names]:
                raise ValueError(f"it lacks {', '.join(missing)}: got {', '.join(names) or 'nothing'}")
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"it holds {', '.join(unknown)}: known are {', '.join(known)}")
            if (_HELD_OUT[0] in names) != (_HELD_OUT[1] in names):
                raise ValueError(f"{' and '.join(_HELD_OUT)} go together: got {', '.join(names)}")
            if total > memory_bytes():
                raise ValueError(f"it takes {size_text(total)}, and the memory has {size_text(memory_bytes())}")
            for info in archive.infolist():
                _check_size(archive, info)
        with np.load(file, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in names}
    except (*DAMAGED_ZIP, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file} is not a file of arrays: {error}") from error
    for name in ("train_labels", "test_labels", "val_labels"):
        if name in content and content[name].ndim == 2 and content[name].shape[1] == 1:  # as MedMNIST has them
            content[name] = content[name][:, 0]
    try:
        content |= {name: _fact(name, content[name]) for name in _FACTS if name in content}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return content


def _fact(name: str, array: np.ndarray) -> Any:
    """A fact of the file as `from_arrays` takes it; ``ValueError`` if it is of another kind."""
    kinds, dimensions, wanted = {
        "pad": ("iu", 0, "an integer"),
        "flip": ("b", 0, "True or False"),
        "class_names": ("U", 1, "a list of names"),
    }.get(name, ("fiu", 1, "a number for each channel"))
    array = array[None] if name in ("mean", "std") and array.ndim == 0 else array  # of grey images
    if array.dtype.kind not in kinds or array.ndim != dimensions:
        raise ValueError(f"{name} must be {wanted}, got {array.dtype} {list(array.shape)}")
    return array.tolist()


def _check_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """``ValueError`` unless an array's header asks for the bytes that are there: NumPy would reserve what it says."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{info.filename} is of NumPy's format {version}, expected one of {list(readers)}")
        shape, _, dtype = readers[version](member)
        if math.prod(shape) * dtype.itemsize != info.file_size - member.tell():
            raise ValueError(f"{info.filename} has {info.file_size} bytes, which {dtype} {shape} does not fill")


def _numbered(dataset: Dataset, content: Mapping[str, Any]) -> Dataset:
    """``dataset`` with the numbers of its examples that the file gives."""

    def numbered(name: str, split: Split) -> Split:
        if (given := content.get(f"{name}_index")) is None:
            return split
        if given.shape != content[f"{name}_labels"].shape or given.dtype.kind not in "iu":
            raise ValueError(f"{name}_index must be an integer for each image, got {given.dtype} {given.shape}")
        if len(np.unique(given)) != len(given) or given.min() < 0 or given.max() >= MOST:
            raise ValueError(f"{name}_index must be numbers that differ, from 0 to {MOST - 1}")
        return split._replace(index=given[split.index if name == "train" else slice(None)].astype(np.int32))

    test = numbered("test", dataset.test)
    selection = test if dataset.selection is dataset.test else dataset.selection
    if dataset.select_on == "validation" and _HELD_OUT[0] in content:
        selection = numbered("val", selection)
    return dataclasses.replace(dataset, train=numbered("train", dataset.train), selection=selection, test=test)
