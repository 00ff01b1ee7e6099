"""Images whose prediction changed between two methods, as the page's templates take them."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.special import softmax

from sdd_jax.reporting.runs import Group
from sdd_jax.reporting.study import Study, test_pixels
from sdd_jax.sdd import complementary_mask
from sdd_jax.serving.regions import Regions, read_regions

EACH = 6  # images that were put right, and images that were put wrong


class Changed(NamedTuple):
    """A test image whose prediction changed."""

    row: int  # of the test split
    before: int  # how many of the baseline's runs are right
    after: int  # how many of the method's runs are right
    gain: float  # how much more probable the true class is with the method, means over runs, -1 to 1


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
        chances.append(np.mean([_softmax(logits)[np.arange(len(labels)), labels] for logits in runs], axis=0))
    difference = rights[1] / len(after) - rights[0] / len(before)
    gain = chances[1] - chances[0]

    def first(sign: int) -> list[Changed]:
        order = np.lexsort((np.arange(len(labels)), -sign * gain, -sign * difference))
        rows = [int(row) for row in order[:count] if sign * difference[row] > 0]
        return [Changed(row, int(rights[0][row]), int(rights[1][row]), float(gain[row])) for row in rows]

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
    images = [*right, *wrong]
    if not images:
        return gallery
    config, names = group.config, study.dataset.class_names
    pixels = test_pixels(study.dataset, [image.row for image in images])
    regions = Regions(tuple(config["sdd.scales"]), config["sdd.pooling"])
    teacher_regions, teacher_logits = study.regions(study.teachers[group.label], pixels, regions)
    students: dict[int, np.ndarray] = {}
    for place, image in enumerate(images):
        row, label, put_right = image.row, int(study.labels[image.row]), image in right
        # The regions shown are one run's: the first on the side of most runs.
        number = [logits[row].argmax() == label for logits in after].index(put_right)
        run = group.runs[number]
        if number not in students:
            students[number] = study.regions(study.answers[run.folder], pixels, regions)[0]
        grids = region_grids(
            teacher_regions[place],
            students[number][place],
            label,
            regions=regions,
            consistency=config["sdd.consistency"],
            names=names,
        )
        gallery["right" if put_right else "wrong"].append(
            {
                "picture": png_address(pixels[place]),
                "pixelated": pixels.shape[1] < 100,
                "number": int(study.dataset.test.index[row]),
                "label": names[label],
                "teacher": mean_prediction([teacher_logits[place]], label, names),
                "before": mean_prediction([logits[row] for logits in before], label, names),
                "after": mean_prediction([logits[row] for logits in after], label, names),
                "seed": run.seed,
                **grids,
            }
        )
    return gallery


def region_grids(
    teacher_regions: np.ndarray,
    student_regions: np.ndarray,
    label: int,
    *,
    regions: Regions,
    consistency: str,
    names: Sequence[str],
) -> dict[str, Any]:
    """The regions of one image: ``grids``, the cells of each scale above 1, and how many are complementary.

    Args:
      teacher_regions: region logits ``[R, K]``.
      student_regions: ``[R, K]``.
      label: the true class.
      regions: which they are.
      consistency: what makes a region complementary, as in ``complementary_mask``.
      names: of the classes.
    """
    mask = np.asarray(complementary_mask(teacher_regions[None], np.array([label]), consistency=consistency))[0]
    teacher, student = (read_regions(logits, logits[0], regions) for logits in (teacher_regions, student_regions))
    grids: dict[int, list[dict[str, Any]]] = {scale: [] for scale in regions.scales if scale > 1}
    for complementary, by_teacher, by_student in zip(mask, teacher, student, strict=True):
        if by_teacher.scale > 1:
            grids[by_teacher.scale].append(
                {
                    "row": by_teacher.row,
                    "column": by_teacher.column,
                    "kind": "complementary" if complementary else "consistent",
                    "teacher": _prediction(by_teacher.label, by_teacher.probability, label, names),
                    "student": _prediction(by_student.label, by_student.probability, label, names),
                }
            )
    return {"grids": grids, "complementary": int(mask.sum()), "regions": len(mask)}


def mean_prediction(runs: Sequence[np.ndarray], label: int, names: Sequence[str]) -> dict[str, Any]:
    """The most probable class on average over the logits ``[K]`` of runs, and how many of them are right."""
    mean = np.mean([_softmax(logits) for logits in runs], axis=0)
    right = sum(int(logits.argmax() == label) for logits in runs)
    return {**_prediction(int(mean.argmax()), float(mean.max()), label, names), "runs": right, "of": len(runs)}


def _prediction(predicted: int, probability: float, label: int, names: Sequence[str]) -> dict[str, Any]:
    text = f"{names[predicted]} ·\N{NO-BREAK SPACE}{100 * probability:.0f}\N{NO-BREAK SPACE}%"
    return {"text": text, "right": predicted == label}


def _softmax(logits: np.ndarray) -> np.ndarray:
    return softmax(logits.astype(np.float64), axis=-1)


def png_address(pixels: np.ndarray) -> str:
    """The pixels as a PNG file in a data: address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return data_address(buffer.getvalue())


def data_address(png: bytes) -> str:
    """A PNG file as a data: address, so that a page needs no file beside it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
