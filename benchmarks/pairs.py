"""A training step of this project beside plain PyTorch's, for pairs of teacher and student."""

import statistics
from typing import NamedTuple

from benchmarks import timing
from experiments.command_line import table

BATCH, CLASSES, SCALES = 64, 100, (1, 2, 4)
ROUNDS = 7
EXAMPLES, EPOCHS, VIEWS = 50_000, 240, 162
RUN_STEPS = EPOCHS * EXAMPLES / BATCH
METHODS, SEEDS = 6, 3  # of a table: KD, DKD, NKD and their SDD forms
ONLINE_BOUND, KD_BOUND = 1.0, 1.03
PYTORCH = ("PyTorch, contiguous", "PyTorch, channels last")
ONLINE, CACHED, KD = "SDD-KD", "SDD-KD, cached teacher", "KD"
HOW = ("live", "cached")


class Pair(NamedTuple):
    """Who teaches whom, and how long a step with a cached teacher may take beside PyTorch's."""

    teacher: str
    student: str
    cached_bound: float


PAIRS = (
    Pair("resnet32x4", "resnet8x4", 0.5),
    Pair("resnet32x4", "shufflenet_v1", 0.25),
    Pair("resnet50", "mobilenet_v2", 0.15),
    Pair("vgg13", "vgg8", 0.6),
)


class Comparison(NamedTuple):
    """A ratio of seconds and what it may be at most."""

    what: str
    ratio: timing.Ratio
    bound: float

    @property
    def verdict(self):
        return "met" if self.ratio.median <= self.bound else "missed"


class Row(NamedTuple):
    """What was measured of a pair."""

    pair: Pair
    contest: timing.Contest
    medians: dict[str, float]  # seconds of one step
    best: str  # the faster of PyTorch's
    comparisons: list[Comparison]


def jax_spec(
    teacher,
    student,
    *,
    method="sdd_kd",
    cached=False,
    seeds=1,
    chosen_libraries=True,
    keeps_memory=True,
    batch=BATCH,
    classes=CLASSES,
    scales=SCALES,
):
    """The specification of a contestant of this project."""
    return {
        "kind": "jax",
        "teacher": teacher,
        "student": student,
        "method": method,
        "cached": cached,
        "seeds": seeds,
        "chosen_libraries": chosen_libraries,
        "keeps_memory": keeps_memory,
        "batch": batch,
        "classes": classes,
        "scales": list(scales),
    }


def torch_spec(teacher, student, layout, *, keeps_memory=True, batch=BATCH, classes=CLASSES, scales=SCALES):
    """The specification of a contestant in plain PyTorch; `layout` is contiguous or channels_last."""
    return {
        "kind": "torch",
        "teacher": teacher,
        "student": student,
        "format": layout,
        "keeps_memory": keeps_memory,
        "batch": batch,
        "classes": classes,
        "scales": list(scales),
    }


def contestants(pair, batch=BATCH):
    """The specifications of a pair's contestants, by name."""
    names = (pair.teacher, pair.student)
    return {
        PYTORCH[0]: torch_spec(*names, "contiguous", batch=batch),
        PYTORCH[1]: torch_spec(*names, "channels_last", batch=batch),
        ONLINE: jax_spec(*names, batch=batch),
        CACHED: jax_spec(*names, cached=True, batch=batch),
        KD: jax_spec(*names, method="kd", batch=batch),
    }


def measure(pair, rounds=ROUNDS, batch=BATCH):
    """The row of a pair."""
    return make_row(pair, timing.contest(contestants(pair, batch), rounds))


def make_row(pair, contest):
    """What follows from a pair's contest."""
    seconds = contest.seconds
    best = timing.fastest(seconds, PYTORCH)
    comparisons = [
        Comparison("SDD-KD / PyTorch", timing.ratio(seconds[ONLINE], seconds[best]), ONLINE_BOUND),
        Comparison("cached / PyTorch", timing.ratio(seconds[CACHED], seconds[best]), pair.cached_bound),
        Comparison("SDD-KD / KD", timing.ratio(seconds[ONLINE], seconds[KD]), KD_BOUND),
    ]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return Row(pair, contest, medians, best, comparisons)


