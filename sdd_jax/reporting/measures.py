"""Measures of answers: NumPy on logits and labels, nothing else."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax, softmax


class Spread(NamedTuple):
    """Values of runs that differ in their seed alone."""

    mean: float
    sd: float | None  # of the sample; None for one run
    n: int

    def text(self, digits: int = 2) -> str:
        return f"{self.mean:.{digits}f}" + (f" ± {self.sd:.{digits}f}" if self.sd is not None else "")


class Reliability(NamedTuple):
    """Confidence and accuracy in bins of equal width; NaN in a bin without images."""

    counts: np.ndarray  # [bins], images
    confidence: np.ndarray  # [bins], the mean in the bin
    accuracy: np.ndarray  # [bins]
    ece: float  # the expected calibration error, 0 to 1


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Top-1, 0 to 1."""
    return float((logits.argmax(-1) == labels).mean())


def divergence(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """The mean of KL(teacher || student) at temperature 1, in nats."""
    teacher, student = (log_softmax(logits.astype(np.float64), -1) for logits in (teacher_logits, student_logits))
    shares = np.exp(teacher)
    with np.errstate(invalid="ignore"):
        terms = np.where(shares > 0, shares * (teacher - student), 0)  # a class of probability 0 adds nothing
    return float(terms.sum(-1).mean())


def reliability(networks: Sequence[np.ndarray], labels: np.ndarray, bins: int = 15) -> Reliability:
    """Calibration of the predicted class's probability, over the logits of one or several networks together.

    Source: "On Calibration of Modern Neural Networks" (Guo et al., 2017), section 2: bins of equal width, each closed
    above, and the error as the mean of |accuracy - confidence| weighted by the bins' images.
    """
    confidences = np.concatenate([np.exp(log_softmax(logits.astype(np.float64), -1)).max(-1) for logits in networks])
    correct = np.concatenate([logits.argmax(-1) == labels for logits in networks])
    which = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accurate = (np.bincount(which, v, bins) / counts for v in (confidences, correct))
    gaps = np.where(counts > 0, np.abs(accurate - confidence), 0)
    return Reliability(counts, confidence, accurate, float((gaps * counts).sum() / len(correct)))


def class_accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``[K]``, 0 to 1; NaN for a class without a test image."""
    classes = logits.shape[-1]
    counts = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(labels[logits.argmax(-1) == labels], minlength=classes) / counts


def correlation_difference(student_logits: np.ndarray, teacher_logits: np.ndarray) -> np.ndarray:
    """``[K, K]``: how far the correlations between the classes' logits, over images, are from the teacher's.

    The absolute difference of the two correlation matrices of global logits, as in figure 3 of "Scale Decoupled
    Distillation" (2024). A class whose logit is the same for every image has no correlations: NaN.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        student, teacher = (np.corrcoef(logits.astype(np.float64).T) for logits in (student_logits, teacher_logits))
    return np.abs(student - teacher)


def off_diagonal(matrix: np.ndarray) -> float:
    """The mean of a square matrix of two or more classes without its diagonal."""
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())


def changed(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], labels: np.ndarray, count: int
) -> tuple[list[int], list[int]]:
    """Rows of the images that a method changed most, at most ``count`` each: those it put right, those it put wrong.

    An image is put right if a larger share of the method's runs has it right than of the baseline's. Sorted by the
    difference of these shares, then by how much more (or less) probable the true class became. ``before`` and
    ``after`` are the logits ``[N, K]`` of each run of the baseline and of the method.
    """
    images, shares, chances = np.arange(len(labels)), [], []
    for runs in (before, after):
        shares.append(np.sum([logits.argmax(-1) == labels for logits in runs], axis=0) / len(runs))
        chances.append(np.mean([softmax(logits.astype(np.float64), -1)[images, labels] for logits in runs], axis=0))
    difference, gain = shares[1] - shares[0], chances[1] - chances[0]

    def first(sign: int) -> list[int]:
        order = np.lexsort((images, -sign * gain, -sign * difference))
        return [int(row) for row in order[:count] if sign * difference[row] > 0]

    return first(1), first(-1)


def mean_prediction(runs: Sequence[np.ndarray], label: int) -> dict[str, Any]:
    """The most probable class on average over the logits ``[K]`` of runs, and how many of them are right."""
    mean = softmax(np.asarray(runs, np.float64), -1).mean(0)
    right = sum(int(logits.argmax() == label) for logits in runs)
    return {"label": int(mean.argmax()), "probability": float(mean.max()), "right": right, "of": len(runs)}
