"""Writes `docs/networks.md`, the table of all networks: `python -m docs.networks`."""

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.command_line import Parser
from sdd_jax.models import create_model, model_names, model_stems
from sdd_jax.models.layers import Affine
from sdd_jax.models.vit import Attention

PAGE = Path(__file__).with_suffix(".md")
SETTINGS = {"cifar": (32, 100), "cub200": (224, 200), "imagenet": (224, 1000)}  # image size, classes
TINY = (64, 200)  # of Tiny-ImageNet


class Section(NamedTuple):
    """A table of the page."""

    title: str
    stem: str
    size: int
    classes: int
    note: str


SECTIONS = (
    Section(
        'Small images: `stem="cifar"`, 32x32, 100 classes',
        "cifar",
        *SETTINGS["cifar"],
        "VGGs pool once more at images of exactly 64 rows, as the official code does.",
    ),
    Section(
        'Images of 64 pixels: `stem="cifar"`, 64x64, 200 classes',
        "cifar",
        *TINY,
        "Tiny-ImageNet. Every family keeps the stem of small images: a convolution of 3x3 or 1x1 with stride 1, of "
        "mobilenet_v2 alone with stride 2. resnet18 and shufflenet_v2 have these stems in the code of DOT (ICCV 2023), "
        "too; its MobileNetV2 is another network: of full width, with a 1x1 stem.",
    ),
    Section(
        'The same at a quarter of the cost: `stem="cub200"`, 64x64, 200 classes',
        "cub200",
        *TINY,
        "A 7x7 convolution with stride 2 is the stem, VGGs are unchanged: no paper's choice, but one for a machine "
        "without an accelerator. The stem `imagenet` leaves resnet18 a map of 2x2.",
    ),
    Section(
        'The same networks on large images: `stem="cub200"`, 224x224, 200 classes',
        "cub200",
        *SETTINGS["cub200"],
        "A 7x7 convolution with stride 2 is the stem; mobilenet_v2 max-pools after it; VGGs are unchanged. The "
        "official code has this stem for resnet8x4, resnet32x4, resnet50, mobilenet_v2, the VGGs and shufflenet_v1; "
        "its shufflenet_v2 crashes there. Here every network of small images has it.",
    ),
    Section(
        'Large images: `stem="imagenet"`, 224x224, 1,000 classes',
        "imagenet",
        *SETTINGS["imagenet"],
        "ResNets and VGGs are torchvision's: `vgg16` is its `vgg16_bn`, `vgg16_without_bn` its `vgg16`. A "
        "torchvision VGG flattens its map into dense layers, so its logit map has one location and SDD with such a "
        "teacher is plain distillation. mobilenet_v1 is the network that the official SDD code calls MobileNetV2. "
        "`deit_tiny`, `deit_small` and `deit_base` are other names of `vit_tiny`, `vit_small` and `vit_base`: one "
        "network, without DeiT's distillation token.",
    ),
)
HEAD = """# Networks

`sdd_jax.models.create_model(name, num_classes, stem)` makes each of them. Parameters include the head; MACs are the
multiply-adds of convolutions, dense layers and attention for one image, the head counted once; the map is height x
width x channels of the feature map. Other image sizes work too, and the map grows with them; that of
torchvision's VGGs stays 1x1. The least is 8 pixels a side for the VGGs of small images, and 32 for torchvision's and
for ConvNeXt.

The scales are the powers of two that divide the map: those whose regions neither overlap nor repeat a location, and so
as many regions as the map allows. `--config.sdd.scales=1,2,4` takes three of them; above 4, where the released code
does not go, add `--config.sdd.pooling=direct`. On other maps cells overlap ([sdd.md](sdd.md)).

This page is written by `python -m docs.networks`.
"""


AFTER = """### What the logit map is where a network does not simply average

In most networks, vit_tiny_gap and its like among them, the prediction is the head of the mean feature. The map is the
head of each location, and a region the mean of its locations. Two families differ:

- **vit_tiny, vit_small, vit_base**: the prediction is the head of the class token. The map is the head of each patch.
  Region 0, the whole image, has the class token's logits; the other regions are means of patches.
- **convnext_tiny, convnext_small, convnext_base**: the released networks normalise the mean feature before the head,
  and normalising does not commute with averaging. Here each location is centred over its channels, and divided by the
  deviation of the image's mean feature. So the map's mean is the released prediction exactly.

A head trained on the class token has never been asked about a patch. Its logits there are on no scale that was fitted,
so the regions of a released ViT or DeiT may say little of what is in them; a student that is trained with SDD is
trained on them, and one whose patches are averaged (`_gap`) is in any case. Where the teacher's regions are to mean
something, choose a convolutional teacher or a mean-pooled one.

Vision transformers take images of whole patches of 16 pixels. Their position embeddings are made for 14x14 patches and
interpolated for other sizes, bicubic as timm does it, so that weights from 224 pixels serve at any size.

CRD reads the mean of the map called `head`; of a class-token network the feature under the head is
`--config.features.options.feature_map=class_token`.

PyTorch's names: [pytorch.md](pytorch.md).
"""