def section():
    """Measures every pair; lines of markdown."""
    return lines([measure(pair) for pair in PAIRS])


def lines(rows):
    """The tables of `rows`."""
    names, rounds = (*PYTORCH, ONLINE, CACHED, KD), len(rows[0].contest.others)
    most = ", ".join(f"{max(row.contest.others):.0%}" for row in rows)
    return [
        "## A training step",
        "",
        f"Seconds of a step at batch {BATCH}, {CLASSES} classes, regions at scales {', '.join(map(str, SCALES))}; the "
        f"median of {rounds} rounds. PyTorch's step finds its batch in memory; ours orders, crops, flips and "
        "normalises it in the step, and reads a cached teacher's rows from files that the machine still holds in "
        "memory. On CPU all keep freed memory, which PyTorch does not do by itself. The faster of PyTorch's in bold. "
        f"Other programs took at most {most} of the machine in a round.",
        "",
        *table(("teacher -> student", *names), [seconds_cells(row, names) for row in rows]),
        "",
        "Ratios are medians of the rounds' own, with quartiles.",
        "",
        *table(
            ("teacher -> student", "ratio", "measured", "quartiles", "at most", ""),
            [cells for row in rows for cells in ratio_cells(row)],
        ),
        "",
        "From the start of the process to its first step, the part of it that compilation took, and the most memory "
        "held; with a cached teacher each includes filling the cache.",
        "",
        *table(
            ("teacher -> student", "contestant", "start s", "compile s", "memory MiB"),
            [cells for row in rows for cells in process_cells(row, names)],
        ),
        "",
        f"Projected hours, without evaluations, of a run ({EPOCHS} epochs of {EXAMPLES:,} images) and of a pair's part "
        f"in a table ({METHODS} methods, {SEEDS} seeds). The cached ones of a table include filling the cache once, at "
        "the seconds by which a step with the teacher is longer.",
        "",
        *table(
            ("teacher -> student", *(f"{what}, {how}" for what in ("run", "table") for how in ("PyTorch", *HOW))),
            [hours_cells(row) for row in rows],
        ),
    ]


def title(row):
    """The pair's name."""
    return f"{row.pair.teacher} -> {row.pair.student}"


def seconds_cells(row, names):
    """A row of seconds."""
    numbers = [f"{row.medians[name]:.3f}" for name in names]
    return [title(row), *(f"**{n}**" if name == row.best else n for name, n in zip(names, numbers, strict=True))]


def ratio_cells(row):
    """A row for each comparison."""
    return [
        [title(row), c.what, f"{c.ratio.median:.3f}", f"{c.ratio.low:.3f} to {c.ratio.high:.3f}", c.bound, c.verdict]
        for c in row.comparisons
    ]


def process_cells(row, names):
    """A row for each process."""
    for name in names:
        started, peak = row.contest.started[name], row.contest.peak_bytes[name]
        compiled = "" if started["compile"] is None else f"{started['compile']:.1f}"
        yield [title(row), name, f"{started['start']:.1f}", compiled, f"{peak / 2**20:.0f}"]


def hours_cells(row):
    """A row of hours: of a run, then of a table."""
    runs = METHODS * SEEDS
    run = [row.medians[name] * RUN_STEPS / 3600 for name in (row.best, ONLINE, CACHED)]
    seen = VIEWS * (1 - (1 - 1 / VIEWS) ** (EPOCHS * SEEDS))  # of an image, on average
    filling = seen * EXAMPLES / BATCH * max(row.medians[ONLINE] - row.medians[CACHED], 0) / 3600
    table_hours = [runs * run[0], runs * run[1], runs * run[2] + filling]
    return [title(row), *(f"{hours:.1f}" for hours in run), *(f"{hours:.0f}" for hours in table_hours)]
