"""Images whose prediction changed between two methods, as the page's templates take them."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import softmax

from sdd_jax.regions import Regions
from sdd_jax.reporting.runs import Group
from sdd_jax.reporting.study import Study, test_pixels
from sdd_jax.sdd import complementary_mask
from sdd_jax.serving.regions import Region, read_regions

EACH = 6  # images that were put right, and images that were put wrong


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
        chances.append(np.mean([_softmax(logits)[images, labels] for logits in runs], axis=0))
    difference, gain = shares[1] - shares[0], chances[1] - chances[0]

    def first(sign: int) -> list[int]:
        order = np.lexsort((images, -sign * gain, -sign * difference))
        return [int(row) for row in order[:count] if sign * difference[row] > 0]

    return first(1), first(-1)


def make_galleries(study: Study) -> list[dict[str, Any]]:
    """One for each SDD method that has a baseline and a teacher; what is missing is added to the notes."""
    methods = [group for group in study.groups if group.method.startswith("sdd_")]
    baselines = {group.label: baseline for baseline, group in study.pairs()}
    if not methods:
        study.notes.append("no run by SDD is among these: there is no gallery")
    galleries = []
    for group in methods:
        if group.label not in baselines:
            study.notes.append(f"{group.label}: no run of its base method, nor a plain one, is among these: no gallery")
        elif group.label in study.teachers:
            galleries.append(_gallery(study, baselines[group.label], group))
    return galleries


def _gallery(study: Study, baseline: Group, group: Group) -> dict[str, Any]:
    before, after = study.logits(baseline), study.logits(group)
    right, wrong = changed(before, after, study.labels, EACH)
    gallery: dict[str, Any] = {"before": baseline.label, "after": group.label, "right": [], "wrong": []}
    rows = [*right, *wrong]
    if not rows:
        return gallery
    pixels = test_pixels(study.dataset, rows)
    regions = Regions(tuple(group.config["sdd.scales"]), group.config["sdd.pooling"])
    teacher_regions, teacher_logits = study.regions(study.teachers[group.label], pixels, regions)
    students: dict[int, np.ndarray] = {}
    for place, row in enumerate(rows):
        label, put_right = int(study.labels[row]), row in right
        # The regions shown are one run's: the first on the side of most runs.
        number = [logits[row].argmax() == label for logits in after].index(put_right)
        run = group.runs[number]
        if number not in students:
            students[number] = study.regions(study.answers[run.folder], pixels, regions)[0]
        both = teacher_regions[place], students[number][place]
        gallery["right" if put_right else "wrong"].append(
            {
                "picture": png(pixels[place]),
                "pixelated": pixels.shape[1] < 100,
                "number": int(study.dataset.test.index[row]),
                "label": label,
                "names": study.dataset.class_names,
                "teacher": mean_prediction([teacher_logits[place]], label),
                "before": mean_prediction([logits[row] for logits in before], label),
                "after": mean_prediction([logits[row] for logits in after], label),
                "seed": run.seed,
                "regions": regions,
                "cells": cells(*both, label, regions=regions, consistency=group.config["sdd.consistency"]),
            }
        )
    return gallery


def cells(
    teacher_regions: np.ndarray, student_regions: np.ndarray, label: int, *, regions: Regions, consistency: str
) -> list[tuple[bool, Region, Region]]:
    """The regions of an image from logits ``[R, K]``: whether each is complementary, and what both networks say."""
    mask = complementary_mask(teacher_regions[None], np.array([label]), consistency=consistency)[0]
    both = (read_regions(logits, logits[0], regions) for logits in (teacher_regions, student_regions))
    return list(zip(mask.tolist(), *both, strict=True))


def mean_prediction(runs: Sequence[np.ndarray], label: int) -> dict[str, Any]:
    """The most probable class on average over the logits ``[K]`` of runs, and how many of them are right."""
    mean = np.mean([_softmax(logits) for logits in runs], axis=0)
    right = sum(int(logits.argmax() == label) for logits in runs)
    return {"label": int(mean.argmax()), "probability": float(mean.max()), "right": right, "of": len(runs)}


def _softmax(logits: np.ndarray) -> np.ndarray:
    return softmax(logits.astype(np.float64), axis=-1)


def png(pixels: np.ndarray) -> bytes:
    """The pixels, uint8 ``[H, W, C]``, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
