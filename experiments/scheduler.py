"""Runs jobs, each a process of the training command, as many at a time as there are shares of the devices.

A kill costs nothing: the training command goes on from its newest checkpoint, and a line is written when a run is
whole. A job's folder has a lock that its process inherits. So a process that outlives a killed runner keeps its folder,
and the next runner waits for it instead of starting a second one there.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from experiments import results
from experiments.plan import Job

COMMAND = (sys.executable, "-m", "sdd_jax", "train")
TAIL = 12  # lines of a log that are shown of a job that failed
GRACE = 30.0  # seconds that a process has to end when it is told to
PAUSE = 0.2  # seconds between two looks at the processes


class Failure(NamedTuple):
    """A job that left no line."""

    job: Job
    reason: str


class Outcome(NamedTuple):
    """What became of the jobs."""

    done: int
    failures: list[Failure]


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen
    lock: int
    share: dict[str, str]
    started: float
    unchanged: str | None  # the commit, if the code is that commit's


def run(
    jobs: Sequence[Job],
    shares: Sequence[dict[str, str]],
    folder: Path,
    *,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
) -> Outcome:
    """Runs ``jobs`` and appends a line for each to its table's file in ``folder``.

    Args:
      jobs: in the order in which they start; a job that needs another starts after it.
      shares: what each process at a time adds to its environment.
      folder: of the result files.
      say: takes a line for the person at the terminal.
      stopped: whether to end what runs, and return.
    """
    waiting, free = list(jobs), list(shares)
    running: list[_Running] = []
    done, failures, held = 0, [], set()
    total = len(waiting)
    try:
        while (waiting or running) and not stopped():
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                free.append(one.share)
                reason = _conclude(one, folder)
                os.close(one.lock)
                done += reason is None
                if reason is not None:
                    failures.append(Failure(one.job, reason))
                    lost = [job for job in waiting if job.needs == one.job.folder]
                    failures += [Failure(job, "not run: its teacher failed") for job in lost]
                    waiting = [job for job in waiting if job not in lost]
                count = f"[{done + len(failures)}/{total}]"
                word = "done" if reason is None else "FAILED"
                say(f"{count} {word} after {time.monotonic() - one.started:.0f} s: {one.job.name}")
            unfinished = {job.folder for job in waiting} | {one.job.folder for one in running}
            for job in [job for job in waiting if job.needs not in unfinished]:
                if not free:
                    break
                lock = _lock(job)
                if lock is None:
                    if job.folder not in held:
                        held.add(job.folder)
                        say(f"{job.folder} is held by a process of another start: waiting for it to end")
                    continue
                waiting.remove(job)
                share = free.pop(0)
                say(f"start {job.name} in {job.folder}{_text(share)}")
                revision = results.unchanged_revision()
                running.append(_Running(job, _start(job, lock, share), lock, share, time.monotonic(), revision))
            time.sleep(PAUSE)
    finally:
        _end([one.process for one in running])
    return Outcome(done, failures)


def log_of(job: Job) -> Path:
    """Where a job's output goes."""
    return job.folder.with_suffix(".log")


def _lock(job: Job) -> int | None:
    """An open file whose lock is this job's, or None if another process has it."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(job.folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _start(job: Job, lock: int, share: dict[str, str]) -> subprocess.Popen:
    command = [*COMMAND, *job.flags()]
    with open(log_of(job), "a") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **share},
            pass_fds=(lock,),
            start_new_session=True,  # so that it is ended with every process of its own
        )


def _conclude(one: _Running, folder: Path) -> str | None:
    """Writes the line of a process that ended; why there is none, if so."""
    job, code = one.job, one.process.returncode
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{how}; the last lines of {log_of(job)}:\n{_tail(log_of(job))}"
    try:
        line = results.make(job.folder, job.recipe, job.preset, job.did.teacher, one.unchanged)
        if (results.did(line), line["seed"]) not in results.index(results.read(folder)):  # another runner's, meanwhile
            results.append(folder / f"{job.table}.jsonl", line)
    except (ValueError, OSError, KeyError) as error:
        return f"no result line: {error}"
    return None


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-TAIL:])


def _text(share: dict[str, str]) -> str:
    return f" ({', '.join(f'{name}={value}' for name, value in share.items())})" if share else ""


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Ends processes and their own ones: told to, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
        deadline = time.monotonic() + GRACE
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(PAUSE)
