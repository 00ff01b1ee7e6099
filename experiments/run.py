"""Runs what a table has no result line for yet: python -m experiments.run TABLE [--flag=value ...].

    python -m experiments.run all --dry-run
    python -m experiments.run fashion --seeds=0,1,2
    python -m experiments.run table2 --seeds=0,1,2 --data_path=DIR --teachers=DIR --rows='SD-*,KD'

Each run is a process of the training command, which goes on where it was: stopped, killed or failed, the same command
again does what is left. Lines go to experiments/results/TABLE.jsonl; docs/experiments.md says what is in them.
"""

import argparse
import fcntl
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from experiments import dry_run, plan, results
from experiments.cells import QUOTED, TEACHER, Table
from experiments.command_line import Parser, guarded, hold_no_device, integers, positive
from experiments.plan import Job
from experiments.recipes import PRESETS, RELEASED
from experiments.tables import ALL, TABLES, choose
from sdd_jax.processes import processors

PROGRAM = "experiments.run"
COMMAND = (sys.executable, "-m", "sdd_jax", "train")
TAIL = 12  # lines of a log that are shown of a job that failed
GRACE = 30.0  # seconds that a process has to end when it is told to
PAUSE = 0.2  # seconds between two looks at the processes
say = functools.partial(print, flush=True)


