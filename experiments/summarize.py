"""Our results beside the paper's: python -m experiments.summarize TABLE [--output=DIR].

Prints TABLE.md, and writes it with TABLE.csv, TABLE_differences.csv and TABLE.png to experiments/results, or to DIR.
"""

import argparse
import csv
import io
import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import command_line, plot, results, summary
from experiments.cells import MEASURES, RUN, Table, remarks
from experiments.command_line import Parser, guarded, hold_no_device
from experiments.results import NO_TEACHER
from experiments.summary import EXPLORATORY, HELD_OUT, WHICH, Difference, Entry, Estimate, Summary
from experiments.tables import ALL, TABLES, choose

PROGRAM = "experiments.summarize"
NOTHING = "-"
HEADS = {"last": "last", "best": "best", HELD_OUT: "last, held-out images"}
LEGEND = Path(__file__).with_name("summary_legend.txt")
CELLS_HEAD = (
    "table,column,row,preset,measure,which,status,paper,mean,sd,n,seeds,chosen_on,train_examples,"
    "teacher,teacher_accuracy,key"
)
DIFFERENCES_HEAD = (
    "table,column,row,base,preset,measure,which,paper,declared,difference,low,high,p,welch_difference,welch_low,"
    "welch_high,welch_p,pairs,holm,verdict,teacher"
)


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
        commits = sorted({commit for line in runs for commit in str(line["commit"]).split(", ")})
        versions = sorted({", ".join(f"{name} {line['versions'][name]}" for name in ("jax", "flax")) for line in runs})
        evidence = f"Device: {'; '.join(devices)}. Commit: {', '.join(commits)}. {'; '.join(versions)}."
        lines += [LEGEND.read_text().format(errors=_errors(made)), evidence, ""]
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


def _errors(made: Summary) -> str:
    """The binomial standard errors of the runs' top-1 accuracies, and the number of test images."""
    scores = [line["last"] for entry in made.entries for line in entry.lines]
    errors = [100 * math.sqrt(one["accuracy"] * (1 - one["accuracy"]) / one["examples"]) for one in scores]
    images = ", ".join(sorted({f"{one['examples']:,}" for one in scores}))
    return f"{min(errors):.2f} to {max(errors):.2f} points on {images} images"


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
    several, shown = len(made.table.measures) > 1, [which for which in made.shown if which in WHICH]
    declared, lines = f"Declared differences, a family of {len(made.table.family)}:", []
    for title, within, p in ((declared, True, "p, Holm"), ("Exploratory differences:", False, "p")):
        rows = []
        for one in made.comparisons:
            if one.entry.cell.column == column and (one.name in made.table.family) == within:
                names = [one.entry.label(made.entries), one.base.label(made.entries)]
                names += [MEASURES[one.measure]] if several else []
                paper = NOTHING if one.paper is None else f"{one.paper:+.2f}"
                rows.append([*names, paper, *(text for which in shown for text in _difference(one.ours.get(which)))])
        head = ["row", "less", *(["measure"] if several else []), "paper"]
        head += [text for which in shown for text in (f"{which}, paired", f"{which}, {p}", f"{which}, Welch's")]
        lines += [title, "", *command_line.table(head, rows), ""] if rows else []
    return lines


def _difference(one: Difference | None) -> tuple[str, str, str]:
    """The paired estimate, its p value with what may be said, and Welch's estimate."""
    if one is None:
        return NOTHING, NOTHING, NOTHING
    p = [_p(one.paired.p), _p(one.corrected), None if one.verdict == EXPLORATORY else one.verdict]
    return f"{_estimate(one.paired)} (n={one.pairs})", ", ".join(filter(None, p)), _estimate(one.welch)


def _p(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def _estimate(one: Estimate) -> str:
    interval = "" if one.low is None else f" [{one.low:+.2f}, {one.high:+.2f}]"
    return NOTHING if one.mean is None else f"{one.mean:+.2f}{interval}"


def cells_csv(made: Summary) -> str:
    """A line for each entry, measure, and last or best."""
    rows = []
    parts = dict.fromkeys((*WHICH, *made.shown))
    for entry, measure, which in itertools.product(made.entries, made.table.measures, parts):
        names = [made.table.name, entry.cell.column, entry.cell.row, entry.preset, measure, which, entry.cell.status]
        numbers = [entry.cell.paper.get(measure), *(entry.spread(measure, which) or (None, None, 0))]
        seeds = " ".join(map(str, entry.values(measure, which)))
        protocol = [_shared(entry, "select_on"), _shared(entry, "train_examples")]
        teacher = [_teacher(entry), entry.teacher_accuracy]
        rows.append([*names, *numbers, seeds, *protocol, *teacher, _shared(entry, "config_hash")])
    return _csv(CELLS_HEAD, rows)


def differences_csv(made: Summary) -> str:
    """A line for each difference, and last or best."""
    rows = []
    for compared, which in itertools.product(made.comparisons, WHICH):
        entry, one = compared.entry, compared.ours.get(which, Difference(0, Estimate(), Estimate()))
        names = [made.table.name, *compared.name, entry.preset, compared.measure, which, compared.paper]
        tests = [number for test in (one.paired, one.welch) for number in (*test[:3], _p(test.p))]
        declared = compared.name in made.table.family
        rows.append([*names, declared, *tests, one.pairs, _p(one.corrected), one.verdict, _teacher(entry)])
    return _csv(DIFFERENCES_HEAD, rows)


def _teacher(entry: Entry) -> str | None:
    return None if entry.group is None or entry.group.key.teacher == NO_TEACHER else entry.group.key.teacher


def _csv(head: str, rows: Iterable[Iterable[Any]]) -> str:
    stream = io.StringIO()
    rounded = ([round(value, 4) if isinstance(value, float) else value for value in row] for row in rows)
    csv.writer(stream, lineterminator="\n").writerows(rounded)
    return f"{head}\n{stream.getvalue()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
