"""What the regions cost: the loss alone in time, and the whole step in temporary memory."""

import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.jax_step import temporary_bytes
from benchmarks.pairs import BATCH, CLASSES, SCALES, jax_spec
from experiments.command_line import table
from sdd_jax import kd_loss, sdd_loss
from sdd_jax.sdd import num_regions

BATCHES = (16, 32, 64, 128, 256, 512)
CLASS_COUNTS = (10, 100, 1000, 21_841)
SCALE_SETS = ((1,), (1, 2), (1, 2, 4), (1, 2, 4, 8))
REPEAT_SECONDS, MOST_CALLS = 0.5, 200

TEACHER, STUDENT = "resnet32x4", "resnet8x4"
MEMORY_BOUNDS = {100: 1.05, 1000: 1.05, 21_841: None}


@jax.jit
@jax.value_and_grad
def loss_and_gradient(student, teacher, labels):
    """SDD-KD over region logits [B,R,K]: its mean, and the gradient by the student's."""
    return jnp.mean(sdd_loss(student, teacher, labels, base=partial(kd_loss, temperature=4.0)))


def loss_seconds(batch, classes, scales):
    """The median of one call's seconds, warm."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (batch, num_regions(scales), classes)
    student, teacher = (jax.random.normal(key, shape) for key in keys[:2])
    labels = jax.random.randint(keys[2], (batch,), 0, classes)
    jax.block_until_ready(loss_and_gradient(student, teacher, labels))
    seconds = []
    while sum(seconds) < REPEAT_SECONDS and len(seconds) < MOST_CALLS:
        began = time.perf_counter()
        jax.block_until_ready(loss_and_gradient(student, teacher, labels))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def loss_section():
    """Times the loss along three axes; lines of markdown."""
    cases = [
        *(("batch", batch, CLASSES, SCALES) for batch in BATCHES),
        *(("classes", BATCH, classes, SCALES) for classes in CLASS_COUNTS),
        *(("regions", BATCH, CLASSES, scales) for scales in SCALE_SETS),
    ]
    rows = []
    for axis, *case in cases:
        batch, classes, scales = case
        rows.append((axis, batch, f"{classes:,}", num_regions(scales), f"{1000 * loss_seconds(*case):.3f}"))
    return [
        "## The loss alone",
        "",
        "Milliseconds of value and gradient of SDD-KD on region logits, jitted; one axis varies at a time.",
        "",
        *table(("axis", "batch", "classes", "regions", "ms"), rows),
    ]


def memory_section():
    """Compiles the step by SDD-KD and by KD; lines of markdown."""
    rows = []
    for classes, bound in MEMORY_BOUNDS.items():
        sdd, kd = (
            temporary_bytes(jax_spec(TEACHER, STUDENT, method=method, classes=classes)) for method in ("sdd_kd", "kd")
        )
        regions = 2 * BATCH * num_regions(SCALES) * classes * 4  # of student and teacher, in float32
        rows.append(memory_cells(classes, sdd, kd, regions, bound))
    return [
        "## Temporary memory of the step",
        "",
        f"{TEACHER} -> {STUDENT} at batch {BATCH}, as the compiler plans it. The last column is what the region logits "
        "of student and teacher take, once each, of SDD-KD's memory.",
        "",
        *table(("classes", "SDD-KD MiB", "KD MiB", "SDD-KD / KD", "at most", "", "region logits"), rows),
    ]


def memory_cells(classes, sdd, kd, regions, bound):
    """A row of `memory_section`, from bytes."""
    verdict = "" if bound is None else "met" if sdd / kd <= bound else "missed"
    share = f"{regions / 2**20:.1f} MiB, {regions / sdd:.0%}"
    return (
        f"{classes:,}", f"{sdd / 2**20:.1f}", f"{kd / 2**20:.1f}", f"{sdd / kd:.3f}", bound or "", verdict, share
    )  # fmt: skip
