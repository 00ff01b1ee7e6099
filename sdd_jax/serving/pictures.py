"""Anybody's picture as the evaluation of a data set would have seen it."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from sdd_jax.data import images
from sdd_jax.data.folders import SUFFIXES
from sdd_jax.serving.network import Served

# Sets in memory whose images were smaller than what networks see of them: their own side, and how the rest came about.
_PADDED = {"mnist": 28, "fashion_mnist": 28}  # zeros around
_ENLARGED = {"digits": 8}  # each pixel a block


def find_pictures(path: Path) -> list[Path]:
    """The picture at ``path``, or every picture below it in the order of their names; hidden ones are left out.

    Raises:
      FileNotFoundError: if there is nothing at ``path``.
      ValueError: if a folder holds no picture.
    """
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there: expected a picture or a folder of pictures")
        return [path]
    found = []
    for place, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES))
        found += [Path(place, name) for name in names]
    if not found:
        raise ValueError(f"{path} holds no picture: expected files with a suffix of {', '.join(SUFFIXES)}")
    return found


def prepare(path: Path, served: Served) -> np.ndarray:
    """The picture's pixels as the network takes them, uint8 ``[H, W, C]``.

    Of sets on disk it is prepared as their evaluation images are. Of sets in memory a picture of just the set's size
    is taken as it is (28x28 for MNIST and Fashion-MNIST, which gets its border of zeros; 8x8 for digits, which is
    enlarged); of any other its middle square is resized to that. Grey sets get grey.

    Raises:
      ValueError: names the picture if it cannot be read as one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    picture = images.decode(content, str(path))
    size, channels = served.image_shape[0], served.image_shape[-1]
    if served.augment in images.AUGMENTS:
        return np.ascontiguousarray(images.eval_image(picture, served.augment, size))
    side = _PADDED.get(served.data_name) or _ENLARGED.get(served.data_name) or size
    if picture.size == (size, size):
        side = size  # as the network sees the set's own
    elif picture.size != (side, side):
        picture = _square(picture, side)
    pixels = np.asarray(picture.convert("L"))[..., None] if channels == 1 else np.asarray(picture)
    if served.data_name in _ENLARGED:
        return pixels.repeat(size // side, axis=0).repeat(size // side, axis=1)
    border = (size - side) // 2
    return np.pad(pixels, ((border, border), (border, border), (0, 0)))


def _square(picture: Image.Image, side: int) -> Image.Image:
    """The middle square, resized."""
    shorter = min(picture.size)
    left, top = (picture.width - shorter) // 2, (picture.height - shorter) // 2
    middle = picture.crop((left, top, left + shorter, top + shorter))  # first: a resize would look past its edges
    return middle.resize((side, side), Image.Resampling.BILINEAR)
