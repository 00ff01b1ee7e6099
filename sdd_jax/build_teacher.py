"""From a config to the teacher of its runs: out of its run's folder, held against its accuracy, live or in a cache.

A cache is filled by such a network, or by a function of the user's, of which the cache is then all that is known.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sdd_jax import data, processes, saved
from sdd_jax.config import CACHE, ENSEMBLE, NONE, Settings, image_dtype, regions, teacher_dtype
from sdd_jax.data import AnyDataset
from sdd_jax.files import check_fields
from sdd_jax.mesh import make_mesh
from sdd_jax.metrics import same_accuracy
from sdd_jax.models import same_network
from sdd_jax.models.classifier import CLASS_TOKEN, first_rngs
from sdd_jax.models.layers import fold
from sdd_jax.saved import Saved
from sdd_jax.training import run_dir
from sdd_jax.training.foreign import ForeignTeacher, answer, answer_rows, layout_of, measure_accuracy
from sdd_jax.training.loop import make_evaluator
from sdd_jax.training.teacher import Teacher, cached_teacher, make_compute, variables_hash
from sdd_jax.training.teacher_cache import HEADER, Cache, Layout, read_header
from sdd_jax.training.views import make_pictures, views_header

MEASURED = "measured.json"


def read_teacher(settings: Settings) -> tuple[Saved, dict[str, Any], float | None]:
    """The network of ``teacher.run``, its variables by ``teacher.checkpoint``, and their stated test accuracy, if any.

    That is, in percent, ``teacher.accuracy``; else, of a run on the same data, what it ended with; else, of an imported
    network, ``teacher.published``.
    """
    name = settings["model.teacher"]
    if settings["teacher.run"] is None:
        raise ValueError(
            f"teacher.run must name the folder of a trained {name}: train one (teacher=none,student={name} in the "
            "config's argument, of the quickstart run=teacher) or import one (sdd import --help), and give its folder; "
            "or, where a cache is all there is, say teacher=cache"
        )
    folder = Path(settings["teacher.run"])
    found, done = run_dir.read_network(folder)["model"], run_dir.read_done(folder)
    if done is None:
        raise ValueError(f"teacher.run {folder} has not finished: start its command again to go on with it")
    if not same_network(found["student"], name) or found["stem"] != settings["model.stem"]:
        got = f"{found['student']} with the {found['stem']} stem"
        raise ValueError(f"teacher.run {folder} holds {got}; model.teacher is {name} with {settings['model.stem']}")
    teacher = saved.read(folder, [name])
    stated, fields = settings["teacher.accuracy"], teacher.data
    weights = settings["teacher.checkpoint"] or "last"
    if stated is None and fields is None:
        stated = settings["teacher.published"]
    elif stated is None and fields:
        names = ["name", "image_size", "in_memory", "augment"]
        if settings["data.name"] not in data.INFO:  # sets of one's own go by their path
            names.append("path")
        # Runs of before data.in_memory read images as they do that have it False.
        if all((fields.get(name) or None) == (settings[f"data.{name}"] or None) for name in names):
            result = saved.result_of(done, weights)
            stated = None if result is None else 100 * result["accuracy"]
    return teacher, saved.load_variables(folder, weights), stated


def measure_teacher(
    settings: Settings, network: Any, teacher: Saved, variables: Any, stated: float | None, dataset: AnyDataset
) -> float:
    """The test accuracy (0 to 1) of ``network`` with the variables of ``teacher``.

    It is measured once, and kept in the teacher's folder by the variables, the test images and the dtype.
    ``ValueError`` if the network does not fit the data, or is off ``stated`` (in percent) by more than 0.1 points.
    """
    saved.check_fits(teacher, variables, dataset)
    note = teacher.other_size(dataset.name, dataset.image_shape)
    if note is not None and processes.is_first():
        print(f"teacher: {note}", file=sys.stderr, flush=True)
    pixels = f"{dataset.fingerprint('test')} normalised by {dataset.mean} {dataset.std}"
    key = f"{variables_hash(variables)} on {pixels} in {teacher_dtype(settings)}"
    run_dir.check_processes({"teacher": key})

    def kept():
        return (run_dir.read_sealed(teacher.folder, MEASURED) or {"results": {}})["results"]

    def keep():  # the folder may be somebody else's
        try:
            run_dir.write_sealed(teacher.folder, MEASURED, {"results": kept() | {key: results}})
        except OSError as error:
            path = teacher.folder / MEASURED
            print(f"{path} cannot be written: the next start measures it again ({error.strerror})", file=sys.stderr)

    # The code of a user's own network may change under the same weights.
    results = None if ":" in teacher.name else processes.from_first(lambda: kept().get(key))
    if results is None:  # measured by all processes together
        if processes.is_first():
            print(f"measuring the teacher on {len(dataset.test.index):,} test images", flush=True)
        evaluator = make_evaluator(network, dataset.test, dataset, make_mesh(), image_dtype(settings))
        results = {"accuracy": evaluator(variables)["accuracy"]}
        processes.from_first(keep)
    _check_accuracy(results["accuracy"], stated, note)
    return results["accuracy"]


def _check_accuracy(accuracy: float, stated: float | None, note: str | None = None) -> None:
    """``ValueError``, which ends in ``note``, if ``accuracy`` (0 to 1) is off ``stated`` (in percent)."""
    if stated is not None and not same_accuracy(accuracy, stated / 100):
        measured = 100 * accuracy
        raise ValueError(
            f"the teacher's test accuracy is {measured:.2f} %, stated is {stated:.2f} %: wrong weights, data or "
            "normalisation? If this very teacher is meant, state its accuracy: "
            f"--config.teacher.accuracy={measured:.2f}" + (f". {note}" if note is not None else "")
        )


def folded_variables(settings: Settings, network: Any, variables: Any, dataset: AnyDataset) -> dict[str, Any]:
    """What the teacher is asked with, live and for a cache: batch normalisations folded into its convolutions."""
    return fold(network, variables, jax.ShapeDtypeStruct((1, *dataset.image_shape), image_dtype(settings)))


def cache_layout(settings: Settings, network: Any, dataset: AnyDataset, store: str) -> Layout:
    """Which rows of the teacher ``network`` this config's runs read of a cache with this ``store``."""
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), image_dtype(settings))
    outputs, _ = jax.eval_shape(partial(network.init_with_output, train=False), first_rngs(jax.random.key(0)), images)
    return Layout.of_map(regions(settings), outputs.logit_map.shape[1:3], store, CLASS_TOKEN in outputs.feature_maps)


