"""What one thing costs or is worth: regions, base losses, kept programs, seeds together, libraries, freed memory."""

import statistics
import tempfile
import time
import timeit
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.jax_step import temporary_bytes
from benchmarks.worker import BATCH, CLASSES, SCALES, jax_spec, torch_spec
from experiments.command_line import table
from sdd_jax import kd_loss, methods, sdd_loss
from sdd_jax.regions import Regions
from sdd_jax.training.compiling import keep_freed_memory

BATCHES = (16, 32, 64, 128, 256, 512)
CLASS_COUNTS = (10, 100, 1000, 21_841)
SCALE_SETS = ((1,), (1, 2), (1, 2, 4), (1, 2, 4, 8))
CALLS = 100
MEMORY_PAIR = ("resnet32x4", "resnet8x4")
MEMORY_BOUNDS = {100: 1.05, 1000: 1.05, 21_841: None}

ROUNDS, SEEDS_ROUNDS = 5, 7
SEEDS = 4
WARM_BOUND = 10  # seconds
TOGETHER, APART = "together s", "apart s"
CHOSEN, DEFAULT = "chosen", "XLA's default"
KEPT, GIVEN_BACK = "kept", "given back"
STARTED = ("resnet20", "resnet8")
SEEDS_CASES = (  # teacher, student, whether the teacher is cached, and the most that the ratio may be
    ("resnet20", "resnet8", False, 0.9),
    ("resnet20", "resnet8", True, 0.9),
    ("resnet32x4", "resnet8x4", True, None),
)
LIBRARY_CASES = (  # teacher, student, whether the teacher is cached
    *(("resnet32x4", "resnet8x4", cached) for cached in (False, True)),
    *(("wrn_40_2", "wrn_16_2", cached) for cached in (False, True)),
    ("resnet20", "resnet8", True),
    ("resnet50", "mobilenet_v2", False),
)
ALLOCATOR_PAIRS = (("resnet20", "resnet8"), ("resnet32x4", "resnet8x4"), ("resnet50", "mobilenet_v2"))


@jax.jit
@jax.value_and_grad
def loss_and_gradient(student, teacher, labels):
    """SDD-KD over region logits [B,R,K]: its mean, and the gradient by the student's."""
    return jnp.mean(sdd_loss(student, teacher, labels, base=partial(kd_loss, temperature=4.0)))


