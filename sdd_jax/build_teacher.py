"""From a config to the teacher of its runs: out of its run's folder, held against its accuracy, live or in a cache."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from sdd_jax import data, processes, saved
from sdd_jax.config import Settings, image_dtype, regions, teacher_dtype
from sdd_jax.data import AnyDataset, Dataset
from sdd_jax.data.augment import num_views
from sdd_jax.mesh import make_mesh
from sdd_jax.models.classifier import CLASS_TOKEN
from sdd_jax.models.layers import fold
from sdd_jax.saved import Saved
from sdd_jax.training import run_dir
from sdd_jax.training.loop import make_evaluator
from sdd_jax.training.teacher import Teacher, cached_teacher, variables_hash
from sdd_jax.training.teacher_cache import Cache, Layout, read_header

MEASURED = "measured.json"
TOLERANCE = 0.1  # percentage points


def read_teacher(settings: Settings) -> tuple[Saved, dict[str, Any], float | None]:
    """The network of ``teacher.run``, its variables after the last step, and the test accuracy stated for them, if any.

    That is, in percent, ``teacher.accuracy``; else, of a run on the same data, what it ended with; else, of an imported
    network, ``teacher.published``.
    """
    name = settings["model.teacher"]
    if settings["teacher.run"] is None:
        raise ValueError(
            f"teacher.run must name the folder of a trained {name}: train one (teacher=none,student={name} in the "
            "config's argument) or import one (sdd import --help), and give its --workdir"
        )
    folder = Path(settings["teacher.run"])
    found, done = run_dir.read_network(folder)["model"], run_dir.read_done(folder)
    if done is None:
        raise ValueError(f"teacher.run {folder} has not finished: start its command again to go on with it")
    if found["student"] != name or found["stem"] != settings["model.stem"]:
        got = f"{found['student']} with the {found['stem']} stem"
        raise ValueError(f"teacher.run {folder} holds {got}; model.teacher is {name} with {settings['model.stem']}")
    teacher = saved.read(folder, [name])
    stated, fields = settings["teacher.accuracy"], teacher.data
    if stated is None and fields is None:
        stated = settings["teacher.published"]
    elif stated is None and fields:
        names = ["name", "image_size", "in_memory", "augment"]
        if settings["data.name"] not in data.INFO:  # sets of one's own go by their path
            names.append("path")
        # Runs of before data.in_memory read images as they do that have it False.
        if all((fields.get(name) or None) == (settings[f"data.{name}"] or None) for name in names):
            stated = 100 * done["last"]["accuracy"]
    return teacher, saved.load_variables(folder, saved.step_of(folder, "last")), stated


def measure_teacher(
    settings: Settings, network: Any, teacher: Saved, variables: Any, stated: float | None, dataset: AnyDataset
) -> float:
    """The test accuracy (0 to 1) of ``network`` with the variables of ``teacher``.

    It is measured once, and kept in the teacher's folder by the variables, the test images and the dtype.
    ``ValueError`` if the network does not fit the data, or is off ``stated`` (in percent) by more than 0.1 points.
    """
    saved.check_fits(teacher, variables, dataset)
    note = teacher.other_size(dataset.name, dataset.image_shape[0])
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
    measured = 100 * results["accuracy"]
    if stated is not None and abs(measured - stated) > TOLERANCE + 1e-9:
        raise ValueError(
            f"the teacher's test accuracy is {measured:.2f} %, stated is {stated:.2f} %: wrong weights, data or "
            "normalisation? If this very teacher is meant, state its accuracy: "
            f"--config.teacher.accuracy={measured:.2f}" + (f". {note}" if note is not None else "")
        )
    return results["accuracy"]


def folded_variables(settings: Settings, network: Any, variables: Any, dataset: AnyDataset) -> dict[str, Any]:
    """What the teacher is asked with, live and for a cache: batch normalisations folded into its convolutions."""
    return fold(network, variables, jax.ShapeDtypeStruct((1, *dataset.image_shape), image_dtype(settings)))


def cache_layout(settings: Settings, network: Any, dataset: Dataset) -> Layout:
    """Which rows of the teacher ``network`` this config's runs read."""
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), image_dtype(settings))
    outputs, _ = jax.eval_shape(partial(network.init_with_output, train=False), jax.random.key(0), images)
    asked = regions(settings)
    return Layout(asked, asked.grid(*outputs.logit_map.shape[1:3]), CLASS_TOKEN in outputs.feature_maps)


def cache_header(settings: Settings, variables: Any, dataset: Dataset, layout: Layout, store: str) -> dict[str, Any]:
    """What a cache is of: it serves a run whose header is the same."""
    return {
        "teacher": {"variables": variables_hash(variables), "dtype": teacher_dtype(settings)},
        "data": {"train": dataset.fingerprint("train"), "mean": list(dataset.mean), "std": list(dataset.std)},
        "views": {"pad": dataset.pad, "flip": dataset.flip, "count": num_views(dataset.pad, dataset.flip)},
        "rows": {"count": layout.rows, **layout.cache_key()},
        "num_classes": dataset.num_classes,
        "store": store,
    }


def ask_cache(
    all_settings: Sequence[Settings], network: Any, variables: Any, dataset: Dataset, needs: frozenset[str], steps: int
) -> Teacher:
    """The teacher of ``teacher.cache`` for all seeds; ``ValueError`` if it is another's, or lacks what they need."""
    settings = all_settings[0]
    if lacking := needs - {"logits", "region_logits"}:
        raise ValueError(f"method {settings['method']!r} reads the teacher's {', '.join(lacking)}: no cache holds that")
    folder = Path(settings["teacher.cache"])
    layout = cache_layout(settings, network, dataset)
    cache = Cache(folder, cache_header(settings, variables, dataset, layout, read_header(folder)["store"]))
    cache.check_files()
    length = {"epochs": settings["epochs"], "batch_size": settings["batch_size"], "steps_per_call": steps}
    return cached_teacher(cache, layout, dataset, seeds=[one["seed"] for one in all_settings], **length)
