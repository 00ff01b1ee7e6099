"""PyTorch checkpoints <-> Flax variables, by name and layout; no PyTorch needed.

The names are those of the official SDD code, mdistiller and RepDistiller, which agree, and of
torchvision's ResNets and VGGs. PyTorch stores convolutions as [out,in,height,width] and dense layers
as [out,in]; Flax as [height,width,in,out] and [in,out].
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdd_jax.models.mobile import MobileNetV1, MobileNetV2, ShuffleNetV1, ShuffleNetV2
from sdd_jax.models.resnet import ResNet, WideResNet
from sdd_jax.models.vgg import VGG

# A table has a row for each kind of layer: its Flax path and its PyTorch name. `#` stands for a
# number, the same ones in the same order on both sides. The first row is the layer that sees the image.
Table = Sequence[tuple[str, str]]

_RESNET: Table = (  # three stages; also torchvision's four
    ("trunk/stem_conv", "conv1"),
    ("trunk/stem_bn", "bn1"),
    ("trunk/stage#_block#/conv#", "layer#.#.conv#"),
    ("trunk/stage#_block#/bn#", "layer#.#.bn#"),
    ("trunk/stage#_block#/shortcut_conv", "layer#.#.downsample.0"),
    ("trunk/stage#_block#/shortcut_bn", "layer#.#.downsample.1"),
    ("head", "fc"),
)
_RESNET_CIFAR_STEM: Table = (  # four stages with the stem of CIFAR or CUB-200
    *_RESNET[:4],
    ("trunk/stage#_block#/shortcut_conv", "layer#.#.shortcut.0"),
    ("trunk/stage#_block#/shortcut_bn", "layer#.#.shortcut.1"),
    ("head", "linear"),
)
_WRN: Table = (
    ("trunk/stem_conv", "conv1"),
    ("trunk/stage#_block#/conv#", "block#.layer.#.conv#"),
    ("trunk/stage#_block#/bn#", "block#.layer.#.bn#"),
    ("trunk/stage#_block#/shortcut_conv", "block#.layer.#.convShortcut"),
    ("trunk/final_bn", "bn1"),
    ("head", "fc"),
)
_MOBILENET_V1: Table = (
    ("trunk/stem_conv", "model.0.0"),
    ("trunk/stem_bn", "model.0.1"),
    ("trunk/block#_depthwise_conv", "model.#.0"),
    ("trunk/block#_depthwise_bn", "model.#.1"),
    ("trunk/block#_pointwise_conv", "model.#.3"),
    ("trunk/block#_pointwise_bn", "model.#.4"),
    ("head", "fc"),
)
_MOBILENET_V2: Table = (
    ("trunk/stem_conv", "conv1.0"),
    ("trunk/stem_bn", "conv1.1"),
    ("trunk/stage#_block#/expand_conv", "blocks.#.#.conv.0"),
    ("trunk/stage#_block#/expand_bn", "blocks.#.#.conv.1"),
    ("trunk/stage#_block#/depthwise_conv", "blocks.#.#.conv.3"),
    ("trunk/stage#_block#/depthwise_bn", "blocks.#.#.conv.4"),
    ("trunk/stage#_block#/project_conv", "blocks.#.#.conv.6"),
    ("trunk/stage#_block#/project_bn", "blocks.#.#.conv.7"),
    ("trunk/last_conv", "conv2.0"),
    ("trunk/last_bn", "conv2.1"),
    ("head", "classifier.0"),
)
_SHUFFLENET: Table = (
    *_RESNET[:4],
    ("trunk/last_conv", "conv2"),  # version 2 alone
    ("trunk/last_bn", "bn2"),
    ("head", "linear"),
)


def _resnet_tables(trunk: ResNet) -> tuple[Table, ...]:
    """The names on export, and others that are taken on import: torchvision's ResNets are often given a CIFAR stem."""
    if len(trunk.stage_sizes) == 3:
        return (_RESNET,)
    return (_RESNET, _RESNET_CIFAR_STEM) if trunk.stem == "imagenet" else (_RESNET_CIFAR_STEM, _RESNET)


def _vgg_table(trunk: VGG) -> Table:
    """Layers are numbered, ReLUs and poolings too: from 0 in each block, in torchvision's through all blocks."""
    torchvision, number = trunk.stem == "imagenet", 0
    rows: list[tuple[str, str]] = []
    for block, size in enumerate(trunk.block_sizes):
        sequence, number = ("features", number) if torchvision else (f"block{block}", 0)
        for layer in range(size):
            rows.append((f"trunk/block{block}_conv{layer}", f"{sequence}.{number}"))
            rows.append((f"trunk/block{block}_bn{layer}", f"{sequence}.{number + 1}"))
            number += 3 if trunk.batch_norm else 2
        number += 1
    if not torchvision:
        return (*rows, ("head", "classifier"))
    return (*rows, ("trunk/dense0", "classifier.0"), ("trunk/dense1", "classifier.3"), ("head", "classifier.6"))


# Every trunk's tables. Export uses the first, import takes any.
_TABLES: dict[type[nn.Module], Callable[[Any], tuple[Table, ...]]] = {
    ResNet: _resnet_tables,
    WideResNet: lambda trunk: (_WRN,),
    VGG: lambda trunk: (_vgg_table(trunk),),
    MobileNetV1: lambda trunk: (_MOBILENET_V1,),
    MobileNetV2: lambda trunk: (_MOBILENET_V2,),
    ShuffleNetV1: lambda trunk: (_SHUFFLENET,),
    ShuffleNetV2: lambda trunk: (_SHUFFLENET,),
}

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}

