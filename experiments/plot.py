"""A summary as a picture: the paper's values and ours, with the spread over seeds."""

import math
import textwrap
from pathlib import Path

from experiments.cells import MEASURES
from experiments.summary import WHICH, Summary

STYLES = {  # colours that a colour-blind reader tells apart, and shapes that anyone does
    "paper": {"fmt": "D", "color": "0.45", "markerfacecolor": "none", "label": "paper", "markersize": 5},
    "last": {"fmt": "o", "color": "#0072b2", "label": "ours, last epoch", "markersize": 5},
    "best": {"fmt": "s", "color": "#d55e00", "label": "ours, best epoch", "markersize": 5},
}
OFFSET = {"paper": 0.0, "last": -0.18, "best": 0.18}


def draw(summary: Summary, path: Path) -> None:
    """Writes the picture to ``path``: a panel for each column, a line in it for each row; bars are standard deviations.

    Raises:
      ImportError: without matplotlib; it says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the plot needs matplotlib: pip install -e ".[experiments]"') from error
    table, measure = summary.table, summary.table.measures[0]
    shown = [one for one in summary.entries if measure in one.cell.paper or any(one.values(measure, w) for w in WHICH)]
    rows = list(dict.fromkeys(entry.label(summary.entries) for entry in shown))
    across = 2 if len(table.columns) == 4 else min(3, len(table.columns))  # panels side by side
    down = math.ceil(len(table.columns) / across)
    size = (2.2 + 3.2 * across, 1.3 + down * (0.7 + 0.3 * len(rows)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, column in zip(panels.flat, table.columns, strict=False):
        for entry in [entry for entry in shown if entry.cell.column == column]:
            place = rows.index(entry.label(summary.entries))
            paper = entry.cell.paper.get(measure)
            if paper is not None:
                axes.errorbar(paper, place, **STYLES["paper"])
            for which in WHICH:
                spread = entry.spread(measure, which)
                if spread is not None:
                    values, height = entry.values(measure, which).values(), place + OFFSET[which]
                    axes.plot([*values], [height] * len(values), "|", color=STYLES[which]["color"], alpha=0.6, zorder=1)
                    axes.errorbar(spread.mean, height, xerr=spread.sd, capsize=3, **STYLES[which])
        axes.set_title(column, fontsize=10)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x", color="0.9")
        axes.grid(axis="y", color="0.95")
        axes.set_axisbelow(True)
    handles = {}  # by label
    for axes in panels.flat:
        axes.set_visible(bool(axes.get_title()))
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    about = f"{MEASURES[measure]}; bars: one standard deviation over seeds, ticks: each seed"
    wide = int(13 * size[0])  # characters
    lines = [*textwrap.wrap(f"{table.name}: {table.title}", wide), *textwrap.wrap(about, wide)]
    figure.suptitle("\n".join(lines), fontsize=10)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=9)
    figure.savefig(path, dpi=130)
