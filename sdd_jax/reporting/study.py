"""What a report is made of: every network's answers on one test set."""

import dataclasses
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import saved
from sdd_jax.config import teacher_dtype
from sdd_jax.data import AnyDataset, eval_data
from sdd_jax.data.augment import normalize
from sdd_jax.data.dataset import data_root, stratified_draw
from sdd_jax.mesh import make_mesh
from sdd_jax.metrics import same_accuracy
from sdd_jax.models.classifier import CLASS_TOKEN, HEAD
from sdd_jax.regions import Regions
from sdd_jax.reporting import measures
from sdd_jax.reporting.groups import Group, baseline_of, shown
from sdd_jax.training import run_dir
from sdd_jax.training.compiling import jit_network

BATCH = 250
LONGEST = 60  # letters of a class's name, or of a file's
POINTS, POINT_CLASSES = 1000, 10  # of the t-SNE: images, and classes


class Answers(NamedTuple):
    """One network's answers to all test images, in the order of the split."""

    label: str
    folder: Path
    weights: str  # one of SAVED
    dtype: str  # that it computed in: of a teacher, as for its student
    dataset: AnyDataset  # as this network sees it: of a teacher, as its student did
    logits: np.ndarray  # float32 [N, K]
    features: np.ndarray  # float32 [n, C] of the t-SNE's images: the mean feature, or the logits where there is none


