"""Contestants in turn, each in its own process, and what follows from their seconds.

The speed of a shared machine varies: contestants take turns within a round, in an order that changes from round to
round, and are compared round by round. Another program does not slow all of them alike, so the rounds are kept in which
the rest of the machine did least.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.worker import several

ROOT = Path(__file__).parents[1]
WARM_UP = 2  # steps
TURN_SECONDS = 1.0  # a turn has as many steps as take this long, and at least one
QUIET = 0.05  # the share of the machine that others may take in a round that counts as undisturbed
GRACE_SECONDS = 20  # for a process to finish its step and remove its files


class WorkerDied(RuntimeError):
    """A contestant's process ended before it was told to; the message has what it wrote to stderr."""


class Worker:
    """The process of one contestant; it is started, and its first step taken, when this returns."""

    def __init__(self, spec, environment=None):
        self._spec = json.dumps(spec)
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", self._spec],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.started = self._answer()

    def seconds(self, steps, name=""):
        """Seconds of one step, over `steps` of them, and the processor's seconds of all of them.

        `name` says whose, where the process holds several contestants.
        """
        with contextlib.suppress(BrokenPipeError):  # it has died, and reading says so
            print(f"{steps} {name}", file=self._process.stdin, flush=True)
        answer = self._answer()
        return answer["seconds"], answer["cpu_seconds"]

    def close(self):
        """Ends the process; returns the most bytes of memory that it held."""
        self._process.stdin.close()
        peak = self._answer()["peak_bytes"]
        self.end()
        return peak

    def end(self):
        """Ends the process, whatever it does; nothing if it has ended."""
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                file.close()  # it ends by itself where it waits for a line
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self):
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()  # its stdout is closed: it has ended, or is about to
        self._errors.seek(0)
        errors = self._errors.read().strip()
        self.end()
        raise WorkerDied(f"{self._spec} ended with {code}:\n{errors}")


class Contest(NamedTuple):
    """What was measured of each contestant, by its name."""

    seconds: dict[str, list[float]]  # of one step, by round
    started: dict[str, dict[str, float | None]]  # seconds to the first step, and of compilation
    peak_bytes: dict[str, int]
    others: list[float]  # the share of the machine that other programs took, by round


def contest(specs, rounds):
    """What the contestants of `specs`, {name: specification}, take: the quietest `rounds` of at most twice as many."""
    workers = {}
    try:
        for name, spec in specs.items():  # one after another, so that no start disturbs another
            workers[name] = Worker(spec)
        seconds, others = take_turns({name: worker.seconds for name, worker in workers.items()}, rounds)
        return Contest(
            seconds=seconds,
            started={name: worker.started for name, worker in workers.items()},
            peak_bytes={name: worker.close() for name, worker in workers.items()},
            others=others,
        )
    finally:
        for worker in workers.values():
            worker.end()


def contest_in_few(specs, rounds, turn_seconds, environment=None):
    """The same with a process for each kind, since one process may be all that a device takes.

    Returns:
      Seconds of a step, {name: [of each round]}, and what is known of each contestant, with the `error` of one that
      cannot run, which has no seconds.
    """
    workers, about = {}, {}
    try:
        for kind in dict.fromkeys(spec["kind"] for spec in specs.values()):
            of = {name: spec for name, spec in specs.items() if spec["kind"] == kind}
            workers[kind] = Worker(several(of), environment)
            about |= workers[kind].started["about"]
        running = {name: spec["kind"] for name, spec in specs.items() if "error" not in about[name]}
        players = {name: partial(workers[kind].seconds, name=name) for name, kind in running.items()}
        return take_turns(players, rounds, turn_seconds)[0] if players else {}, about
    finally:
        for worker in workers.values():
            worker.end()


def take_turns(players, rounds, turn_seconds=None):
    """Seconds of a step of each of `players`, {name: seconds(steps)}, and the share of others, in the kept rounds."""
    turn = TURN_SECONDS if turn_seconds is None else turn_seconds
    turns = {name: max(1, round(turn / player(WARM_UP)[0])) for name, player in players.items()}
    seconds, others = {name: [] for name in players}, []
    while sum(share <= QUIET for share in others) < rounds and len(others) < 2 * rounds:
        began, busy, own = time.perf_counter(), busy_seconds(), 0.0
        for name in order_of_round(list(players), len(others)):
            of_one, cpu = players[name](turns[name])
            seconds[name].append(of_one)
            own += cpu
        capacity = (time.perf_counter() - began) * os.cpu_count()
        others.append(max(busy_seconds() - busy - own, 0.0) / capacity)
    kept = quietest(others, rounds)
    return {name: [of[number] for number in kept] for name, of in seconds.items()}, [others[number] for number in kept]


def busy_seconds():
    """The seconds that all processors together have worked, or were kept from it, since the machine started."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def quietest(others, rounds):
    """The numbers of the `rounds` in which others took least, in their order."""
    return sorted(sorted(range(len(others)), key=lambda number: others[number])[:rounds])


def order_of_round(names, number):
    """Another contestant is first in every round, and every other round runs backwards."""
    start = number % len(names)
    turned = names[start:] + names[:start]
    return turned[::-1] if number % 2 else turned


def ratio(seconds, others):
    """How long a step takes beside another's: `(median, low, high)`, with quartiles, of the rounds' own ratios."""
    ratios = [one / other for one, other in zip(seconds, others, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def cells(seconds, others):
    """Cells of a table: the median seconds of one and of the other, their ratio and its quartiles."""
    medians = (f"{statistics.median(values):.3f}" for values in (seconds, others))
    median, low, high = ratio(seconds, others)
    return (*medians, f"{median:.3f}", f"{low:.3f} to {high:.3f}")


def verdict(value, bound):
    """Whether `value` is at most `bound`, in a word; none where there is no bound."""
    return "" if bound is None else "met" if value <= bound else "missed"
