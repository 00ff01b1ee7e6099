"""MNIST and Fashion-MNIST from IDX files, plain or gzipped.

The format is described at http://yann.lecun.com/exdb/mnist: two zero bytes, a type (8 is uint8), the number of
dimensions, each size as four big-endian bytes, then the values.
"""

import gzip
import math
import zlib
from os import PathLike
from pathlib import Path

import numpy as np

from sdd_jax.data.dataset import Raw, not_found

__all__ = ["FASHION_CLASSES", "read_idx", "read_mnist"]

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# torchvision's names. The commands below fill these folders of "data", which are looked at when no path is given: not
# "data" itself, where the files of the one set could pass for the other's.
_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_ADDRESSES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
}
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MOST = 2**30  # bytes that are unzipped of one file; the largest of these sets has 47 million


def read_idx(path: str | PathLike[str], dimensions: int) -> np.ndarray:
    """One IDX file of bytes.

    Args:
      path: the file; it is unzipped if its name ends in ``.gz``.
      dimensions: how many the array must have: 3 for images, 1 for labels.

    Returns:
      uint8, with the sizes that the file states.

    Raises:
      ValueError: if the header is another, a byte is missing or left over, or the gzip data are damaged.
    """
    start = 4 + 4 * dimensions
    if str(path).endswith(".gz"):
        try:
            with gzip.open(path) as file:  # no more than the header states: a small file can hold gigabytes
                content = file.read(start)
                sizes = np.frombuffer(content[4:].ljust(start - 4, b"\0"), ">u4").tolist()
                content += file.read(min(math.prod(sizes), _MOST) + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    else:
        content = Path(path).read_bytes()
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise ValueError(f"{path} must begin with {magic.hex()} (IDX, bytes), got {content[:4].hex() or 'nothing'}")
    if len(content) < start:
        raise ValueError(f"{path} ends within its header: {start} bytes expected, got {len(content)}")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(f"{path} must have {expected} bytes for the shape {shape}, got {len(content)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_mnist(name: str, path: str | PathLike[str] | None = None) -> Raw:
    """MNIST or Fashion-MNIST from a folder of its four IDX files, zero-padded from 28x28 to 32x32.

    Args:
      name: "mnist" or "fashion_mnist". The two have the same file names: only the folder tells them apart.
      path: the folder of the files, or the folder that holds torchvision's ``MNIST/raw`` or ``FashionMNIST/raw``. None
        looks there below ``data``, and for Fashion-MNIST where Debian's package dataset-fashion-mnist puts it.

    Returns:
      Images uint8 ``[N, 32, 32, 1]`` with their labels.

    Raises:
      FileNotFoundError: if there is no such set; it says how to get it.
      ValueError: if a file is damaged or images and labels do not belong together.
    """
    torchvision = Path(_FOLDERS[name], "raw")
    if path is None:
        places = [Path("data") / torchvision, *([_DEBIAN] if name == "fashion_mnist" else [])]
    else:
        root = Path(path).expanduser()
        places = [root, root / torchvision, root / "raw"]
    for place in places:
        if _find(place, _FILES[0]) is not None:
            return _read_folder(name, place)
    raise not_found(name, places, _ways(name))


def _find(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def _read_folder(name: str, folder: Path) -> Raw:
    arrays = []
    for file in _FILES:
        path = _find(folder, file)
        if path is None:
            raise not_found(name, [folder / file, folder / f"{file}.gz"], _ways(name))
        array = read_idx(path, 3 if "images" in file else 1)
        if array.ndim == 3:
            if array.shape[1:] != (28, 28):
                raise ValueError(f"{path} must hold images of 28x28, got {array.shape[1]}x{array.shape[2]}")
            array = np.pad(array, ((0, 0), (2, 2), (2, 2)))[..., None]
        elif len(array) != len(arrays[-1]):
            raise ValueError(f"{path} must hold a label for each of the {len(arrays[-1])} images, got {len(array)}")
        arrays.append(array)
    return Raw(*arrays)


def _ways(name: str) -> list[str]:
    folder = f"data/{_FOLDERS[name]}/raw"
    files = ",".join(_FILES)
    debian = ["apt-get install dataset-fashion-mnist"] if name == "fashion_mnist" else []
    return [
        *debian,
        f"curl -fL --create-dirs --output-dir {folder} --remote-name-all '{_ADDRESSES[name]}/{{{files}}}.gz'",
        f"python -c \"from torchvision.datasets import {_FOLDERS[name]}; {_FOLDERS[name]}('data', download=True)\"",
    ]
