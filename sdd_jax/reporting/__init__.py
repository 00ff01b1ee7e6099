"""The report: one HTML page that needs nothing beside it, and its figures as PNG files."""

import base64
import io
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdd_jax import __version__
from sdd_jax.data import read_test_examples
from sdd_jax.files import write_together
from sdd_jax.regions import Regions
from sdd_jax.reporting import measures
from sdd_jax.reporting.figures import draw_all
from sdd_jax.reporting.groups import Group, find_runs, group_runs, method_name, shown
from sdd_jax.reporting.study import Study
from sdd_jax.sdd import complementary_mask
from sdd_jax.serving.regions import Region, read_regions
from sdd_jax.training.logbook import whole_epochs

__all__ = ["write_report"]

MARK = '<meta name="generator" content="sdd_jax report'
SHOWN_CLASSES = 40  # of the table of classes, at most: those that changed most
SHOWN_IMAGES = 6  # that were put right, and that were put wrong


def write_report(
    runs: Sequence[str | Path],
    output: str | Path = "report",
    *,
    data_path: str | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Compares runs on one self-contained HTML page.

    Args:
      runs: folders of runs, or folders with runs below them; runs that differ in their seed alone belong together.
      output: a folder, which gets report.html, or an .html file; the figures lie beside it as STEM_NAME.png.
      data_path: where the data set's files are; None: where the runs found them.
      allow: as in ``saved.read``.

    Returns:
      The page's path.

    Raises:
      ValueError: if a folder holds no run, the runs are not on the same data, a run's network does not fit, or
        the page's place holds something else.
      FileNotFoundError: if the data are missing; it says how to get them.
      ImportError: without matplotlib, Jinja2 or scikit-learn; it says how to get them.
    """
    for module in ("matplotlib", "jinja2", "sklearn"):  # before any work is done
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(f"the report needs {module}: pip install -e '.[report]'") from error
    output = Path(output)
    file = output if output.suffix.lower() in (".html", ".htm") else output / "report.html"
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file for the page, or another folder")
    if file.exists() and MARK not in file.read_text(errors="replace")[:2000]:
        raise ValueError(f"{file} is there and no report: it is not overwritten, give --output another place")
    study = Study(group_runs(find_runs([Path(run) for run in runs], allow)), data_path, allow)
    pictures = draw_all(study)
    text = template("page.html").render(
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        dataset=study.dataset.name,
        images=len(study.labels),
        classes=study.dataset.num_classes,
        select_on=sorted({group.config["data.select_on"] for group in study.groups}),
        rows=[_result(study, answers.label, [answers.logits]) for answers in study.every_teacher()]
        + [_result(study, group.label, study.logits(group), group) for group in study.groups],
        pictures=pictures,
        galleries=make_galleries(study),
        class_tables=[_class_table(study, *pair) for pair in study.pairs()],
        runs=[run for group in study.groups for run in group.runs],
        several=any(len(group.runs) > 1 for group in study.groups),
        notes=list(dict.fromkeys(study.notes)),  # last: the others add to them
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = {file.with_name(f"{file.stem}_{name}.png"): picture[0] for name, picture in pictures.items()}
    write_together({**beside, file: text.encode()})
    return file


def template(name: str) -> Any:
    """One of the templates beside this file; values are escaped in it, and stay on their line."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment: Any = Environment(
        loader=PackageLoader("sdd_jax.reporting", ""),
        autoescape=True,
        finalize=lambda value: shown(str(value)) if type(value) is str or isinstance(value, Path) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"method_name": method_name, "whole_epochs": whole_epochs}
    environment.filters["data_address"] = lambda image: "data:image/png;base64," + base64.b64encode(image).decode()
    environment.filters["spread"] = lambda values, digits=2: measures.spread(values).text(digits) if values else "–"
    return environment.get_template(name)


def _result(study: Study, label: str, networks: list[np.ndarray], group: Group | None = None) -> dict[str, Any]:
    """A row of the first table: values of each run, in percent and nats; an empty list for what is not known."""
    results = [run.results for run in group.runs] if group else []
    measured = [100 * measures.accuracy(logits, study.labels) for logits in networks]
    teacher = study.teachers.get(label)
    return {
        "label": label,
        "last": [100 * one["last"]["accuracy"] for one in results] or measured,
        "best": [100 * one["best"]["accuracy"] for one in results],
        "agreement": [100 * measures.accuracy(one, teacher.logits.argmax(-1)) for one in networks] if teacher else [],
        "divergence": [measures.divergence(logits, teacher.logits) for logits in networks] if teacher else [],
        "ece": [100 * measures.reliability([logits], study.labels).ece for logits in networks],
        "seconds": [one["seconds"] for one in results if "seconds" in one],
    }


def _class_table(study: Study, baseline: Group, group: Group) -> dict[str, Any]:
    """Accuracy per class with both methods, the best gain first."""
    before, after, order, left_out = study.class_changes(baseline, group, SHOWN_CLASSES)
    counts = np.bincount(study.labels, minlength=study.dataset.num_classes)
    rows = [
        {
            "name": study.names[label],
            "images": int(counts[label]),
            "before": before[:, label].tolist(),
            "after": after[:, label].tolist(),
            "change": f"{after.mean(0)[label] - before.mean(0)[label]:+.2f}".replace("-", "−"),
        }
        for label in order
    ]
    return {"before": baseline.label, "after": group.label, "rows": rows, "left_out": left_out}


def make_galleries(study: Study) -> list[dict[str, Any]]:
    """One for each SDD method that has a baseline and a teacher; what is missing is added to the notes."""
    methods = [group for group in study.groups if group.by_region]
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
    right, wrong = measures.changed(before, after, study.labels, SHOWN_IMAGES)
    gallery: dict[str, Any] = {"before": baseline.label, "after": group.label, "right": [], "wrong": []}
    rows = [*right, *wrong]
    if not rows:
        return gallery
    pixels, _ = read_test_examples(study.dataset, rows)
    regions = Regions(tuple(group.config["sdd.scales"]), group.config["sdd.pooling"])
    teacher_regions, teacher_logits = study.regions(study.teachers[group.label], pixels, regions)
    students: dict[int, np.ndarray] = {}
    for place, row in enumerate(rows):
        label, put_right = int(study.labels[row]), row in right
        # The regions shown are one run's: the first that has it right, of those put wrong the first that has it wrong.
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
                "file": study.place(row),
                "label": label,
                "names": study.names,
                "teacher": measures.mean_prediction([teacher_logits[place]], label),
                "before": measures.mean_prediction([logits[row] for logits in before], label),
                "after": measures.mean_prediction([logits[row] for logits in after], label),
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


def png(pixels: np.ndarray) -> bytes:
    """The pixels, uint8 ``[H, W, C]``, as a PNG file; of other than one or three channels the first of them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
