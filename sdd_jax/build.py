"""From a config to what a run is made of: networks, objective, optimizer, data, teacher.

``check`` says what is wrong with a config before anything compiles or is written; ``build`` also loads data and
teacher.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdd_jax import data, losses
from sdd_jax.build_data import described, from_disk, load_data, refuse_cache, steps_per_call
from sdd_jax.build_teacher import NOBODY, asked_by_cache, asked_live, measure_teacher, read_teacher
from sdd_jax.config import DTYPES, METHODS, Settings, image_dtype, read, teacher_dtype
from sdd_jax.correlation import dist_loss
from sdd_jax.data import AnyDataset, Dataset
from sdd_jax.mesh import make_mesh
from sdd_jax.models import create_model
from sdd_jax.own import own_function
from sdd_jax.standardize import standardized
from sdd_jax.training import objective as objectives
from sdd_jax.training import optim
from sdd_jax.training.contrast import contrast
from sdd_jax.training.programs import Built
from sdd_jax.training.similarity import similarity
from sdd_jax.training.step import init_state, live_teacher, make_train_step

NUMBERS = ("temperature", "alpha", "beta", "gamma")  # the fields of config.loss that a base loss may read
OF_FEATURES = ("scales", "pooling", "reduction")  # the fields of config.sdd that regions of feature maps have
BASES = {  # base losses by name, and the fields of config.loss that each reads
    "kd": (losses.kd_loss, ("temperature",)),
    "dkd": (losses.dkd_loss, ("temperature", "alpha", "beta")),
    "nkd": (losses.nkd_loss, ("temperature", "gamma")),
    "nkd_as_released": (losses.nkd_as_released_loss, ("temperature", "gamma")),
    "ls_kd": (standardized(losses.kd_loss), ("temperature",)),
    "ls_dkd": (standardized(losses.dkd_loss), ("temperature", "alpha", "beta")),
    "dist": (dist_loss, ("temperature", "beta", "gamma")),
    "ttm": (losses.ttm_loss, ("gamma",)),
    "wttm": (losses.wttm_loss, ("gamma",)),
}


def check(config: Mapping[str, Any]) -> Settings:
    """The config as settings, with every name in it known; ``ValueError`` says which field is wrong, and how."""
    settings = read(config)
    settings["data.num_classes"] = described(settings).num_classes
    make_parts(settings, settings["data.num_classes"])
    for option, unset in (("image_size", None), ("augment", None), ("on_bad_image", "error")):
        if settings[f"data.{option}"] != unset:
            data.refuse_in_memory(settings["data.name"], option, settings[f"data.{option}"])
    if from_disk(settings) and settings["steps_per_call"] > 1:
        name, steps = settings["data.name"], settings["steps_per_call"]
        raise ValueError(f"steps_per_call must be 1 for images that are read from disk, as {name}'s are; got {steps}")
    if settings["teacher.cache"] is not None:
        refuse_cache(settings)
    return settings


def base_loss(name: str) -> tuple[Callable[..., jax.Array], tuple[str, ...]]:
    """The base loss called ``name``, or a user's own by "MODULE:FUNCTION", and the numbers that it reads."""
    if ":" not in name:
        return BASES[name]
    function = own_function(name, "loss", ("student_logits", "teacher_logits", "labels"))
    taken = inspect.signature(function).parameters
    return function, tuple(number for number in NUMBERS if number in taken)


class Parts(NamedTuple):
    """What follows from the settings alone."""

    model: Any
    teacher: Any  # the teacher's network, or None
    objective: objectives.Objective


def make_parts(settings: Settings, num_classes: int) -> Parts:
    """Networks and objective; ``ValueError`` names the field of a name that is not known."""

    def network(field, dtype):
        try:
            return create_model(settings[field], num_classes, settings["model.stem"], DTYPES[dtype])
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error

    student = network("model.student", settings["model.dtype"])
    objective = make_objective(settings)
    if settings["method"] == "plain":
        return Parts(student, None, objective)
    return Parts(student, network("model.teacher", teacher_dtype(settings)), objective)


