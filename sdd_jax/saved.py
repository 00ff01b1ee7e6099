"""Networks in run folders, trained there or imported, with their variables and the data they are tested on."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdd_jax import data
from sdd_jax.data import AnyDataset
from sdd_jax.fields import AVERAGE, DTYPES, SAVED
from sdd_jax.models import create_model
from sdd_jax.models.classifier import first_rngs
from sdd_jax.own import check_allowed
from sdd_jax.sealed import Damaged
from sdd_jax.training import run_dir
from sdd_jax.training.checkpoint import Checkpoints, check_finite
from sdd_jax.training.logbook import EMA

WHICH = SAVED[:2]  # what every run that was evaluated has
CHECKPOINT = "Which weights: after the last step, the best, or their average at the end."  # the flag's help
LISTED = 8  # how many tensors of another network's weights that do not fit are named


class Saved(NamedTuple):
    """The network in a run's folder."""

    folder: Path
    name: str
    stem: str
    num_classes: int
    dtype: str
    data: Mapping[str, Any] | None  # the config's fields of ``data``; None for an imported network
    model: Any
    image_size: int | None = None  # the side of the images that it was trained on; None: nobody knows

    @property
    def image_dtype(self) -> Any:
        """What images are normalised in: at least float32."""
        return jnp.promote_types(DTYPES[self.dtype], jnp.float32)

    def in_dtype(self, dtype: str) -> "Saved":
        """The same network, computing in ``dtype``."""
        return self._replace(dtype=dtype, model=create_model(self.name, self.num_classes, self.stem, DTYPES[dtype]))

    def own_data(self, name: str) -> dict[str, Any] | None:
        """What the run notes of its data if that is the set called ``name``; None if nothing."""
        return run_dir.read_data(self.folder) if self.data and name == self.data["name"] else None

    def data_fields(
        self, name: str | None = None, path: str | None = None, image_size: int | None = None
    ) -> Mapping[str, Any]:
        """The fields of ``data`` that show it a set: its run's, with another ``path`` or ``image_size`` if given.

        Another set by ``name``, and any set of an imported network, has images of the size that it was trained on, if
        the set lies on disk. ``ValueError`` if there is no name.
        """
        if self.data and name in (None, self.data["name"]):
            given = {"path": path, "image_size": image_size}
            # A run of before there was the choice read what lies on disk from there.
            before = {"in_memory": False if data.on_disk(self.data["name"]) else None}
            return {**before, **self.data, **{field: value for field, value in given.items() if value is not None}}
        if name is None:
            known = f"{', '.join((*data.INFO, data.ARRAYS, data.FOLDER))} and {data.PREFIX}NAME"
            raise ValueError(
                f"{self.folder} holds an imported network, which names no data: add --data, one of {known}"
            )
        data.check_name(name)
        if image_size is None and data.on_disk(name):
            image_size = self.image_size
        fields = {"path": path, "image_size": image_size}
        return {"name": name, "in_memory": data.decides_in_memory(name, None, **fields), **fields}

    def other_size(self, name: str, shape: Sequence[int]) -> str | None:
        """What there is to say of images ``[H, W, C]`` of the set ``name``, if the network may know other sizes."""
        known = self.image_size is not None
        if {*shape[:2]} == {self.image_size} or not (known or data.on_disk(name)):
            return None
        these = f"these images have {shape[0]}x{shape[1]}"
        if not known:
            return f"{self.folder} does not say which size it was trained at, {these} pixels"
        return f"{self.folder} was trained at {self.image_size}x{self.image_size} pixels, {these}"


def find_folders(path: Path) -> list[Path]:
    """``path`` if it is a run's folder, else the folders of the runs below it."""
    if (path / run_dir.CONFIG).is_file():
        return [path]
    return sorted(config.parent for config in path.rglob(run_dir.CONFIG))


