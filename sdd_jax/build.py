"""From a config to what a run is made of: networks, objective, optimizer, data, teacher.

``check`` says what is wrong with a config before anything compiles or is written; ``build`` also loads data and
teacher.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sdd_jax import data, losses, saved
from sdd_jax.config import DTYPES, Settings, read
from sdd_jax.data.augment import num_views
from sdd_jax.data.dataset import Dataset
from sdd_jax.models import create_model
from sdd_jax.models.folding import Folded, fold
from sdd_jax.saved import Saved
from sdd_jax.training import objective as objectives
from sdd_jax.training import optim, run_folder, sharding
from sdd_jax.training.cached_teacher import CachedTeacher
from sdd_jax.training.loop import make_evaluator
from sdd_jax.training.programs import Built
from sdd_jax.training.step import init_state, live_teacher, make_train_step
from sdd_jax.training.teacher import check_accuracy, measured_accuracy, variables_hash
from sdd_jax.training.teacher_cache import Cache, Layout, make_layout, stored_as

BASES = {  # base losses by name, and the fields of config.loss that each reads
    "kd": (losses.kd_loss, ("temperature",)),
    "dkd": (losses.dkd_loss, ("temperature", "alpha", "beta")),
    "nkd": (losses.nkd_loss, ("temperature", "gamma")),
    "nkd_as_released": (losses.nkd_as_released_loss, ("temperature", "gamma")),
}
STEPS_PER_CALL = 50  # on accelerators; 1 on CPU, where XLA's convolutions are slow inside a loop


def check(config: Mapping[str, Any]) -> Settings:
    """The config as settings, with every name in it known; ``ValueError`` says which field is wrong, and how."""
    settings = read(config)
    make_parts(settings, data.INFO[settings["data.name"]].num_classes)
    return settings


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

    method = settings["method"]
    student = network("model.student", settings["model.dtype"])
    if method == "plain":
        return Parts(student, None, objectives.plain())
    function, names = BASES[settings["loss.base"]]
    base = partial(function, **{name: settings[f"loss.{name}"] for name in names})
    sdd = None
    if method.startswith("sdd_"):
        options = ("complementary_weight", "consistent_weight", "consistency", "reduction")
        sdd = {name: settings[f"sdd.{name}"] for name in options}
    objective = objectives.distill(
        base,
        sdd=sdd,
        task_weight=settings["loss.task_weight"],
        distill_weight=settings["loss.distill_weight"],
        warmup_epochs=settings["loss.warmup_epochs"],
    )
    return Parts(student, network("model.teacher", teacher_dtype(settings)), objective)


def teacher_dtype(settings: Settings) -> str:
    """What the teacher computes in: ``teacher.dtype``, or what the student does."""
    return settings["teacher.dtype"] or settings["model.dtype"]


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


def build(config: Mapping[str, Any]) -> Built:
    """Checks ``config``, loads its data and its teacher, and returns what ``train`` takes.

    Raises:
      ValueError: for a config that ``check`` refuses, data that are wrong, or a teacher that is missing, does not fit,
        or is off its stated accuracy by more than 0.1 points.
      FileNotFoundError: for data that are missing; it says how to get them.
    """
    return build_together([config])[0]


def build_together(configs: Sequence[Mapping[str, Any]]) -> list[Built]:
    """``build`` for configs that differ in ``seed`` alone, with one data set and one teacher for all of them."""
    if not configs:
        return []
    all_settings = [check(config) for config in configs]
    settings = all_settings[0]
    if settings["model.teacher"] == "none":
        dataset = load_data(settings)
        return assemble(all_settings, make_parts(settings, dataset.num_classes), dataset, NOBODY)
    network, variables, stated = read_teacher(settings)
    dataset = load_data(settings)
    parts = make_parts(settings, dataset.num_classes)
    accuracy = measure_teacher(settings, network, variables, stated, dataset, sharding.make_mesh())
    if settings["teacher.cache"] is None:
        asked = asked_live(settings, parts, variables, dataset)
    else:
        asked = asked_by_cache(settings, parts, variables, dataset, [one["seed"] for one in all_settings])
    return assemble(all_settings, parts, dataset, asked, teacher_accuracy=accuracy, teacher_stated=stated)


def load_data(settings: Settings) -> Dataset:
    """The data set of the config."""
    return data.load(
        settings["data.name"],
        path=settings["data.path"],
        select_on=settings["data.select_on"],
        train_examples=settings["data.train_examples"],
    )


def assemble(
    all_settings: Sequence[Settings],
    parts: Parts,
    dataset: Dataset,
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
        optimizer=make_optimizer(settings, len(dataset.train.labels)),
        dataset=dataset,
        mesh=sharding.make_mesh(),
        seed=0,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        steps_per_call=steps_per_call(settings),
        eval_every_epochs=settings["eval_every_epochs"],
        save_every_epochs=settings["save_every_epochs"],
        scales=settings["sdd.scales"],
        pooling=settings["sdd.pooling"],
        dtype=image_dtype(settings),
    )
    return [built._replace(config=one.nested(), config_hash=one.hash(), seed=one["seed"]) for one in all_settings]


def steps_per_call(settings: Settings) -> int:
    """How many steps one call of the jitted program takes."""
    return settings["steps_per_call"] or (1 if jax.default_backend() == "cpu" else STEPS_PER_CALL)


def image_dtype(settings: Settings) -> Any:
    """Images are normalised in float32 (float64 for float64 networks); a bfloat16 network casts them itself."""
    return jnp.promote_types(DTYPES[settings["model.dtype"]], jnp.float32)


def read_teacher(settings: Settings) -> tuple[Saved, dict[str, Any], float | None]:
    """The network of ``teacher.run``, its variables after the last step, and the test accuracy stated for them.

    That is, in percent, ``teacher.accuracy``; else, of a run on the same data, what it ended with; else, of an imported
    network, ``teacher.published``. None if there is nothing to hold it against.
    """
    name = settings["model.teacher"]
    if settings["teacher.run"] is None:
        raise ValueError(
            f"teacher.run must name the folder of a trained {name}: train one with teacher=none,student={name} in the "
            "config's argument, or import one (python -m sdd_jax import --help), and give its --workdir as "
            "--config.teacher.run"
        )
    folder = Path(settings["teacher.run"])
    teacher = saved.read(folder)
    done = run_folder.read_done(folder)
    if done is None:
        raise ValueError(f"teacher.run {folder} has not finished: start its command again to go on with it")
    if teacher.name != name or teacher.stem != settings["model.stem"]:
        got = f"{teacher.name} with the {teacher.stem} stem"
        raise ValueError(f"teacher.run {folder} holds {got}; model.teacher is {name} with {settings['model.stem']}")
    stated = settings["teacher.accuracy"]
    if stated is None and teacher.data is None:
        stated = settings["teacher.published"]
    elif stated is None and teacher.data and teacher.data["name"] == settings["data.name"]:
        stated = 100 * done["last"]["accuracy"]
    return teacher, saved.load_variables(folder, done["last"]["step"]), stated


def measure_teacher(
    settings: Settings, teacher: Saved, variables: dict[str, Any], stated: float | None, dataset: Dataset, mesh: Mesh
) -> float:
    """The teacher's test accuracy (0 to 1); ``ValueError`` if it does not fit the data or is off what is stated."""
    saved.check_fits(teacher, variables, dataset)

    def measure():
        model = make_parts(settings, dataset.num_classes).teacher
        return make_evaluator(model, dataset.test, dataset, mesh, image_dtype(settings))(variables)

    pixels = f"{dataset.fingerprint('test')} normalised by {dataset.mean} {dataset.std}"
    key = f"{variables_hash(variables)} on {pixels} in {teacher_dtype(settings)}"
    if ":" in teacher.name:  # of a user's own network the code may change under the same weights
        measured = measure()["accuracy"]
    else:
        measured = measured_accuracy(teacher.folder, key, measure)["accuracy"]
    check_accuracy(100 * measured, stated)
    return measured