def make_objective(settings: Settings) -> objectives.Objective:
    """What a step of the method minimises; ``loss.beta`` weighs its features, as RepDistiller's -b does."""
    method = METHODS[settings["method"]]
    if settings["method"] == "plain":
        return objectives.plain()
    if not method.bases:
        logits = objectives.plain(settings["loss.task_weight"])
    else:
        try:
            function, numbers = base_loss(settings["loss.base"])
        except ValueError as error:
            raise ValueError(f"loss.base: {error}") from error
        options = ("complementary_weight", "consistent_weight", "consistency", "reduction")
        logits = objectives.distill(
            partial(function, **{name: settings[f"loss.{name}"] for name in numbers}),
            sdd={name: settings[f"sdd.{name}"] for name in options} if method.regions else None,
            scales=settings["sdd.scales"],
            task_weight=settings["loss.task_weight"],
            distill_weight=settings["loss.distill_weight"],
            warmup_epochs=settings["loss.warmup_epochs"],
        )
    if method.features is None:
        return logits
    if method.features == "crd":
        features = contrast(settings["loss.beta"])
    else:
        of_regions = {name: settings[f"sdd.{name}"] for name in OF_FEATURES}
        features = similarity(settings["loss.beta"], regions=of_regions if method.features == "sdd_sp" else None)
    return objectives.added(logits=logits, features=features)


def reads(settings: Mapping[str, Any]) -> frozenset[str]:
    """The fields of ``loss`` and ``sdd`` that the method reads; every other may hold anything."""
    method = METHODS[settings["method"]]
    if settings["method"] == "plain":
        return frozenset()
    names = {"loss.task_weight"}
    if method.bases:
        names |= {"loss.base", "loss.distill_weight", "loss.warmup_epochs"}
        names |= {f"loss.{name}" for name in base_loss(settings["loss.base"])[1]}
    if method.regions:
        names |= {name for name in settings if name.startswith("sdd.")}
    if method.features is not None:
        names |= {"loss.beta"}
    if method.features == "sdd_sp":
        names |= {f"sdd.{name}" for name in OF_FEATURES}
    return frozenset(names)


def make_optimizer(settings: Settings, num_examples: int) -> optax.GradientTransformation:
    """The optimizer with its schedule for a run over ``num_examples``."""
    rate, batch_size = settings["optim.learning_rate"], settings["batch_size"]
    if settings["optim.schedule"] == "cosine":
        schedule = optim.cosine_schedule(rate, optim.total_steps(settings["epochs"], num_examples, batch_size))
    else:
        milestones = settings["optim.milestones"]
        schedule = optim.step_schedule(rate, milestones, num_examples=num_examples, batch_size=batch_size)
    return optim.sgd(
        schedule,
        momentum=settings["optim.momentum"],
        weight_decay=settings["optim.weight_decay"],
        clip_norm=settings["optim.clip_norm"],
    )


def build(config: Mapping[str, Any], skipped: data.Skipped | None = None) -> Built:
    """Checks ``config``, loads its data and its teacher, and returns what ``train`` takes.

    ``skipped`` are the images that an earlier start of the run left out; without it they are looked for, if the config
    says so.

    Raises:
      ValueError: for a config that ``check`` refuses, data that are wrong, or a teacher that is missing, does not fit,
        or is off its stated accuracy by more than 0.1 points.
      FileNotFoundError: for data that are missing; it says how to get them.
    """
    return build_together([config], skipped)[0]


def build_together(configs: Sequence[Mapping[str, Any]], skipped: data.Skipped | None = None) -> list[Built]:
    """``build`` for configs that differ in ``seed`` alone, with one data set and one teacher for all of them."""
    if not configs:
        return []
    all_settings = [check(config) for config in configs]
    settings = all_settings[0]
    if settings["model.teacher"] == "none":
        dataset = load_data(settings, skipped)
        return assemble(all_settings, make_parts(settings, dataset.num_classes), dataset, NOBODY)
    teacher, variables, stated = read_teacher(settings)
    dataset = load_data(settings, skipped)
    parts = make_parts(settings, dataset.num_classes)
    network, mesh = parts.teacher, make_mesh()
    accuracy = measure_teacher(settings, network, teacher, variables, stated, dataset, mesh)
    if settings["teacher.cache"] is None:
        asked = asked_live(settings, network, variables, dataset)
    else:
        assert isinstance(dataset, Dataset)  # `check` refuses a cache for any other
        seeds = [one["seed"] for one in all_settings]
        asked = asked_by_cache(settings, network, parts.objective, variables, dataset, seeds)
    return assemble(all_settings, parts, dataset, asked, teacher_accuracy=accuracy, teacher_stated=stated)


