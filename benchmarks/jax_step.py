"""One training step of this project on random images, built from a config as `sdd_jax.build` builds a run."""

import atexit
import contextlib
import importlib
import re
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import data
from sdd_jax.build import assemble, check, make_parts
from sdd_jax.build_teacher import cache_header, cache_layout, folded_variables, network_key
from sdd_jax.training.optim import total_steps
from sdd_jax.training.programs import Programs
from sdd_jax.training.teacher import Teacher, cached_teacher, live_teacher
from sdd_jax.training.teacher_cache import filling
from sdd_jax.training.views import run_keys

FILL = 256  # rows of a cache that are drawn together


def jax_step(spec):
    """`(call, wait, about)`: steps by `spec` as the loop takes them, and `about` of their program."""
    call, wait, lowered, compiled = compiled_step(spec)
    return call, wait, partial(about, lowered, compiled)


def compiled_step(spec):
    """`(call, wait, lowered, compiled)`: steps by `spec`, and their program.

    A step is all of it: order, crop, flip, teacher, student, gradient, update. `call` takes `steps_per_call` of them,
    after those before the last ones have ended; `wait` is for all.
    """
    runs = prepare(spec)
    programs, size = Programs(runs), spec["steps_per_call"]
    run_chunk = programs.run_chunk
    if not spec["chosen_libraries"]:  # the same program, compiled with XLA's defaults
        run_chunk = jax.jit(run_chunk.__wrapped__, donate_argnums=0)
    keys = [jax.device_put(jax.random.key(run.seed), programs.on_all) for run in runs]
    states = programs.stack([programs.begin(key) for key in keys])
    number, count, measured = 0, jax.device_put(np.int32(size), programs.on_all), None
    end = total_steps(runs[0].epochs, spec["examples"], spec["batch"])
    if end < size:
        raise ValueError(f"{runs[0].epochs} epochs of {spec['examples']} examples have {end} steps, a call {size}")
    with precision(spec):
        lowered = run_chunk.lower(states, *programs.arrays(0), count)
    compiled = lowered.compile()

    def call():
        nonlocal states, number, measured
        if number + size > end:  # as a run that begins again
            number, first = 0, jax.device_put(np.zeros(len(runs), np.int32), states.step.sharding)
            states = states.replace(step=first)
        before = measured
        states, measured = compiled(states, *programs.arrays(number), count)
        number += size
        jax.block_until_ready(before)

    return call, lambda: jax.block_until_ready((states, measured)), lowered, compiled


def precision(spec):
    """The context in which products of float32 are as exact as `spec` says, by JAX's names; None: JAX's default."""
    name = spec["precision"]
    return contextlib.nullcontext() if name is None else jax.default_matmul_precision(name)


def about(lowered, compiled):
    """Of a program: operations a step, bytes on the device, and how often each layout of a convolution occurs."""
    told = {"layouts": dict(Counter(re.findall(r"dim_labels=([\w>\-]+)", compiled.as_text())))}
    if costs := lowered.cost_analysis():  # as written: XLA counts none of what it hands to a library
        told["flops"] = costs["flops"]
    if sizes := compiled.memory_analysis():  # not every device tells
        held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        told["bytes"] = held + sizes.temp_size_in_bytes
    return told


def temporary_bytes(spec):
    """How much temporary memory the compiled step by `spec` takes; the step is compiled and not run."""
    programs = Programs(prepare(spec))
    states = programs.stack([programs.begin(jax.device_put(jax.random.key(0), programs.on_all))])
    lowered = programs.run_chunk.lower(states, *programs.arrays(0), jax.device_put(np.int32(1), programs.on_all))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def prepare(spec):
    """The runs that `spec` describes, as `sdd_jax.build` makes them, with random images and a random teacher."""
    teacher = "none" if spec["method"] == "plain" else spec["teacher"]
    module = importlib.import_module(f"sdd_jax.configs.{spec['data']}")
    config = module.get_config(f"teacher={teacher},student={spec['student']},method={spec['method']}")
    config.sdd.scales, config.batch_size, config.epochs = tuple(spec["scales"]), spec["batch"], spec["epochs"]
    config.optim.milestones, config.steps_per_call, config.model.dtype = (), 1, spec["dtype"]
    all_settings = [check(config.to_dict() | {"seed": seed}) for seed in range(spec["seeds"])]
    settings, dataset = all_settings[0], random_images(spec)
    parts = make_parts(settings, spec["classes"])
    runs = assemble(all_settings, parts, dataset, random_teacher(spec, settings, parts, dataset))
    return [run._replace(steps_per_call=spec["steps_per_call"]) for run in runs]


def random_teacher(spec, settings, parts, dataset):
    """The teacher of the runs: none, a network, or the rows of a cache."""
    if parts.teacher is None:
        return Teacher()
    images = jnp.zeros((1, *dataset.image_shape))
    variables = jax.jit(partial(parts.teacher.init, train=False))(jax.random.key(1), images)
    if not spec["cached"]:
        folded = folded_variables(settings, parts.teacher, variables, dataset)
        return live_teacher(parts.teacher, folded, parts.objective.regions)
    folder = tempfile.TemporaryDirectory(prefix="benchmark_cache_")
    atexit.register(folder.cleanup)
    return random_cache(Path(folder.name) / "cache", spec, settings, parts, variables, dataset)


def random_images(spec):
    """Images like those of the data set in shape and type."""
    rng, info, classes = np.random.default_rng(0), data.INFO[spec["data"]], spec["classes"]
    shape = info.image_shape if spec["size"] is None else (spec["size"], spec["size"], info.image_shape[-1])
    images = rng.integers(0, 256, (spec["examples"], *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, len(images))
    options = {"class_names": list(map(str, range(classes))), "mean": info.mean, "std": info.std, "select_on": "test"}
    return data.from_arrays(images, labels, images[:1], labels[:1], pad=info.pad, **options)


def random_cache(folder, spec, settings, parts, variables, dataset):
    """A teacher whose logits are random numbers in files, as those of a run lie that is too long for the memory."""
    rng, seeds = np.random.default_rng(1), range(spec["seeds"])
    layout = cache_layout(settings, parts.teacher, dataset, "float32")
    header = cache_header(network_key(settings, variables), dataset, layout, "float32")

    def compute(index, view):
        return rng.standard_normal((len(index), layout.rows, dataset.num_classes), np.float32)

    order = {"epochs": spec["epochs"], "batch_size": spec["batch"]}
    with filling(folder, header) as cache:
        for seed in seeds:
            for _ in cache.add(run_keys(dataset, seed=seed, **order), compute, FILL):
                pass
    options = {"steps_per_call": spec["steps_per_call"], "on_device": spec["on_device"]}
    return cached_teacher(cache, layout, dataset, seeds=seeds, **order, **options)
