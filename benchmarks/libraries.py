"""What the libraries that `sdd_jax.training.compiling` chooses on CPU are worth."""

import statistics

from benchmarks import timing
from benchmarks.pairs import jax_spec
from experiments.command_line import table

ROUNDS = 5
CASES = (
    ("resnet32x4", "resnet8x4", False),
    ("resnet32x4", "resnet8x4", True),
    ("wrn_40_2", "wrn_16_2", False),
    ("wrn_40_2", "wrn_16_2", True),
    ("resnet20", "resnet8", True),
    ("resnet50", "mobilenet_v2", False),
)
CHOSEN, DEFAULT = "chosen", "XLA's default"


def section():
    """Times steps in programs that differ in nothing else; lines of markdown."""
    rows = []
    for teacher, student, cached in CASES:
        specs = {
            name: jax_spec(teacher, student, cached=cached, chosen_libraries=chosen)
            for name, chosen in ((CHOSEN, True), (DEFAULT, False))
        }
        seconds = timing.contest(specs, ROUNDS).seconds
        ratio = timing.ratio(seconds[CHOSEN], seconds[DEFAULT])
        medians = (f"{statistics.median(seconds[name]):.3f}" for name in (CHOSEN, DEFAULT))
        pair = f"{teacher} -> {student}{', cached' if cached else ''}"
        rows.append((pair, *medians, f"{ratio.median:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"))
    return [
        "## Libraries on CPU",
        "",
        "Seconds of a step with convolutions by Eigen, reductions by YNNPACK, and elementwise passes by YNNPACK too "
        "unless there are depthwise convolutions; and as XLA has it by default.",
        "",
        *table(("teacher -> student", CHOSEN, DEFAULT, "ratio", "quartiles"), rows),
    ]
