"""The figures of a report, each drawn by matplotlib for a light and a dark page."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.reporting import measures
from sdd_jax.reporting.groups import Group, Run, short
from sdd_jax.reporting.study import Study

SHOWN_CLASSES = 30  # at most, of the figure of gains
CORRELATED = 1000  # at most, of the matrices of correlations
MARKERS, STYLES = "osD^vP", ("-", "--", "-.", ":")


class Theme(NamedTuple):
    """Colours that suit a page, and that colour-blind readers tell apart (Okabe and Ito)."""

    paper: str
    ink: str
    faint: str
    cycle: tuple[str, ...]
    consistent: tuple[str, ...]  # by scale, the coarsest first
    complementary: tuple[str, ...]
    classes: tuple[str, ...]  # ten, after Paul Tol's "muted" and "light" schemes


LIGHT = Theme(
    paper="#ffffff", ink="#1c1e21", faint="#d9dce1",
    cycle=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9"),
    consistent=("#003f63", "#0072b2", "#7fb8d8", "#b9d9ea"), complementary=("#d55e00", "#f0a268", "#f7d0b3"),
    classes=(
        "#332288", "#44aa99", "#cc6677", "#117733", "#88ccee", "#882255", "#e08214", "#999933", "#aa4499", "#777777",
    ),
)  # fmt: skip
DARK = Theme(
    paper="#16181d", ink="#e6e8eb", faint="#3a3f47",
    cycle=("#56b4e9", "#f08c4a", "#2fc79c", "#e3a0c4", "#e6c34a", "#9fd3f2"),
    consistent=("#b9dcf2", "#56b4e9", "#2a7fb0", "#1b5578"), complementary=("#f7b58a", "#e07b39", "#9c4a12"),
    classes=(
        "#77aadd", "#44bb99", "#ee6677", "#99dd55", "#99ddff", "#cc88dd", "#ee9944", "#eedd88", "#ffaabb", "#bbbbbb",
    ),
)  # fmt: skip

Picture = tuple[bytes, bytes]  # PNG files for a light and a dark page


def draw_all(study: Study) -> dict[str, Picture]:
    """Every figure that the study has the data for, by name; what is missing is added to its notes."""
    drawn = {
        "curves": _curves(study),
        "regions": _regions(study),
        "calibration": _calibration(study),
        "correlation": _correlation(study),
        "tsne": _tsne(study),
    }
    drawn |= {f"classes_{number}": _gains(study, *pair) for number, pair in enumerate(study.pairs(), start=1)}
    return {name: picture for name, picture in drawn.items() if picture is not None}


def _draw(paint: Callable[[Any, Theme], None], size: tuple[float, float]) -> Picture:
    """The picture of ``size`` (inches) that ``paint(figure, theme)`` draws."""
    import matplotlib
    from matplotlib.figure import Figure

    def draw(theme):
        settings = {
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink),
            "axes.edgecolor": theme.ink, "figure.facecolor": theme.paper, "axes.facecolor": theme.paper,
            "savefig.facecolor": theme.paper, "grid.color": theme.faint, "font.size": 9.5, "axes.titlesize": 10.5,
            "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.axisbelow": True,
            "font.family": "DejaVu Sans", "text.parse_math": False,
        }  # fmt: skip
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page itself has the names
            figure, buffer = Figure(figsize=size, layout="constrained"), io.BytesIO()
            paint(figure, theme)
            figure.savefig(buffer, dpi=120, metadata={"Software": "sdd_jax"})
        return buffer.getvalue()

    return draw(LIGHT), draw(DARK)


def _panels(figure: Any, count: int, across: int, **options: Any) -> Any:
    """``count`` axes in rows of ``across``; the row's others are hidden."""
    axes = figure.subplots(math.ceil(count / across), across, squeeze=False, **options)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return axes


