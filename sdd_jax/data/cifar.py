"""CIFAR-10 and CIFAR-100 from the official archives, their extracted folders, or a TFDS data directory.

The python archives hold pickles, and a pickle can run code. So one is read only after its checksum has matched the
published one, and even then by a reader that can build NumPy arrays and nothing else.
"""

import functools
import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.data.dataset import Raw, data_root, not_found
from sdd_jax.data.folders import find_tfds, has_tfds, import_tfds, prepare_command

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
    snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
    tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)


class Layout(NamedTuple):
    """An official archive."""

    archive: str
    md5: str
    folder: str  # that it extracts to
    members: Mapping[str, str | int]  # in order, the test set last: the MD5 sum of a pickle, or the bytes of records


# From https://www.cs.toronto.edu/~kriz/cifar.html; MD5 sums of the python archives' members from torchvision,
# https://github.com/pytorch/vision/blob/main/torchvision/datasets/cifar.py.
LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "cifar10": (
        Layout(
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            "cifar-10-batches-py",
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
        Layout(
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-batches-bin",
            {f"data_batch_{number}.bin": 10_000 * 3073 for number in range(1, 6)} | {"test_batch.bin": 10_000 * 3073},
        ),
    ),
    "cifar100": (
        Layout(
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            "cifar-100-python",
            {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        ),
        Layout(
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            "cifar-100-binary",
            {"train.bin": 50_000 * 3074, "test.bin": 10_000 * 3074},
        ),
    ),
}

_PIXELS = 3 * 32 * 32


def read_cifar(
    name: str, path: str | PathLike[str] | None = None, layouts: Mapping[str, tuple[Layout, ...]] = LAYOUTS
) -> Raw:
    """CIFAR-10 or CIFAR-100 (fine labels), in the order of the official files.

    ``path`` is an official ``.tar.gz``, its extracted folder, a folder that holds either, or a TFDS data directory.
    """
    root, known = data_root(path), layouts[name]
    if root.is_file():
        return _read_archive(root, known)
    for layout in known:
        for folder in (root / layout.folder, root):
            if any((folder / member).is_file() for member in layout.members):
                return _read_members(layout, functools.partial(_read_file, folder), str(folder))
    for layout in known:
        if (root / layout.archive).is_file():
            return _read_archive(root / layout.archive, known)
    if has_tfds(name, path):
        return _read_tfds(find_tfds(name, path))
    places = [root / part for layout in known for part in (layout.folder, layout.archive)]
    ways = [
        f"curl -fL --create-dirs -o data/{known[0].archive} https://www.cs.toronto.edu/~kriz/{known[0].archive}",
        f"python -c \"from torchvision.datasets import {name.upper()}; {name.upper()}('data', download=True)\"",
        prepare_command(name),
    ]
    raise not_found(name, [root, *places, root / name / "VERSION" / "dataset_info.json"], ways)


def _read_tfds(directory: Path) -> Raw:
    """TFDS shuffles what it writes; the examples' own ``id`` brings back the order of the official files."""
    builder = import_tfds().builder_from_directory(str(directory))
    arrays = []
    for split in ("train", "test"):
        source: Any = builder.as_data_source(split=split)
        examples = sorted((source[row] for row in range(len(source))), key=lambda example: example["id"])
        arrays += [np.stack([example["image"] for example in examples])]
        arrays += [np.asarray([example["label"] for example in examples])]
    return tuple(arrays)


def _read_archive(path: Path, layouts: tuple[Layout, ...]) -> Raw:
    content = path.read_bytes()  # hashed and unpacked from one copy: the file cannot change in between
    got = hashlib.md5(content).hexdigest()
    layout = next((layout for layout in layouts if layout.md5 == got), None)
    if layout is None:
        expected = " or ".join(f"{layout.md5} ({layout.archive})" for layout in layouts)
        raise ValueError(f"{path}: the MD5 sum must be {expected}, got {got}: download it again")

    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:

        def read(member):
            try:
                file = archive.extractfile(f"{layout.folder}/{member}")
            except KeyError:  # it is not there, or a link to a file that is not
                file = None
            if file is None:
                raise ValueError(f"{path}: {layout.folder}/{member} is not a file")
            return file.read()

        return _read_members(layout, read, str(path))


def _read_file(folder: Path, member: str) -> bytes:
    path = folder / member
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though others of the set are there: extract the archive again")
    return path.read_bytes()


def _read_members(layout: Layout, read: Callable[[str], bytes], where: str) -> Raw:
    decoded = []
    for member, check in layout.members.items():
        decode: Any = _decode_pickle if isinstance(check, str) else _decode_records
        decoded.append(decode(read(member), check, f"{where}: {member}"))
    arrays = []
    for part in (decoded[:-1], decoded[-1:]):
        images = np.concatenate([pixels for pixels, _ in part]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays += [np.ascontiguousarray(images), np.concatenate([labels for _, labels in part])]
    return tuple(arrays)


def _decode_records(content: bytes, size: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    if len(content) != size:
        raise ValueError(f"{what} must have {size} bytes, got {len(content)}")
    # CIFAR-10 has one label byte before the pixels; CIFAR-100 has two, the coarse label and the fine one.
    label_bytes = 1 if size % (_PIXELS + 1) == 0 else 2
    records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + _PIXELS)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _decode_pickle(content: bytes, md5: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    got = hashlib.md5(content).hexdigest()
    if got != md5:
        raise ValueError(f"{what} must have the MD5 sum {md5}, got {got}: not read, since it is a pickle")
    entry = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()  # Python 2 wrote the official files
    return entry["data"], np.asarray(entry["fine_labels" if "fine_labels" in entry else "labels"])


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain Python values; any other name in the pickle is refused before it is imported."""

    _ADMITTED: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise ValueError(f"the pickle asks for {module}.{name}, which a CIFAR file has no use for: refused")
        return self._ADMITTED[module, name]