class Study:
    """Every network of some groups of runs, and their teachers, asked for every test image."""

    def __init__(self, groups: list[Group], data_path: str | None, allow: Collection[str] = ()):
        self.groups, self._read = groups, partial(saved.read, allow=allow)
        self.dataset = saved.load_test_data(self._read(groups[0].runs[0].folder), path=data_path)
        self._root = os.path.join(data_root(data_path or groups[0].config.get("data.path")), "")
        self.names = [shown(name[:LONGEST]) for name in self.dataset.class_names]
        self.labels = np.full(len(self.dataset.test.index), -1)
        self.points = _points(self.dataset)  # rows of the test images that the t-SNE shows
        self.notes: list[str] = []  # what is missing, and why
        if (channels := self.dataset.image_shape[-1]) not in (1, 3):
            self.notes.append(f"images have {channels} channels: pictures show the first{' three' * (channels > 3)}")
        self.answers: dict[Path, Answers] = {}  # by a run's folder, after the last epoch
        self.teachers: dict[str, Answers] = {}  # by a group's label
        self._mesh = make_mesh()
        self._batch = -(-min(BATCH, len(self.labels)) // self._mesh.size) * self._mesh.size
        self._programs: dict[Any, Any] = {}
        self._data: dict[Any, Any] = {}  # by normalisation: nearly always one
        for group in groups:
            for run in group.runs:
                label = f"{group.label}, seed {run.seed}"
                dtype = run.config["model.dtype"]
                self.answers[run.folder] = self._ask(label, run.folder, "last", dtype, self._seen_by(run.folder))
                if not run.finished:
                    self.notes.append(f"{run.folder} has not finished: it is shown as far as it has come")
                    continue
                noted = run.results["last"]["accuracy"]
                measured = measures.accuracy(self.answers[run.folder].logits, self.labels)
                if not same_accuracy(measured, noted):
                    self.notes.append(
                        f"{run.folder} noted {100 * noted:.2f} % after its last epoch, its network has "
                        f"{100 * measured:.2f} % here: other data, or another network?"
                    )
        for group in groups:
            if group.method != "plain":
                self._ask_teacher(group)

    def place(self, row: int) -> str | None:
        """The file of a test image, within the folder of its set; None if it has none."""
        if self.dataset.test_place is None:
            return None
        return shown(self.dataset.test_place(int(self.dataset.test.index[row])).removeprefix(self._root)[-LONGEST:])

    def logits(self, group: Group) -> list[np.ndarray]:
        """``[N, K]`` of each run of the group, by seed."""
        return [self.answers[run.folder].logits for run in group.runs]

    def every_teacher(self) -> list[Answers]:
        """Each teacher once."""
        return list({_asked(answers): answers for answers in self.teachers.values()}.values())

    def pairs(self) -> list[tuple[Group, Group]]:
        """``(baseline, method)`` for every distilled group that has a baseline; SDD's first."""
        found = [(baseline_of(group, self.groups), group) for group in self.groups]
        chosen = [(baseline, group) for baseline, group in found if baseline is not None]
        return sorted(chosen, key=lambda pair: not pair[1].method.startswith("sdd_"))

    def class_changes(self, before: Group, after: Group, count: int) -> tuple[np.ndarray, np.ndarray, list[int], int]:
        """Accuracy per class in percent, ``[runs, K]`` before and after; the classes that changed, the best gain first.

        Of more than ``count`` classes half are the best and half the worst; the last value says how many are left out.
        """
        old, new = (
            100 * np.array([measures.class_accuracy(logits, self.labels) for logits in self.logits(group)])
            for group in (before, after)
        )
        change = new.mean(0) - old.mean(0)
        order = [int(label) for label in np.argsort(-change, kind="stable") if np.isfinite(change[label])]
        left_out = max(0, len(order) - count)
        if left_out:
            order = order[: count // 2] + order[-count // 2 :]
        return old, new, order, left_out

    def regions(self, answers: Answers, pixels: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
        """Region logits ``[n, R, K]`` and logits ``[n, K]`` of a network for images uint8 ``[n, H, W, C]``."""
        network = self._read(answers.folder).in_dtype(answers.dtype)
        images = normalize(pixels, answers.dataset.mean, answers.dataset.std, network.image_dtype)
        program = jit_network(partial(network.model.apply, train=False, regions=regions))
        outputs = program(saved.load_variables(answers.folder, answers.weights), images)
        return jax.device_get((outputs.region_logits, outputs.logits))

    def _seen_by(self, folder: Path) -> AnyDataset:
        """The test images as the run in ``folder`` normalised them; as the first one did if it noted nothing."""
        if (noted := self._read(folder).own_data(self.dataset.name)) is None:
            return self.dataset
        return dataclasses.replace(self.dataset, mean=tuple(noted["mean"]), std=tuple(noted["std"]))

    def _ask(self, label: str, folder: Path, weights: str, dtype: str, dataset: AnyDataset) -> Answers:
        network, variables = self._read(folder).in_dtype(dtype), saved.load_variables(folder, weights)
        saved.check_fits(network, variables, dataset)
        normalised = dataset.mean, dataset.std
        if normalised not in self._data:
            self._data[normalised] = eval_data(dataset, dataset.test, batch_size=self._batch, mesh=self._mesh)
        data = self._data[normalised]
        kind = network.name, network.stem, network.dtype, normalised  # one compiled program for networks of one kind
        program = self._programs.setdefault(kind, _program(network, data))
        logits, features = [], []
        for number, arrays in enumerate(data.batches()):
            labels, valid, got_logits, got_features = jax.device_get(program(variables, arrays))
            first, keep = number * self._batch, int(valid.sum())
            self.labels[first : first + keep] = labels[:keep]
            logits.append(got_logits[:keep])
            features.append(got_features[self.points[(self.points >= first) & (self.points < first + keep)] - first])
        answers = Answers(label, folder, weights, dtype, dataset, np.concatenate(logits), np.concatenate(features))
        if not np.isfinite(answers.logits).all():
            raise FloatingPointError(f"{folder}: the network's logits on {self.dataset.name} are not finite")
        return answers

    def _ask_teacher(self, group: Group) -> None:
        stated = group.config["teacher.run"]
        if stated is None:
            self.notes.append(
                f"{group.label}: its teacher is no single network ({group.config['model.teacher']}), so agreement, KL, "
                "correlations and the gallery are missing"
            )
            return
        # A relative path was relative to where training was started, which is some folder above the run.
        places = [Path(stated), *(parent / stated for parent in group.runs[0].folder.resolve().parents)]
        folder = next((place for place in places if (place / run_dir.CONFIG).is_file()), None)
        if folder is None:
            self.notes.append(
                f"{group.label}: its teacher, {stated}, is not there, so agreement, KL, correlations and the gallery "
                "are missing"
            )
            return
        weights = group.config.get("teacher.checkpoint") or "last"
        dtype, dataset = teacher_dtype(group.config), self._seen_by(group.runs[0].folder)
        asked = folder, weights, dtype, dataset.mean, dataset.std
        answers = next((one for one in self.teachers.values() if _asked(one) == asked), None)
        if answers is None:
            label = f"{self._read(folder).name} ({'teacher' if weights == 'last' else f'teacher, {weights}'})"
            twins = sum(one.label.startswith(label) for one in self.every_teacher())
            answers = self._ask(f"{label} [{1 + twins}]" if twins else label, folder, weights, dtype, dataset)
        measured = measures.accuracy(answers.logits, self.labels)
        for run in group.runs:
            noted = run.results.get("teacher_accuracy")
            if noted is not None and not same_accuracy(measured, noted):
                raise ValueError(
                    f"{folder} has {100 * measured:.2f} % here, the teacher of {run.folder} had {100 * noted:.2f} %: "
                    "it is another network, or the data are others"
                )
        self.teachers[group.label] = answers


def _program(network: saved.Saved, data: Any) -> Any:
    """What a network answers to a batch of the test images."""
    make_batch = data.batch_function(network.image_dtype)

    @jit_network
    def program(variables, arrays):
        batch = make_batch(arrays)
        outputs = network.model.apply(variables, batch["image"], train=False)
        logits, maps = outputs.logits, outputs.feature_maps
        features = maps.get(CLASS_TOKEN, maps.get(HEAD))  # what the head reads
        features = logits if features is None else jnp.mean(features, (1, 2))
        return batch["label"], batch["valid"], logits.astype(jnp.float32), features.astype(jnp.float32)

    return program


def _asked(answers: Answers) -> tuple[Any, ...]:
    """What makes a network's answers what they are."""
    return answers.folder, answers.weights, answers.dtype, answers.dataset.mean, answers.dataset.std


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
    return stratified_draw(labels, wanted, 20_240_620)