def assemble(
    all_settings: Sequence[Settings],
    parts: Parts,
    dataset: AnyDataset,
    asked: Any,
    *,
    teacher_accuracy: float | None = None,
    teacher_stated: float | None = None,
) -> list[Built]:
    """The runs of settings that differ in ``seed`` alone; ``asked`` is an :class:`Asked` or a ``CachedTeacher``."""
    settings = all_settings[0]
    built = Built(
        config={},
        config_hash="",
        model=parts.model,
        teacher=asked.teacher,
        teacher_arrays=asked.arrays,
        teacher_chunk=asked.chunk,
        teacher_accuracy=teacher_accuracy,
        teacher_stated=teacher_stated,
        objective=parts.objective,
        optimizer=make_optimizer(settings, len(dataset.train.index)),
        dataset=dataset,
        mesh=make_mesh(),
        seed=0,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        steps_per_call=steps_per_call(settings),
        eval_every_epochs=settings["eval_every_epochs"],
        save_every_epochs=settings["save_every_epochs"],
        scales=settings["sdd.scales"],
        pooling=settings["sdd.pooling"],
        dtype=image_dtype(settings),
        accumulate=settings["optim.accumulate_steps"],
        profile_steps=settings["profile_steps"],
    )
    return [built._replace(config=one.nested(), config_hash=one.hash(), seed=one["seed"]) for one in all_settings]


def state_shapes(
    parts: Parts,
    teacher: Any,
    teacher_arrays: Any,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    num_examples: int,
) -> Any:
    """The shapes of a run's state before its first step."""
    begin = partial(
        init_state,
        model=parts.model,
        teacher=teacher,
        objective=parts.objective,
        optimizer=optimizer,
        image_shape=image_shape,
        num_examples=num_examples,
    )
    return jax.eval_shape(lambda key, arrays: begin(key, teacher_arrays=arrays), jax.random.key(0), teacher_arrays)


def trace(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Traces the training step of ``config`` without data, teacher or compilation: shapes of (state, metrics)."""
    settings = check(config)
    info = described(settings)
    num_examples = settings["data.train_examples"] or info.train_examples
    if not num_examples:
        raise ValueError(f"to trace {settings['data.name']} without its data, state data.train_examples")
    parts = make_parts(settings, info.num_classes)
    optimizer = make_optimizer(settings, num_examples)
    teacher, teacher_arrays = None, {}
    dtype, batch_size = image_dtype(settings), settings["batch_size"]
    images = jax.ShapeDtypeStruct((batch_size, *info.image_shape), dtype)
    if parts.teacher is not None:
        teacher = live_teacher(parts.teacher, scales=settings["sdd.scales"], pooling=settings["sdd.pooling"])
        teacher_arrays = jax.eval_shape(partial(parts.teacher.init, train=False), jax.random.key(0), images)
    state = state_shapes(parts, teacher, teacher_arrays, optimizer, info.image_shape, num_examples)
    step = make_train_step(
        parts.model,
        teacher,
        parts.objective,
        optimizer,
        scales=settings["sdd.scales"],
        pooling=settings["sdd.pooling"],
        num_examples=num_examples,
        accumulate=settings["optim.accumulate_steps"],
    )
    numbers = {name: jax.ShapeDtypeStruct((batch_size,), jnp.int32) for name in ("label", "row")}
    batch = {"image": images, **numbers}
    return jax.eval_shape(step, state, teacher_arrays, batch, jax.random.key(0))
