"""From the start of a process to its first step, with and without what an earlier one compiled; seeds together."""

import statistics
import tempfile

from benchmarks.markdown import table
from benchmarks.pairs import jax_spec
from benchmarks.timing import Worker, ratio

TEACHER, STUDENT = "resnet20", "resnet8"


def section():
    """Starts the same contestant twice over one compilation cache; lines of markdown."""
    with tempfile.TemporaryDirectory(prefix="benchmark_compiled_") as folder:
        started = {name: first_step({"JAX_COMPILATION_CACHE_DIR": folder}) for name in ("cold", "warm")}
    rows = [(name, f"{values['start']:.1f}", f"{values['compile']:.1f}") for name, values in started.items()]
    return [
        "## Start to first step",
        "",
        f"{TEACHER} -> {STUDENT} by SDD-KD; warm is a second process that finds the programs of the first in the "
        "persistent compilation cache.",
        "",
        *table(("", "seconds", "of them compilation"), rows),
    ]


def first_step(environment):
    """Seconds to the first step, and of compilation, of one process."""
    worker = Worker(jax_spec(TEACHER, STUDENT), environment)
    worker.close()
    return worker.started


def seeds_lines(together, apart, seeds):
    """Lines of markdown from the seconds of each round: a step of all `seeds` in one program, and of each by itself."""
    measured = ratio(together, [seeds * seconds for seconds in apart])
    row = (
        seeds,
        f"{statistics.median(together):.3f}",
        f"{seeds * statistics.median(apart):.3f}",
        f"{measured.median:.3f}",
        f"{measured.low:.3f} to {measured.high:.3f}",
    )
    return [
        "## Seeds together",
        "",
        f"{TEACHER} -> {STUDENT} by SDD-KD: seconds of a step of every seed.",
        "",
        *table(("seeds", "together s", "one after another s", "ratio", "quartiles"), [row]),
    ]
