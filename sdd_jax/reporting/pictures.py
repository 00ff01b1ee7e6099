"""The figures of one study: which there are, what is in them, and what stands under them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.reporting import figures, gather, measures
from sdd_jax.reporting.figures import DARK, LIGHT, Training
from sdd_jax.reporting.gather import Group
from sdd_jax.reporting.study import Study, pairs

SHOWN_CLASSES = 30  # at most, of the figure of gains


class Picture(NamedTuple):
    """A figure as two PNG files, and what it says in words."""

    light: bytes
    dark: bytes
    alt: str


Pictures = dict[str, Picture]
_Paint = Callable[..., None]


def paint_all(study: Study) -> Pictures:
    """Every figure that the study has the data for, by name; what it lacks is added to its notes."""
    drawn = {
        "curves": _curves(study),
        "regions": _regions(study),
        "calibration": _calibration(study),
        "correlation": _correlation(study),
        "tsne": _tsne(study),
    }
    for number, pair in enumerate(pairs(study)):
        drawn[f"classes_{number + 1}"] = _gains(study, *pair)
    return {name: picture for name, picture in drawn.items() if picture is not None}


def _picture(paint: _Paint, size: tuple[float, float], alt: str) -> Picture:
    return Picture(figures.draw(paint, LIGHT, size), figures.draw(paint, DARK, size), alt)


def _curves(study: Study) -> Picture:
    panels = []
    for title, name, factor in (("test accuracy, %", "accuracy", 100), ("test loss, nats", "loss", 1)):
        lines = [
            figures.series(group.label, [gather.curve(run, "evaluation", name, "test") for run in group.runs])
            for group in study.groups
        ]
        panels.append((title, [line._replace(values=factor * line.values) for line in lines if line is not None]))
    rows = -(-len(study.groups) // 3)
    return _picture(
        partial(_call, figures.curves, panels),
        (9.5, 3.6 + 0.25 * rows),
        "Test accuracy and test loss over epochs, a line for each method, bands over seeds.",
    )


def _call(function: _Paint, *arguments: Any) -> None:
    """``function(figure, theme, ...)`` from arguments whose last two are figure and theme."""
    *own, figure, theme = arguments
    function(figure, theme, *own)


def _calibration(study: Study) -> Picture:
    entries = [
        (taught.label, [measures.reliability(taught.answers.logits, study.labels)])
        for taught in {taught.folder: taught for taught in study.teachers.values()}.values()
    ]
    entries += [
        (group.label, [measures.reliability(logits, study.labels) for logits in study.logits(group)])
        for group in study.groups
    ]
    rows = -(-len(entries) // 4)
    return _picture(
        partial(_call, figures.calibration, entries),
        (max(4.2, 2.4 * min(4, len(entries))), 0.5 + 2.8 * rows),
        "Reliability diagrams: accuracy in each bin of confidence, one panel for each method.",
    )


def _regions(study: Study) -> Picture | None:
    groups = [_training(group, study.notes) for group in study.groups if group.method.startswith("sdd_")]
    shown = [group for group in groups if group is not None]
    if not shown:
        return None
    return _picture(
        partial(_call, figures.training_regions, shown),
        (9.5, 3.3 * len(shown)),
        "Over training, for each scale: the share of complementary regions, and their share of the distillation loss.",
    )


def _training(group: Group, notes: list[str]) -> Training | None:
    scales = [f"{scale}x{scale}" for scale in group.config["sdd.scales"]]
    shares = {scale: f"complementary_share_{scale}" for scale in scales[1:]}
    parts = {("consistent", scale): f"consistent_loss_{scale}" for scale in scales}
    parts |= {("complementary", scale): f"complementary_loss_{scale}" for scale in scales[1:]}
    names = ("distill_loss", *shares.values(), *parts.values())
    logged = [run for run in group.runs if all(gather.curve(run, "train", name) for name in names)]
    if len(logged) < len(group.runs):
        without = ", ".join(str(run.seed) for run in group.runs if run not in logged)
        notes.append(
            f"{group.label}: the runs of seed {without} did not log what each scale adds to the loss, since they were "
            "trained before these metrics were there; runs that are trained now do"
        )
    runs, label = (logged, group.label) if logged else (group.runs, group.label)
    if len(runs) < len(group.runs):
        label += f", seed {', '.join(str(run.seed) for run in runs)} alone"
    if not logged:
        shares, parts = {"all scales": "complementary_share"}, {}
    lines = {name: _mean(runs, name) for name in ("distill_loss", *shares.values(), *parts.values())}
    whole, found = lines["distill_loss"], {name: line for name, line in lines.items() if line is not None}
    if whole is None or len(found) < len(lines):
        return None
    epochs, total = whole
    return Training(
        label,
        epochs,
        {scale: 100 * found[name][1] for scale, name in shares.items()},
        {kind: 100 * found[name][1] / total for kind, name in parts.items()},
    )


def _mean(runs: Sequence[gather.Run], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """``epochs, values`` of a training metric, the mean over seeds; None where no line has it."""
    line = figures.series(name, [gather.curve(run, "train", name) for run in runs])
    return None if line is None else (line.epochs, line.values.mean(0))


def _correlation(study: Study) -> Picture | None:
    entries, notes = [], []
    for group in study.groups:
        if group.label in study.teachers:
            teacher = study.teachers[group.label].answers.logits
            matrices = [measures.correlation_difference(logits, teacher) for logits in study.logits(group)]
            mean = measures.spread([measures.off_diagonal(matrix) for matrix in matrices])
            entries.append((group.label, np.mean(matrices, axis=0)))
            notes.append(f"mean {mean.mean:.4f}" + (f" ± {mean.sd:.4f}" if mean.sd is not None else ""))
    if not entries or study.dataset.num_classes < 2:
        return None
    across = min(3, len(entries))
    return _picture(
        partial(_call, figures.matrices, entries, study.dataset.class_names, notes),
        (2.2 + 2.9 * across, 0.6 + 4.1 * -(-len(entries) // across)),
        "How far the correlations between the classes' logits are from the teacher's, a matrix for each method.",
    )


def _tsne(study: Study) -> Picture | None:
    labels = study.labels[study.asker.rows]
    classes = list(dict.fromkeys(sorted(labels.tolist())))[: len(LIGHT.classes)]
    keep = np.isin(labels, classes)
    if keep.sum() < 10:
        study.notes.append(f"t-SNE: {keep.sum()} test images are too few for one")
        return None
    teachers = {taught.folder: taught for taught in study.teachers.values()}.values()
    networks = [(taught.label, taught.answers) for taught in teachers]
    networks += [
        (f"{group.label}, seed {group.runs[0].seed}", study.answers[group.runs[0].folder]) for group in study.groups
    ]
    entries = [(label, _embed(answers.features[keep])) for label, answers in networks]
    names = {kind: study.dataset.class_names[kind] for kind in classes}
    rows = -(-len(entries) // 4)
    return _picture(
        partial(_call, figures.scatter, entries, labels[keep], names),
        (max(4.5, 2.5 * min(4, len(entries))), 0.9 + 2.7 * rows),
        "t-SNE of the features before the head, a panel for each network, coloured by class.",
    )


def _embed(features: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn requires it

    with threadpool_limits(1):  # on a busy machine many threads wait for each other most of the time
        return TSNE(perplexity=min(30.0, (len(features) - 1) / 3), random_state=0).fit_transform(features)


def _gains(study: Study, baseline: Group, group: Group) -> Picture:
    after, before = (
        100 * np.array([measures.class_accuracy(logits, study.labels) for logits in study.logits(one)])
        for one in (group, baseline)
    )
    mean = after.mean(0) - before.mean(0)
    order = [int(kind) for kind in np.argsort(-mean, kind="stable") if np.isfinite(mean[kind])]
    if len(order) > SHOWN_CLASSES:
        order = order[: SHOWN_CLASSES // 2] + order[-SHOWN_CLASSES // 2 :]
    sd = None
    if len(after) > 1 and len(before) > 1:
        sd = np.sqrt(after.var(0, ddof=1) + before.var(0, ddof=1))[order]
    names = [study.dataset.class_names[kind] for kind in order]
    title = f"{group.label} less {baseline.label}"
    return _picture(
        partial(_call, figures.gains, names, mean[order], sd, title),
        (8.0, 1.1 + 0.27 * len(order)),
        f"Difference of each class's test accuracy, {title}.",
    )
