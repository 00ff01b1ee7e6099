"""Measures of answers: NumPy on logits and labels, nothing else."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 15


class Spread(NamedTuple):
    """Runs that differ in their seed alone: mean, sample standard deviation (None for one run), and how many."""

    mean: float
    sd: float | None
    n: int


class Reliability(NamedTuple):
    """Confidence against accuracy in bins of equal width.

    Attributes:
      edges: ``[bins + 1]``, 0 to 1.
      counts: ``[bins]``, images in each bin; one with none has NaN below.
      confidence: ``[bins]``, the mean in the bin.
      accuracy: ``[bins]``.
      ece: the expected calibration error, 0 to 1.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Top-1, 0 to 1."""
    return float((logits.argmax(-1) == labels).mean())


def agreement(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """The share of images that both call the same, 0 to 1."""
    return float((student_logits.argmax(-1) == teacher_logits.argmax(-1)).mean())


def divergence(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """The mean of KL(teacher || student) at temperature 1, in nats."""
    teacher, student = log_softmax(teacher_logits), log_softmax(student_logits)
    shares = np.exp(teacher)
    with np.errstate(invalid="ignore"):
        terms = np.where(shares > 0, shares * (teacher - student), 0)  # a class that the teacher rules out adds nothing
    return float(terms.sum(-1).mean())


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Calibration of the predicted class's probability.

    Source: "On Calibration of Modern Neural Networks" (Guo et al., 2017), section 2: bins of equal width, each closed
    above, and the error as the mean of |accuracy - confidence| weighted by the bins' images.
    """
    confidences = np.exp(log_softmax(logits)).max(-1)
    correct = logits.argmax(-1) == labels
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accurate = (np.bincount(which, v, bins) / counts for v in (confidences, correct))
    gaps = np.where(counts > 0, np.abs(accurate - confidence), 0)
    return Reliability(edges, counts, confidence, accurate, float((gaps * counts).sum() / len(labels)))


def class_accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``[K]``, 0 to 1; NaN for a class without a test image."""
    classes = logits.shape[-1]
    counts = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(labels[logits.argmax(-1) == labels], minlength=classes) / counts


def correlation_difference(student_logits: np.ndarray, teacher_logits: np.ndarray) -> np.ndarray:
    """``[K, K]``: how far the correlations between the classes' logits, over images, are from the teacher's.

    The absolute difference of the two correlation matrices of global logits, as in figure 3 of "Scale Decoupled
    Distillation" (2024). The released notebook draws another matrix, of class-mean logits, scaled by 1/3. A class whose
    logit is the same for every image has no correlations: NaN.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        student, teacher = (np.corrcoef(logits.astype(np.float64).T) for logits in (student_logits, teacher_logits))
    return np.abs(student - teacher).reshape(student_logits.shape[-1], -1)


def off_diagonal(matrix: np.ndarray) -> float:
    """The mean of a square matrix without its diagonal; 0 for a single class."""
    classes = len(matrix)
    return float(matrix[~np.eye(classes, dtype=bool)].mean()) if classes > 1 else 0.0