class Published(NamedTuple):
    """What others say of a network of large images."""

    parameters: int
    gmacs: float
    source: str


PUBLISHED = {
    "vit_tiny": Published(5_717_416, 1.3, '"Pyramid Vision Transformer" (2021), Table 2; parameters: timm 1.0.31'),
    "vit_small": Published(22_050_664, 4.6, '"Swin Transformer" (2021), Table 1; parameters: timm 1.0.31'),
    "vit_base": Published(86_567_656, 17.56, "torchvision 0.28, `ViT_B_16_Weights`"),
    "convnext_tiny": Published(28_589_128, 4.456, "torchvision 0.28, `ConvNeXt_Tiny_Weights`"),
    "convnext_small": Published(50_223_688, 8.684, "torchvision 0.28, `ConvNeXt_Small_Weights`"),
    "convnext_base": Published(88_591_464, 15.355, "torchvision 0.28, `ConvNeXt_Base_Weights`"),
    "efficientnet_b0": Published(5_288_548, 0.386, "torchvision 0.28, `EfficientNet_B0_Weights`"),
    "resnet50": Published(25_557_032, 4.089, "torchvision 0.28, `ResNet50_Weights`"),
}


class Counts(NamedTuple):
    """What a network costs for one image."""

    parameters: int
    macs: int
    feature_map: tuple[int, int, int]


@lru_cache
def count(name: str, stem: str, size: int | None = None, classes: int | None = None) -> Counts:
    """Counts of a network from its shapes alone; without size and classes of those that are usual for its stem."""
    usual = SETTINGS[stem]
    size, classes = size or usual[0], classes or usual[1]
    model = create_model(name, classes, stem)
    macs: dict[tuple[str, ...], int] = {}

    def tally(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        if isinstance(context.module, Attention):  # two products of all tokens with all tokens
            macs[context.module.path] = 2 * y.size * y.shape[1]
        if isinstance(context.module, nn.Conv | nn.Dense | Affine) and context.method_name == "__call__":
            kernel = context.module.variables["params"]["kernel"].shape
            cost, path = y.size * math.prod(kernel[:-1]), context.module.path
            macs[path] = min(cost, macs.get(path, cost))  # the head is called for the whole map as well: it counts once
        return y

    with nn.intercept_methods(tally):
        images = jnp.zeros((1, size, size, 3))
        outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Counts(parameters, sum(macs.values()), outputs.feature_maps["head"].shape[1:])


def page() -> str:
    """The page's text."""
    parts = [HEAD]
    for section in SECTIONS:
        rows = ["| network | parameters | MACs, million | map | scales |", "|---|---:|---:|---|---|"]
        for name in model_names():
            if section.stem in model_stems(name):
                counts = count(name, section.stem, section.size, section.classes)
                shape = "x".join(map(str, counts.feature_map))
                side = math.gcd(*counts.feature_map[:2])
                scales = ", ".join(str(2**power) for power in range(side.bit_length()) if side % 2**power == 0)
                rows.append(f"| {name} | {counts.parameters:,} | {counts.macs / 1e6:,.2f} | {shape} | {scales} |")
        parts += [f"## {section.title}\n", section.note + "\n", "\n".join(rows) + "\n"]
    rows = ["| network | published by | parameters | here | GMACs | here |", "|---|---|---:|---:|---:|---:|"]
    for name, known in PUBLISHED.items():
        here = count(name, "imagenet", *SETTINGS["imagenet"])
        counts = f"{known.parameters:,} | {here.parameters:,} | {known.gmacs} | {here.macs / 1e9:.3f}"
        rows.append(f"| {name} | {known.source} | {counts} |")
    parts += ["### Beside what is published, 224x224, 1,000 classes\n", "\n".join(rows) + "\n", AFTER]
    return "\n".join(parts)


def main(arguments: Sequence[str]) -> None:
    """Writes the page; takes no arguments."""
    Parser(prog="python -m docs.networks", description=__doc__).parse_args(arguments)
    PAGE.write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
