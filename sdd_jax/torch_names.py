"""The names that PyTorch networks give their layers, a table for each family of `sdd_jax.models`.

"mdistiller" are the names of the official SDD code, mdistiller and RepDistiller, which agree.
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn

from sdd_jax.models.convnext import ConvNeXt
from sdd_jax.models.efficientnet import EfficientNet
from sdd_jax.models.mobile import MobileNetV1, MobileNetV2, ShuffleNetV1, ShuffleNetV2
from sdd_jax.models.resnet import ResNet, WideResNet
from sdd_jax.models.vgg import VGG
from sdd_jax.models.vit import VisionTransformer

# A row for each kind of layer, or of array that is no layer's: its Flax path and its PyTorch name, and how many axes of
# length 1 PyTorch adds to it. `#` stands for a number, the same ones in the same order on both sides. The first row is
# the layer that sees the image.
Row = tuple[str, str] | tuple[str, str, int]
Table = Sequence[Row]
MDISTILLER = "mdistiller"

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


_VIT: Table = (
    ("trunk/patch_conv", "patch_embed.proj"),
    ("trunk/class_token", "cls_token"),
    ("trunk/positions", "pos_embed"),
    ("trunk/block#/norm#", "blocks.#.norm#"),
    ("trunk/block#/attention/qkv", "blocks.#.attn.qkv"),
    ("trunk/block#/attention/out", "blocks.#.attn.proj"),
    ("trunk/block#/dense#", "blocks.#.mlp.fc#"),
    ("trunk/norm", "norm"),
    ("head", "head"),
)
_ENCODER = "encoder.layers.encoder_layer_#"
_VIT_TORCHVISION: Table = (
    ("trunk/patch_conv", "conv_proj"),
    ("trunk/class_token", "class_token"),
    ("trunk/positions", "encoder.pos_embedding"),
    ("trunk/block#/norm#", f"{_ENCODER}.ln_#"),
    ("trunk/block#/attention/qkv/kernel", f"{_ENCODER}.self_attention.in_proj_weight"),
    ("trunk/block#/attention/qkv/bias", f"{_ENCODER}.self_attention.in_proj_bias"),
    ("trunk/block#/attention/out", f"{_ENCODER}.self_attention.out_proj"),
    ("trunk/block#/dense1", f"{_ENCODER}.mlp.0"),
    ("trunk/block#/dense2", f"{_ENCODER}.mlp.3"),
    ("trunk/norm", "encoder.ln"),
    ("head", "heads.head"),
)


def _resnet_tables(trunk: ResNet) -> dict[str, Table]:
    """torchvision's ResNets, which timm names alike, are often given a CIFAR stem."""
    if len(trunk.stage_sizes) == 3:
        return {MDISTILLER: _RESNET}
    large = {"torchvision": _RESNET, "timm": _RESNET}
    small = {MDISTILLER: _RESNET_CIFAR_STEM}
    return large | small if trunk.stem == "imagenet" else small | large


def _vgg_tables(trunk: VGG) -> dict[str, Table]:
    """Layers are numbered, ReLUs and poolings too: from 0 in each block, in torchvision's through all blocks."""
    torchvision, number = trunk.stem == "imagenet", 0
    rows: list[Row] = []
    for block, size in enumerate(trunk.block_sizes):
        sequence, number = ("features", number) if torchvision else (f"block{block}", 0)
        for layer in range(size):
            rows.append((f"trunk/block{block}_conv{layer}", f"{sequence}.{number}"))
            rows.append((f"trunk/block{block}_bn{layer}", f"{sequence}.{number + 1}"))
            number += 3 if trunk.batch_norm else 2
        number += 1
    if not torchvision:
        return {MDISTILLER: [*rows, ("head", "classifier")]}
    rows += [("trunk/dense0", "classifier.0"), ("trunk/dense1", "classifier.3"), ("head", "classifier.6")]
    return {"torchvision": rows}


