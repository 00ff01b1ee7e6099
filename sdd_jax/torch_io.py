"""PyTorch checkpoints <-> Flax variables, by name and layout; no PyTorch needed.

The names are those of `sdd_jax.torch_names`. PyTorch stores convolutions as [out,in,height,width] and dense layers
as [out,in]; Flax as [height,width,in,out] and [in,out].
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdd_jax.torch_names import TABLES, Table

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

# Axes by rank: how a Flax array is transposed into PyTorch's layout, and back.
_TO_TORCH = {1: (0,), 2: (1, 0), 3: (0, 1, 2), 4: (3, 2, 0, 1)}
_TO_FLAX = {1: (0,), 2: (1, 0), 3: (0, 1, 2), 4: (2, 3, 1, 0)}


def from_state_dict(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    *,
    entry: str | None = None,
    prefix: str | None = None,
    table: Table | None = None,
    new_head: bool = False,
    image_size: int = 32,
) -> dict[str, Any]:
    """The Flax variables {"params", "batch_stats"} of `model` from a PyTorch checkpoint.

    Arrays take the dtype of the model's parameters, and the number of image channels is read from
    the first layer's weight. Every tensor is used and every variable filled, or it is an error;
    `num_batches_tracked` alone is left out, since nothing reads it.

    Args:
      model: a network of `create_model`, or any other with a `table`.
      checkpoint: {name: array}, or a dictionary that holds one, such as {"model": {name: array},
        "epoch": 240}. Values are what `np.asarray` takes.
      entry: which of several state dicts in it, where it holds more than one.
      prefix: what stands before every name, such as "module." of a network that was wrapped. One that
        all names share is found; given, it also leaves out the names that do not start with it, as
        "module.student." in a file that holds student and teacher.
      table: (Flax path, PyTorch name) of every kind of layer, for a network that is none of ours.
      new_head: whether the head may be missing or of another shape; it is then left out of the result.
      image_size: the side of its images in pixels, where shapes follow from it, as of position embeddings.

    Raises:
      ValueError: names everything that is missing, left over, or of the wrong shape or kind.
    """
    state_dict = find_state_dict(checkpoint, entry)
    problems: list[list[str]] = []
    for rows in _tables(model, table):
        first = f"{rows[0][1]}.weight".replace("#", "0")
        found = _strip(state_dict, prefix, first)
        entries = _entries(model, rows, found.get(first), axis=1, image_size=image_size)
        for name in _counters(entries):
            found.pop(name, None)
        shapes = {name: entry.shape for name, entry in entries.items()}
        head = [name for name, entry in entries.items() if entry.path.startswith("params/head/")] if new_head else []
        if any(name not in found or np.shape(found[name]) != shapes[name] for name in head):
            for name in head:
                del entries[name], shapes[name]
                found.pop(name, None)
        wrong = _problems(found, shapes, None if table is None else image_size)
        if not wrong:
            flat = {}
            for name, (path, leaf, shape) in entries.items():
                array = np.asarray(found[name]).reshape(shape[: leaf.ndim])
                flat[path] = jnp.array(np.transpose(array, _TO_FLAX[leaf.ndim]), leaf.dtype)
            return unflatten_dict(flat, sep="/")
        problems.append(wrong)
    raise ValueError("the state dict does not fit the model:\n  " + "\n  ".join(min(problems, key=len)))


def to_state_dict(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    table: Table | None = None,
    names: str | None = None,
    image_size: int = 32,
) -> dict[str, np.ndarray]:
    """The PyTorch state dict of `model`'s variables, `num_batches_tracked` zero (int64); `image_size`, errors as above.

    `names` says whose: "timm", "torchvision" or "mdistiller", of those that the network has; without it the first of
    `sdd_jax.torch_names.TABLES`, which for vision transformers, ConvNeXt and EfficientNet are timm's.
    """
    rows = _tables(model, table, names)[0]
    found: dict[str, Any] = flatten_dict(variables, sep="/")
    first = found.get(f"params/{rows[0][0]}/kernel".replace("#", "0"))
    entries = _entries(model, rows, first, axis=2, image_size=image_size)
    shapes = {entry.path: entry.leaf.shape for entry in entries.values()}
    wrong = _problems(found, shapes, None if table is None else image_size)
    if wrong:
        raise ValueError("the tree of variables does not fit the model:\n  " + "\n  ".join(wrong))
    state_dict = {
        name: np.ascontiguousarray(np.transpose(found[path], _TO_TORCH[leaf.ndim])).reshape(shape)
        for name, (path, leaf, shape) in entries.items()
    }
    return state_dict | {name: np.zeros((), np.int64) for name in _counters(entries)}


def find_state_dict(checkpoint: Mapping[str, Any], entry: str | None = None) -> Mapping[str, Any]:
    """The state dict in `checkpoint`: itself if it holds arrays alone, else its `entry` or only entry that does."""
    if _is_state_dict(checkpoint):
        if entry is not None:
            raise ValueError(f"the checkpoint is a state dict itself: it has no entry {entry!r} to choose")
        return checkpoint
    inside = {name: value for name, value in checkpoint.items() if _is_state_dict(value)}
    if entry is None and len(inside) == 1:
        return next(iter(inside.values()))
    if entry in inside:
        return inside[entry]
    if not inside:
        names = ", ".join(map(str, checkpoint)) or "none"
        raise ValueError(f"the checkpoint holds no state dict (names with arrays); its entries: {names}")
    asked = "say which one is meant with entry" if entry is None else f"entry {entry!r} is none of them"
    raise ValueError(f"the checkpoint's state dicts are {', '.join(map(str, inside))}: {asked}")


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and hasattr(array, "shape") for name, array in value.items())


def _strip(state_dict: Mapping[str, Any], prefix: str | None, first: str) -> dict[str, Any]:
    """The names without `prefix`, or without what all of them have before the name of the `first` weight."""
    if prefix is None:
        outermost: list[str] = []
        for before in sorted(name.removesuffix(first) for name in state_dict if name.endswith(f".{first}")):
            if not before.startswith(tuple(outermost)):
                outermost.append(before)
        # Where some names stand elsewhere, this is one network whose first weight is missing.
        covered = all(name.startswith(tuple(outermost)) for name in state_dict)
        if covered and len(outermost) > 1:
            raise ValueError(f"names stand under {', '.join(outermost)}: say which network is meant with prefix")
        prefix = outermost[0] if covered else ""
    elif not any(name.startswith(prefix) for name in state_dict):
        raise ValueError(f"no name starts with the prefix {prefix!r}; the first is {next(iter(state_dict))!r}")
    return {name.removeprefix(prefix): array for name, array in state_dict.items() if name.startswith(prefix)}


def _tables(model: nn.Module, table: Table | None, names: str | None = None) -> tuple[Table, ...]:
    if table is not None:
        if not table:
            raise ValueError("the table of PyTorch names is empty")
        return (table,)
    trunk = getattr(model, "trunk", model)
    if type(trunk) not in TABLES:
        known = ", ".join(kind.__name__ for kind in TABLES)
        raise ValueError(f"no table of PyTorch names for a {type(trunk).__name__}: give one as table=; known: {known}")
    tables = TABLES[type(trunk)](trunk)
    if names is not None and names not in tables:
        raise ValueError(f"a {type(trunk).__name__} has the names of {', '.join(tables)}; got {names!r}")
    return tuple(tables.values()) if names is None else (tables[names],)


def _torch_name(table: Table, path: str) -> tuple[str, int]:
    """The PyTorch name of the array at ``path``, and how many axes of length 1 it has there at its end."""
    collection, *layer, leaf = path.split("/")
    for pattern, replacement, *axes in table:
        pattern = pattern.replace("#", r"(\d+)")
        if array := re.fullmatch(pattern, "/".join((*layer, leaf))):
            return replacement.replace("#", "{}").format(*array.groups()), sum(axes)
        numbers = re.fullmatch(pattern, "/".join(layer))
        if numbers and (collection, leaf) in _LEAVES:
            return f"{replacement.replace('#', '{}').format(*numbers.groups())}.{_LEAVES[collection, leaf]}", 0
    raise ValueError(f"no PyTorch name is known for {path}")


class _Entry(NamedTuple):
    """An array here and there."""

    path: str
    leaf: jax.ShapeDtypeStruct
    shape: tuple[int, ...]  # in PyTorch


def _entries(model: nn.Module, table: Table, first: Any, *, axis: int, image_size: int) -> dict[str, _Entry]:
    """Every array of `model`'s variables by its PyTorch name.

    The network reads as many image channels as that axis of the `first` weight, 3 if it is no such weight.
    """
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    shape = np.shape(first)
    channels = shape[axis] if len(shape) == 4 and shape[axis] > 0 else 3
    images = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    wanted: Any = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    leaves: Any = flatten_dict(wanted, sep="/")
    entries = {}
    for path, leaf in leaves.items():
        if leaf.ndim not in _TO_TORCH:
            raise ValueError(f"{path} has shape {leaf.shape}: PyTorch's layout is known for 1 to 4 axes")
        name, axes = _torch_name(table, path)
        if name in entries:
            raise ValueError(f"the table gives {entries[name].path} and {path} one PyTorch name, {name}")
        entries[name] = _Entry(path, leaf, tuple(leaf.shape[place] for place in _TO_TORCH[leaf.ndim]) + (1,) * axes)
    return entries


def _counters(entries: Iterable[str]) -> list[str]:
    """The names of PyTorch's batch counters: it keeps one per normalisation, nothing reads it."""
    return [name.replace("running_mean", "num_batches_tracked") for name in entries if name.endswith(".running_mean")]


def _problems(found: Mapping[str, Any], wanted: dict[str, tuple[int, ...]], image_size: int | None) -> list[str]:
    """All that is missing, left over, or of the wrong shape or kind; None: no shape follows from the image size."""
    problems = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in found]
    problems += [f"left over: {name} {tuple(np.shape(array))}" for name, array in found.items() if name not in wanted]
    for name in wanted.keys() & found.keys():
        array = np.asarray(found[name])
        if array.shape != wanted[name]:
            problems.append(f"wrong shape: {name} {array.shape}, expected {wanted[name]}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"wrong dtype: {name} {array.dtype}, expected a floating one")
    told = image_size is not None and any(problem.startswith("wrong shape") for problem in problems)
    return sorted(problems) + told * [f"at images of {image_size}x{image_size} pixels (image_size says otherwise)"]
