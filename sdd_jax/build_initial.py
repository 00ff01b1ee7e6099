"""From ``model.init`` to the weights that a student begins with: a trained trunk, and its head where that fits."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sdd_jax import saved, sealed
from sdd_jax.config import Settings
from sdd_jax.data import AnyDataset
from sdd_jax.files import read_checkpoint, sha256
from sdd_jax.models import same_network
from sdd_jax.models.classifier import first_rngs
from sdd_jax.torch_io import from_state_dict
from sdd_jax.training import run_dir
from sdd_jax.training.checkpoint import check_finite
from sdd_jax.training.programs import Initial

HEAD = ("params", "head")


def find_digest(place: Path) -> str | None:
    """SHA-256, in hex, of the weights at ``place``: of a file, or of the last checkpoint of a finished run's folder.

    None if nothing is there: a config can be looked at without its weights.
    """
    if not place.is_dir():
        return sha256(place) if place.is_file() else None
    run_dir.read_config(place)
    if run_dir.read_done(place) is None:
        raise ValueError(f"the run in {place} has not finished: start its command again to go on with it")
    return sealed.digest(saved.checkpoints(place).manifest(saved.step_of(place, "last"))["files"])


def read_initial(settings: Settings, model: Any, dataset: AnyDataset) -> Initial | None:
    """What the student ``model`` takes of the weights of ``model.init``, None where that is unset.

    That is every array of the trunk, and the head if it has the same shape. ``ValueError`` if one of the trunk's is
    missing, left over or of another shape, or the weights are another network's.
    """
    if settings["model.init"] is None:
        return None
    place, student, stem = (Path(settings["model.init"]), settings["model.student"], settings["model.stem"])
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    wanted: Any = flatten_dict(jax.eval_shape(partial(model.init, train=False), first_rngs(jax.random.key(0)), images))
    size = None
    if not place.exists():
        raise ValueError(f"there is no run's folder and no file {place}")
    if place.is_dir():
        source = saved.read(place, [student])
        if not same_network(source.name, student) or source.stem != stem:
            raise ValueError(
                f"{place} holds {source.name} with the stem {source.stem}, model.student is {student} with {stem}"
            )
        variables = saved.load_variables(place, "last")
        size = source.other_size(dataset.name, dataset.image_shape)
    else:
        try:
            variables = from_state_dict(model, read_checkpoint(place), new_head=True)
        except ValueError as error:
            raise ValueError(saved.in_one_line(place, error)) from error
        check_finite(variables, place)
    found: Any = flatten_dict(variables)
    head = [path for path in found if path[:2] == HEAD]
    own = max((found[path].shape[-1] for path in head), default=None)  # classes
    fits = bool(head) and all(path in wanted and found[path].shape == wanted[path].shape for path in head)
    taken = {path: leaf for path, leaf in found.items() if fits or path[:2] != HEAD}
    new = {path for path in wanted if path[:2] == HEAD} - taken.keys()
    for path in sorted((wanted.keys() - new) | taken.keys()):
        got, want = (getattr(leaves.get(path), "shape", None) for leaves in (taken, wanted))
        if got != want:
            raise ValueError(f"{place} does not fit {student} here: {'/'.join(path)} has shape {got}, expected {want}")
    parameters = sum(leaf.size for path, leaf in taken.items() if path[0] == "params" and path[:2] != HEAD)
    told = f"begins with the trunk of {place}, {parameters:,} parameters"
    if fits:
        told += f", and its head of {own} classes"
    elif new:
        has = "none that fits" if own is None else f"one for {own}"
        told += f"; the head for {dataset.num_classes} classes is new ({place.name} has {has})"
    arrays = {path: np.asarray(leaf, wanted[path].dtype) for path, leaf in taken.items()}
    return Initial(arrays, told + (f"\n{size}" if size is not None else ""))
