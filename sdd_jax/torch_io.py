"""PyTorch state dicts <-> Flax variables, by name and layout; no PyTorch needed.

The names are those of the official SDD code, mdistiller and RepDistiller (CIFAR networks) and
torchvision (ResNets). PyTorch stores convolutions as [out,in,height,width] and dense layers as
[out,in]; Flax as [height,width,in,out] and [in,out].
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sdd_jax.models.classifier import Classifier
from sdd_jax.models.mobilenet_v2 import MobileNetV2
from sdd_jax.models.resnet import ResNet
from sdd_jax.models.resnet_cifar import ResNetCifar
from sdd_jax.models.wrn import WideResNet

# A table has a row for each kind of layer: its Flax path and its PyTorch name. `#` stands for a
# number, the same ones in the same order on both sides.
_RESNET = (
    ("trunk/stem_conv", "conv1"),
    ("trunk/stem_bn", "bn1"),
    ("trunk/stage#_block#/conv#", "layer#.#.conv#"),
    ("trunk/stage#_block#/bn#", "layer#.#.bn#"),
    ("trunk/stage#_block#/shortcut_conv", "layer#.#.downsample.0"),
    ("trunk/stage#_block#/shortcut_bn", "layer#.#.downsample.1"),
    ("head", "fc"),
)
_WRN = (
    ("trunk/stem_conv", "conv1"),
    ("trunk/stage#_block#/conv#", "block#.layer.#.conv#"),
    ("trunk/stage#_block#/bn#", "block#.layer.#.bn#"),
    ("trunk/stage#_block#/shortcut_conv", "block#.layer.#.convShortcut"),
    ("trunk/final_bn", "bn1"),
    ("head", "fc"),
)
_MOBILENET_V2 = (
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
_TABLES: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    ResNetCifar: _RESNET,
    ResNet: _RESNET,
    WideResNet: _WRN,
    MobileNetV2: _MOBILENET_V2,
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

_STEM = ("params", "trunk", "stem_conv", "kernel")


class _Entry(NamedTuple):
    """One array: its path in the Flax variables, its PyTorch name, and the Flax shape and dtype."""

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in _TO_TORCH[len(self.shape)])


def _torch_name(table: tuple[tuple[str, str], ...], path: tuple[str, ...]) -> str:
    collection, *layer, leaf = path
    for pattern, replacement in table:
        numbers = re.fullmatch(pattern.replace("#", r"(\d+)"), "/".join(layer))
        if numbers:
            found = iter(numbers.groups())
            stem = re.sub("#", lambda _, found=found: next(found), replacement)
            return f"{stem}.{_LEAVES[collection, leaf]}"
    raise ValueError(f"no PyTorch name is known for {'/'.join(path)}")


def _entries(model: Classifier, channels: int) -> list[_Entry]:
    """Every array of `model`'s variables on images of `channels` channels."""
    table = _TABLES.get(type(model.trunk))
    if table is None:
        known = ", ".join(trunk.__name__ for trunk in _TABLES)
        raise ValueError(f"no table of PyTorch names for a {type(model.trunk).__name__}; known: {known}")
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)  # any size will do
    wanted = jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)
    leaves: dict[tuple[str, ...], Any] = flatten_dict(wanted)
    return [_Entry(path, _torch_name(table, path), leaf.shape, leaf.dtype) for path, leaf in leaves.items()]


def _counters(entries: list[_Entry]) -> list[str]:
    """The names of PyTorch's batch counters: it keeps one per normalisation, nothing reads it."""
    suffix = ".running_mean"
    return [
        entry.name.removesuffix(suffix) + ".num_batches_tracked" for entry in entries if entry.name.endswith(suffix)
    ]


def _check(found: Mapping[str, Any], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    """Raises one ValueError with all that is missing, left over, or of the wrong shape or kind."""
    problems = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in found]
    problems += [f"left over: {name}" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        array = found[name]
        if np.shape(array) != wanted[name]:
            problems.append(f"wrong shape: {name} {np.shape(array)}, expected {wanted[name]}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"wrong dtype: {name} {array.dtype}, expected a floating one")
    if problems:
        raise ValueError(f"the {what} does not fit the model:\n  " + "\n  ".join(sorted(problems)))


def from_state_dict(model: Classifier, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The Flax variables {"params", "batch_stats"} of `model` from a PyTorch state dict.

    The number of image channels is read from the stem's weight. Arrays take the dtype of the
    model's parameters. `num_batches_tracked` is ignored.

    Raises:
      ValueError: names everything that is missing, left over, or of the wrong shape.
    """
    stem = next(entry for entry in _entries(model, channels=3) if entry.path == _STEM)
    weight: Any = state_dict.get(stem.name)
    channels = np.shape(weight)[1] if np.ndim(weight) == 4 else 3
    entries = _entries(model, channels)

    counters = set(_counters(entries))
    found = {name: array for name, array in state_dict.items() if name not in counters}
    _check(found, {entry.name: entry.torch_shape for entry in entries}, "state dict")
    flat = {}
    for entry in entries:
        array = np.transpose(found[entry.name], _TO_FLAX[len(entry.shape)])
        flat[entry.path] = jnp.array(array, entry.dtype)
    return unflatten_dict(flat)


def to_state_dict(model: Classifier, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The PyTorch state dict of `model`'s variables, with `num_batches_tracked` at zero.

    Raises:
      ValueError: names everything that is missing, left over, or of the wrong shape.
    """
    flat: dict[tuple[str, ...], Any] = flatten_dict(variables)
    kernel: Any = flat.get(_STEM)
    entries = _entries(model, channels=kernel.shape[2] if np.ndim(kernel) == 4 else 3)

    found = {"/".join(path): array for path, array in flat.items()}
    wanted = {"/".join(entry.path): entry.shape for entry in entries}
    _check(found, wanted, "tree of variables")
    state_dict = {
        entry.name: np.ascontiguousarray(np.transpose(flat[entry.path], _TO_TORCH[len(entry.shape)]))
        for entry in entries
    }
    return state_dict | {name: np.zeros((), np.int64) for name in _counters(entries)}