class Asked(NamedTuple):
    """A teacher as a step asks it: ``teacher({**arrays, **chunk(seed, step)}, batch) -> Outputs``."""

    teacher: Any
    arrays: Mapping[str, Any]
    chunk: Any


NOBODY = Asked(None, {}, None)


def folded_teacher(settings: Settings, parts: Parts, variables: Any, dataset: Dataset) -> tuple[Folded, dict[str, Any]]:
    """The teacher as it is asked, live and for a cache alike: batch normalisations folded into its convolutions."""
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), image_dtype(settings))
    return fold(parts.teacher, variables, images)


def asked_live(settings: Settings, parts: Parts, variables: Any, dataset: Dataset) -> Asked:
    """The teacher's network itself."""
    folded, arrays = folded_teacher(settings, parts, variables, dataset)
    return Asked(live_teacher(folded, scales=settings["sdd.scales"], pooling=settings["sdd.pooling"]), arrays, None)


def cache_layout(settings: Settings, model: Any, dataset: Dataset) -> Layout:
    """Which rows of the teacher ``model`` this config's runs read."""
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), image_dtype(settings))
    outputs, _ = jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), images)
    return make_layout(outputs.logit_map.shape[1:3], settings["sdd.scales"], settings["sdd.pooling"])


def cache_header(settings: Settings, variables: Any, dataset: Dataset, layout: Layout, store: str) -> dict[str, Any]:
    """What a cache is of: it serves a run whose header is the same."""
    return {
        "teacher": {"variables": variables_hash(variables), "dtype": teacher_dtype(settings)},
        "data": {
            "train": dataset.fingerprint("train"),
            "mean": list(dataset.mean),
            "std": list(dataset.std),
        },
        "views": {"pad": dataset.pad, "flip": dataset.flip, "count": num_views(dataset.pad, dataset.flip)},
        "rows": {"count": layout.rows, **layout.named()},
        "num_classes": dataset.num_classes,
        "store": store,
    }


