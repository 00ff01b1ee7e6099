"""A run in shapes, from its config alone: without data, teacher or compilation."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdd_jax import data
from sdd_jax.build import Parts, check, described, load_data, make_optimizer, make_parts
from sdd_jax.config import CACHE, ENSEMBLE, Settings, image_dtype, mixing, regions
from sdd_jax.data.mixing import mix
from sdd_jax.models.classifier import first_rngs
from sdd_jax.models.layers import fold
from sdd_jax.training.step import init_state, make_train_step
from sdd_jax.training.teacher import Teacher, live_teacher
from sdd_jax.training.teacher_cache import Layout, outputs_of_rows


def train_examples(settings: Settings) -> int:
    """About how many images an epoch has, as if a tenth of all were held out; ``ValueError`` if nobody knows."""
    if settings["data.name"] == data.ARRAYS:  # which may state held-out images
        return len(load_data(settings).train.index)
    total = described(settings).train_examples
    if settings["data.train_examples"] is not None:
        return settings["data.train_examples"]
    if not total:
        raise ValueError(f"without the data of {settings['data.name']}, state data.train_examples")
    return total - (total + 5) // 10 if settings["data.select_on"] == "validation" else total


def run_shapes(settings: Settings, num_examples: int) -> tuple[Parts, Teacher, optax.GradientTransformation, Any]:
    """Parts, teacher, optimizer and first state of a run, where the arrays of teacher and state are shapes alone."""
    info = described(settings)
    parts, teacher = make_parts(settings, info.num_classes), Teacher()
    optimizer = make_optimizer(settings, num_examples)
    if settings["model.teacher"] in (CACHE, ENSEMBLE):
        layout = Layout(regions(settings), None)
        row = jnp.zeros((layout.rows, info.num_classes), image_dtype(settings))
        teacher = Teacher(lambda _, batch: outputs_of_rows(jnp.stack([row] * len(batch["label"])), layout))
    elif parts.teacher is not None:
        images = jax.ShapeDtypeStruct((1, *info.image_shape), image_dtype(settings))
        variables = jax.eval_shape(partial(parts.teacher.init, train=False), first_rngs(jax.random.key(0)), images)
        variables = jax.eval_shape(partial(fold, parts.teacher, images=images), variables)
        teacher = live_teacher(parts.teacher, variables, parts.objective.regions)
    shape = {"image_shape": info.image_shape, "labels": np.arange(num_examples) % info.num_classes}
    averaged = settings["optim.ema_decay"] is not None

    def begin(key, arrays):
        given = parts.model, teacher.apply, arrays, parts.objective, optimizer
        return init_state(key, *given, **shape, averaged=averaged)

    return parts, teacher, optimizer, jax.eval_shape(begin, jax.random.key(0), teacher.arrays)


def trace(config: Mapping[str, Any], num_examples: int | None = None) -> tuple[Any, Any]:
    """Traces the training step of ``config`` without data, teacher or compilation: shapes of (state, metrics).

    ``num_examples`` are those of an epoch; None: as many as the config's data set has.
    """
    settings = check(config)
    num_examples, batch_size = num_examples or train_examples(settings), settings["batch_size"]
    parts, teacher, optimizer, state = run_shapes(settings, num_examples)
    options = {"num_examples": num_examples, "accumulate": settings["optim.accumulate_steps"]}
    given = parts.model, teacher.apply, parts.objective, optimizer
    step = make_train_step(*given, **options, ema_decay=settings["optim.ema_decay"])
    batch = {name: jax.ShapeDtypeStruct((batch_size,), jnp.int32) for name in ("label", "row")}
    batch["image"] = jax.ShapeDtypeStruct((batch_size, *described(settings).image_shape), image_dtype(settings))
    if alphas := mixing(settings):
        batch = jax.eval_shape(partial(mix, **alphas), batch, jax.random.key(0))
    return jax.eval_shape(step, state, teacher.arrays, batch, jax.random.key(0))
