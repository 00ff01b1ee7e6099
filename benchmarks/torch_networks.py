"""Plain PyTorch networks, to hold this project's against.

The names of weights are those of the distillation papers' code, which `sdd_jax.torch_io` reads. Each network has
`features(x)`, the map before its head; three have `last_stage(x)`, which SP reads in RepDistiller (``feat[-2]``).
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

VGG_SIZES = {"vgg8": (1, 1, 1, 1, 1), "vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2)}
# Expansion, output channels, blocks and stride of the first block, of each stage of the half-width MobileNetV2.
INVERTED = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))

relu = partial(F.relu, inplace=True)  # nothing that a backward pass needs is overwritten by it


def normalised_conv(channels, width, size, stride=1, groups=1):
    """A convolution without bias, padded to keep the size, and its batch normalisation."""
    conv = nn.Conv2d(channels, width, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(width)


def shortcut(channels, width, stride):
    """The input itself, or a 1x1 convolution of it where the shape changes."""
    same = stride == 1 and channels == width
    return nn.Sequential(*(() if same else normalised_conv(channels, width, 1, stride)))


class VGG(nn.Module):
    """For small images: convolutions with batch normalisation in five blocks."""

    def __init__(self, name, num_classes):
        super().__init__()
        channels = 3
        for block, (size, width) in enumerate(zip(VGG_SIZES[name], (64, 128, 256, 512, 512), strict=True)):
            layers = []
            for _ in range(size):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            self.add_module(f"block{block}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, x):
        for block in range(5):
            x = relu(getattr(self, f"block{block}")(x))
            x = F.max_pool2d(x, 2) if block < 3 else x
        return x


class ShuffleUnit(nn.Module):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolution around a shortcut."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.first, self.stride = (1 if channels == 24 else 3), stride
        branch = width - channels if stride == 2 else width
        inner = branch // 4
        self.conv1, self.bn1 = normalised_conv(channels, inner, 1, groups=self.first)
        self.conv2, self.bn2 = normalised_conv(inner, inner, 3, stride, groups=inner)
        self.conv3, self.bn3 = normalised_conv(inner, branch, 1, groups=3)

    def forward(self, x):
        y = nn.ChannelShuffle(self.first)(relu(self.bn1(self.conv1(x))))
        y = self.bn3(self.conv3(relu(self.bn2(self.conv2(y)))))
        if self.stride == 2:
            return relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))
        return relu(x + y)


class SplitUnit(nn.Module):
    """ShuffleNetV2's: half of the channels filtered beside the others; where the stride is 2, all on both sides."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.stride, inner = stride, width // 2
        if stride == 2:
            self.conv1, self.bn1 = normalised_conv(channels, channels, 3, 2, groups=channels)
            self.conv2, self.bn2 = normalised_conv(channels, inner, 1)
            self.conv3, self.bn3 = normalised_conv(channels, inner, 1)
            self.conv4, self.bn4 = normalised_conv(inner, inner, 3, 2, groups=inner)
            self.conv5, self.bn5 = normalised_conv(inner, inner, 1)
        else:
            self.conv1, self.bn1 = normalised_conv(inner, inner, 1)
            self.conv2, self.bn2 = normalised_conv(inner, inner, 3, groups=inner)
            self.conv3, self.bn3 = normalised_conv(inner, inner, 1)

    def forward(self, x):
        if self.stride == 2:
            kept = relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
            y = relu(self.bn5(self.conv5(self.bn4(self.conv4(relu(self.bn3(self.conv3(x))))))))
        else:
            kept, y = x.chunk(2, 1)
            y = relu(self.bn3(self.conv3(self.bn2(self.conv2(relu(self.bn1(self.conv1(y))))))))
        return nn.ChannelShuffle(2)(torch.cat([kept, y], 1))


class ShuffleNetV2(nn.Module):
    """At width 1, with a 1x1 stem, for small images."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.bn1 = normalised_conv(3, 24, 1)
        channels = 24
        for stage, (width, size) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
            units = (SplitUnit(width, width, 1) for _ in range(size))
            self.add_module(f"layer{stage}", nn.Sequential(SplitUnit(channels, width, 2), *units))
            channels = width
        self.conv2, self.bn2 = normalised_conv(channels, 1024, 1)
        self.linear = nn.Linear(1024, num_classes)

    def last_stage(self, x):
        return self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))

    def features(self, x):
        return relu(self.bn2(self.conv2(self.last_stage(x))))


class PreActivation(nn.Module):
    """Normalisation and ReLU before each of two 3x3 convolutions; a 1x1 shortcut where the shape changes."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = None if channels == width else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x):
        y = relu(self.bn1(x))
        kept = x if self.convShortcut is None else self.convShortcut(y)
        return kept + self.conv2(relu(self.bn2(self.conv1(y))))


