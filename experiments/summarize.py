"""Our results beside the paper's: python -m experiments.summarize TABLE [--output=DIR].

Prints TABLE.md, and writes it with TABLE.csv, TABLE_differences.csv and TABLE.png to experiments/results, or to DIR.
"""

import argparse
import csv
import io
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import command_line, plot, results, summary
from experiments.cells import MEASURES, RUN, Table, remarks
from experiments.command_line import Parser, guarded, hold_no_device
from experiments.results import NO_TEACHER
from experiments.summary import HELD_OUT, WHICH, Difference, Entry, Summary
from experiments.tables import ALL, TABLES, choose

PROGRAM = "experiments.summarize"
NOTHING = "-"
HEADS = {"last": "last", "best": "best", HELD_OUT: "last, held-out images"}
LEGEND = (
    "Ours: mean ± sample standard deviation over the seeds (n runs); *last* is the accuracy after the last step, *best*"
    " that of the epoch that was best on the split named beside it: chosen on the test set it is optimistic, which is "
    "how published tables are made. Differences are of means, with the 95 % confidence interval of Welch's t: a "
    "difference is larger than its noise if the interval leaves out zero. With many rows some do so by chance."
)
CELLS_HEAD = (
    "table,column,row,preset,measure,which,status,paper,mean,sd,n,seeds,chosen_on,train_examples,"
    "teacher,teacher_accuracy,key"
)
DIFFERENCES_HEAD = "table,column,row,base,preset,measure,which,paper,difference,low,high,verdict,teacher"


@guarded(PROGRAM)
def main(arguments: Sequence[str], tables: Mapping[str, Table] = TABLES, folder: Path = results.RESULTS) -> int:
    """The command on ``tables``, with result files in ``folder``; its exit code."""
    parser = Parser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", metavar="TABLE", help=f"one of: {', '.join((*tables, ALL))}")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the files go; made if it is not there")
    options = parser.parse_args(arguments)
    hold_no_device()
    wanted, lines, output = choose(options.table, tables), results.read(folder), options.output or folder
    output.mkdir(parents=True, exist_ok=True)
    for table in wanted:
        file = folder / f"{table.name}.jsonl"
        made = summary.summarize(table, lines, results.read_file(file) if file.exists() else [])
        texts = {
            f"{table.name}.md": markdown(made),
            f"{table.name}.csv": cells_csv(made),
            f"{table.name}_differences.csv": differences_csv(made),
        }
        for name, text in texts.items():
            (output / name).write_text(text)
        print(texts[f"{table.name}.md"], flush=True)
        plot.draw(made, output / f"{table.name}.png")
        print(f"written to {output}: {', '.join([*texts, f'{table.name}.png'])}", flush=True)
    return 0


