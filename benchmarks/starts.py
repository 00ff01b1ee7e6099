"""From the start of a process to its first step, with and without what an earlier one compiled; seeds together."""

import statistics
import tempfile
from typing import NamedTuple

from benchmarks import timing
from benchmarks.pairs import jax_spec
from benchmarks.timing import Worker
from experiments.command_line import table

TEACHER, STUDENT = "resnet20", "resnet8"
WARM_BOUND = 10  # seconds
SEEDS, SEEDS_ROUNDS = 4, 7


class SeedsCase(NamedTuple):
    """Whose steps are taken together, and how long that may take beside taking them apart."""

    teacher: str
    student: str
    cached: bool
    bound: float | None


SEEDS_CASES = (
    SeedsCase("resnet20", "resnet8", False, 0.9),
    SeedsCase("resnet20", "resnet8", True, 0.9),
    SeedsCase("resnet32x4", "resnet8x4", True, None),
)


def section():
    """Starts the same contestant twice over one compilation cache; lines of markdown."""
    with tempfile.TemporaryDirectory(prefix="benchmark_compiled_") as folder:
        started = {name: first_step({"JAX_COMPILATION_CACHE_DIR": folder}) for name in ("cold", "warm")}
    verdict = "met" if started["warm"]["start"] <= WARM_BOUND else "missed"
    held = {"cold": ("", ""), "warm": (WARM_BOUND, verdict)}
    rows = [
        (name, f"{values['start']:.1f}", f"{values['compile']:.1f}", *held[name]) for name, values in started.items()
    ]
    return [
        "## Start to first step",
        "",
        f"{TEACHER} -> {STUDENT} by SDD-KD; warm is a second process that finds the programs of the first in the "
        "persistent compilation cache.",
        "",
        *table(("", "seconds", "of them compilation", "at most", ""), rows),
    ]


def first_step(environment):
    """Seconds to the first step, and of compilation, of one process."""
    worker = Worker(jax_spec(TEACHER, STUDENT), environment)
    worker.close()
    return worker.started


def seeds_section():
    """Steps of several seeds in one program beside steps of one; lines of markdown."""
    return seeds_lines([(case, timing.contest(seeds_specs(case), SEEDS_ROUNDS)) for case in SEEDS_CASES])


def seeds_specs(case):
    """The contestants of a case of `SEEDS_CASES`."""
    return {
        "together": jax_spec(case.teacher, case.student, cached=case.cached, seeds=SEEDS),
        "apart": jax_spec(case.teacher, case.student, cached=case.cached),
    }


def seeds_lines(contests):
    """Lines of markdown from cases and their contests between "together" and "apart"."""
    rows = []
    for case, contest in contests:
        together, apart = contest.seconds["together"], [SEEDS * seconds for seconds in contest.seconds["apart"]]
        measured = timing.ratio(together, apart)
        rows.append(
            (
                f"{case.teacher} -> {case.student}{', cached' if case.cached else ''}",
                f"{statistics.median(together):.3f}",
                f"{statistics.median(apart):.3f}",
                f"{measured.median:.3f}",
                f"{measured.low:.3f} to {measured.high:.3f}",
                case.bound or "",
                "" if case.bound is None else "met" if measured.median <= case.bound else "missed",
            )
        )
    return [
        "## Seeds together",
        "",
        f"Seconds of a step of {SEEDS} seeds by SDD-KD, in one program and one after the other.",
        "",
        *table(("teacher -> student", "together s", "apart s", "ratio", "quartiles", "at most", ""), rows),
    ]
