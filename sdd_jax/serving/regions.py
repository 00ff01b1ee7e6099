"""What a network says of every region of an image, and whether that is its word for the whole."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """One region: a cell of a ``scale x scale`` grid over the image."""

    scale: int
    row: int
    column: int


class Region(NamedTuple):
    """What a network says of a region.

    Attributes:
      place: where it is.
      label: the predicted class.
      probability: of that class, 0 to 1.
      consistent: whether the prediction for the whole image is the same.
    """

    place: Place
    label: int
    probability: float
    consistent: bool


def places(scales: Sequence[int]) -> list[Place]:
    """Every region in the order of region logits: scale by scale, row by row."""
    return [Place(scale, row, column) for scale in scales for row in range(scale) for column in range(scale)]


def read_regions(region_logits: np.ndarray, logits: np.ndarray, scales: Sequence[int]) -> list[Region]:
    """The regions of one image.

    Args:
      region_logits: ``[R, K]``.
      logits: ``[K]``, of the whole image; under nested pooling the first region may differ from it.
      scales: of the regions.
    """
    whole, probabilities = int(np.argmax(logits)), softmax(region_logits)
    verdicts = np.argmax(region_logits, axis=-1)
    return [
        Region(place, int(label), float(row[label]), int(label) == whole)
        for place, label, row in zip(places(scales), verdicts, probabilities, strict=True)
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
