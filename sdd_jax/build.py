"""From a config to what a run is made of: networks, objective, optimizer, data, teacher."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdd_jax import data, methods, processes
from sdd_jax.build_initial import find_digest, read_initial
from sdd_jax.build_teacher import (
    ask_cache,
    cache_alone,
    cache_layout,
    check_needs,
    folded_variables,
    list_members,
    measure_teacher,
    network_key,
    read_teacher,
    read_weights,
)
from sdd_jax.config import (
    CACHE,
    ENSEMBLE,
    NONE,
    Settings,
    image_dtype,
    mixing,
    named_field,
    option_fields,
    parse_method,
    read,
    regions,
    teacher_dtype,
)
from sdd_jax.data import AnyDataset
from sdd_jax.data.images import AUGMENTS
from sdd_jax.ensemble import MEANS
from sdd_jax.fields import DTYPES
from sdd_jax.mesh import make_mesh
from sdd_jax.models import create_model
from sdd_jax.own import own_function
from sdd_jax.saved import seen_by
from sdd_jax.sealed import digest
from sdd_jax.training import objective as objectives
from sdd_jax.training import optim
from sdd_jax.training.logbook import TRACK
from sdd_jax.training.programs import Built
from sdd_jax.training.teacher import Teacher, as_normalized, join_teachers, live_teacher, variables_hash
from sdd_jax.training.teacher_cache import read_header

STEPS_PER_CALL = 50  # on accelerators; 1 on CPU, where XLA's convolutions are slow inside a loop


def check(config: Mapping[str, Any]) -> Settings:
    """The config as settings, with every name in it known; ``ValueError`` says which field is wrong, and how."""
    settings = read(config)
    if settings["model.teacher"] != ENSEMBLE:
        for name in ("teacher.runs", "teacher.weights", "teacher.mean"):
            if settings[name] is not None:
                raise ValueError(
                    f"{name} goes with teacher={ENSEMBLE}, and the teacher is {settings['model.teacher']!r}"
                )
    settings["data.num_classes"] = described(settings).num_classes
    names = ("path", "image_size", "augment", "on_bad_image", "randaugment")
    on_disk = {name: settings[f"data.{name}"] for name in names}
    settings["data.in_memory"] = data.decides_in_memory(settings["data.name"], settings["data.in_memory"], **on_disk)
    make_parts(settings, settings["data.num_classes"])
    if from_disk(settings) and (steps := settings["steps_per_call"]) > 1:
        raise ValueError(f"steps_per_call must be 1 for images that are read from disk; got {steps}")
    if settings["track"] is not None:
        own_function(settings["track"], "track", TRACK)
    known, settings["model.init_digest"] = settings["model.init_digest"], None
    if settings["model.init"] is not None:
        with named_field("model.init"):
            settings["model.init_digest"] = find_digest(Path(settings["model.init"]))
    if known not in (None, now := settings["model.init_digest"]):
        raise ValueError(f"model.init_digest is {known!r}, that of model.init {settings['model.init']!r} is {now!r}")
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
    has_teacher = settings["model.teacher"] not in ("none", CACHE, ENSEMBLE)
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
            made = jax.eval_shape(function, example, example, labels)
            shape, kind = (getattr(made, name, "a structure") for name in ("shape", "dtype"))
            if shape != labels.shape:
                raise ValueError(f"base must return one value per example, {labels.shape}, got {shape}")
            if not jnp.issubdtype(kind, jnp.floating):
                raise ValueError(f"base must return floating numbers, which have a gradient, got {kind}")
        weighting = ("complementary_weight", "consistent_weight", "consistency", "reduction")
        logits = objectives.distill(
            function,
            regions=regions(settings) if method.regions else None,
            sdd={name: settings[f"sdd.{name}"] for name in weighting} if method.regions else None,
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
        if (named := settings["model.teacher"]) in (CACHE, ENSEMBLE):
            raise ValueError(f"reads the head of the teacher, and teacher {named!r} has none")
        shape = jax.eval_shape(cost, jax.ShapeDtypeStruct((num_classes, 1), jnp.float32))
        if teacher_variables is None:
            return np.full(shape.shape, np.nan, shape.dtype)
        head = teacher_variables["params"].get("head", {})
        if "kernel" not in head:
            raise ValueError(f"reads the head of the teacher, and {settings['model.teacher']} has none of its own")
        if (classes := head["kernel"].shape[-1]) != num_classes:
            raise ValueError(f"reads the head of the teacher, which has {classes} classes, and the data {num_classes}")
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
    for other in all_settings[1:]:
        if differ := [name for name in settings if name != "seed" and other[name] != settings[name]]:
            raise ValueError(f"runs that are trained together differ in seed alone, these in {', '.join(differ)}")
    if settings["model.teacher"] == "none":
        dataset = load_data(settings, skipped)
        return assemble(all_settings, make_parts(settings, dataset.num_classes), dataset, Teacher())
    if settings["model.teacher"] == ENSEMBLE:
        members = [list_members(one) for one in all_settings]
        found = [known_teacher(one) for one in members[0]]
        dataset = load_data(settings, skipped)
        parts = make_parts(settings, dataset.num_classes)
        check_needs(settings, parts.objective.needs)
        groups = zip(zip(*members, strict=True), found, strict=True)
        caches = sum(one["teacher.cache"] is not None for one in members[0])
        teachers = [make_teacher(group, known, parts.objective, dataset, caches)[0] for group, known in groups]
        weights = read_weights(settings["teacher.weights"], len(teachers))
        joined = join_teachers(teachers, weights, settings["teacher.mean"] or MEANS[0])
        stores = ",".join(one.stores or NONE for one in teachers) if any(one.stores for one in teachers) else None
        joined = joined._replace(digest=digest([one.digest for one in teachers]), stores=stores)
        return assemble(all_settings, parts, dataset, joined)
    known = known_teacher(settings)
    dataset = load_data(settings, skipped)
    parts = make_parts(settings, dataset.num_classes, known[1] if settings["model.teacher"] != CACHE else None)
    return assemble(all_settings, parts, dataset, *make_teacher(all_settings, known, parts.objective, dataset))


def known_teacher(settings: Settings) -> tuple[Any, ...]:
    """What is known of a teacher without the data: of ``read_teacher``, or of ``cache_alone``."""
    return cache_alone(settings) if settings["model.teacher"] == CACHE else read_teacher(settings)


def make_teacher(
    all_settings: Sequence[Settings],
    known: tuple[Any, ...],
    objective: objectives.Objective,
    dataset: AnyDataset,
    caches: int = 1,
) -> tuple[Teacher, float | None, float | None]:
    """A teacher for all seeds, live or one of so many ``caches``.

    With it its test accuracy (0 to 1), and the one stated (in percent), if any.
    """
    settings = all_settings[0]
    if settings["model.teacher"] == CACHE:
        (key, layout), accuracy, stated = known, None, settings["teacher.accuracy"]
    else:
        saved, variables, stated = known
        network = make_parts(settings, dataset.num_classes).teacher
        seen = seen_by(saved, dataset)
        accuracy = measure_teacher(settings, network, saved, variables, stated, seen)
        if settings["teacher.cache"] is None:
            folded = folded_variables(settings, network, variables, dataset)
            live = live_teacher(network, folded, objective.regions, as_normalized(dataset, seen))
            known_as = {"name": settings["model.teacher"], "digest": variables_hash(variables)}
            return live._replace(**known_as), accuracy, stated
        store = read_header(Path(settings["teacher.cache"]))["store"]
        key, layout = network_key(settings, variables), cache_layout(settings, network, dataset, store)
        dataset = seen
    steps = steps_per_call(settings)
    teacher, noted = ask_cache(all_settings, key, layout, dataset, objective.needs, steps, caches)
    teacher = teacher._replace(name=key.get("name", settings["model.teacher"]), digest=digest(key))
    return teacher, noted if accuracy is None else accuracy, stated


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
    with named_field("model.init"):
        initial = read_initial(settings, parts.model, dataset)
    total = optim.total_steps(settings["epochs"], len(dataset.train.index), settings["batch_size"])
    if (traced := settings["profile_steps"]) and traced[0] >= total:
        raise ValueError(f"profile_steps must begin before the last of the run's {total} steps; got {traced}")
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
        initial=initial,
        ema_decay=settings["optim.ema_decay"],
        mixing=mixing(settings),
        **{name: settings[name] for name in same},
    )
    return [make(config=one.nested(), seed=one["seed"]) for one in all_settings]