# Axes by rank: how a Flax array is transposed into PyTorch's layout, and back.
_TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_TO_FLAX = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def from_state_dict(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    *,
    entry: str | None = None,
    prefix: str | None = None,
    table: Table | None = None,
    new_head: bool = False,
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

    Raises:
      ValueError: names everything that is missing, left over, or of the wrong shape or kind.
    """
    state_dict = find_state_dict(checkpoint, entry)
    problems: list[list[str]] = []
    for rows in _tables(model, table):
        first = f"{rows[0][1]}.weight".replace("#", "0")
        found = _strip(state_dict, prefix, first)
        entries = _entries(model, rows, found.get(first), axis=1)
        for name in _counters(entries):
            found.pop(name, None)
        shapes = {name: tuple(leaf.shape[axis] for axis in _TO_TORCH[leaf.ndim]) for name, (_, leaf) in entries.items()}
        head = [name for name, (path, _) in entries.items() if path.startswith("params/head/")] if new_head else []
        if any(name not in found or np.shape(found[name]) != shapes[name] for name in head):
            for name in head:
                del entries[name], shapes[name]
                found.pop(name, None)
        wrong = _problems(found, shapes)
        if not wrong:
            flat = {}
            for name, (path, leaf) in entries.items():
                flat[path] = jnp.array(np.transpose(np.asarray(found[name]), _TO_FLAX[leaf.ndim]), leaf.dtype)
            return unflatten_dict(flat, sep="/")
        problems.append(wrong)
    raise ValueError("the state dict does not fit the model:\n  " + "\n  ".join(min(problems, key=len)))


def to_state_dict(
    model: nn.Module, variables: Mapping[str, Any], *, table: Table | None = None
) -> dict[str, np.ndarray]:
    """The PyTorch state dict of `model`'s variables, `num_batches_tracked` zero (int64); errors as above."""
    rows = _tables(model, table)[0]
    found: dict[str, Any] = flatten_dict(variables, sep="/")
    entries = _entries(model, rows, found.get(f"params/{rows[0][0]}/kernel".replace("#", "0")), axis=2)
    wrong = _problems(found, {path: leaf.shape for path, leaf in entries.values()})
    if wrong:
        raise ValueError("the tree of variables does not fit the model:\n  " + "\n  ".join(wrong))
    state_dict = {
        name: np.ascontiguousarray(np.transpose(found[path], _TO_TORCH[leaf.ndim]))
        for name, (path, leaf) in entries.items()
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


def _tables(model: nn.Module, table: Table | None) -> tuple[Table, ...]:
    if table is not None:
        if not table:
            raise ValueError("the table of PyTorch names is empty")
        return (table,)
    trunk = getattr(model, "trunk", model)
    if type(trunk) not in _TABLES:
        known = ", ".join(kind.__name__ for kind in _TABLES)
        raise ValueError(f"no table of PyTorch names for a {type(trunk).__name__}: give one as table=; known: {known}")
    return _TABLES[type(trunk)](trunk)


def _torch_name(table: Table, path: str) -> str:
    collection, *layer, leaf = path.split("/")
    for pattern, replacement in table:
        numbers = re.fullmatch(pattern.replace("#", r"(\d+)"), "/".join(layer))
        if numbers and (collection, leaf) in _LEAVES:
            return f"{replacement.replace('#', '{}').format(*numbers.groups())}.{_LEAVES[collection, leaf]}"
    raise ValueError(f"no PyTorch name is known for {path}")


def _entries(model: nn.Module, table: Table, first: Any, axis: int) -> dict[str, tuple[str, jax.ShapeDtypeStruct]]:
    """The PyTorch name, Flax path and shape of every array of `model`'s variables.

    The network reads as many image channels as that axis of the `first` weight, 3 if it is no such weight.
    """
    shape = np.shape(first)
    channels = shape[axis] if len(shape) == 4 and shape[axis] > 0 else 3
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)  # any size will do
    wanted: Any = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    leaves: Any = flatten_dict(wanted, sep="/")
    entries = {}
    for path, leaf in leaves.items():
        if leaf.ndim not in _TO_TORCH:
            raise ValueError(f"{path} has shape {leaf.shape}: PyTorch's layout is known for 1, 2 or 4 axes")
        name = _torch_name(table, path)
        if name in entries:
            raise ValueError(f"the table gives {entries[name][0]} and {path} one PyTorch name, {name}")
        entries[name] = path, leaf
    return entries


def _counters(entries: Iterable[str]) -> list[str]:
    """The names of PyTorch's batch counters: it keeps one per normalisation, nothing reads it."""
    return [name.replace("running_mean", "num_batches_tracked") for name in entries if name.endswith(".running_mean")]


def _problems(found: Mapping[str, Any], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    """All that is missing, left over, or of the wrong shape or kind."""
    problems = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in found]
    problems += [f"left over: {name} {tuple(np.shape(array))}" for name, array in found.items() if name not in wanted]
    for name in wanted.keys() & found.keys():
        array = np.asarray(found[name])
        if array.shape != wanted[name]:
            problems.append(f"wrong shape: {name} {array.shape}, expected {wanted[name]}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"wrong dtype: {name} {array.dtype}, expected a floating one")
    return sorted(problems)
