"""From a config to what a run is made of: networks, objective, optimizer, data, teacher."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdd_jax import data, methods, processes
from sdd_jax.build_teacher import ask_cache, folded_variables, measure_teacher, read_teacher
from sdd_jax.config import (
    Settings,
    image_dtype,
    mixing,
    named_field,
    option_fields,
    parse_method,
    read,
    refuse_mixed_cache,
    regions,
    teacher_dtype,
)
from sdd_jax.data import AnyDataset, Dataset
from sdd_jax.data.images import AUGMENTS
from sdd_jax.data.mixing import mix
from sdd_jax.fields import DTYPES
from sdd_jax.mesh import make_mesh
from sdd_jax.models import create_model
from sdd_jax.models.layers import fold
from sdd_jax.training import objective as objectives
from sdd_jax.training import optim
from sdd_jax.training.programs import Built
from sdd_jax.training.step import init_state, make_train_step
from sdd_jax.training.teacher import Teacher, live_teacher

STEPS_PER_CALL = 50  # on accelerators; 1 on CPU, where XLA's convolutions are slow inside a loop


def check(config: Mapping[str, Any]) -> Settings:
    """The config as settings, with every name in it known; ``ValueError`` says which field is wrong, and how."""
    settings = read(config)
    settings["data.num_classes"] = described(settings).num_classes
    names = ("path", "image_size", "augment", "on_bad_image", "randaugment")
    on_disk = {name: settings[f"data.{name}"] for name in names}
    settings["data.in_memory"] = data.decides_in_memory(settings["data.name"], settings["data.in_memory"], **on_disk)
    make_parts(settings, settings["data.num_classes"])
    for option, unset in (("image_size", None), ("augment", None), ("on_bad_image", "error"), ("randaugment", ())):
        if settings[f"data.{option}"] != unset:
            data.refuse_in_memory(settings["data.name"], option, settings[f"data.{option}"])
    if from_disk(settings) and (steps := settings["steps_per_call"]) > 1:
        raise ValueError(f"steps_per_call must be 1 for images that are read from disk; got {steps}")
    if settings["teacher.cache"] is not None:
        refuse_cache(settings)
    return settings


def described(settings: Settings) -> data.Info:
    """What is known of the config's data set without reading it."""
    options = {name: settings[f"data.{name}"] for name in ("path", "image_size", "num_classes", "in_memory")}
    return data.describe(settings["data.name"], **options)


def from_disk(settings: Settings) -> bool:
    """Whether the config's images are read from disk as they are needed."""
    return described(settings).augment in AUGMENTS


def load_data(settings: Settings, skipped: data.Skipped | None = None) -> AnyDataset:
    """The data set of the config; which images it lacks is said on stderr, and taken from ``skipped`` if given."""
    if settings["data.on_bad_image"] == "skip" and skipped is None and processes.is_first():
        print("every training image is decoded once (data.on_bad_image is 'skip')", file=sys.stderr, flush=True)
    names = ("path", "select_on", "train_examples", "image_size", "in_memory", "augment", "workers", "on_bad_image")
    options = {name: settings[f"data.{name}"] for name in (*names, "randaugment")}
    dataset = data.load(settings["data.name"], **options, skipped=skipped)
    if isinstance(dataset, data.StreamedDataset) and dataset.skipped is not None and processes.is_first():
        print(dataset.skipped.report(), file=sys.stderr, flush=True)
    if dataset.num_classes != (got := settings["data.num_classes"]):
        raise ValueError(f"data.num_classes: {dataset.name} has {dataset.num_classes} on disk, the config says {got}")
    return dataset


def refuse_cache(settings: Settings) -> None:
    """``ValueError`` if the config's images have no views that a cache could be made of."""
    name, rule = settings["data.name"], settings["data.augment"] or described(settings).augment
    refuse_mixed_cache(settings)
    if settings["data.randaugment"]:
        raise ValueError(f"a cache needs views that can be numbered: data.randaugment {settings['data.randaugment']}")
    if rule == "random_resized_crop":
        crops = f"{name}'s training crops are random in size and place"
        raise ValueError(f"{crops}: they have no finite number of views, as images have with data.in_memory=true")
    if rule in AUGMENTS:
        raise ValueError(f"{name} is read from disk, and a cache needs its images in memory: data.in_memory=true")


def steps_per_call(settings: Settings, platform: str | None = None) -> int:
    """How many steps one call of the program takes on ``platform`` (None: the default backend); one for disk."""
    single = (platform or jax.default_backend()) == "cpu" or from_disk(settings)
    return settings["steps_per_call"] or (1 if single else STEPS_PER_CALL)


