"""Images whose answer changed between two methods, with what teacher and student say of every region."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdd_jax.sdd import complementary_mask
from sdd_jax.serving.regions import Place, places, softmax


class Changed(NamedTuple):
    """A test image and what it is called.

    Attributes:
      row: of the test split.
      before: how many of the baseline's runs are right.
      after: how many of the method's runs are right.
      gain: how much more probable the true class is with the method, means over runs, -1 to 1.
    """

    row: int
    before: int
    after: int
    gain: float


class Word(NamedTuple):
    """What a network calls something: the class, and its probability, 0 to 1."""

    label: int
    probability: float


class Cell(NamedTuple):
    """A region: where, whether it is complementary, and the two networks' words for it."""

    place: Place
    complementary: bool
    teacher: Word
    student: Word


def changed(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], labels: np.ndarray, count: int
) -> tuple[list[Changed], list[Changed]]:
    """The images that a method changed most: those it put right, and those it put wrong.

    An image is put right if a larger share of the method's runs has it right than of the baseline's. Sorted by the
    difference of these shares, then by how much more (or less) probable the true class became.

    Args:
      before: logits ``[N, K]`` of each run of the baseline.
      after: of each run of the method.
      labels: ``[N]``.
      count: at most so many of either kind.
    """
    rights, chances = [], []
    for runs in (before, after):
        rights.append(np.sum([logits.argmax(-1) == labels for logits in runs], axis=0))
        own = [softmax(logits)[np.arange(len(labels)), labels] for logits in runs]
        chances.append(np.mean(own, axis=0))
    difference = rights[1] / len(after) - rights[0] / len(before)
    gain = chances[1] - chances[0]

    def first(sign: int) -> list[Changed]:
        order = np.lexsort((np.arange(len(labels)), -sign * gain, -sign * difference))
        rows = [int(row) for row in order[:count] if sign * difference[row] > 0]
        return [Changed(row, int(rights[0][row]), int(rights[1][row]), float(gain[row])) for row in rows]

    return first(1), first(-1)


def cells(
    teacher_regions: np.ndarray,
    student_regions: np.ndarray,
    label: int,
    *,
    scales: Sequence[int],
    consistency: str,
) -> list[Cell]:
    """The regions of one image.

    Args:
      teacher_regions: region logits ``[R, K]``.
      student_regions: ``[R, K]``.
      label: the true class.
      scales: of the regions.
      consistency: what makes a region complementary, as in ``complementary_mask``.
    """
    mask = np.asarray(complementary_mask(teacher_regions[None], np.array([label]), consistency=consistency))[0]
    words = [_words(regions) for regions in (teacher_regions, student_regions)]
    return [Cell(place, bool(apart), *said) for place, apart, *said in zip(places(scales), mask, *words, strict=True)]


def word(logits: np.ndarray) -> Word:
    """For an image with the logits ``[K]``."""
    return _words(logits[None])[0]


def _words(logits: np.ndarray) -> list[Word]:
    probabilities = softmax(logits)
    return [Word(int(label), float(row[label])) for label, row in zip(logits.argmax(-1), probabilities, strict=True)]
