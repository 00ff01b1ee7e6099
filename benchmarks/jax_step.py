"""One training step of this project on random images, built from a config as `sdd_jax.build` builds a run."""

import atexit
import shutil
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import cifar100
from sdd_jax import data
from sdd_jax.build import cache_header, cache_layout, check, image_dtype, make_optimizer, make_parts
from sdd_jax.data.arrays import epoch_order, train_batch
from sdd_jax.training.cached_teacher import CachedTeacher, run_keys
from sdd_jax.training.step import init_state, live_teacher, make_train_step, stream
from sdd_jax.training.teacher_cache import Cache

EXAMPLES, EPOCHS, SEED = 2048, 8, 0  # 256 steps of 64
FILL = 256  # rows of a cache that are drawn together


def jax_step(spec):
    """`step()`, a whole step by `spec`: order, crop, flip, teacher, student, gradient, update, metrics."""
    settings, dataset, parts = prepare(spec)
    variables = jax.jit(partial(parts.teacher.init, train=False))(jax.random.key(1), images_of(spec))
    if spec["cached"]:
        folder = tempfile.mkdtemp(prefix="benchmark_cache_")
        atexit.register(shutil.rmtree, folder)
        cached = random_cache(Path(folder), settings, parts, variables, dataset)
        teacher, teacher_arrays = cached.teacher, partial(cached.chunk, SEED)
    else:
        teacher, teacher_arrays = asked_teacher(settings, parts), lambda number: variables
    program, begin = make_program(settings, dataset, parts, teacher)
    arrays = data_arrays(dataset)
    state = jax.jit(begin)(arrays["key"], teacher_arrays(0))
    number = 0

    def step():
        nonlocal state, number
        if (number + 1) * spec["batch"] > EPOCHS * EXAMPLES:
            raise ValueError(f"{EPOCHS} epochs of {EXAMPLES} examples have no step {number} of {spec['batch']}")
        state, measured = program(state, teacher_arrays(number), arrays)
        number += 1
        jax.block_until_ready((state, measured))

    return step


def temporary_bytes(spec):
    """How much temporary memory the compiled step by `spec` takes; the step is compiled and not run."""
    settings, dataset, parts = prepare(spec)
    variables = jax.eval_shape(partial(parts.teacher.init, train=False), jax.random.key(1), images_of(spec))
    program, begin = make_program(settings, dataset, parts, asked_teacher(settings, parts))
    arrays = data_arrays(dataset)
    state = jax.eval_shape(begin, arrays["key"], variables)
    return program.lower(state, variables, arrays).compile().memory_analysis().temp_size_in_bytes


def prepare(spec):
    """Settings, data and networks of the config that `spec` names."""
    config = cifar100.get_config(f"teacher={spec['teacher']},student={spec['student']},method={spec['method']}")
    config.sdd.scales, config.batch_size = tuple(spec["scales"]), spec["batch"]
    settings = check(config.to_dict())
    return settings, random_images(spec["classes"]), make_parts(settings, spec["classes"])


def random_images(classes):
    """Images like CIFAR's in shape and type."""
    rng, info = np.random.default_rng(0), data.INFO["cifar100"]
    images = rng.integers(0, 256, (EXAMPLES, *info.image_shape), dtype=np.uint8)
    labels = rng.integers(0, classes, EXAMPLES)
    names = [str(number) for number in range(classes)]
    few = slice(0, 1)
    return data.from_arrays(
        images, labels, images[few], labels[few], class_names=names, mean=info.mean, std=info.std, select_on="test"
    )


def images_of(spec):
    """An image of zeros, for a network that is to be initialised."""
    return jnp.zeros((1, *data.INFO["cifar100"].image_shape))


def asked_teacher(settings, parts):
    """The teacher's network itself."""
    return live_teacher(parts.teacher, scales=settings["sdd.scales"], pooling=settings["sdd.pooling"])


def random_cache(folder, settings, parts, variables, dataset):
    """A teacher whose logits are random numbers in files, as those of a run lie that is too long for the memory."""
    rng = np.random.default_rng(1)
    layout = cache_layout(settings, parts.teacher, dataset)
    cache = Cache(folder, cache_header(settings, variables, dataset, layout, "float32"))

    def compute(index, view):
        return rng.standard_normal((len(index), layout.rows, dataset.num_classes), np.float32)

    order = {"epochs": EPOCHS, "batch_size": settings["batch_size"]}
    for _ in cache.add(run_keys(dataset, seed=SEED, **order), compute, FILL):
        pass
    return CachedTeacher(cache, layout, dataset, seeds=(SEED,), **order, steps_per_call=1, on_device=False)


def data_arrays(dataset):
    """What the step reads of the data, on the device, with the order of all epochs."""
    key = jax.random.key(SEED)
    order = epoch_order(key, jnp.arange(EPOCHS), EXAMPLES)
    return jax.device_put({**dataset.train._asdict(), "order": order, "first_epoch": np.int32(0), "key": key})


def make_program(settings, dataset, parts, teacher):
    """`program(state, teacher_arrays, data_arrays) -> state, metrics`, jitted, and `begin(key, teacher_arrays)`."""
    optimizer, scales = make_optimizer(settings, EXAMPLES), settings["sdd.scales"]
    train_step = make_train_step(
        parts.model,
        teacher,
        parts.objective,
        optimizer,
        scales=scales,
        pooling=settings["sdd.pooling"],
        num_examples=EXAMPLES,
    )

    def program(state, teacher_arrays, arrays):
        batch = train_batch(
            arrays,
            state.step,
            arrays["key"],
            batch_size=settings["batch_size"],
            mean=dataset.mean,
            std=dataset.std,
            pad=dataset.pad,
            flip=dataset.flip,
            dtype=image_dtype(settings),
        )
        key = jax.random.fold_in(stream(arrays["key"], "objective"), state.step)
        return train_step(state, teacher_arrays, batch, key)

    def begin(key, teacher_arrays):
        return init_state(
            key,
            parts.model,
            teacher,
            teacher_arrays,
            parts.objective,
            optimizer,
            image_shape=dataset.image_shape,
            num_examples=EXAMPLES,
        )

    return jax.jit(program, donate_argnums=0), begin