def network_key(settings: Settings, variables: Any) -> dict[str, Any]:
    """Which teacher a cache is of that a network fills."""
    return {"variables": variables_hash(variables), "dtype": teacher_dtype(settings)}


def cache_header(key: dict[str, Any], dataset: AnyDataset, layout: Layout, store: str) -> dict[str, Any]:
    """What a cache is of: it serves a run whose header is the same. ``key`` says of which teacher."""
    return {
        "teacher": key,
        "data": {"train": dataset.fingerprint("train"), "mean": list(dataset.mean), "std": list(dataset.std)},
        "views": views_header(dataset),
        "rows": {"count": layout.rows, **layout.cache_key()},
        "num_classes": dataset.num_classes,
        "store": store,
    }


class Filler(NamedTuple):
    """Who fills a cache: which teacher it is, what is kept of it, and ``compute(index, view)`` of a batch's rows."""

    key: dict[str, Any]
    layout: Layout
    compute: Any


def fill_by_network(
    settings: Settings, network: Any, variables: Any, dataset: AnyDataset, store: str, batch: int
) -> Filler:
    """The teacher of ``teacher.run``."""
    layout = cache_layout(settings, network, dataset, store)
    folded = folded_variables(settings, network, variables, dataset)
    compute = make_compute(network, folded, dataset, layout, image_dtype(settings), batch)
    return Filler(network_key(settings, variables), layout, compute)


def fill_by_function(
    settings: Settings, teacher: ForeignTeacher, dataset: AnyDataset, store: str, batch: int
) -> Filler:
    """A teacher that is a function; it is asked once to see what it gives."""
    asked, pictures = regions(settings), make_pictures(dataset)

    def ask(index, view):
        return answer(teacher, pictures(index, view), dataset, asked)

    shape = ask(np.full(batch, dataset.train.index[0]), np.zeros(batch, np.int64)).shape[1:]
    layout = layout_of(shape, asked, store)

    def compute(index, view):
        given = ask(index, view)
        if given.shape[1:] != shape:
            raise ValueError(f"{teacher.name} gave {list(shape)} for an image first, and now {list(given.shape[1:])}")
        return answer_rows(given, layout)

    key = {"name": teacher.name, "digest": teacher.digest, "images": teacher.images, "shape": list(shape)}
    return Filler(key, layout, compute)


def foreign_accuracies(
    settings: Settings, teacher: ForeignTeacher, folder: Path, header: dict[str, Any], dataset: AnyDataset, batch: int
) -> dict[str, float]:
    """The test accuracy (0 to 1) of a function by the fingerprint of the test images, and those that its cache keeps.

    Measured unless it stands in the cache beside views, and to be kept there. ``ValueError`` if it is off what is
    stated, or if the folder has another's cache.
    """
    cache = Cache(folder, header) if (folder / HEADER).exists() else None
    known = _noted_accuracies(cache) if cache is not None and cache.shards() else {}
    key = dataset.fingerprint("test")
    if key not in known:
        known[key] = measure_accuracy(teacher, dataset, regions(settings), batch)
    _check_accuracy(known[key], settings["teacher.accuracy"])
    return known


def _noted_accuracies(cache: Cache) -> dict[str, float]:
    """By the fingerprint of the test images; none of a cache that a network filled."""
    return (cache.noted(MEASURED) or {"results": {}})["results"]