def loss_seconds(batch, classes, scales):
    """The median of one call's seconds, warm."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (batch, Regions(scales).count, classes)
    student, teacher = (jax.random.normal(key, shape) for key in keys[:2])
    labels = jax.random.randint(keys[2], (batch,), 0, classes)

    def call():
        jax.block_until_ready(loss_and_gradient(student, teacher, labels))

    call()
    return statistics.median(timeit.repeat(call, number=1, repeat=CALLS))


def loss_section():
    """Times the loss along three axes; lines of markdown."""
    cases = [
        *(("batch", batch, CLASSES, SCALES) for batch in BATCHES),
        *(("classes", BATCH, classes, SCALES) for classes in CLASS_COUNTS),
        *(("regions", BATCH, CLASSES, scales) for scales in SCALE_SETS),
    ]
    rows = []
    for axis, batch, classes, scales in cases:
        milliseconds = 1000 * loss_seconds(batch, classes, scales)
        rows.append((axis, batch, f"{classes:,}", Regions(scales).count, f"{milliseconds:.3f}"))
    return [
        "## The loss alone",
        "",
        "Milliseconds of value and gradient of SDD-KD on region logits, jitted; one axis varies at a time.",
        "",
        *table(("axis", "batch", "classes", "regions", "ms"), rows),
    ]


def base_loss(name, classes):
    """The base loss of a method with its default numbers, for logits of so many classes."""
    base, options = methods.BASES[name], {}
    if base.cost is not None:
        options["cost"] = np.asarray(base.cost(jax.random.normal(jax.random.key(1), (classes, 64))))
    return partial(base.function, **base.options, **options)


def method_milliseconds(name, classes, scales):
    """The processor's time of one call, over all threads: value and gradient, warm, of the global logits or regions."""
    base = base_loss(name, classes)
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (BATCH, *([Regions(scales).count] if scales else []), classes)
    student, teacher = (3.0 * jax.random.normal(key, shape) for key in keys[:2])
    labels = jax.random.randint(keys[2], (BATCH,), 0, classes)
    loss = partial(sdd_loss, base=base) if scales else base
    run = jax.jit(jax.value_and_grad(lambda *arrays: jnp.mean(loss(*arrays))))
    jax.block_until_ready(run(student, teacher, labels))
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(CALLS // 20):
            jax.block_until_ready(run(student, teacher, labels))
        rounds.append(1000 * (time.process_time() - began) / (CALLS // 20))
    return statistics.median(rounds)


def methods_section():
    """Times every base loss alone; lines of markdown."""
    shapes = [(classes, scales) for classes in (100, 1000) for scales in (None, SCALES)]
    rows = []
    for name in methods.BASES:
        rows.append((name, *(f"{method_milliseconds(name, *shape):.2f}" for shape in shapes)))
    regions = Regions(SCALES).count
    heads = [f"{classes:,} classes, {f'{regions} regions' if scales else 'global'}" for classes, scales in shapes]
    return [
        "## Base losses alone",
        "",
        f"Processor milliseconds, of all threads, of value and gradient at batch {BATCH} with the default numbers, "
        f"jitted: of the global logits, and region by region. The median of {ROUNDS} rounds of {CALLS // 20} calls.",
        "",
        *table(("base loss", *heads), rows),
    ]


def memory_section():
    """Compiles the step by SDD-KD and by KD; lines of markdown."""
    rows = []
    for classes, bound in MEMORY_BOUNDS.items():
        spec = jax_spec(*MEMORY_PAIR, classes=classes)
        sdd, kd = temporary_bytes(spec), temporary_bytes(spec | {"method": "kd"})
        regions = 2 * BATCH * Regions(SCALES).count * classes * 4  # of student and teacher, in float32
        rows.append(memory_cells(classes, sdd, kd, regions, bound))
    return [
        "## Temporary memory of the step",
        "",
        f"{pair_name(*MEMORY_PAIR)} at batch {BATCH}, as the compiler plans it. The last column is what the region "
        "logits of student and teacher take, once each, of SDD-KD's memory.",
        "",
        *table(("classes", "SDD-KD MiB", "KD MiB", "SDD-KD / KD", "at most", "", "region logits"), rows),
    ]


def memory_cells(classes, sdd, kd, regions, bound):
    """A row of `memory_section`, from bytes."""
    sizes, ratio = (f"{sdd / 2**20:.1f}", f"{kd / 2**20:.1f}"), sdd / kd
    share = f"{regions / 2**20:.1f} MiB, {regions / sdd:.0%}"
    return (f"{classes:,}", *sizes, f"{ratio:.3f}", bound or "", timing.verdict(ratio, bound), share)


def start_section():
    """Starts the same contestant twice over one compilation cache; lines of markdown."""
    rows = []
    for (name, (start, compiled)), bound in zip(starts(jax_spec(*STARTED)).items(), (None, WARM_BOUND), strict=True):
        rows.append((name, f"{start:.1f}", f"{compiled:.1f}", bound or "", timing.verdict(start, bound)))
    return [
        "## Start to first step",
        "",
        f"{' -> '.join(STARTED)} by SDD-KD; warm is a second process that finds the programs of the first in the "
        "persistent compilation cache.",
        "",
        *table(("", "seconds", "of them compilation", "at most", ""), rows),
    ]


def starts(spec):
    """Seconds to the first step and of compilation, "cold" and "warm": with the programs that the first kept."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="benchmark_compiled_") as folder:
        for name in ("cold", "warm"):
            worker = timing.Worker(spec, {"JAX_COMPILATION_CACHE_DIR": folder})
            worker.close()
            found[name] = (worker.started["start"], worker.started["compile"])
    return found


def seeds_section():
    """Steps of several seeds in one program beside steps of one; lines of markdown."""
    contests = []
    for teacher, student, cached, _ in SEEDS_CASES:
        spec = jax_spec(teacher, student, cached=cached)
        contests.append(timing.contest({TOGETHER: spec | {"seeds": SEEDS}, APART: spec}, SEEDS_ROUNDS))
    return seeds_lines(contests)


def seeds_lines(contests):
    """Lines of markdown from a contest for each case."""
    rows = []
    for (teacher, student, cached, bound), contest in zip(SEEDS_CASES, contests, strict=True):
        together, apart = contest.seconds[TOGETHER], [SEEDS * seconds for seconds in contest.seconds[APART]]
        verdict = timing.verdict(timing.ratio(together, apart)[0], bound)
        rows.append((pair_name(teacher, student, cached), *timing.cells(together, apart), bound or "", verdict))
    return [
        "## Seeds together",
        "",
        f"Seconds of a step of {SEEDS} seeds by SDD-KD, in one program and one after the other.",
        "",
        *table(("teacher -> student", TOGETHER, APART, "ratio", "quartiles", "at most", ""), rows),
    ]


def libraries_section():
    """Times steps with the libraries that `sdd_jax.training.compiling` chooses, and without; lines of markdown."""
    rows = []
    for teacher, student, cached in LIBRARY_CASES:
        spec = jax_spec(teacher, student, cached=cached)
        seconds = timing.contest({CHOSEN: spec, DEFAULT: spec | {"chosen_libraries": False}}, ROUNDS).seconds
        rows.append((pair_name(teacher, student, cached), *timing.cells(seconds[CHOSEN], seconds[DEFAULT])))
    return [
        "## Libraries on CPU",
        "",
        "Seconds of a step without YNNPACK, and as XLA has it by default.",
        "",
        *table(("teacher -> student", CHOSEN, DEFAULT, "ratio", "quartiles"), rows),
    ]


def allocator_section():
    """Times steps with and without `keep_freed_memory`, here and in PyTorch; lines of markdown."""
    title = ["## Freed memory on CPU", ""]
    if not keep_freed_memory():  # the contestants cannot either
        return [*title, "Not measured: JAX has another device than the CPU, or the C library is not glibc."]
    rows = []
    for pair in ALLOCATOR_PAIRS:
        contestants = {
            "SDD-KD": jax_spec(*pair),
            "SDD-KD, cached teacher": jax_spec(*pair, cached=True),
            "PyTorch, channels last": torch_spec(*pair, "channels_last"),
        }
        for name, spec in contestants.items():
            contest = timing.contest({KEPT: spec, GIVEN_BACK: spec | {"keeps_memory": False}}, ROUNDS)
            cells = timing.cells(contest.seconds[KEPT], contest.seconds[GIVEN_BACK])
            peaks = (f"{contest.peak_bytes[which] / 2**20:.0f}" for which in (KEPT, GIVEN_BACK))
            rows.append((pair_name(*pair), name, *cells, *peaks))
    return [
        *title,
        "Seconds of a step where freed memory stays with the process, and where glibc gives it back to the kernel, as "
        "it does by itself; and the most memory that either process held, in MiB. This project's program keeps it.",
        "",
        *table(("teacher -> student", "step", KEPT, GIVEN_BACK, "ratio", "quartiles", KEPT, GIVEN_BACK), rows),
    ]


def pair_name(teacher, student, cached=False):
    """The pair in words."""
    return f"{teacher} -> {student}{', cached' if cached else ''}"