class Parts(NamedTuple):
    """Networks and objective; needs neither data nor weights."""

    model: Any
    teacher: Any  # the teacher's network, or None
    objective: objectives.Objective


def make_parts(settings: Settings, num_classes: int, teacher_variables: Any = None) -> Parts:
    """Networks and objective; ``ValueError`` names the field of a name that is not known.

    Without the teacher's variables a loss that reads them has a cost that is not a number.
    """

    def network(field, dtype):
        with named_field(field):
            return create_model(settings[field], num_classes, settings["model.stem"], DTYPES[dtype])

    student = network("model.student", settings["model.dtype"])
    has_teacher = settings["model.teacher"] != "none"
    teacher = network("model.teacher", teacher_dtype(settings)) if has_teacher else None
    return Parts(student, teacher, make_objective(settings, num_classes, teacher_variables))


def make_objective(settings: Settings, num_classes: int, teacher_variables: Any = None) -> objectives.Objective:
    """What a step of the method minimises; ``teacher_variables`` as in ``make_parts``."""
    method = parse_method(settings)
    options: dict[str, dict[str, Any]] = {"loss": {}, "features": {}}
    for name in option_fields(settings, method):
        room, _, option = name.split(".")
        options[room][option] = settings[name]
    base = methods.base_of(method, settings["loss.base"])
    if base is None:
        weight = 1.0 if method == methods.Method() else settings["loss.task_weight"]
        logits = objectives.plain(weight, settings["loss.label_smoothing"])
    else:
        if base.cost is not None:
            given = {
                name: options["loss"].pop(name)
                for name in methods.options_of(base)
                if name in signature(base.cost).parameters
            }
            options["loss"]["cost"] = class_costs(settings, partial(base.cost, **given), num_classes, teacher_variables)
        function = partial(base.function, **options["loss"])
        example, labels = jax.ShapeDtypeStruct((2, num_classes), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
        with named_field(f"loss.base {settings['loss.base']}"):  # the function itself says what is wrong with options
            jax.eval_shape(function, example, example, labels)
        weighting = ("complementary_weight", "consistent_weight", "consistency", "reduction")
        logits = objectives.distill(
            function,
            regions=regions(settings) if method.regions else None,
            sdd={name: settings[f"sdd.{name}"] for name in weighting},
            task_weight=settings["loss.task_weight"],
            distill_weight=settings["loss.distill_weight"],
            warmup_epochs=settings["loss.warmup_epochs"] or settings["loss.warmup_share"] * settings["epochs"],
            warmup_by_step=settings["loss.warmup_share"] > 0,
            label_smoothing=settings["loss.label_smoothing"],
        )
    if method.features is None:
        return logits
    features = methods.FEATURES[method.features]
    if features.by_region:
        options["features"] |= {"regions": regions(settings), "reduction": settings["sdd.reduction"]}
    with named_field(f"features.options of {method.features}"):
        loss = features.make(settings["features.weight"], **options["features"])
    return objectives.added(logits=logits, features=loss)


def class_costs(settings: Settings, cost: Any, num_classes: int, teacher_variables: Any) -> np.ndarray:
    """``cost`` of the teacher's classes, ``[K, K]``; not a number where its variables are not given."""
    with named_field(f"loss.base {settings['loss.base']}"):
        shape = jax.eval_shape(cost, jax.ShapeDtypeStruct((num_classes, 1), jnp.float32))
        if teacher_variables is None:
            return np.full(shape.shape, np.nan, shape.dtype)
        head = teacher_variables["params"].get("head", {})
        if "kernel" not in head:
            raise ValueError(f"reads the head of the teacher, and {settings['model.teacher']} has none of its own")
        return np.asarray(cost(jnp.asarray(head["kernel"]).T))


def make_optimizer(settings: Settings, num_examples: int) -> optax.GradientTransformation:
    """The optimizer with its schedule for a run over ``num_examples``."""
    rate, size = settings["optim.learning_rate"], {"num_examples": num_examples, "batch_size": settings["batch_size"]}
    if settings["optim.schedule"] == "cosine":
        schedule = optim.cosine_schedule(rate, optim.total_steps(settings["epochs"], **size))
    else:
        schedule = optim.step_schedule(rate, settings["optim.milestones"], **size)
    schedule = optim.warmed_up(schedule, rate, optim.first_step(settings["optim.rate_warmup_epochs"], **size))
    options = {name: settings[f"optim.{name}"] for name in ("weight_decay", "clip_norm")}
    options["decayed"] = None if settings["optim.decay_norms"] else optim.weights_alone
    if settings["optim.optimizer"] == "adamw":
        return optim.adamw(schedule, **options)
    return optim.sgd(schedule, momentum=settings["optim.momentum"], **options)


def build(config: Mapping[str, Any], skipped: data.Skipped | None = None) -> Built:
    """Checks ``config``, loads its data and its teacher, and returns what ``train`` takes.

    ``skipped`` are the images that an earlier start left out; without it they are looked for, if the config says so.

    Raises:
      ValueError: for a config that ``check`` refuses, wrong data, or a teacher that is missing or does not fit.
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
        return assemble(all_settings, make_parts(settings, dataset.num_classes), dataset, Teacher())
    saved, variables, stated = read_teacher(settings)
    dataset = load_data(settings, skipped)
    parts = make_parts(settings, dataset.num_classes, variables)
    accuracy = measure_teacher(settings, parts.teacher, saved, variables, stated, dataset)
    if settings["teacher.cache"] is None:
        folded = folded_variables(settings, parts.teacher, variables, dataset)
        teacher = live_teacher(parts.teacher, folded, parts.objective.regions)
    else:
        assert isinstance(dataset, Dataset)  # `check` refuses a cache for any other
        needs, steps = parts.objective.needs, steps_per_call(settings)
        teacher = ask_cache(all_settings, parts.teacher, variables, dataset, needs, steps)
    return assemble(all_settings, parts, dataset, teacher, accuracy, stated)


def assemble(
    all_settings: Sequence[Settings],
    parts: Parts,
    dataset: AnyDataset,
    teacher: Teacher,
    teacher_accuracy: float | None = None,
    teacher_stated: float | None = None,
) -> list[Built]:
    """The runs of settings that differ in ``seed`` alone."""
    settings = all_settings[0]
    same = ("epochs", "batch_size", "eval_every_epochs", "save_every_epochs", "profile_steps")
    make = partial(
        Built,
        model=parts.model,
        teacher=teacher,
        teacher_accuracy=teacher_accuracy,
        teacher_stated=teacher_stated,
        objective=parts.objective,
        optimizer=make_optimizer(settings, len(dataset.train.index)),
        dataset=dataset,
        mesh=make_mesh(),
        steps_per_call=steps_per_call(settings),
        dtype=image_dtype(settings),
        accumulate=settings["optim.accumulate_steps"],
        ema_decay=settings["optim.ema_decay"],
        mixing=mixing(settings),
        **{name: settings[name] for name in same},
    )
    return [make(config=one.nested(), seed=one["seed"]) for one in all_settings]


def train_examples(settings: Settings) -> int:
    """How many images an epoch has; ``ValueError`` if nobody knows without the data."""
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
    if parts.teacher is not None:
        images = jax.ShapeDtypeStruct((1, *info.image_shape), image_dtype(settings))
        variables = jax.eval_shape(partial(parts.teacher.init, train=False), jax.random.key(0), images)
        variables = jax.eval_shape(partial(fold, parts.teacher, images=images), variables)
        teacher = live_teacher(parts.teacher, variables, parts.objective.regions)
    shape = {"image_shape": info.image_shape, "labels": np.arange(num_examples) % info.num_classes}
    averaged = settings["optim.ema_decay"] is not None

    def begin(key, arrays):
        given = parts.model, teacher.apply, arrays, parts.objective, optimizer
        return init_state(key, *given, **shape, averaged=averaged)

    return parts, teacher, optimizer, jax.eval_shape(begin, jax.random.key(0), teacher.arrays)


def trace(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Traces the training step of ``config`` without data, teacher or compilation: shapes of (state, metrics)."""
    settings = check(config)
    num_examples, batch_size = train_examples(settings), settings["batch_size"]
    parts, teacher, optimizer, state = run_shapes(settings, num_examples)
    options = {"num_examples": num_examples, "accumulate": settings["optim.accumulate_steps"]}
    objective, alphas = parts.objective, mixing(settings)
    given = parts.model, teacher.apply, objectives.mixed(objective) if alphas else objective, optimizer
    step = make_train_step(*given, **options, ema_decay=settings["optim.ema_decay"])
    batch = {name: jax.ShapeDtypeStruct((batch_size,), jnp.int32) for name in ("label", "row")}
    batch["image"] = jax.ShapeDtypeStruct((batch_size, *described(settings).image_shape), image_dtype(settings))
    if alphas:
        batch = jax.eval_shape(partial(mix, **alphas), batch, jax.random.key(0))
    return jax.eval_shape(step, state, teacher.arrays, batch, jax.random.key(0))
