"""What keeping freed memory (`sdd_jax.training.host_memory`) is worth on CPU, to a step here and to one in PyTorch."""

import statistics

from benchmarks import timing
from benchmarks.pairs import jax_spec, torch_spec
from experiments.command_line import table
from sdd_jax.training.host_memory import keep_freed_memory

ROUNDS = 5
PAIRS = (("resnet20", "resnet8"), ("resnet32x4", "resnet8x4"), ("resnet50", "mobilenet_v2"))
KEPT, GIVEN_BACK = "kept", "given back"


def contestants(teacher, student, keeps_memory):
    """The specifications of a pair's contestants, by name."""
    options = {"keeps_memory": keeps_memory}
    return {
        "SDD-KD": jax_spec(teacher, student, **options),
        "SDD-KD, cached teacher": jax_spec(teacher, student, cached=True, **options),
        "PyTorch, channels last": torch_spec(teacher, student, "channels_last", **options),
    }


def section():
    """Times steps in processes that differ in nothing else; lines of markdown."""
    title = ["## Freed memory on CPU", ""]
    if not keep_freed_memory():  # the contestants cannot either
        return [*title, "Not measured: JAX has another device than the CPU, or the C library is not glibc."]
    rows = []
    for pair in PAIRS:
        kept, given_back = (contestants(*pair, keeps_memory) for keeps_memory in (True, False))
        for name in kept:
            contest = timing.contest({KEPT: kept[name], GIVEN_BACK: given_back[name]}, ROUNDS)
            ratio = timing.ratio(contest.seconds[KEPT], contest.seconds[GIVEN_BACK])
            medians = (f"{statistics.median(contest.seconds[which]):.3f}" for which in (KEPT, GIVEN_BACK))
            peaks = (f"{contest.peak_bytes[which] / 2**20:.0f}" for which in (KEPT, GIVEN_BACK))
            quartiles = f"{ratio.low:.3f} to {ratio.high:.3f}"
            rows.append((" -> ".join(pair), name, *medians, f"{ratio.median:.3f}", quartiles, *peaks))
    return [
        *title,
        "Seconds of a step where freed memory stays with the process, and where glibc gives it back to the kernel, as "
        "it does by itself; and the most memory that either process held, in MiB. This project's program keeps it.",
        "",
        *table(("teacher -> student", "step", KEPT, GIVEN_BACK, "ratio", "quartiles", KEPT, GIVEN_BACK), rows),
    ]
