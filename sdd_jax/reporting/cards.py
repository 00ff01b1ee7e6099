"""The gallery as the page's template takes it: for each image its words, and for each region its colour and words."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sdd_jax import saved
from sdd_jax.reporting.answers import Regions, test_pixels
from sdd_jax.reporting.gallery import Cell, Word, cells, changed, word
from sdd_jax.reporting.gather import Group
from sdd_jax.reporting.study import Study, pairs
from sdd_jax.serving.regions import softmax

EACH = 6  # images of either kind


class Gallery(NamedTuple):
    """What one method changed, against one baseline."""

    before: str
    after: str
    right: list[dict[str, Any]]  # cards of images that were put right
    wrong: list[dict[str, Any]]  # and of those put wrong


def make_galleries(study: Study) -> list[Gallery]:
    """One for each SDD method that has a baseline and a teacher; what is missing is added to the notes."""
    methods = [group for group in study.groups if group.method.startswith("sdd_")]
    held = {group.label: baseline for baseline, group in pairs(study)}
    if not methods:
        study.notes.append("no run by SDD is among these: there is no gallery")
    galleries = []
    for group in methods:
        if group.label not in held:
            study.notes.append(f"{group.label}: no run of its base method, nor a plain one, is among these: no gallery")
        elif group.label in study.teachers:
            galleries.append(_gallery(study, held[group.label], group))
    return galleries


def _gallery(study: Study, baseline: Group, group: Group) -> Gallery:
    right, wrong = changed(study.logits(baseline), study.logits(group), study.labels, EACH)
    config, teacher = group.config, study.teachers[group.label]
    grid = {"scales": config["sdd.scales"], "pooling": config["sdd.pooling"]}
    rows = [image.row for image in (*right, *wrong)]
    if not rows:
        return Gallery(baseline.label, group.label, [], [])
    pixels = test_pixels(study.dataset, rows)
    said = study.asker.regions(teacher.folder, teacher.step, pixels, **grid)
    # Of several seeds, the first that is on the side of most: it shows what the image is here for.
    speakers = [_speaker(study, group, image.row, image in right) for image in (*right, *wrong)]
    answers: dict[int, Regions] = {}
    for number in sorted(set(speakers)):
        run = group.runs[number]
        answers[number] = study.asker.regions(run.folder, saved.steps(run.folder)["last"], pixels, **grid)
    cards = []
    for place, (image, speaker) in enumerate(zip((*right, *wrong), speakers, strict=True)):
        label = int(study.labels[image.row])
        regions = cells(
            said.region_logits[place],
            answers[speaker].region_logits[place],
            label,
            scales=grid["scales"],
            consistency=config["sdd.consistency"],
        )
        cards.append(
            card(
                pixels[place],
                regions,
                label=label,
                names=study.dataset.class_names,
                number=int(study.dataset.test.index[image.row]),
                teacher=word(said.logits[place]),
                before=(_mean_word(study.logits(baseline), image.row), image.before, len(baseline.runs)),
                after=(_mean_word(study.logits(group), image.row), image.after, len(group.runs)),
                seed=group.runs[speaker].seed,
            )
        )
    return Gallery(baseline.label, group.label, cards[: len(right)], cards[len(right) :])


def _speaker(study: Study, group: Group, row: int, wants_right: bool) -> int:
    verdicts = [logits[row].argmax() == study.labels[row] for logits in study.logits(group)]
    return verdicts.index(wants_right) if wants_right in verdicts else 0


def _mean_word(runs: Sequence[np.ndarray], row: int) -> Word:
    """The class that is most probable on average over runs."""
    mean = np.mean([softmax(logits[row]) for logits in runs], axis=0)
    return Word(int(mean.argmax()), float(mean.max()))


def card(
    pixels: np.ndarray,
    regions: Sequence[Cell],
    *,
    label: int,
    names: Sequence[str],
    number: int,
    teacher: Word,
    before: tuple[Word, int, int],
    after: tuple[Word, int, int],
    seed: int,
) -> dict[str, Any]:
    """One image for the template.

    Args:
      pixels: uint8 ``[H, W, C]``.
      regions: of every scale, as ``gallery.cells`` gives them.
      label: the true class.
      names: of the classes.
      number: the image's in its original set.
      teacher: its word for the whole image.
      before: the baseline's word for the whole image, and in how many of how many runs that was right.
      after: the method's.
      seed: of the student whose words stand in the regions.
    """

    def said(spoken: Word) -> dict[str, Any]:
        text = f"{names[spoken.label]} ·\N{NO-BREAK SPACE}{100 * spoken.probability:.0f}\N{NO-BREAK SPACE}%"
        return {"text": text, "right": spoken.label == label}

    scales = sorted({cell.place.scale for cell in regions if cell.place.scale > 1})
    grids = [
        {
            "scale": scale,
            "cells": [
                {
                    "row": cell.place.row,
                    "column": cell.place.column,
                    "kind": "complementary" if cell.complementary else "consistent",
                    "teacher": said(cell.teacher),
                    "student": said(cell.student),
                }
                for cell in regions
                if cell.place.scale == scale
            ],
        }
        for scale in scales
    ]
    apart = sum(cell.complementary for cell in regions)
    return {
        "picture": png_address(pixels),
        "pixelated": pixels.shape[0] < 100,
        "number": number,
        "label": names[label],
        "teacher": said(teacher),
        "before": {**said(before[0]), "runs": before[1], "of": before[2]},
        "after": {**said(after[0]), "runs": after[1], "of": after[2]},
        "seed": seed,
        "grids": grids,
        "complementary": apart,
        "regions": len(regions),
    }


def png_address(pixels: np.ndarray) -> str:
    """The pixels as a data: address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return data_address(buffer.getvalue())


def data_address(png: bytes) -> str:
    """A PNG file as a data: address, so that a page needs no file beside it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