def markdown(made: Summary) -> str:
    """The summary as a page."""
    table = made.table
    quotes = any(cell.paper for cell in table.cells)
    source = f"Paper's values: {table.source}." if quotes else f"No paper has these rows: {table.source}."
    lines = [f"# {table.name}: {table.title}", "", source, ""]
    runs = [line for entry in made.entries for line in entry.lines]
    if runs:
        devices = sorted({line["device"] for line in runs})
        commits = sorted({str(line["commit"]) for line in runs})
        versions = sorted({", ".join(f"{name} {line['versions'][name]}" for name in ("jax", "flax")) for line in runs})
        evidence = f"Device: {'; '.join(devices)}. Commit: {', '.join(commits)}. {'; '.join(versions)}."
        lines += [LEGEND, "", evidence, ""]
    else:
        seeds = f" --seeds={table.tuning_seed}" if table.tunes else ""
        follow = " The paper's values follow." if quotes else ""
        lines += [
            "**No results of ours yet**: no line of experiments/results/*.jsonl belongs to a row of this table. "
            f"`python -m experiments.run {table.name}{seeds}` makes them.{follow}",
            "",
        ]
    for column in table.columns:
        lines += [f"## {column}", "", *_cells(made, column), "", *_differences(made, column)]
    lines += [f"- {note}" for note in (*table.notes, *made.remarks)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _cells(made: Summary, column: str) -> list[str]:
    table, entries = made.table, [entry for entry in made.entries if entry.cell.column == column]
    several, shown = len(table.measures) > 1, made.shown
    head = ["row", *(["measure"] if several else []), "paper", *(f"ours, {HEADS[which]}" for which in shown)]
    head += ["best chosen on"] if "best" in shown else []
    rows = []
    for entry in entries:
        status = entry.cell.status if entry.cell.status != RUN or entry.lines else "no runs yet"
        teacher = "" if entry.teacher_accuracy is None else f", teacher {entry.teacher_accuracy:.2f} %"
        how = "; ".join(filter(None, [f"{status}{teacher}", remarks(table, entry.cell)]))
        for number, measure in enumerate(table.measures):
            paper = entry.cell.paper.get(measure)
            row = [entry.label(entries) if number == 0 else "", *([MEASURES[measure]] if several else [])]
            row.append(NOTHING if paper is None else f"{paper:.2f}")
            ours = [entry.spread(measure, which) for which in shown]
            row += [NOTHING if one is None else f"{one.text()} (n={one.n})" for one in ours]
            row += [_shared(entry, "select_on") or NOTHING] if "best" in shown else []
            row += [_shared(entry, "train_examples") or NOTHING, how if number == 0 else ""]
            rows.append(row)
    return command_line.table([*head, "training images", "how"], rows)


def _shared(entry: Entry, name: str) -> str:
    """The value that the lines of an entry share, or all that they have; empty without lines."""
    return ", ".join(sorted({str(line[name]) for line in entry.lines}))


def _differences(made: Summary, column: str) -> list[str]:
    several, which = len(made.table.measures) > 1, [name for name in made.shown if name in WHICH]
    head = ["row", "less", *(["measure"] if several else []), "paper", *(f"ours, {name}" for name in which)]
    rows = []
    for one in made.comparisons:
        if one.entry.cell.column == column:
            row = [one.entry.label(made.entries), one.base.label(made.entries)]
            row += [MEASURES[one.measure]] if several else []
            row.append(NOTHING if one.paper is None else f"{one.paper:+.2f}")
            rows.append([*row, *(_difference(one.ours.get(name)) for name in which)])
    return [*command_line.table(head, rows), ""] if rows else []


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return NOTHING
    interval = "" if difference.low is None else f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    return f"{difference.mean:+.2f}{interval}, {difference.verdict}"


def cells_csv(made: Summary) -> str:
    """A line for each entry, measure, and last or best."""
    rows = []
    parts = dict.fromkeys((*WHICH, *made.shown))
    for entry, measure, which in itertools.product(made.entries, made.table.measures, parts):
        names = [made.table.name, entry.cell.column, entry.cell.row, entry.preset, measure, which, entry.cell.status]
        numbers = [entry.cell.paper.get(measure), *(entry.spread(measure, which) or (None, None, 0))]
        seeds = " ".join(str(line["seed"]) for line in entry.lines)
        protocol = [_shared(entry, "select_on"), _shared(entry, "train_examples")]
        teacher = [_teacher(entry), entry.teacher_accuracy]
        rows.append([*names, *numbers, seeds, *protocol, *teacher, _shared(entry, "config_hash")])
    return _csv(CELLS_HEAD, rows)


def differences_csv(made: Summary) -> str:
    """A line for each comparison, and last or best."""
    rows = []
    for (entry, base, measure, paper, ours), which in itertools.product(made.comparisons, WHICH):
        names = [made.table.name, entry.cell.column, entry.cell.row, base.cell.row, entry.preset, measure, which]
        rows.append([*names, paper, *ours.get(which, (None,) * 4), _teacher(entry)])
    return _csv(DIFFERENCES_HEAD, rows)


def _teacher(entry: Entry) -> str | None:
    return None if entry.key is None or entry.key.teacher == NO_TEACHER else entry.key.teacher


def _csv(head: str, rows: Iterable[Iterable[Any]]) -> str:
    stream = io.StringIO()
    rounded = ([round(value, 4) if isinstance(value, float) else value for value in row] for row in rows)
    csv.writer(stream, lineterminator="\n").writerows(rounded)
    return f"{head}\n{stream.getvalue()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
