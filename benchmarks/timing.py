"""Contestants in turn, each in its own process, and what follows from their seconds.

A shared machine is faster at one moment than at another: contestants take turns within a round, in an order that
changes from round to round, and two of them are compared round by round. Another program that works at the same time
does not slow all of them alike (threads that wait for each other at every layer lose most), so the rounds are kept in
which the rest of the machine did least.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

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

    def seconds(self, steps):
        """Seconds of one step, over `steps` of them, and the processor's seconds of all of them."""
        try:
            print(steps, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has died, and reading says so
        answer = self._answer()
        return answer["seconds"], answer["cpu_seconds"]

    def close(self):
        """Ends the process; returns the most bytes of memory that it held."""
        self._process.stdin.close()
        peak = self._answer()["peak_bytes"]
        self._process.wait()
        self._release()
        return peak

    def end(self):
        """Ends the process, whatever it does; nothing if it has ended."""
        self._release()  # it ends by itself where it waits for a line
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
        self._release()
        raise WorkerDied(f"{self._spec} ended with {code}:\n{errors}")

    def _release(self):
        for file in (self._process.stdin, self._process.stdout, self._errors):
            try:
                file.close()
            except BrokenPipeError:
                pass


class Contest(NamedTuple):
    """What was measured of each contestant, by its name."""

    seconds: dict[str, list[float]]  # of one step, by round
    started: dict[str, dict[str, float | None]]  # seconds to the first step, and of compilation
    peak_bytes: dict[str, int]
    others: list[float]  # the share of the machine that other programs took, by round


class Ratio(NamedTuple):
    """The median over rounds, and the quartiles."""

    median: float
    low: float
    high: float


def contest(specs, rounds):
    """What the contestants of `specs`, {name: specification}, take: the quietest `rounds` of at most twice as many."""
    workers = {}
    try:
        for name, spec in specs.items():  # one after another, so that no start disturbs another
            workers[name] = Worker(spec)
        turns = {name: steps_of_turn(worker.seconds(WARM_UP)[0]) for name, worker in workers.items()}
        seconds, others = {name: [] for name in specs}, []
        while sum(share <= QUIET for share in others) < rounds and len(others) < 2 * rounds:
            began, busy, own = time.perf_counter(), busy_seconds(), 0.0
            for name in order_of_round(list(specs), len(others)):
                of_one, cpu = workers[name].seconds(turns[name])
                seconds[name].append(of_one)
                own += cpu
            capacity = (time.perf_counter() - began) * os.cpu_count()
            others.append(max(busy_seconds() - busy - own, 0.0) / capacity)
        kept = quietest(others, rounds)
        return Contest(
            seconds={name: [values[number] for number in kept] for name, values in seconds.items()},
            started={name: worker.started for name, worker in workers.items()},
            peak_bytes={name: worker.close() for name, worker in workers.items()},
            others=[others[number] for number in kept],
        )
    finally:
        for worker in workers.values():
            worker.end()


def busy_seconds():
    """The seconds that all processors together have worked, or were kept from it, since the machine started."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def quietest(others, rounds):
    """The numbers of the `rounds` in which others took least, in their order."""
    return sorted(sorted(range(len(others)), key=lambda number: others[number])[:rounds])


def steps_of_turn(seconds):
    """How many steps a turn has, where one takes so many seconds."""
    return max(1, round(TURN_SECONDS / seconds))


def order_of_round(names, number):
    """Another contestant is first in every round, and every other round runs backwards."""
    start = number % len(names)
    turned = names[start:] + names[:start]
    return turned[::-1] if number % 2 else turned


def ratio(seconds, others):
    """How long a step takes beside another's: the median of the rounds' own ratios, with quartiles."""
    ratios = [one / other for one, other in zip(seconds, others, strict=True)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(middle, low, high)


def fastest(seconds, names):
    """Which of `names` has the lowest median."""
    return min(names, key=lambda name: statistics.median(seconds[name]))
