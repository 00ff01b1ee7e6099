"""Small images: what a training step costs with either stem, by the size of the images."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.models import create_model
from sdd_jax.training import optim
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.objective import plain
from sdd_jax.training.step import init_state, make_train_step

BATCH, CLASSES, EXAMPLES, STEPS = 32, 20, 9000, 4
CASES = (  # network, stem, side of the images
    *(("resnet20", stem, size) for stem, size in (("cifar", 32), ("cub200", 48), ("cifar", 64), ("cub200", 64))),
    *(("resnet8x4", stem, size) for stem, size in (("cifar", 32), ("cifar", 64), ("cub200", 64))),
    *(("mobilenet_v2", stem, 64) for stem in ("cifar", "cub200")),
    *((name, "cub200", 96) for name in ("resnet20", "resnet8x4")),
    ("resnet18", "cub200", 64),
)


def section(cases=CASES):
    """Images a second of plain training, by the clock and by processor time, of the fastest of some steps."""
    rows = [
        f"## Small images (plain training, {BATCH} images a step, {CLASSES} classes, float32)",
        "",
        "| network | stem | pixels | images a second | of processor time |",
        "|---|---|---:|---:|---:|",
    ]
    for name, stem, size in cases:
        seconds, processor = fastest_step(name, stem, size)
        rows.append(f"| {name} | {stem} | {size} | {BATCH / seconds:.1f} | {BATCH / processor:.1f} |")
    return rows


def fastest_step(name, stem, size):
    """The least seconds of a step by the clock, and the least processor time."""
    model, objective = create_model(name, CLASSES, stem), plain()
    optimizer = optim.sgd(0.05, momentum=0.9, weight_decay=5e-4, clip_norm=40.0)
    shape = {"image_shape": (size, size, 3), "labels": np.arange(EXAMPLES) % CLASSES}
    state = jit_network(lambda key: init_state(key, model, None, {}, objective, optimizer, **shape))(jax.random.key(0))
    step = jit_network(make_train_step(model, None, objective, optimizer, num_examples=EXAMPLES), donate_argnums=0)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(BATCH, size, size, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, CLASSES, BATCH), jnp.int32)
    batch, key, took = {"image": images, "label": labels, "row": jnp.arange(BATCH)}, jax.random.key(1), []
    for _ in range(1 + STEPS):  # the first compiles
        before = time.perf_counter(), time.process_time()
        state, _ = step(state, {}, batch, key)
        jax.block_until_ready(state)
        took.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    clock, processor = zip(*took[1:], strict=True)
    return min(clock), min(processor)
