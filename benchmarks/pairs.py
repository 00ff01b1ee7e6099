"""A training step of this project beside plain PyTorch's, for pairs of teacher and student."""

import statistics

from benchmarks import timing
from benchmarks.worker import BATCH, CLASSES, SCALES, jax_spec, torch_spec
from experiments.command_line import table

ROUNDS = 7
ONLINE_BOUND, KD_BOUND = 1.0, 1.03
PYTORCH = ("PyTorch, contiguous", "PyTorch, channels last")
ONLINE, CACHED, KD = "SDD-KD", "SDD-KD, cached teacher", "KD"
NAMES = (*PYTORCH, ONLINE, CACHED, KD)
PAIRS = (  # teacher, student, and how long a step with a cached teacher may take beside PyTorch's
    ("resnet32x4", "resnet8x4", 0.5),
    ("resnet32x4", "shufflenet_v1", 0.25),
    ("resnet50", "mobilenet_v2", 0.15),
    ("vgg13", "vgg8", 0.6),
)


def section():
    """Measures every pair; lines of markdown."""
    return lines([(f"{pair[0]} -> {pair[1]}", pair[2], measure(*pair[:2])) for pair in PAIRS])


def measure(teacher, student):
    """The contest of a pair."""
    contestants = {
        PYTORCH[0]: torch_spec(teacher, student, "contiguous"),
        PYTORCH[1]: torch_spec(teacher, student, "channels_last"),
        ONLINE: jax_spec(teacher, student),
        CACHED: jax_spec(teacher, student, cached=True),
        KD: jax_spec(teacher, student, method="kd"),
    }
    return timing.contest(contestants, ROUNDS)


def lines(measured):
    """The tables of pairs, each `(title, bound with a cached teacher, contest)`."""
    steps, ratios, processes = [], [], []
    for title, cached_bound, contest in measured:
        seconds = contest.seconds
        medians = {name: statistics.median(seconds[name]) for name in NAMES}
        best = min(PYTORCH, key=medians.get)
        cells = {name: f"{medians[name]:.3f}" for name in NAMES}
        cells[best] = f"**{cells[best]}**"
        steps.append([title, *cells.values()])
        for what, one, other, bound in (
            ("SDD-KD / PyTorch", ONLINE, best, ONLINE_BOUND),
            ("cached / PyTorch", CACHED, best, cached_bound),
            ("SDD-KD / KD", ONLINE, KD, KD_BOUND),
        ):
            median, low, high = timing.ratio(seconds[one], seconds[other])
            quartiles, verdict = f"{low:.3f} to {high:.3f}", timing.verdict(median, bound)
            ratios.append([title, what, f"{median:.3f}", quartiles, bound, verdict])
        for name in NAMES:
            started, peak = contest.started[name], contest.peak_bytes[name]
            compiled = "" if started["compile"] is None else f"{started['compile']:.1f}"
            processes.append([title, name, f"{started['start']:.1f}", compiled, f"{peak / 2**20:.0f}"])
    rounds = len(measured[0][2].others)
    most = ", ".join(f"{max(contest.others):.0%}" for _, _, contest in measured)
    return [
        "## A training step",
        "",
        f"Seconds of a step at batch {BATCH}, {CLASSES} classes, regions at scales {', '.join(map(str, SCALES))}; the "
        f"median of {rounds} rounds. PyTorch's step finds its batch in memory; ours orders, crops, flips and "
        "normalises it in the step, and reads a cached teacher's rows from files that the machine still holds in "
        "memory. On CPU all keep freed memory, which PyTorch does not do by itself. The faster of PyTorch's in bold. "
        f"Other programs took at most {most} of the machine in a round.",
        "",
        *table(("teacher -> student", *NAMES), steps),
        "",
        "Ratios are medians of the rounds' own, with quartiles.",
        "",
        *table(("teacher -> student", "ratio", "measured", "quartiles", "at most", ""), ratios),
        "",
        "From the start of the process to its first step, the part of it that compilation took, and the most memory "
        "held; with a cached teacher each includes filling the cache.",
        "",
        *table(("teacher -> student", "contestant", "start s", "compile s", "memory MiB"), processes),
    ]
