"""Our results beside the paper's: python -m experiments.summarize TABLE [--output=DIR].

Prints TABLE.md, and writes it with TABLE.csv, TABLE_differences.csv and TABLE.png to experiments/results, or to DIR.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import plot, report, results, summary
from experiments.cells import Table
from experiments.command_line import Parser, guarded, hold_no_device
from experiments.tables import ALL, TABLES, choose

PROGRAM = "experiments.summarize"


def parse(arguments: Sequence[str], tables: Mapping[str, Table]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", metavar="TABLE", help=f"one of: {', '.join((*tables, ALL))}")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the files go; made if it is not there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], tables: Mapping[str, Table] = TABLES, folder: Path = results.RESULTS) -> int:
    """The command on ``tables``, with result files in ``folder``; its exit code."""
    options = parse(arguments, tables)
    return guarded(PROGRAM, lambda: _command(options, tables, folder))


def _command(options: argparse.Namespace, tables: Mapping[str, Table], folder: Path) -> int:
    hold_no_device()
    wanted, lines, output = choose(options.table, tables), results.read(folder), options.output or folder
    output.mkdir(parents=True, exist_ok=True)
    for table in wanted:
        file = folder / f"{table.name}.jsonl"
        made = summary.summarize(table, lines, results.read_file(file) if file.exists() else [])
        texts = {
            f"{table.name}.md": report.markdown(made),
            f"{table.name}.csv": report.cells_csv(made),
            f"{table.name}_differences.csv": report.differences_csv(made),
        }
        for name, text in texts.items():
            (output / name).write_text(text)
        print(texts[f"{table.name}.md"], flush=True)
        plot.draw(made, output / f"{table.name}.png")
        print(f"written to {output}: {', '.join([*texts, f'{table.name}.png'])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
