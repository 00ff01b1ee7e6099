"""Classifiers by name; see `create_model`."""

import difflib
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdd_jax.models.classifier import Classifier, FunctionNetwork, LogitMapClassifier, Outputs
from sdd_jax.models.convnext import ConvNeXt
from sdd_jax.models.efficientnet import EfficientNet
from sdd_jax.models.layers import (
    AffineInit,
    fan_out_affine_init,
    normal_affine_init,
    small_normal_affine_init,
    torch_affine_init,
    zero_bias_affine_init,
)
from sdd_jax.models.mobile import MobileNetV1, MobileNetV2, ShuffleNetV1, ShuffleNetV2
from sdd_jax.models.resnet import ResNet, WideResNet
from sdd_jax.models.vgg import VGG
from sdd_jax.models.vit import VisionTransformer
from sdd_jax.own import own_function

__all__ = [
    "STEM_SIZES",
    "Classifier",
    "FunctionNetwork",
    "LogitMapClassifier",
    "Outputs",
    "create_model",
    "model_names",
    "model_stems",
]


# The trunk, which takes stem= and dtype=; the head's initial values; the stems.
_Network = tuple[Callable[..., nn.Module], AffineInit, tuple[str, ...]]

_SMALL = ("cifar", "cub200")
_LARGE = ("imagenet",)
_ALL = (*_SMALL, *_LARGE)
# The side of the images that a stem's networks are published for. None: no one size, 224 in the paper, and less.
STEM_SIZES = {"cifar": 32, "cub200": None, "imagenet": 224}