def asked_by_cache(
    settings: Settings, parts: Parts, variables: Any, dataset: Dataset, seeds: Sequence[int]
) -> CachedTeacher:
    """The teacher of ``teacher.cache`` for these seeds; ``ValueError`` if it is another's, or lacks what they need."""
    lacking = parts.objective.needs - {"logits", "region_logits"}
    if lacking:
        raise ValueError(f"method {settings['method']!r} reads the teacher's {', '.join(lacking)}: no cache holds that")
    folder = Path(settings["teacher.cache"])
    layout = cache_layout(settings, parts.teacher, dataset)
    cache = Cache(folder, cache_header(settings, variables, dataset, layout, stored_as(folder)))
    cache.check_files()
    return CachedTeacher(
        cache,
        layout,
        dataset,
        seeds=seeds,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        steps_per_call=steps_per_call(settings),
    )


def trace(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Traces the training step of ``config`` without data, teacher or compilation: shapes of (state, metrics)."""
    settings = check(config)
    info = data.INFO[settings["data.name"]]
    num_examples = settings["data.train_examples"] or info.train_examples
    parts = make_parts(settings, info.num_classes)
    optimizer = make_optimizer(settings, num_examples)
    teacher, teacher_arrays = None, {}
    dtype, batch_size = image_dtype(settings), settings["batch_size"]
    images = jax.ShapeDtypeStruct((batch_size, *info.image_shape), dtype)
    if parts.teacher is not None:
        teacher = live_teacher(parts.teacher, scales=settings["sdd.scales"], pooling=settings["sdd.pooling"])
        teacher_arrays = jax.eval_shape(partial(parts.teacher.init, train=False), jax.random.key(0), images)
    begin = partial(
        init_state,
        model=parts.model,
        teacher=teacher,
        objective=parts.objective,
        optimizer=optimizer,
        image_shape=info.image_shape,
        num_examples=num_examples,
    )
    state = jax.eval_shape(lambda key, arrays: begin(key, teacher_arrays=arrays), jax.random.key(0), teacher_arrays)
    step = make_train_step(
        parts.model,
        teacher,
        parts.objective,
        optimizer,
        scales=settings["sdd.scales"],
        pooling=settings["sdd.pooling"],
        num_examples=num_examples,
    )
    batch = {"image": images, "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}
    return jax.eval_shape(step, state, teacher_arrays, batch, jax.random.key(0))
