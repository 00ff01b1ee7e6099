"""One training step of this project on random images, built from a config as `sdd_jax.build` builds a run."""

import atexit
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import cifar100
from sdd_jax import data
from sdd_jax.build import assemble, check, make_parts
from sdd_jax.build_teacher import cache_header, cache_layout, folded_variables
from sdd_jax.training.programs import Programs
from sdd_jax.training.teacher import cached_teacher, live_teacher, run_keys
from sdd_jax.training.teacher_cache import filling

EXAMPLES, EPOCHS = 2048, 8  # 256 steps of 64
FILL = 256  # rows of a cache that are drawn together


def jax_step(spec):
    """`step()`, a whole step by `spec` as the loop takes it: order, crop, flip, teacher, student, gradient, update."""
    runs = prepare(spec)
    programs = Programs(runs)
    run_chunk = programs.run_chunk
    if not spec["chosen_libraries"]:  # the same program, compiled with XLA's defaults
        run_chunk = jax.jit(run_chunk.__wrapped__, donate_argnums=0)
    keys = [jax.device_put(jax.random.key(run.seed), programs.on_all) for run in runs]
    states = programs.stack([programs.begin(key) for key in keys])
    number, count = 0, jax.device_put(np.int32(1), programs.on_all)

    def step():
        nonlocal states, number
        if (number + 1) * spec["batch"] > EPOCHS * EXAMPLES:
            raise ValueError(f"{EPOCHS} epochs of {EXAMPLES} examples have no step {number} of {spec['batch']}")
        states, measured = run_chunk(states, *programs.arrays(number), count)
        number += 1
        jax.block_until_ready((states, measured))

    return step


def temporary_bytes(spec):
    """How much temporary memory the compiled step by `spec` takes; the step is compiled and not run."""
    programs = Programs(prepare(spec))
    states = programs.stack([programs.begin(jax.device_put(jax.random.key(0), programs.on_all))])
    lowered = programs.run_chunk.lower(states, *programs.arrays(0), jax.device_put(np.int32(1), programs.on_all))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def prepare(spec):
    """The runs that `spec` describes, as `sdd_jax.build` makes them, with random images and a random teacher."""
    config = cifar100.get_config(f"teacher={spec['teacher']},student={spec['student']},method={spec['method']}")
    config.sdd.scales, config.batch_size, config.epochs = tuple(spec["scales"]), spec["batch"], EPOCHS
    config.optim.milestones, config.steps_per_call = (), 1
    all_settings = [check(config.to_dict() | {"seed": seed}) for seed in range(spec["seeds"])]
    settings, dataset = all_settings[0], random_images(spec["classes"])
    parts = make_parts(settings, spec["classes"])
    images = jnp.zeros((1, *dataset.image_shape))
    variables = jax.jit(partial(parts.teacher.init, train=False))(jax.random.key(1), images)
    if not spec["cached"]:
        folded = folded_variables(settings, parts.teacher, variables, dataset)
        return assemble(all_settings, parts, dataset, live_teacher(parts.teacher, folded, parts.objective.regions))
    folder = tempfile.TemporaryDirectory(prefix="benchmark_cache_")
    atexit.register(folder.cleanup)
    cached = random_cache(Path(folder.name) / "cache", settings, parts, variables, dataset, range(spec["seeds"]))
    return assemble(all_settings, parts, dataset, cached)


def random_images(classes):
    """Images like CIFAR's in shape and type."""
    rng, info = np.random.default_rng(0), data.INFO["cifar100"]
    images = rng.integers(0, 256, (EXAMPLES, *info.image_shape), dtype=np.uint8)
    labels = rng.integers(0, classes, EXAMPLES)
    options = {"class_names": list(map(str, range(classes))), "mean": info.mean, "std": info.std, "select_on": "test"}
    return data.from_arrays(images, labels, images[:1], labels[:1], **options)


def random_cache(folder, settings, parts, variables, dataset, seeds):
    """A teacher whose logits are random numbers in files, as those of a run lie that is too long for the memory."""
    rng = np.random.default_rng(1)
    layout = cache_layout(settings, parts.teacher, dataset)
    header = cache_header(settings, variables, dataset, layout, "float32")

    def compute(index, view):
        return rng.standard_normal((len(index), layout.rows, dataset.num_classes), np.float32)

    order = {"epochs": EPOCHS, "batch_size": settings["batch_size"]}
    with filling(folder, header) as cache:
        for seed in seeds:
            for _ in cache.add(run_keys(dataset, seed=seed, **order), compute, FILL):
                pass
    return cached_teacher(cache, layout, dataset, seeds=seeds, **order, steps_per_call=1, on_device=False)