def _resnet_cifar(depth: int, stem_width: int = 16, widths: tuple[int, int, int] = (16, 32, 64)) -> _Network:
    """`depth` is 6n + 2: n blocks of two convolutions in each of three stages, stem and head."""
    return partial(ResNet, ((depth - 2) // 6,) * 3, widths, stem_width), torch_affine_init, _SMALL


def _resnet(*stage_sizes: int, bottleneck: bool) -> _Network:
    return partial(ResNet, stage_sizes, (64, 128, 256, 512), 64, bottleneck), torch_affine_init, _ALL


def _wrn(depth: int, widening: int) -> _Network:
    return partial(WideResNet, depth, widening), zero_bias_affine_init, _SMALL


def _vgg(block_sizes: tuple[int, ...], stems: tuple[str, ...], batch_norm: bool = True) -> _Network:
    return partial(VGG, block_sizes, batch_norm), small_normal_affine_init, stems


def _vit(width: int, *, class_token: bool = True) -> _Network:
    # timm's vit_base_patch16_gap_224 alone has 16 heads, of 48 channels; the others have heads of 64.
    heads = 16 if width == 768 and not class_token else width // 64
    return partial(VisionTransformer, width, 12, heads, class_token), normal_affine_init, _LARGE


def _convnext(*stage_sizes: int, width: int) -> _Network:
    return partial(ConvNeXt, stage_sizes, tuple(width << stage for stage in range(4))), normal_affine_init, _LARGE


_VIT_WIDTHS = {"tiny": 192, "small": 384, "base": 768}
_VGG_BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

_NETWORKS: dict[str, _Network] = {
    **{f"resnet{depth}": _resnet_cifar(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": _resnet_cifar(8, 32, (64, 128, 256)),
    "resnet32x4": _resnet_cifar(32, 32, (64, 128, 256)),
    "wrn_16_1": _wrn(16, 1),
    "wrn_16_2": _wrn(16, 2),
    "wrn_40_1": _wrn(40, 1),
    "wrn_40_2": _wrn(40, 2),
    "vgg8": _vgg((1, 1, 1, 1, 1), _SMALL),
    **{f"vgg{depth}": _vgg(blocks, _ALL) for depth, blocks in _VGG_BLOCKS.items()},
    **{f"vgg{depth}_without_bn": _vgg(blocks, _LARGE, batch_norm=False) for depth, blocks in _VGG_BLOCKS.items()},
    "mobilenet_v1": (MobileNetV1, torch_affine_init, _LARGE),
    "mobilenet_v2": (MobileNetV2, small_normal_affine_init, _SMALL),
    "shufflenet_v1": (ShuffleNetV1, torch_affine_init, _SMALL),
    "shufflenet_v2": (ShuffleNetV2, torch_affine_init, _SMALL),
    "resnet18": _resnet(2, 2, 2, 2, bottleneck=False),
    "resnet34": _resnet(3, 4, 6, 3, bottleneck=False),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "resnet101": _resnet(3, 4, 23, 3, bottleneck=True),
    "resnet152": _resnet(3, 8, 36, 3, bottleneck=True),
    **{f"vit_{size}": _vit(width) for size, width in _VIT_WIDTHS.items()},
    **{f"vit_{size}_gap": _vit(width, class_token=False) for size, width in _VIT_WIDTHS.items()},
    "convnext_tiny": _convnext(3, 3, 9, 3, width=96),
    "convnext_small": _convnext(3, 3, 27, 3, width=96),
    "convnext_base": _convnext(3, 3, 27, 3, width=128),
    "efficientnet_b0": (EfficientNet, fan_out_affine_init, _LARGE),
}


ALIASES = {f"deit_{size}": f"vit_{size}" for size in _VIT_WIDTHS}  # one network, known by two names


def same_network(one: str, other: str) -> bool:
    """Whether two names are of one network."""
    return ALIASES.get(one, one) == ALIASES.get(other, other)


def model_names() -> tuple[str, ...]:
    """The names that `create_model` knows, without `ALIASES`."""
    return tuple(_NETWORKS)


def model_stems(name: str) -> tuple[str, ...]:
    """The stems that the network called `name` has."""
    return _lookup(name)[2]


def _lookup(name: str) -> _Network:
    name = ALIASES.get(name, name)
    if name not in _NETWORKS:
        close = difflib.get_close_matches(str(name), _NETWORKS, n=1, cutoff=0.0)
        raise ValueError(f"unknown model {name!r}, did you mean {close[0]!r}? Known: {', '.join(_NETWORKS)}")
    return _NETWORKS[name]


def create_model(
    name: str, num_classes: int = 100, stem: str = "cifar", dtype: DTypeLike = jnp.float32
) -> Classifier | LogitMapClassifier:
    """The classifier called `name`, as a Linen module.

    Args:
      name: one of `model_names()` or `ALIASES`, or "module:function" for one of your own: what the function of
        that module returns when called with num_classes, stem and dtype as keywords.
      num_classes: K, at least 1.
      stem: "cifar" for images of about 32x32, "imagenet" for about 224x224, "cub200" for the
        networks of small images at 224x224. Each takes any number of channels, and any size that
        its poolings leave something of (8 pixels for a VGG, 32 for torchvision's and for ConvNeXt);
        vision transformers take whole patches of 16 pixels.
      dtype: what it computes in: bfloat16, float32 or float64 (with `jax_enable_x64`). Parameters,
        statistics and logits are kept in at least float32.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    dtype = jnp.dtype(dtype)
    if dtype.name not in ("bfloat16", "float32", "float64"):
        raise ValueError(f"dtype must be bfloat16, float32 or float64, got {dtype.name}")
    if dtype != jax.dtypes.canonicalize_dtype(dtype):
        raise ValueError("dtype float64 needs jax_enable_x64, which is off")
    if ":" in str(name):
        return _own_model(name, num_classes=num_classes, stem=stem, dtype=dtype)
    trunk, head_init, stems = _lookup(name)
    if stem not in stems:
        raise ValueError(f"{name} has no stem {stem!r}; it has: {', '.join(stems)}")
    # The official code replaces heads for CUB-200, which then have PyTorch's own initial values; not MobileNetV2's.
    head_init = torch_affine_init if stem == "cub200" and name != "mobilenet_v2" else head_init
    return Classifier(trunk(stem=stem, dtype=dtype), num_classes, head_init, dtype)


def _own_model(name: str, **arguments) -> Classifier | LogitMapClassifier:
    """What the function called "module:function" makes; its own errors are its own."""
    model = own_function(name, "model", keywords=tuple(arguments))(**arguments)
    if not isinstance(model, Classifier | LogitMapClassifier):
        raise ValueError(f"model {name!r} gives a {type(model).__name__}, expected a Classifier or LogitMapClassifier")
    if model.num_classes != arguments["num_classes"]:
        raise ValueError(f"model {name!r} has {model.num_classes} classes, asked for {arguments['num_classes']}")
    return model
