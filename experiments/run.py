"""Runs what a table has no result line for yet: python -m experiments.run TABLE [--flag=value ...].

    python -m experiments.run all --dry-run
    python -m experiments.run fashion --seeds=0,1,2
    python -m experiments.run table2 --seeds=0,1,2 --data_path=DIR --teachers=DIR --rows='SD-*,KD'

Each run is a process of the training command, which goes on where it was: stopped, killed or failed, the same command
again does what is left. Lines go to experiments/results/TABLE.jsonl; docs/experiments.md says what is in them.
"""

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import devices, dry_run, plan, results, scheduler
from experiments.cells import RUN, Table
from experiments.command_line import Parser, guarded, hold_no_device, integers, positive, processors
from experiments.recipes import PRESETS, RELEASED
from experiments.tables import ALL, TABLES, choose

PROGRAM = "experiments.run"


def parse(arguments: Sequence[str], tables: Mapping[str, Table]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", metavar="TABLE", help=f"one of: {', '.join((*tables, ALL))}")
    parser.add_argument("--seeds", type=integers, default=(0,), metavar="N,...", help="of every row; default 0")
    parser.add_argument("--preset", choices=PRESETS, help=f"default {RELEASED}; a dry run without it has both")
    parser.add_argument("--rows", default="", metavar="PATTERN,...", help="rows, or COLUMN/ROW; * and ? stand for any")
    parser.add_argument("--workdir", type=Path, default=Path("runs/experiments"), help="default runs/experiments")
    parser.add_argument("--teachers", type=Path, help="a folder with DATA/NAME, run folders, trained or imported")
    parser.add_argument(
        "--caches", type=Path, help="a folder with DATA/TEACHER, each filled by python -m sdd_jax cache"
    )
    parser.add_argument("--data_path", type=Path, help="the data's folder, or one that has a folder DATA for each set")
    parser.add_argument("--workers", type=positive, help="processes of each run that decode images on disk")
    parser.add_argument("--jobs", type=positive, help="runs at a time; default one for each device, one on CPU")
    parser.add_argument("--dry-run", action="store_true", help="trace every row, run nothing; no data needed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], tables: Mapping[str, Table] = TABLES, folder: Path = results.RESULTS) -> int:
    """The command on ``tables``, with result files in ``folder``; its exit code."""
    options = parse(arguments, tables)
    return guarded(PROGRAM, lambda: _command(options, tables, folder))


def _command(options: argparse.Namespace, tables: Mapping[str, Table], folder: Path) -> int:
    hold_no_device()
    wanted = choose(options.table, tables)
    patterns = [pattern for pattern in options.rows.split(",") if pattern]
    if options.dry_run:
        presets = (options.preset,) if options.preset else PRESETS
        cells = {id(cell) for _, cell in plan.chosen(wanted, patterns)}
        if patterns:
            keep = [tuple(cell for cell in table.cells if id(cell) in cells) for table in wanted]
            wanted = [table._replace(cells=kept) for table, kept in zip(wanted, keep, strict=True) if kept]
        return 0 if dry_run.run(wanted, presets, options.jobs or processors(), _say) else 1
    if options.teachers is not None and not options.teachers.is_dir():
        raise ValueError(f"--teachers={options.teachers} is no folder: expected one that holds DATA/NAME")
    if options.caches is not None and not options.caches.is_dir():
        raise ValueError(f"--caches={options.caches} is no folder: expected one that holds DATA/TEACHER")
    if options.data_path is not None and not options.data_path.exists():
        raise ValueError(f"--data_path={options.data_path} is not there")
    made = plan.make(
        plan.chosen(wanted, patterns),
        preset=options.preset or RELEASED,
        seeds=options.seeds,
        lines=results.read(folder),
        workdir=options.workdir,
        teachers=options.teachers,
        data_path=options.data_path,
        workers=options.workers,
        caches=options.caches,
    )
    _announce(wanted, made)
    if not made.jobs:
        return 0
    found = devices.look()
    shares = devices.shares(found, options.jobs)
    _say(f"{found.count} x {found.kind}, {len(shares)} at a time")
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup has the last one ignored
            signal.signal(number, lambda number, frame: received.append(number))
    outcome = scheduler.run(made.jobs, shares, folder, say=_say, stopped=lambda: bool(received))
    _say(f"{outcome.done} done, {len(outcome.failures)} failed, {made.done} had their line before")
    for failure in outcome.failures:
        _say(f"FAILED {failure.job.name}: {failure.reason}")
    if received:
        _say(f"{PROGRAM}: stopped by {signal.Signals(received[0]).name}; the same command goes on with what is left")
        return 128 + received[0]
    return 1 if outcome.failures else 0


def _announce(tables: Sequence[Table], made: plan.Plan) -> None:
    """What is about to run, and what is not."""
    for table in tables:
        for cell in table.cells:
            if cell.status != RUN and cell.missing:
                _say(f"{table.name} {cell.column}: {cell.row}: {cell.status}: {cell.missing}")
        quoted = dict.fromkeys(cell.row for cell in table.cells if cell.status != RUN and not cell.missing)
        if quoted:
            _say(f"{table.name}: quoted, not run: {', '.join(quoted)}")
    for remark in made.remarks:
        _say(remark)
    _say(f"{len(made.jobs)} to run, {made.done} have their line")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