def _values(runs: Sequence[Run], *metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The epochs at which all runs have a metric, maybe none, and its values ``[runs, epochs]``."""
    tables = [run.curve(*metric) for run in runs]
    epochs = sorted(set.intersection(*map(set, tables)))
    return np.array(epochs), np.array([[table[epoch] for epoch in epochs] for table in tables])


def _epochs(axis: Any) -> None:
    axis.set_xlabel("epoch")
    axis.locator_params("x", integer=True)  # a run of four epochs has no epoch 2.25


def _curves(study: Study) -> Picture:
    def paint(figure, theme):
        axes = figure.subplots(1, 2)
        panels = (("test accuracy, %", "accuracy", 100), ("test loss, nats", "loss", 1))
        for axis, (title, metric, factor) in zip(axes, panels, strict=True):
            for number, group in enumerate(study.groups):
                epochs, values = _values(group.runs, metric, "test")
                if not len(epochs):
                    continue
                mean, colour = factor * values.mean(0), theme.cycle[number % len(theme.cycle)]
                style = STYLES[number % len(STYLES)] + MARKERS[number % len(MARKERS)]
                label = f"{group.label} (n = {len(values)})"
                axis.plot(epochs, mean, style, color=colour, markersize=4, label=label)
                if len(values) > 1:
                    sd = factor * values.std(0, ddof=1)
                    axis.fill_between(epochs, mean - sd, mean + sd, color=colour, alpha=0.22, linewidth=0)
            axis.set_title(title, loc="left")
            _epochs(axis)
            axis.grid(True)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

    return _draw(paint, (9.5, 3.6 + 0.25 * math.ceil(len(study.groups) / 3)))


def _regions(study: Study) -> Picture | None:
    found = [_training(group, study.notes) for group in study.groups if group.by_region]
    groups = [group for group in found if group is not None]
    if not groups:
        return None

    def paint(figure, theme):
        axes = figure.subplots(len(groups), 2, squeeze=False, sharex="row")
        for (left, right), (label, epochs, shares, parts) in zip(axes, groups, strict=True):
            for number, (name, values) in enumerate(shares.items()):
                colour = theme.complementary[min(number, 2)]
                left.plot(epochs, values, color=colour, linestyle=STYLES[number % 4], linewidth=2, label=name)
            left.set_title(f"{label}\ncomplementary regions, % of the scale's", loc="left")
            left.set_ylim(bottom=0)
            left.legend(ncols=2, loc="best")
            left.grid(True)
            right.set_title("\nshare of the distillation loss, %", loc="left")
            shades = {"consistent": iter(theme.consistent), "complementary": iter(theme.complementary)}
            last = {"consistent": theme.consistent[-1], "complementary": theme.complementary[-1]}
            style = {"colors": [next(shades[kind], last[kind]) for kind, _ in parts], "edgecolor": theme.paper}
            labels = [f"{kind} {scale}" for kind, scale in parts]
            areas = right.stackplot(epochs, *parts.values(), labels=labels, linewidth=0.5, **style)
            for area, (kind, _) in zip(areas, parts, strict=True):
                area.set_hatch("" if kind == "consistent" else "///")
            right.set_ylim(0, 100)
            right.legend(reverse=True, loc="center left", bbox_to_anchor=(1.0, 0.5))
            right.margins(x=0)
            for axis in (left, right):
                _epochs(axis)

    return _draw(paint, (9.5, 3.3 * len(groups)))


def _training(group: Group, notes: list[str]) -> tuple[str, np.ndarray, dict[str, Any], dict[Any, Any]] | None:
    """What an SDD group's runs logged of regions over training, means over seeds; None if too little.

    Label, epochs; in percent: complementary regions by scale, and parts of the loss by kind and scale.
    """
    scales = [f"{scale}x{scale}" for scale in group.config["sdd.scales"]]
    shares = {scale: f"complementary_share_{scale}" for scale in scales[1:]}
    parts = {("consistent", scale): f"consistent_loss_{scale}" for scale in scales}
    parts |= {("complementary", scale): f"complementary_loss_{scale}" for scale in scales[1:]}
    names = ("distill_loss", *shares.values(), *parts.values())
    runs = [run for run in group.runs if all(run.curve(name) for name in names)]
    label = group.label
    if len(runs) < len(group.runs):
        without = ", ".join(str(run.seed) for run in group.runs if run not in runs)
        notes.append(f"{label}: the runs of seed {without} have not logged what each scale adds to the loss")
        if not runs:
            return None
        label += f", seed {', '.join(str(run.seed) for run in runs)} alone"
    found = {name: _values(runs, name) for name in names}
    if not all(len(epochs) for epochs, _ in found.values()):
        return None
    means = {name: values.mean(0) for name, (_, values) in found.items()}
    percents = {scale: 100 * means[name] for scale, name in shares.items()}
    added = {kind: 100 * means[name] / means["distill_loss"] for kind, name in parts.items()}
    return label, found["distill_loss"][0], percents, added


def _calibration(study: Study) -> Picture:
    asked = [(teacher.label, [teacher.logits]) for teacher in study.every_teacher()]
    asked += [(group.label, study.logits(group)) for group in study.groups]
    entries = []
    for label, networks in asked:
        ece = measures.spread([100 * measures.reliability([logits], study.labels).ece for logits in networks])
        title = f"{label}\nECE {ece.text()} %, n = {ece.n}"
        entries.append((title, measures.reliability(networks, study.labels)))
    across = min(4, len(entries))

    def paint(figure, theme):
        axes = _panels(figure, len(entries), across, sharex=True, sharey=True, subplot_kw={"box_aspect": 1})
        for axis, (title, bins) in zip(axes.flat, entries, strict=False):
            left, width = np.linspace(0, 1, len(bins.counts), endpoint=False, retstep=True)
            axis.bar(
                left, bins.accuracy, width, align="edge", color=theme.cycle[0], edgecolor=theme.paper, linewidth=0.6
            )
            axis.plot([0, 1], [0, 1], color=theme.ink, linewidth=1, linestyle="--")
            axis.plot(bins.confidence, bins.accuracy, MARKERS[2], color=theme.cycle[1], markersize=3.5)
            axis.bar(left, -0.18 * bins.counts / bins.counts.max(), width, align="edge", color=theme.faint)
            axis.set_title(title, loc="left", fontsize=9)
            axis.set(xlim=(0, 1), ylim=(-0.2, 1), yticks=[0, 0.5, 1])
            axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axis.grid(True)
        figure.supxlabel("confidence: probability of the predicted class", fontsize=9.5)
        figure.supylabel("accuracy", fontsize=9.5)

    return _draw(paint, (max(4.2, 2.4 * across), 0.5 + 2.8 * math.ceil(len(entries) / 4)))


def _correlation(study: Study) -> Picture | None:
    shown = np.linspace(0, len(study.names) - 1, min(len(study.names), CORRELATED)).astype(int)
    entries, names = [], [short(study.names[label]) for label in shown]
    if len(names) < len(study.names):
        study.notes.append(f"correlations: of {len(names)} of the {len(study.names)} classes, evenly spaced")
    for group in study.groups:
        if group.label in study.teachers and len(names) > 1:
            teacher = study.teachers[group.label].logits[:, shown]
            matrices = [measures.correlation_difference(logits[:, shown], teacher) for logits in study.logits(group)]
            mean = measures.spread([measures.off_diagonal(matrix) for matrix in matrices]).text(4)
            entries.append((f"{group.label}\nmean {mean}", np.mean(matrices, axis=0)))
    if not entries:
        return None
    across = min(3, len(entries))

    def paint(figure, theme):
        axes = _panels(figure, len(entries), across)
        finite = [matrix[np.isfinite(matrix)] for _, matrix in entries]  # one of equal logits has no correlations
        top = max((float(values.max()) for values in finite if values.size), default=1.0)
        for number, (axis, (title, matrix)) in enumerate(zip(axes.flat, entries, strict=False)):
            axis.imshow(matrix, vmin=0, vmax=top or 1, cmap="cividis")
            axis.set_title(title, loc="left", fontsize=9)
            axis.spines[:].set_visible(False)
            if len(names) <= 20:
                axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
                axis.set_yticks(range(len(names)), names if number % across == 0 else [], fontsize=7.5)
        figure.colorbar(axes.flat[0].images[0], ax=axes, shrink=0.7, label="|difference of correlations|")

    return _draw(paint, (2.2 + 2.9 * across, 0.6 + 4.1 * math.ceil(len(entries) / across)))


def _tsne(study: Study) -> Picture | None:
    labels = study.labels[study.points]
    classes = sorted(set(labels.tolist()))[: len(LIGHT.classes)]
    keep = np.isin(labels, classes)
    if keep.sum() < 10:
        study.notes.append(f"t-SNE: {keep.sum()} test images are too few for one")
        return None
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn requires it

    networks = [*study.every_teacher(), *(study.answers[group.runs[0].folder] for group in study.groups)]
    tsne = TSNE(perplexity=min(30.0, float(keep.sum() - 1) / 3), random_state=0)
    with threadpool_limits(1):  # on a busy machine many threads wait for each other most of the time
        entries = [(answers.label, tsne.fit_transform(answers.features[keep])) for answers in networks]
    across = min(4, len(entries))

    def paint(figure, theme):
        axes = _panels(figure, len(entries), across, subplot_kw={"box_aspect": 1})
        for axis, (title, points) in zip(axes.flat, entries, strict=False):
            for number, label in enumerate(classes):
                chosen, name = points[labels[keep] == label], short(study.names[label])
                colour, marker = theme.classes[number % 10], "osD^vPX*<"[number % 9]
                axis.scatter(*chosen.T, s=9, color=colour, marker=marker, linewidths=0, alpha=0.8, label=name)
            axis.set_title(title, loc="left", fontsize=9)
            axis.set(xticks=[], yticks=[])
        names = axes.flat[0].get_legend_handles_labels()
        figure.legend(*names, loc="outside lower center", ncols=5, markerscale=2, fontsize=8.5)

    return _draw(paint, (max(4.5, 2.5 * across), 0.9 + 2.7 * math.ceil(len(entries) / 4)))


def _gains(study: Study, baseline: Group, group: Group) -> Picture:
    before, after, order, _ = study.class_changes(baseline, group, SHOWN_CLASSES)
    mean = (after.mean(0) - before.mean(0))[order]

    def paint(figure, theme):
        axis, places = figure.subplots(), np.arange(len(order))
        colours = [theme.cycle[0] if value >= 0 else theme.cycle[1] for value in mean]
        axis.axvline(0, color=theme.ink, linewidth=1)
        axis.hlines(places, 0, mean, colors=colours, linewidth=3)
        if len(after) > 1 and len(before) > 1:
            sd = np.sqrt(after.var(0, ddof=1) + before.var(0, ddof=1))[order]
            axis.errorbar(mean, places, xerr=sd, fmt="none", ecolor=theme.ink, elinewidth=0.9, capsize=2.5)
        for place, value, colour in zip(places, mean, colours, strict=True):
            axis.plot(value, place, "o" if value >= 0 else "s", color=colour, markersize=5)
        axis.set_yticks(places, [short(study.names[label]) for label in order])
        axis.set_ylim(len(order) - 0.4, -0.6)
        axis.set_xlabel("difference of the class's test accuracy, percentage points")
        axis.set_title(f"{group.label} less {baseline.label}", loc="left")
        axis.grid(axis="x")

    return _draw(paint, (8.0, 1.1 + 0.27 * len(order)))