def _convnext_tables(trunk: ConvNeXt) -> dict[str, Table]:
    """torchvision numbers stages and what is between them in one sequence; its layer scales are [C,1,1]."""
    timm: list[Row] = [("trunk/stem_conv", "stem.0"), ("trunk/stem_norm", "stem.1")]
    torchvision: list[Row] = [("trunk/stem_conv", "features.0.0"), ("trunk/stem_norm", "features.0.1")]
    for stage in range(len(trunk.stage_sizes)):
        block, there = f"trunk/stage{stage}_block#", f"features.{2 * stage + 1}.#"
        timm += [
            (f"trunk/stage{stage}_norm", f"stages.{stage}.downsample.0"),
            (f"trunk/stage{stage}_conv", f"stages.{stage}.downsample.1"),
        ]
        torchvision += [
            (f"trunk/stage{stage}_norm", f"features.{2 * stage}.0"),
            (f"trunk/stage{stage}_conv", f"features.{2 * stage}.1"),
            (f"{block}/gamma", f"{there}.layer_scale", 2),
            (f"{block}/depthwise_conv", f"{there}.block.0"),
            (f"{block}/norm", f"{there}.block.2"),
            (f"{block}/dense1", f"{there}.block.3"),
            (f"{block}/dense2", f"{there}.block.5"),
        ]
    timm += [
        ("trunk/stage#_block#/gamma", "stages.#.blocks.#.gamma"),
        ("trunk/stage#_block#/depthwise_conv", "stages.#.blocks.#.conv_dw"),
        ("trunk/stage#_block#/norm", "stages.#.blocks.#.norm"),
        ("trunk/stage#_block#/dense#", "stages.#.blocks.#.mlp.fc#"),
        ("trunk/norm", "head.norm"),
        ("head", "head.fc"),
    ]
    return {"timm": timm, "torchvision": [*torchvision, ("trunk/norm", "classifier.0"), ("head", "classifier.2")]}


def _efficientnet_tables(trunk: EfficientNet) -> dict[str, Table]:
    """A block that expands nothing has a layer less, and both number or name its layers otherwise."""
    timm: list[Row] = [("trunk/stem_conv", "conv_stem"), ("trunk/stem_bn", "bn1")]
    torchvision: list[Row] = [("trunk/stem_conv", "features.0.0"), ("trunk/stem_bn", "features.0.1")]
    for stage, (expansion, *_) in enumerate(trunk.stages):
        expands = int(expansion > 1)
        block, here, there = f"trunk/stage{stage}_block#", f"blocks.{stage}.#", f"features.{stage + 1}.#.block"
        layers = [("expand", "conv_pw")] * expands + [("depthwise", "conv_dw")]
        layers.append(("project", "conv_pwl" if expands else "conv_pw"))
        for number, (layer, name) in enumerate(layers):
            place = f"{there}.{number + (layer == 'project')}"  # the squeeze comes before it
            timm += [(f"{block}/{layer}_conv", f"{here}.{name}"), (f"{block}/{layer}_bn", f"{here}.bn{number + 1}")]
            torchvision += [(f"{block}/{layer}_conv", f"{place}.0"), (f"{block}/{layer}_bn", f"{place}.1")]
        squeeze = f"{there}.{len(layers) - 1}"
        timm += [
            (f"{block}/squeeze_conv", f"{here}.se.conv_reduce"),
            (f"{block}/excite_conv", f"{here}.se.conv_expand"),
        ]
        torchvision += [(f"{block}/squeeze_conv", f"{squeeze}.fc1"), (f"{block}/excite_conv", f"{squeeze}.fc2")]
    last = f"features.{len(trunk.stages) + 1}"
    return {
        "timm": [*timm, ("trunk/last_conv", "conv_head"), ("trunk/last_bn", "bn2"), ("head", "classifier")],
        "torchvision": [
            *torchvision,
            ("trunk/last_conv", f"{last}.0"),
            ("trunk/last_bn", f"{last}.1"),
            ("head", "classifier.1"),
        ],
    }


# Every trunk's tables by whose names they are. Export uses the first unless another is asked for, import takes any.
TABLES: dict[type[nn.Module], Callable[[Any], dict[str, Table]]] = {
    ResNet: _resnet_tables,
    WideResNet: lambda trunk: {MDISTILLER: _WRN},
    VGG: _vgg_tables,
    MobileNetV1: lambda trunk: {MDISTILLER: _MOBILENET_V1},
    MobileNetV2: lambda trunk: {MDISTILLER: _MOBILENET_V2},
    ShuffleNetV1: lambda trunk: {MDISTILLER: _SHUFFLENET},
    ShuffleNetV2: lambda trunk: {MDISTILLER: _SHUFFLENET},
    VisionTransformer: lambda trunk: {"timm": _VIT, "torchvision": _VIT_TORCHVISION},
    ConvNeXt: _convnext_tables,
    EfficientNet: _efficientnet_tables,
}
