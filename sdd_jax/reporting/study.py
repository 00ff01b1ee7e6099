"""What a report is made of: every network's answers on one test set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdd_jax import saved
from sdd_jax.data import AnyDataset
from sdd_jax.data.dataset import stratified_draw
from sdd_jax.reporting import measures
from sdd_jax.reporting.answers import Answers, Asker, load_test
from sdd_jax.reporting.gather import Group, Run, baseline_of, teacher_folder
from sdd_jax.training import run_dir

POINTS, POINT_CLASSES = 1000, 10  # of the t-SNE: images, and classes
_POINTS_KEY = 20_240_620
TOLERANCE = 0.1  # percentage points between an accuracy noted by a run and measured now


class Taught(NamedTuple):
    """A teacher on the test set."""

    folder: Path
    label: str
    step: int
    answers: Answers


class Study(NamedTuple):
    """Everything that the page shows.

    Attributes:
      dataset: with the test images.
      labels: int ``[N]``, theirs.
      groups: of runs.
      answers: ``{folder: Answers}`` after the last epoch.
      teachers: ``{group's label: Taught}``.
      notes: what is missing, and why.
      asker: asks networks more.
    """

    dataset: AnyDataset
    labels: np.ndarray
    groups: list[Group]
    answers: dict[Path, Answers]
    teachers: dict[str, Taught]
    notes: list[str]
    asker: Asker

    def logits(self, group: Group) -> list[np.ndarray]:
        """Of each run of the group, in the order of their seeds."""
        return [self.answers[run.folder].logits for run in group.runs]


def make_study(groups: list[Group], data_path: str | None) -> Study:
    """Asks every network of ``groups``, and their teachers, for every test image."""
    dataset = load_test(groups[0].config, data_path)
    asker = Asker(dataset, _points(dataset))
    notes: list[str] = []
    answers = {}
    for group in groups:
        for run in group.runs:
            answers[run.folder] = asker.ask(run.folder, saved.steps(run.folder)["last"])
            _check_run(run, answers[run.folder], asker.labels, notes)
    teachers, known = {}, {}
    for group in groups:
        taught = _teacher(group, asker, known, notes) if group.distilled else None
        if taught is not None:
            teachers[group.label] = taught
    return Study(dataset, asker.labels, groups, answers, teachers, notes, asker)


def pairs(study: Study) -> list[tuple[Group, Group]]:
    """``(baseline, method)`` for every distilled group that has something to be held against; SDD's first."""
    found = [(baseline_of(group, study.groups), group) for group in study.groups]
    chosen = [(baseline, group) for baseline, group in found if baseline is not None]
    return sorted(chosen, key=lambda pair: not pair[1].method.startswith("sdd_"))


def _check_run(run: Run, answers: Answers, labels: np.ndarray, notes: list[str]) -> None:
    if not run.finished:
        notes.append(f"{run.folder} has not finished: it is shown as far as it has come")
        return
    noted, measured = run.results["last"]["accuracy"], measures.accuracy(answers.logits, labels)
    if abs(measured - noted) > TOLERANCE / 100:
        notes.append(
            f"{run.folder} noted {100 * noted:.2f} % after its last epoch, its network has {100 * measured:.2f} % "
            "here: other data, or another network?"
        )


def _teacher(group: Group, asker: Asker, known: dict[Path, Taught], notes: list[str]) -> Taught | None:
    folder = teacher_folder(group)
    if folder is None:
        notes.append(
            f"{group.label}: its teacher, {group.config['teacher.run']}, is not there, so agreement, KL, correlations "
            "and the gallery are missing"
        )
        return None
    if folder not in known:
        done = run_dir.read_done(folder)
        step = done["last"]["step"] if done else saved.steps(folder)["last"]
        name = f"{saved.read(folder).name} (teacher)"
        known[folder] = Taught(folder, name, step, asker.ask(folder, step))
    taught = known[folder]
    noted = group.runs[0].results.get("teacher_accuracy")
    measured = measures.accuracy(taught.answers.logits, asker.labels)
    if noted is not None and abs(measured - noted) > TOLERANCE / 100:
        raise ValueError(
            f"{folder} has {100 * measured:.2f} % here, the teacher of {group.runs[0].folder} had {100 * noted:.2f} %: "
            "it is another network, or the data are others"
        )
    return taught


def _points(dataset: AnyDataset) -> np.ndarray:
    """Rows of the test split for the t-SNE: evenly of its first classes where labels are known, else of all."""
    split: Any = dataset.test
    labels = getattr(split, "labels", None)
    if labels is None and split.records.labels is not None:
        labels = split.records.labels[split.index]
    count = len(split.index)
    if labels is None:
        return np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))
    sizes = np.bincount(labels, minlength=dataset.num_classes)
    classes = min(POINT_CLASSES, dataset.num_classes)
    wanted = np.where(np.arange(len(sizes)) < classes, np.minimum(sizes, POINTS // classes), 0)
    return stratified_draw(labels, wanted, _POINTS_KEY)


def table(study: Study) -> list[Mapping[str, Any]]:
    """A row for each group, and one for each teacher: what the page's first table shows, in percent and nats."""
    rows = []
    for taught in {taught.folder: taught for taught in study.teachers.values()}.values():
        logits = taught.answers.logits
        row = {"label": taught.label, "last": [100 * measures.accuracy(logits, study.labels)], "best": None}
        ece = [100 * measures.reliability(logits, study.labels).ece]
        rows.append({**row, "agreement": None, "divergence": None, "ece": ece, "seeds": "", "seconds": None})
    for group in study.groups:
        logits, taught = study.logits(group), study.teachers.get(group.label)
        teacher = None if taught is None else taught.answers.logits
        rows.append(
            {
                "label": group.label,
                "last": [100 * run.results["last"]["accuracy"] for run in group.runs],
                "best": [100 * run.results["best"]["accuracy"] for run in group.runs],
                "agreement": None if teacher is None else [100 * measures.agreement(one, teacher) for one in logits],
                "divergence": None if teacher is None else [measures.divergence(one, teacher) for one in logits],
                "ece": [100 * measures.reliability(one, study.labels).ece for one in logits],
                "seeds": ", ".join(str(run.seed) for run in group.runs),
                "seconds": [run.results["seconds"] for run in group.runs if "seconds" in run.results] or None,
            }
        )
    return [
        {name: measures.spread(value) if isinstance(value, list) else value for name, value in row.items()}
        for row in rows
    ]