def read(folder: Path, allow: Collection[str] = ()) -> Saved:
    """The network of the run in ``folder``; ``ValueError`` if there is none or its name is not known.

    A network by MODULE:FUNCTION is code: it must be in ``allow``, what the user named, and not in the folder.
    """
    config = run_dir.read_network(folder)
    fields = None if "imported" in config else config["data"]
    name, stem, dtype = (config["model"][field] for field in ("student", "stem", "dtype"))
    check_allowed(name, folder, allow)
    try:
        if dtype not in DTYPES:
            raise ValueError(f"model.dtype: unknown {dtype!r}, known are {', '.join(DTYPES)}")
        if fields is not None:
            data.check_name(fields["name"])
        num_classes, size = (config if fields is None else fields)["num_classes"], config.get("image_size")
        if fields is not None and fields["name"] == data.ARRAYS:  # the file may have been moved
            shape = (run_dir.read_data(folder) or {"image_shape": ()})["image_shape"][:2]
            size = shape[0] if len({*shape}) == 1 else None
        elif fields is not None:
            given = {"image_size": fields.get("image_size"), "num_classes": num_classes}
            size = data.describe(fields["name"], path=fields.get("path"), **given).image_shape[0]
        model = create_model(name, num_classes, stem, DTYPES[dtype])
        if size is not None and size < 1:
            raise ValueError(f"image_size must be at least 1, got {size}")
    except ValueError as error:
        raise ValueError(f"{folder / run_dir.CONFIG}: {error}") from error
    return Saved(folder, name, stem, num_classes, dtype, fields, model, size)


def load_test_data(
    network: Saved, name: str | None = None, path: str | None = None, image_size: int | None = None
) -> AnyDataset:
    """The data set to test a network on: the run's own, in its place, unless an argument says otherwise."""
    fields = network.data_fields(name, path, image_size)
    names = {"path", "image_size", "in_memory", "augment", "workers"} & fields.keys()
    dataset = data.load(fields["name"], select_on="test", **{field: fields[field] for field in names})
    return dataset if network.own_data(fields["name"]) is None else seen_by(network, dataset)  # the file may be another


def check_names(folder: Path, names: Sequence[str], dataset: AnyDataset) -> None:
    """``ValueError`` if a class of the run in ``folder`` has another number in ``dataset``."""
    numbers = {name: number for number, name in enumerate(dataset.class_names)}
    for number, name in enumerate(names):
        if (other := numbers.get(name, number)) != number:
            raise ValueError(
                f"class {name!r} is number {number} of {folder} and number {other} of {dataset.name}: the classes must "
                f"be in one order, {', '.join(names[:5])}{' ...' * (len(names) > 5)}"
            )


def seen_by(network: Saved, dataset: AnyDataset) -> AnyDataset:
    """``dataset`` normalised as the images that the network was trained on, if its run notes how.

    ``ValueError`` if the classes have another order.
    """
    noted = run_dir.read_data(network.folder)
    if noted is None or len(noted["mean"]) != dataset.image_shape[-1]:  # the latter does not fit, which is said later
        return dataset
    check_names(network.folder, noted["class_names"], dataset)
    return dataclasses.replace(dataset, mean=tuple(noted["mean"]), std=tuple(noted["std"]))


def checkpoints(folder: Path) -> Checkpoints:
    """The checkpoints of the run in ``folder``, and no other's."""
    return Checkpoints(folder / run_dir.CHECKPOINTS, run_dir.owner(run_dir.read_config(folder)))


def read_results(folder: Path) -> dict[str, Any]:
    """``last`` and ``best`` results of a run, as noted at its end, or in its newest checkpoint if it has not ended."""
    if (done := run_dir.read_done(folder)) is not None:
        return done
    found = checkpoints(folder)
    if not (steps := found.steps()):
        raise ValueError(f"{folder} has no checkpoint yet")
    return found.manifest(steps[-1])["progress"]


def step_of(folder: Path, which: str) -> int:
    """The step of ``SAVED`` weights of a run; ``ValueError`` if they are not there: none stand for them."""
    last, found = read_results(folder)["steps"], checkpoints(folder)
    return found.best(last) if which == "best" else found.manifest(last)["step"]