def cache_alone(settings: Settings) -> tuple[dict[str, Any], Layout]:
    """Which teacher the cache of ``teacher.cache`` is of, by its own word, and what this config's runs read of it."""
    if settings["teacher.cache"] is None:
        raise ValueError("the teacher is 'cache': teacher.cache must name a folder that cache --teacher=... filled")
    folder = Path(settings["teacher.cache"])
    header = read_header(folder)
    if isinstance(key := header.get("teacher"), dict) and "variables" in key:
        raise ValueError(f"{folder} was filled by the network of a run: name both, teacher.run and its network")
    fields = {"teacher.name": str, "teacher.digest": str, "teacher.images": str, "teacher.shape": list}
    shape = check_fields(header, fields, str(folder / HEADER))["teacher"]["shape"]
    if len(shape) not in (1, 2, 3) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"{folder / HEADER}: teacher.shape must be [h,w,K], [R,K] or [K], got {shape}")
    return header["teacher"], layout_of(tuple(shape), regions(settings), header["store"])


def list_members(settings: Settings) -> list[Settings]:
    """The settings of each teacher of an ensemble: those of ``teacher.runs``, or of ``teacher.cache`` alone."""
    for name in ("teacher.run", "teacher.accuracy", "teacher.published"):
        if settings[name] is not None:
            raise ValueError(f"the teacher is {ENSEMBLE!r}, of those in teacher.runs: leave {name} out")
    runs, caches = (_listed(settings[name]) for name in ("teacher.runs", "teacher.cache"))
    if len(runs) < 2:
        raise ValueError(
            f"teacher.runs must name the folders of two teachers or more, a,b; got {settings['teacher.runs']}"
        )
    caches = caches or [None] * len(runs)
    if len(caches) != len(runs):
        raise ValueError(f"teacher.cache must name a cache, or none, for each of teacher.runs: got {caches} for {runs}")
    return [_member(settings, run, cache) for run, cache in zip(runs, caches, strict=True)]


def _member(settings: Settings, run: str | None, cache: str | None) -> Settings:
    network = CACHE
    if run is not None:
        network = run_dir.read_network(Path(run))["model"]["student"]
        if ":" in network:  # code that a folder names, and nobody else
            raise ValueError(f"{run} holds {network}, a network of your own: fill a cache by a function that asks it")
    elif cache is None:
        raise ValueError("teacher.runs has none where teacher.cache has no cache: nobody would teach")
    of_one = {"model.teacher": network, "teacher.run": run, "teacher.cache": cache, "teacher.runs": None}
    return Settings(settings | of_one)


def _listed(text: str | None) -> list[str | None]:
    return [None if name == NONE else name for name in text.split(",")] if text else []


def read_weights(text: str | None, count: int) -> list[float]:
    """The weight of each of ``count`` teachers, of ``teacher.weights``; all alike where it is unset."""
    try:
        weights = [float(one) for one in text.split(",")] if text else [1.0] * count
    except ValueError:
        weights = []
    if len(weights) != count or not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"teacher.weights must be {count} numbers above 0, such as 2,1; got {text!r}")
    return weights


def check_needs(settings: Settings, needs: frozenset[str], layout: Layout | None = None) -> None:
    """``ValueError`` if the method reads what a cache's rows of this ``layout``, or an ensemble, do not have."""
    method = f"method {settings['method']!r} reads the teacher's"
    if lacking := needs - {"logits", "region_logits"}:
        has = f"an {ENSEMBLE} has logits alone" if layout is None else "no cache holds that"
        raise ValueError(f"{method} {', '.join(lacking)}: {has}")
    if layout is not None and "region_logits" in needs and not layout.has_regions:
        raise ValueError(
            f"{method} region_logits, and it gives logits of whole images alone: take a method without 'sdd_', "
            "sdd.scales=1, or a teacher with a logit map"
        )


def ask_cache(
    all_settings: Sequence[Settings],
    key: dict[str, Any],
    layout: Layout,
    dataset: AnyDataset,
    needs: frozenset[str],
    steps: int,
    caches: int,
) -> tuple[Teacher, float | None]:
    """The teacher of ``teacher.cache``, of so many ``caches``, for all seeds, and the test accuracy noted, if any.

    ``ValueError`` if the cache is another's than ``key`` says, or lacks what they need.
    """
    settings = all_settings[0]
    check_needs(settings, needs, layout)
    folder = Path(settings["teacher.cache"])
    cache = Cache(folder, cache_header(key, dataset, layout, read_header(folder)["store"]))
    cache.check_files()
    length = {"epochs": settings["epochs"], "batch_size": settings["batch_size"], "steps_per_call": steps}
    seeds = [one["seed"] for one in all_settings]
    teacher = cached_teacher(cache, layout, dataset, seeds=seeds, caches=caches, **length)
    if (noted := _noted_accuracies(cache).get(dataset.fingerprint("test"))) is not None:
        _check_accuracy(noted, settings["teacher.accuracy"])
    return teacher, noted
