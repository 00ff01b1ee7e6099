"""A summary as Markdown and as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.cells import MEASURES, RUN, remarks
from experiments.markdown import table as markdown_table
from experiments.recipes import RELEASED
from experiments.results import NO_TEACHER
from experiments.spread import Difference, Sample
from experiments.summary import WHICH, Comparison, Entry, Summary

NOTHING = "-"
LEGEND = (
    "Ours: mean ± sample standard deviation over the seeds (n runs); *last* is the accuracy after the last step, *best*"
    " that of the epoch that was best on the split named beside it: chosen on the test set it is optimistic, which is "
    "how published tables are made. Differences are of means, with the 95 % confidence interval of Welch's t: a "
    "difference is larger than its noise if the interval leaves out zero. With many rows some do so by chance."
)
CELL_FIELDS = (
    "table",
    "column",
    "row",
    "preset",
    "measure",
    "which",
    "status",
    "paper",
    "mean",
    "sd",
    "n",
    "seeds",
    "chosen_on",
    "train_examples",
    "teacher",
    "teacher_accuracy",
    "key",
)
DIFFERENCE_FIELDS = (
    "table",
    "column",
    "row",
    "base",
    "preset",
    "measure",
    "which",
    "paper",
    "difference",
    "low",
    "high",
    "verdict",
    "teacher",
)


def label(entry: Entry, entries: Iterable[Entry]) -> str:
    """The row's name, with what tells it from other entries of the same cell."""
    text = entry.cell.row if entry.preset == RELEASED else f"{entry.cell.row} (preset {entry.preset})"
    same = [e for e in entries if e.cell == entry.cell and e.preset == entry.preset]
    return f"{text} (teacher: {entry.did.teacher})" if len(same) > 1 and entry.did else text


def markdown(summary: Summary) -> str:
    """The summary as a page."""
    table = summary.table
    quotes = any(cell.paper for cell in table.cells)
    source = f"Paper's values: {table.source}." if quotes else f"No paper has these rows: {table.source}."
    lines = [f"# {table.name}: {table.title}", "", source, ""]
    runs = _runs(summary)
    if runs:
        lines += [LEGEND, "", *_evidence(runs), ""]
    else:
        lines += [
            "**No results of ours yet**: no line of experiments/results/*.jsonl belongs to a row of this table. "
            f"`python -m experiments.run {table.name}` makes them. The paper's values follow.",
            "",
        ]
    for column in table.columns:
        entries = [entry for entry in summary.entries if entry.cell.column == column]
        lines += [f"## {column}", "", *_cells(summary, entries), ""]
        compared = [comparison for comparison in summary.comparisons if comparison.entry.cell.column == column]
        lines += [*_differences(summary, compared), ""] if compared else []
    for note in (*table.notes, *summary.remarks):
        lines.append(f"- {note}")
    return "\n".join(lines).rstrip("\n") + "\n"


def _runs(summary: Summary) -> list[Mapping[str, Any]]:
    return [line for entry in summary.entries for line in entry.lines]


