"""Classifiers by name; see `create_model`."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.classifier import Classifier, Outputs
from sdd_jax.models.layers import (
    AffineInit,
    small_normal_affine_init,
    torch_affine_init,
    zero_bias_affine_init,
)
from sdd_jax.models.mobilenet_v2 import MobileNetV2
from sdd_jax.models.resnet import ResNet
from sdd_jax.models.resnet_cifar import ResNetCifar
from sdd_jax.models.wrn import WideResNet

__all__ = ["Classifier", "Outputs", "create_model", "model_names"]


class _Network(NamedTuple):
    stems: dict[str, Callable[..., nn.Module]]  # stem -> trunk, which takes dtype=
    head_init: AffineInit


def _resnet_cifar(depth: int, **widths) -> _Network:
    return _Network({"cifar": partial(ResNetCifar, depth=depth, **widths)}, torch_affine_init)


def _wrn(depth: int, widening: int) -> _Network:
    trunk = partial(WideResNet, depth=depth, widening=widening)
    return _Network({"cifar": trunk}, zero_bias_affine_init)


def _resnet(*stage_sizes: int) -> _Network:
    return _Network({"imagenet": partial(ResNet, stage_sizes=stage_sizes)}, torch_affine_init)


_NETWORKS = {
    "resnet8": _resnet_cifar(8),
    "resnet14": _resnet_cifar(14),
    "resnet20": _resnet_cifar(20),
    "resnet32": _resnet_cifar(32),
    "resnet44": _resnet_cifar(44),
    "resnet56": _resnet_cifar(56),
    "resnet110": _resnet_cifar(110),
    "resnet8x4": _resnet_cifar(8, stem_width=32, widths=(64, 128, 256)),
    "resnet32x4": _resnet_cifar(32, stem_width=32, widths=(64, 128, 256)),
    "wrn_16_1": _wrn(16, 1),
    "wrn_16_2": _wrn(16, 2),
    "wrn_40_1": _wrn(40, 1),
    "wrn_40_2": _wrn(40, 2),
    "mobilenet_v2": _Network({"cifar": MobileNetV2}, small_normal_affine_init),
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
}

_DTYPES = ("bfloat16", "float32", "float64")


def model_names() -> tuple[str, ...]:
    """The names that `create_model` knows."""
    return tuple(_NETWORKS)


def create_model(name: str, num_classes: int = 100, stem: str = "cifar", dtype: DTypeLike = jnp.float32) -> Classifier:
    """The classifier called `name`, as a Linen module.

    Args:
      name: one of `model_names()`.
      num_classes: K, at least 1.
      stem: "cifar" for images of about 32x32, "imagenet" for about 224x224; not every network has
        both. Any image size and number of channels is taken by either.
      dtype: what it computes in: bfloat16, float32 or float64 (with `jax_enable_x64`). Parameters,
        statistics and logits are kept in at least float32.
    """
    if name not in _NETWORKS:
        close = difflib.get_close_matches(str(name), _NETWORKS, n=1, cutoff=0.0)
        raise ValueError(f"unknown model {name!r}, did you mean {close[0]!r}? Known: {', '.join(_NETWORKS)}")
    network = _NETWORKS[name]
    if stem not in network.stems:
        raise ValueError(f"{name} has no stem {stem!r}; it has: {', '.join(network.stems)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    dtype = jnp.dtype(dtype)
    if dtype.name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype.name}")
    if dtype != jax.dtypes.canonicalize_dtype(dtype):
        raise ValueError("dtype float64 needs jax_enable_x64, which is off")
    return Classifier(network.stems[stem](dtype=dtype), num_classes, network.head_init, dtype)