class Layers(nn.Module):
    """Blocks one after the other, under the name that a wide residual network gives them."""

    def __init__(self, *blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """Of "Wide Residual Networks" (2016), with a depth 6n + 4, n blocks in each of three stages."""

    def __init__(self, depth, widening, num_classes):
        super().__init__()
        self.conv1, channels = nn.Conv2d(3, 16, 3, 1, 1, bias=False), 16
        for stage in (1, 2, 3):
            width = 8 * 2**stage * widening
            others = (PreActivation(width, width, 1) for _ in range((depth - 4) // 6 - 1))
            first = PreActivation(channels, width, 1 if stage == 1 else 2)
            self.add_module(f"block{stage}", Layers(first, *others))
            channels = width
        self.bn1, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)

    def last_stage(self, x):
        return self.block3(self.block2(self.block1(self.conv1(x))))

    def features(self, x):
        return relu(self.bn1(self.last_stage(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = normalised_conv(channels, width, 3, stride)
        self.conv2, self.bn2 = normalised_conv(width, width, 3)
        self.downsample = shortcut(channels, width, stride)

    def forward(self, x):
        y = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = normalised_conv(channels, width // 4, 1)
        self.conv2, self.bn2 = normalised_conv(width // 4, width // 4, 3, stride)
        self.conv3, self.bn3 = normalised_conv(width // 4, width, 1)
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, x):
        y = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        return relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class Stages(nn.Module):
    """A convolution, stages of blocks, and a head.

    `stem` is the convolution's width and size; one that has a stride as well is ImageNet's, and pooled.
    """

    def __init__(self, block, stem, widths, sizes, strides, head_name, num_classes):
        super().__init__()
        self.conv1, self.bn1 = normalised_conv(3, *stem)
        channels, self.pooled = stem[0], len(stem) > 2
        for stage, (width, size, stride) in enumerate(zip(widths, sizes, strides, strict=True), start=1):
            first, channels = block(channels, width, stride), width
            self.add_module(f"layer{stage}", nn.Sequential(first, *(block(width, width, 1) for _ in range(size - 1))))
        self.add_module(head_name, nn.Linear(channels, num_classes))

    def features(self, x):
        x = relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.pooled else x
        for name, stage in self.named_children():
            x = stage(x) if name.startswith("layer") else x
        return x


class InvertedResidual(nn.Module):
    """Expand 1x1, filter each channel 3x3, project 1x1 without ReLU; a shortcut where the shape stays."""

    def __init__(self, channels, width, expansion, stride):
        super().__init__()
        inner = channels * expansion
        self.same = stride == 1 and channels == width
        expand, filtered = normalised_conv(channels, inner, 1), normalised_conv(inner, inner, 3, stride, groups=inner)
        project = normalised_conv(inner, width, 1)
        self.conv = nn.Sequential(*expand, nn.ReLU(inplace=True), *filtered, nn.ReLU(inplace=True), *project)

    def forward(self, x):
        return x + self.conv(x) if self.same else self.conv(x)


class MobileNetV2(nn.Module):
    """Half as wide as the original, 1280 channels at the end, for small images."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Sequential(*normalised_conv(3, 16, 3, 2), nn.ReLU(inplace=True))
        channels, stages = 16, []
        for expansion, width, size, stride in INVERTED:
            first, channels = InvertedResidual(channels, width, expansion, stride), width
            others = (InvertedResidual(width, width, expansion, 1) for _ in range(size - 1))
            stages.append(nn.Sequential(first, *others))
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*normalised_conv(channels, 1280, 1), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))

    def last_stage(self, x):
        return self.blocks(self.conv1(x))

    def features(self, x):
        return self.conv2(self.last_stage(x))


NETWORKS = {
    "resnet8": partial(Stages, BasicBlock, (16, 3), (16, 32, 64), (1, 1, 1), (1, 2, 2), "fc"),
    "resnet20": partial(Stages, BasicBlock, (16, 3), (16, 32, 64), (3, 3, 3), (1, 2, 2), "fc"),
    "resnet8x4": partial(Stages, BasicBlock, (32, 3), (64, 128, 256), (1, 1, 1), (1, 2, 2), "fc"),
    "resnet32x4": partial(Stages, BasicBlock, (32, 3), (64, 128, 256), (5, 5, 5), (1, 2, 2), "fc"),
    "resnet50": partial(Stages, Bottleneck, (64, 3), (256, 512, 1024, 2048), (3, 4, 6, 3), (1, 2, 2, 2), "linear"),
    "resnet18": partial(Stages, BasicBlock, (64, 7, 2), (64, 128, 256, 512), (2, 2, 2, 2), (1, 2, 2, 2), "fc"),
    "resnet34": partial(Stages, BasicBlock, (64, 7, 2), (64, 128, 256, 512), (3, 4, 6, 3), (1, 2, 2, 2), "fc"),
    "shufflenet_v1": partial(Stages, ShuffleUnit, (24, 1), (240, 480, 960), (4, 8, 4), (2, 2, 2), "linear"),
    "shufflenet_v2": ShuffleNetV2,
    "mobilenet_v2": MobileNetV2,
    "wrn_16_2": partial(WideResNet, 16, 2),
    "wrn_40_2": partial(WideResNet, 40, 2),
    **{name: partial(VGG, name) for name in VGG_SIZES},
}


def create(name, num_classes):
    """The network that this project calls `name`, with PyTorch's own initial values."""
    return NETWORKS[name](num_classes)


def head(model):
    """The layer that makes logits, under the name that the network's family gives it."""
    return next(getattr(model, name) for name in ("fc", "linear", "classifier") if hasattr(model, name))