def _evidence(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the runs took place."""
    commits = sorted({str(line["commit"]) for line in runs})
    devices = sorted({line["device"] for line in runs})
    versions = sorted({", ".join(f"{name} {line['versions'][name]}" for name in ("jax", "flax")) for line in runs})
    return [f"Device: {'; '.join(devices)}. Commit: {', '.join(commits)}. {'; '.join(versions)}."]


def _cells(summary: Summary, entries: Sequence[Entry]) -> list[str]:
    table = summary.table
    several, timed = len(table.measures) > 1, table.measures == ("ms",)
    head = ["row", *(["measure"] if several else []), "paper", "ours" if timed else "ours, last"]
    head += [] if timed else ["ours, best", "best chosen on"]
    rows = []
    for entry in entries:
        for number, measure in enumerate(table.measures):
            paper = entry.cell.paper.get(measure)
            row = [label(entry, entries) if number == 0 else "", *([MEASURES[measure]] if several else [])]
            row.append(NOTHING if paper is None else f"{paper:.2f}")
            row += [_sample(entry.sample(measure, which)) for which in (WHICH[:1] if timed else WHICH)]
            row += [] if timed else [_one(entry, "select_on")]
            row += [_one(entry, "train_examples"), _how(summary, entry) if number == 0 else ""]
            rows.append(row)
    return markdown_table([*head, "training images", "how"], rows)


def _sample(sample: Sample | None) -> str:
    if sample is None:
        return NOTHING
    spread = f"{sample.mean:.2f}" if sample.sd is None else f"{sample.mean:.2f} ± {sample.sd:.2f}"
    return f"{spread} (n={sample.n})"


def _one(entry: Entry, name: str) -> str:
    """What the runs of an entry have in common."""
    return ", ".join(sorted({str(line[name]) for line in entry.lines})) or NOTHING


def _how(summary: Summary, entry: Entry) -> str:
    """Run, quoted or not available, and everything to be said of it."""
    parts = [entry.cell.status if entry.cell.status != RUN or entry.lines else "no runs yet"]
    if entry.teacher_accuracy is not None:
        parts[0] += f", teacher {entry.teacher_accuracy:.2f} %"
    return "; ".join([*parts, *filter(None, [remarks(summary.table, entry.cell)])])


def _differences(summary: Summary, compared: Sequence[Comparison]) -> list[str]:
    table = summary.table
    several, timed = len(table.measures) > 1, table.measures == ("ms",)
    which = WHICH[:1] if timed else WHICH
    head = ["row", "less", *(["measure"] if several else []), "paper", *(f"ours, {name}" for name in which)]
    rows = []
    for one in compared:
        row = [label(one.entry, summary.entries), label(one.base, summary.entries)]
        row += [MEASURES[one.measure]] if several else []
        row.append(NOTHING if one.paper is None else f"{one.paper:+.2f}")
        rows.append([*row, *(_difference(one.ours.get(name)) for name in which)])
    return markdown_table(head, rows)


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return NOTHING
    if difference.low is None:
        return f"{difference.mean:+.2f}, {difference.verdict}"
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}], {difference.verdict}"


def cells_csv(summary: Summary) -> str:
    """A line for each entry, measure, and last or best."""
    rows = []
    for entry in summary.entries:
        for measure in summary.table.measures:
            for which in WHICH:
                sample = entry.sample(measure, which)
                rows.append(
                    {
                        **_names(summary, entry, measure, which),
                        "status": entry.cell.status,
                        "paper": entry.cell.paper.get(measure),
                        "mean": _rounded(sample.mean if sample else None),
                        "sd": _rounded(sample.sd if sample else None),
                        "n": sample.n if sample else 0,
                        "seeds": " ".join(str(line["seed"]) for line in entry.lines),
                        "chosen_on": _one(entry, "select_on") if entry.lines else None,
                        "train_examples": _one(entry, "train_examples") if entry.lines else None,
                        "teacher_accuracy": _rounded(entry.teacher_accuracy),
                        "key": entry.did.key if entry.did else None,
                    }
                )
    return _csv(CELL_FIELDS, rows)


def differences_csv(summary: Summary) -> str:
    """A line for each comparison, and last or best."""
    rows = []
    for one in summary.comparisons:
        for which in WHICH:
            ours = one.ours.get(which)
            rows.append(
                {
                    **_names(summary, one.entry, one.measure, which),
                    "base": one.base.cell.row,
                    "paper": one.paper,
                    "difference": _rounded(ours.mean if ours else None),
                    "low": _rounded(ours.low if ours else None),
                    "high": _rounded(ours.high if ours else None),
                    "verdict": ours.verdict if ours else None,
                }
            )
    return _csv(DIFFERENCE_FIELDS, rows)


def _names(summary: Summary, entry: Entry, measure: str, which: str) -> dict[str, Any]:
    return {
        "table": summary.table.name,
        "column": entry.cell.column,
        "row": entry.cell.row,
        "preset": entry.preset,
        "measure": measure,
        "which": which,
        "teacher": None if entry.did is None or entry.did.teacher == NO_TEACHER else entry.did.teacher,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _csv(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