def check_finished(folder: Path) -> None:
    """``ValueError`` if a finished run lacks its last or best checkpoint, or one of them is not whole."""
    try:
        for which in WHICH:
            checkpoints(folder).verify(step_of(folder, which))
    except Damaged as error:
        raise Damaged(
            f"{folder} has finished, but {error}. Without its {run_dir.DONE} the same command goes on from the newest "
            "whole checkpoint"
        ) from error


def load_variables(folder: Path, which: str) -> dict[str, Any]:
    """The student's variables of a run, of one of ``SAVED``; ``ValueError`` if they are not there.

    A run with ``optim.ema_decay`` has the "average", their moving average after the last step.
    """
    return checkpoints(folder).load_variables(step_of(folder, which), averaged=which == AVERAGE)


def result_of(results: Mapping[str, Any], which: str) -> dict[str, Any] | None:
    """What ``read_results`` says of one of ``SAVED``: ``accuracy`` and more; None if they were not measured."""
    if which != AVERAGE:
        return results[which]
    last = results["last"] or {}
    return {name.removeprefix(EMA): value for name, value in last.items() if name.startswith(EMA)} or None


def check_fits(saved: Saved, variables: Any, dataset: Any) -> None:
    """``ValueError`` unless ``variables`` are those of the network for the images and classes of ``dataset``."""
    misfit = f"the network of {saved.folder} does not fit {dataset.name} (images {dataset.image_shape}, "
    misfit += f"{dataset.num_classes} classes)"
    if saved.num_classes != dataset.num_classes:
        raise ValueError(f"{misfit}: it has {saved.num_classes} classes")
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    wanted = jax.eval_shape(partial(saved.model.init, train=False), first_rngs(jax.random.key(0)), images)
    found_leaves, wanted_leaves = (dict(jax.tree_util.tree_flatten_with_path(tree)[0]) for tree in (variables, wanted))
    for path in wanted_leaves.keys() | found_leaves.keys():
        found, want = (getattr(leaves.get(path), "shape", None) for leaves in (found_leaves, wanted_leaves))
        if found != want:
            raise ValueError(f"{misfit}: {jax.tree_util.keystr(path)} has shape {found}, expected {want}")


def in_one_line(file: str | PathLike[str], error: ValueError) -> str:
    """What ``from_state_dict`` says of the tensors of ``file``: of many that do not fit the first ones."""
    first, *lines = str(error).splitlines()
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "; ".join([f"{file}: {first}", *lines[:LISTED], *more])


def write_imported(
    folder: str | PathLike[str],
    *,
    name: str,
    stem: str,
    num_classes: int,
    variables: Any,
    source: Mapping[str, Any],
    image_size: int | None = None,
) -> None:
    """Makes ``folder`` a run's folder with ``variables``, for ``teacher.run``, ``evaluate`` and ``export``.

    The same import again is fine; ``ValueError`` if ``folder`` holds anything else, or for a wrong argument. ``source``
    says where the variables come from, JSON-ready, such as file name and SHA-256; ``image_size`` is the side of the
    images that they were trained on, None if nobody knows.
    """
    folder = Path(folder)
    if not isinstance(variables, Mapping) or "params" not in variables or variables.keys() - {"params", "batch_stats"}:
        got = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(f'variables must be {{"params": ..., "batch_stats": ...}}, got {got}')
    create_model(name, num_classes, stem)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    check_finite(variables, source.get("file", "variables"))
    try:
        json.dumps(dict(source))
    except TypeError as error:
        raise ValueError(f"source must be JSON-ready: {error}") from error
    network = {"student": name, "stem": stem, "dtype": "float32"}
    size = {} if image_size is None else {"image_size": image_size}
    run_dir.open_folder(folder, {"imported": dict(source), "model": network, "num_classes": num_classes, **size})
    if run_dir.read_done(folder) is not None:
        return
    writer, progress = checkpoints(folder), {"steps": 0, "last": {"step": 0}, "best": {"step": 0}}
    state = {"params": {"student": variables["params"]}, "batch_stats": variables.get("batch_stats", {})}
    writer.save(state, 0, progress)
    writer.close()
    run_dir.write_sealed(folder, run_dir.DONE, progress)
