"""Small grey images: MNIST and Fashion-MNIST from IDX files, plain or gzipped, and digits that come with the package.

An IDX file (http://yann.lecun.com/exdb/mnist) has two zero bytes, a type (8 is uint8), the number of dimensions, each
size as four big-endian bytes, then the values.
"""

import gzip
import math
import zlib
from os import PathLike
from pathlib import Path

import numpy as np

from sdd_jax.data.dataset import Raw, data_root, not_found, stratified_draw

DIGITS = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# torchvision's names of the folders, below "data" by default. Never "data" itself: both sets have the same file names.
_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_ADDRESSES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
}
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MOST = 2**30  # bytes to unzip of one file; the largest of these sets has 47 million
_TEST_KEY = 20_240_619  # of the digits' test set; another key makes published results incomparable


def read_idx(path: str | PathLike[str], dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file with so many dimensions; ``ValueError`` if it is damaged or another."""
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
    if content[:4] != magic or len(content) < start:
        expected = f"{path} must begin with {magic.hex()} and {dimensions} sizes (IDX, bytes)"
        raise ValueError(f"{expected}, got {content[:start].hex() or 'nothing'}")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise ValueError(f"{path} must have {expected} bytes for the shape {shape}, got {len(content)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_mnist(name: str, path: str | PathLike[str] | None = None) -> Raw:
    """MNIST or Fashion-MNIST, zero-padded from 28x28 to 32x32; ``path`` as in :func:`sdd_jax.data.load`."""
    torchvision = Path(_FOLDERS[name], "raw")
    if path is None:
        places = [Path("data") / torchvision, *([_DEBIAN] if name == "fashion_mnist" else [])]
    else:
        root = data_root(path)
        places = [root, root / torchvision, root / "raw"]
    folder = next((place for place in places if _find(place, FILES[0]) is not None), None)
    if folder is None:
        raise not_found(name, places, _ways(name))
    arrays = []
    for file in FILES:
        found = _find(folder, file)
        if found is None:
            raise not_found(name, [folder / file, folder / f"{file}.gz"], _ways(name))
        array = read_idx(found, 3 if "images" in file else 1)
        if array.ndim == 3:
            if array.shape[1:] != (28, 28):
                raise ValueError(f"{found} must hold images of 28x28, got {array.shape[1]}x{array.shape[2]}")
            array = np.pad(array, ((0, 0), (2, 2), (2, 2)))[..., None]
        elif len(array) != len(arrays[-1]):
            raise ValueError(f"{found} must hold a label for each of the {len(arrays[-1])} images, got {len(array)}")
        arrays.append(array)
    return tuple(arrays)


def _find(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def _ways(name: str) -> list[str]:
    folder, files = _FOLDERS[name], ",".join(FILES)
    debian = ["apt-get install dataset-fashion-mnist"] if name == "fashion_mnist" else []
    return [
        *debian,
        f"curl -fL --create-dirs --output-dir data/{folder}/raw --remote-name-all '{_ADDRESSES[name]}/{{{files}}}.gz'",
        f"python -c \"from torchvision.datasets import {folder}; {folder}('data', download=True)\"",
    ]


def read_digits(path: str | PathLike[str] | None = None) -> Raw:
    """1,797 handwritten digits, which need no download: ``digits.npz`` beside this file.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository,
    1998, doi 10.24432/C50P49, CC BY 4.0), its test set, in the order of scikit-learn's ``load_digits``.

    The 8x8 values 0 to 16 become 0 to 255, and each pixel a block of 4x4, so that networks for 32x32 take them. A fifth
    of each class, drawn by a fixed key, is the test set; the source has no split of its own.
    """
    if path is not None:
        raise ValueError(f"digits come with sdd_jax and have no path, got {str(path)!r}")
    with np.load(Path(__file__).with_name("digits.npz")) as stored:
        small, labels = stored["images"], stored["labels"].astype(np.int32)
    scaled = np.floor(small * (255 / 16) + 0.5).astype(np.uint8)
    images = scaled.repeat(4, axis=1).repeat(4, axis=2)[..., None]
    test = stratified_draw(labels, (2 * np.bincount(labels) + 5) // 10, _TEST_KEY)
    train = np.delete(np.arange(len(labels)), test)
    return images[train], labels[train], images[test], labels[test]
