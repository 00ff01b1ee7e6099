"""Measures of answers: NumPy on logits and labels, nothing else."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

BINS = 15


class Spread(NamedTuple):
    """Runs that differ in their seed alone: mean, sample standard deviation (None for one run), and how many."""

    mean: float
    sd: float | None
    n: int

    def text(self, digits: int = 2) -> str:
        """Mean and standard deviation."""
        return f"{self.mean:.{digits}f}" + (f" ± {self.sd:.{digits}f}" if self.sd is not None else "")


class Reliability(NamedTuple):
    """Confidence and accuracy in bins of equal width; NaN in a bin without images."""

    edges: np.ndarray  # [bins + 1], 0 to 1
    counts: np.ndarray  # [bins], images
    confidence: np.ndarray  # [bins], the mean in the bin
    accuracy: np.ndarray  # [bins]
    ece: float  # the expected calibration error, 0 to 1


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Top-1, 0 to 1."""
    return float((logits.argmax(-1) == labels).mean())


def agreement(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """The share of images with the same prediction, 0 to 1."""
    return accuracy(student_logits, teacher_logits.argmax(-1))


def divergence(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """The mean of KL(teacher || student) at temperature 1, in nats."""
    teacher, student = (log_softmax(logits.astype(np.float64), -1) for logits in (teacher_logits, student_logits))
    shares = np.exp(teacher)
    with np.errstate(invalid="ignore"):
        terms = np.where(shares > 0, shares * (teacher - student), 0)  # a class of probability 0 adds nothing
    return float(terms.sum(-1).mean())


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Calibration of the predicted class's probability.

    Source: "On Calibration of Modern Neural Networks" (Guo et al., 2017), section 2: bins of equal width, each closed
    above, and the error as the mean of |accuracy - confidence| weighted by the bins' images.
    """
    confidences = np.exp(log_softmax(logits.astype(np.float64), -1)).max(-1)
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
    return np.abs(student - teacher)


def off_diagonal(matrix: np.ndarray) -> float:
    """The mean of a square matrix of two or more classes without its diagonal."""
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())