def parse(arguments: Sequence[str], tables: Mapping[str, Table]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("table", metavar="TABLE", help=f"one of: {', '.join((*tables, ALL))}")
    add("--seeds", type=integers, default=(0,), metavar="N,...", help="of every row; default 0")
    add("--preset", choices=PRESETS, help=f"default {RELEASED}; a dry run without it has both")
    add("--rows", action="append", default=[], metavar="PATTERN,...", help="rows, or COLUMN/ROW; * and ? stand for any")
    add("--workdir", type=Path, default=Path("runs/experiments"), help="default runs/experiments")
    add("--teachers", type=Path, help="a folder with DATA/NAME, run folders, trained or imported")
    add("--caches", type=Path, help="a folder with DATA/TEACHER, each filled by sdd cache")
    add("--data_path", type=Path, help="the data's folder, or one that has a folder DATA for each set")
    add("--workers", type=positive, help="processes of each run that decode images on disk")
    add("--jobs", type=positive, help="runs at a time; default 1, of a dry run one for each processor")
    add("--dry-run", action="store_true", help="check and trace every row, run nothing; no data needed")
    return parser.parse_args(arguments)


def patterns(given: Sequence[str]) -> list[str]:
    """What commas part, but for those of scales, as in ``SD-KD {1,2}``."""
    return [pattern for pattern in re.split(r",(?![^{]*})", ",".join(given)) if pattern]


@guarded(PROGRAM)
def main(arguments: Sequence[str], tables: Mapping[str, Table] = TABLES, folder: Path = results.RESULTS) -> int:
    """The command on ``tables``, with result files in ``folder``; its exit code."""
    options = parse(arguments, tables)
    hold_no_device()
    wanted = choose(options.table, tables)
    cells = plan.chosen(wanted, patterns(options.rows))
    if options.dry_run:
        presets = (options.preset,) if options.preset else PRESETS
        return 0 if dry_run.run(wanted, cells, presets, options.jobs or processors(), say) else 1
    for flag, holds in (("teachers", "DATA/NAME"), ("caches", "DATA/TEACHER")):
        given = getattr(options, flag)
        if given is not None and not given.is_dir():
            raise ValueError(f"--{flag}={given} is no folder: expected one that holds {holds}")
    if options.data_path is not None and not options.data_path.exists():
        raise ValueError(f"--data_path={options.data_path} is not there")
    same = {name: getattr(options, name) for name in ("seeds", "workdir", "teachers", "caches", "data_path", "workers")}
    same |= {
        "preset": options.preset or RELEASED,
        "named": any(one.rpartition("/")[2].lower() == TEACHER for one in patterns(options.rows)),
    }
    made = plan.make(cells, lines=results.read(folder), **same)
    for table in wanted:
        quoted = dict.fromkeys(cell.row for cell in table.cells if cell.status == QUOTED)
        if quoted:
            say(f"{table.name}: quoted, not run: {', '.join(quoted)}")
    for remark in made.remarks:
        say(remark)
    say(f"{len(made.jobs)} to run, {len(made.done)} have their line")
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup has the last one ignored
            signal.signal(number, lambda number, frame: received.append(number))
    jobs = list(made.jobs.values())
    done, failures = run_jobs(jobs, options.jobs or 1, folder, say=say, stopped=lambda: bool(received))
    say(f"{done} done, {len(failures)} failed, {len(made.done)} had their line before")
    for name, reason in failures.items():
        say(f"FAILED {name}: {reason}")
    if received:
        say(f"{PROGRAM}: stopped by {signal.Signals(received[0]).name}; the same command goes on with what is left")
        return 128 + received[0]
    return 1 if failures else 0


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen
    lock: int
    started: float
    share: frozenset[int]


def run_jobs(
    jobs: Sequence[Job], at_a_time: int, folder: Path, *, say: Callable[[str], None], stopped: Callable[[], bool]
) -> tuple[int, dict[str, str]]:
    """Runs ``jobs``, each a process of the training command, and adds the line of each to its table's file.

    A job that needs another starts after it. The files are in ``folder``. Once ``stopped`` is true, what runs is ended.

    Returns:
      How many are done, and the reason of each that failed, by name.
    """
    waiting, running, held = list(jobs), [], set()
    shares = _shares(at_a_time)
    done, failures = 0, {}
    try:
        while (waiting or running) and not stopped():
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                shares.append(one.share)
                reason = _conclude(one, folder)
                os.close(one.lock)
                done += reason is None
                if reason is not None:
                    lost = [job for job in waiting if job.needs == one.job.folder]
                    failures |= {one.job.name: reason} | {job.name: "not run: its teacher failed" for job in lost}
                    waiting = [job for job in waiting if job not in lost]
                word = "done" if reason is None else "FAILED"
                seconds = time.monotonic() - one.started
                say(f"[{done + len(failures)}/{len(jobs)}] {word} after {seconds:.0f} s: {one.job.name}")
            unfinished = {job.folder for job in waiting} | {one.job.folder for one in running}
            for job in [job for job in waiting if job.needs not in unfinished]:
                if len(running) == at_a_time:
                    break
                lock = _lock(job)
                if lock is not None:
                    waiting.remove(job)
                    say(f"start {job.name} in {job.folder}")
                    share = shares.pop()
                    running.append(_Running(job, _start(job, lock, share), lock, time.monotonic(), share))
                elif job.folder not in held:
                    held.add(job.folder)
                    say(f"{job.folder} is held by a process of another start: waiting for it to end")
            time.sleep(PAUSE)
    finally:
        _end([one.process for one in running])
    return done, failures


def _lock(job: Job) -> int | None:
    """An open file with the lock on a job's folder, or None if another process has it.

    The job's process inherits the file, and so keeps the lock if this one is killed: the next start waits for it.
    """
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(job.folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _shares(runs: int) -> list[frozenset[int]]:
    """The processors of each of ``runs`` at a time: as many for each, since a run rounds by their number.

    None is in two, where threads of two runs would wait for each other.

    Empty, which is no limit, if there are fewer processors than runs, or the system cannot bind a process to some.
    """
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    each = len(own) // runs
    return [frozenset(own[number * each :][:each]) if each and runs > 1 else frozenset() for number in range(runs)]


def _start(job: Job, lock: int, share: frozenset[int]) -> subprocess.Popen:
    command = [*COMMAND, *job.flags()]
    with open(job.log, "a") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,  # so that it is ended with every process of its own
        )
    if share:
        with suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(process.pid, share)
    return process


def _conclude(one: _Running, folder: Path) -> str | None:
    """Writes the line of a process that ended; returns why there is none, or None."""
    job, code = one.job, one.process.returncode
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = job.log.read_text(errors="replace").splitlines()[-TAIL:]
        return "\n".join([f"{how}; the last lines of {job.log}:", *(f"    {line}" for line in last)])
    try:
        line = results.make(job.folder, job.recipe, job.preset, job.key.teacher)
        key = (results.run_key(line), line["seed"])
        if key not in results.index(results.read(folder)):  # a runner beside this one may have written it
            results.append(folder / f"{job.table}.jsonl", line)
    except (ValueError, OSError, KeyError) as error:
        return f"no result line: {error}"
    return None


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Ends processes and those that they started: asks them to, and kills those that have not after ``GRACE``."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
        deadline = time.monotonic() + GRACE
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
