"""The figures of a report, each for a light and a dark page, drawn by matplotlib."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdd_jax.reporting.measures import Reliability, spread

INSTALL = "pip install -e '.[report]'"
DPI = 120


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
MARKERS, STYLES = "osD^vP", ("-", "--", "-.", ":")


class Series(NamedTuple):
    """One metric of one group: common epochs, and the values of each run there, ``[runs, epochs]``."""

    label: str
    epochs: np.ndarray
    values: np.ndarray


def series(label: str, curves: Sequence[Sequence[tuple[float, float]]]) -> Series | None:
    """The curves of a group's runs at the epochs that all of them have; None if there is none."""
    tables = [dict(curve) for curve in curves]
    epochs = sorted(set.intersection(*map(set, tables))) if tables else []
    if not epochs:
        return None
    return Series(label, np.array(epochs), np.array([[table[epoch] for epoch in epochs] for table in tables]))


def draw(paint: Callable[[Any, Theme], None], theme: Theme, size: tuple[float, float]) -> bytes:
    """A PNG of ``size`` (inches) that ``paint(figure, theme)`` draws.

    Raises:
      ImportError: without matplotlib; it says how to get it.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"the report's figures need matplotlib: {INSTALL}") from error
    colours = dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), theme.ink
    )
    settings = {
        **colours, "figure.facecolor": theme.paper, "axes.facecolor": theme.paper, "savefig.facecolor": theme.paper,
        "grid.color": theme.faint, "font.size": 9.5, "axes.titlesize": 10.5, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "axes.axisbelow": True, "font.family": "DejaVu Sans",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=DPI, metadata={"Software": "sdd_jax"})
    return buffer.getvalue()


def curves(figure: Any, theme: Theme, panels: Sequence[tuple[str, Sequence[Series]]]) -> None:
    """A panel for each (title, series): the mean over seeds, and a band of one standard deviation."""
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for number, line in enumerate(lines):
            _band(axis, line, theme.cycle[number % len(theme.cycle)], number)
        axis.set_title(title, loc="left")
        axis.set_xlabel("epoch")
        axis.grid(True)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))


def _band(axis: Any, line: Series, colour: str, number: int) -> None:
    mean = line.values.mean(0)
    style = {"linestyle": STYLES[number % len(STYLES)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
    n = len(line.values)
    axis.plot(line.epochs, mean, color=colour, label=f"{line.label} (n = {n})", **style)
    if n > 1:
        sd = line.values.std(0, ddof=1)
        axis.fill_between(line.epochs, mean - sd, mean + sd, color=colour, alpha=0.22, linewidth=0)


def calibration(figure: Any, theme: Theme, entries: Sequence[tuple[str, Sequence[Reliability]]]) -> None:
    """A reliability diagram for each (label, runs): accuracy in each bin of confidence, means over seeds."""
    across = min(4, len(entries))
    panels = figure.subplots(
        math.ceil(len(entries) / across), across, squeeze=False, sharex=True, sharey=True, subplot_kw={"box_aspect": 1}
    )
    for axis, (label, runs) in zip(panels.flat, entries, strict=False):
        edges = runs[0].edges
        counts = np.sum([run.counts for run in runs], axis=0)
        with np.errstate(invalid="ignore"):
            heights, centres = (
                np.sum([np.nan_to_num(getattr(run, name)) * run.counts for run in runs], axis=0) / counts
                for name in ("accuracy", "confidence")
            )
        width = edges[1] - edges[0]
        left = edges[:-1]
        axis.bar(left, heights, width, align="edge", color=theme.cycle[0], edgecolor=theme.paper, linewidth=0.6)
        axis.plot([0, 1], [0, 1], color=theme.ink, linewidth=1, linestyle="--")
        axis.plot(centres, heights, MARKERS[2], color=theme.cycle[1], markersize=3.5)
        shares = counts / counts.sum()
        axis.bar(left, -0.18 * shares / shares.max(), width, align="edge", color=theme.faint)
        ece = spread([100 * run.ece for run in runs])
        extra = f" ± {ece.sd:.2f}" if ece.sd is not None else ""
        axis.set_title(f"{label}\nECE {ece.mean:.2f}{extra} %, n = {ece.n}", loc="left", fontsize=9)
        axis.set_xlim(0, 1)
        axis.set_ylim(-0.2, 1)
        axis.set_yticks([0, 0.5, 1])
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.grid(True)
    for axis in panels.flat[len(entries) :]:
        axis.set_visible(False)
    figure.supxlabel("confidence: probability of the predicted class", fontsize=9.5)
    figure.supylabel("accuracy", fontsize=9.5)


def gains(figure: Any, theme: Theme, names: Sequence[str], mean: np.ndarray, sd: np.ndarray | None, title: str) -> None:
    """A line for each class: the difference of its accuracy in points, in the order given."""
    axis = figure.subplots()
    places = np.arange(len(names))
    colours = [theme.cycle[0] if value >= 0 else theme.cycle[1] for value in mean]
    axis.axvline(0, color=theme.ink, linewidth=1)
    axis.hlines(places, 0, mean, colors=colours, linewidth=3)
    if sd is not None:
        axis.errorbar(mean, places, xerr=sd, fmt="none", ecolor=theme.ink, elinewidth=0.9, capsize=2.5)
    for place, value, colour in zip(places, mean, colours, strict=True):
        axis.plot(value, place, "o" if value >= 0 else "s", color=colour, markersize=5)
    axis.set_yticks(places, names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel("difference of the class's test accuracy, percentage points")
    axis.set_title(title, loc="left")
    axis.grid(axis="x")


class Training(NamedTuple):
    """What an SDD group's metrics say of regions over training; means over seeds by epoch.

    Attributes:
      label: the group's.
      epochs: ``[E]``.
      shares: complementary regions in percent, by what they are of: "2x2", ..., or "all scales" of older runs.
      parts: of the distillation loss in percent, by kind and scale, in the order to be stacked; empty for older runs.
    """

    label: str
    epochs: np.ndarray
    shares: dict[str, np.ndarray]
    parts: dict[tuple[str, str], np.ndarray]


def training_regions(figure: Any, theme: Theme, groups: Sequence[Training]) -> None:
    """For each group: the share of complementary regions, and what each kind and scale adds to the loss."""
    rows = figure.subplots(len(groups), 2, squeeze=False, sharex="row")
    for (left, right), group in zip(rows, groups, strict=True):
        for number, (name, values) in enumerate(group.shares.items()):
            colour = theme.complementary[min(number, 2)]
            left.plot(group.epochs, values, color=colour, linestyle=STYLES[number % 4], linewidth=2, label=name)
        left.set_title(f"{group.label}\ncomplementary regions, % of the scale's", loc="left")
        left.set_ylim(bottom=0)
        left.legend(ncols=2, loc="best")
        left.grid(True)
        right.set_title("\nshare of the distillation loss, %", loc="left")
        if group.parts:
            seen, colours, hatches = {"consistent": 0, "complementary": 0}, [], []
            for kind, _ in group.parts:
                shades = theme.consistent if kind == "consistent" else theme.complementary
                colours.append(shades[min(seen[kind], len(shades) - 1)])
                hatches.append("" if kind == "consistent" else "///")
                seen[kind] += 1
            labels = [f"{kind} {scale}" for kind, scale in group.parts]
            areas = right.stackplot(
                group.epochs, *group.parts.values(), colors=colours, labels=labels, edgecolor=theme.paper, linewidth=0.5
            )
            for area, hatch in zip(areas, hatches, strict=True):
                area.set_hatch(hatch)
            right.set_ylim(0, 100)
            handles, texts = right.get_legend_handles_labels()
            right.legend(handles[::-1], texts[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5))
            right.margins(x=0)
        else:
            right.text(0.5, 0.5, "not logged by these runs", ha="center", transform=right.transAxes)
            right.set_yticks([])
        for axis in (left, right):
            axis.set_xlabel("epoch")


def matrices(
    figure: Any, theme: Theme, entries: Sequence[tuple[str, np.ndarray]], names: Sequence[str], note: Sequence[str]
) -> None:
    """A matrix of classes by classes for each (label, matrix), in one colour scale; a ``note`` under each title."""
    across = min(3, len(entries))
    panels = figure.subplots(math.ceil(len(entries) / across), across, squeeze=False)
    top = max(float(np.nanmax(matrix)) for _, matrix in entries)
    image = None
    for number, (axis, (label, matrix)) in enumerate(zip(panels.flat, entries, strict=False)):
        image = axis.imshow(matrix, vmin=0, vmax=top or 1, cmap="cividis")
        axis.set_title(f"{label}\n{note[number]}", loc="left", fontsize=9)
        axis.spines[:].set_visible(False)
        if len(names) <= 20:
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
            axis.set_yticks(range(len(names)), names if number % across == 0 else [], fontsize=7.5)
    for axis in panels.flat[len(entries) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=panels, shrink=0.7, label="|difference of correlations|")


def scatter(
    figure: Any, theme: Theme, entries: Sequence[tuple[str, np.ndarray]], labels: np.ndarray, names: dict[int, str]
) -> None:
    """A panel of points ``[n, 2]`` for each (label, points); a colour and a shape for each class of ``names``."""
    across = min(4, len(entries))
    panels = figure.subplots(math.ceil(len(entries) / across), across, squeeze=False, subplot_kw={"box_aspect": 1})
    for axis, (label, points) in zip(panels.flat, entries, strict=False):
        for number, (kind, name) in enumerate(names.items()):
            chosen = points[labels == kind]
            colour, marker = theme.classes[number % 10], "osD^vPX*<"[number % 9]
            axis.scatter(*chosen.T, s=9, color=colour, marker=marker, linewidths=0, alpha=0.8, label=name)
        axis.set_title(label, loc="left", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in panels.flat[len(entries) :]:
        axis.set_visible(False)
    handles, texts = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(5, len(texts)), markerscale=2, fontsize=8.5)
