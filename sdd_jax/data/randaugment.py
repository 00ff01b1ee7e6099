"""RandAugment of an image that is read from disk: Pillow, on the host, no JAX.

Source: "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space" (2020), figure 2: N of 14
operations, drawn uniformly with repetition, each at the same magnitude M. A magnitude of 10 is the end of an
operation's range (its section 3); the ranges are those of "AutoAugment" (2019), table 6, and where an operation has two
directions a fair coin chooses. What lies outside of the image becomes grey.

timm's code, which DeiT uses, is another: 15 operations, with inverting and "solarize add" for the identity, each left
out half of the time, magnitudes drawn around M, and 4 bits less in posterizing. torchvision's M is out of 30.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MOST = 10  # the largest magnitude
_GREY = (128, 128, 128)


def _moved(image: Image.Image, *coefficients: float) -> Image.Image:
    """The image whose pixel (x, y) is that of ``image`` at (ax + by + c, dx + ey + f)."""
    how = Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    return image.transform(image.size, *how, fillcolor=_GREY)


def _enhanced(enhancer: Callable[[Image.Image], Any]) -> Callable[[Image.Image, float], Image.Image]:
    """Between 0.1 and 1.9 times as much of something as the image has."""
    return lambda image, level: enhancer(image).enhance(1 + 0.9 * level)


# Each takes an image and a level from -1 to 1, of which some read the size alone.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, level: image,
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "rotate": lambda image, level: image.rotate(30 * level, Image.Resampling.BILINEAR, fillcolor=_GREY),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 - round(256 * abs(level))),
    "color": _enhanced(ImageEnhance.Color),
    "posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, level: _moved(image, 1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda image, level: _moved(image, 1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda image, level: _moved(image, 1, 0, round(150 / 331 * image.width * level), 0, 1, 0),
    "translate_y": lambda image, level: _moved(image, 1, 0, 0, 0, 1, round(150 / 331 * image.height * level)),
}


def randaugment(pixels: np.ndarray, rng: np.random.Generator, *, number: int, magnitude: int) -> np.ndarray:
    """uint8 ``[H, W, 3]`` after ``number`` operations at ``magnitude``, 0 to 10."""
    image = Image.fromarray(pixels)
    for _ in range(number):
        operation = list(OPERATIONS.values())[math.floor(rng.random() * len(OPERATIONS))]
        sign = 1 if rng.random() < 0.5 else -1
        image = operation(image, sign * magnitude / MOST)
    return np.asarray(image)
