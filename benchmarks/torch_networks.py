"""Networks written with plain PyTorch, to hold this project's against.

Their names are those of the distillation papers' code, which `sdd_jax.torch_io` reads. Each has `features(x)`, the map
before its head.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

VGG_SIZES = {"vgg8": (1, 1, 1, 1, 1), "vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2)}
WIDTHS = (64, 128, 256, 512, 512)
# Expansion, output channels, blocks and stride of the first block, of each stage of the half-width MobileNetV2.
INVERTED = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))

relu = partial(F.relu, inplace=True)  # nothing that a backward pass needs is overwritten by it


class VGG(nn.Module):
    """For small images: convolutions with batch normalisation in five blocks."""

    def __init__(self, name, num_classes):
        super().__init__()
        channels = 3
        for block, (size, width) in enumerate(zip(VGG_SIZES[name], WIDTHS, strict=True)):
            layers = []
            for _ in range(size):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            self.add_module(f"block{block}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, x):
        for block in range(5):
            x = relu(getattr(self, f"block{block}")(x))
            if block < 3:
                x = F.max_pool2d(x, 2)
        return x


class ShuffleUnit(nn.Module):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolution around a shortcut."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.first, self.stride = (1 if channels == 24 else 3), stride
        branch = width - channels if stride == 2 else width
        inner = branch // 4
        self.conv1 = nn.Conv2d(channels, inner, 1, groups=self.first, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, branch, 1, groups=3, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x):
        y = relu(self.bn1(self.conv1(x)))
        y = nn.ChannelShuffle(self.first)(y)
        y = self.bn3(self.conv3(relu(self.bn2(self.conv2(y)))))
        if self.stride == 2:
            return relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))
        return relu(x + y)


class ShuffleNetV1(nn.Module):
    """Three groups, for small images."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 24, 1, bias=False), nn.BatchNorm2d(24)
        channels = 24
        for stage, (width, size) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            units = []
            for unit in range(size):
                units.append(ShuffleUnit(channels, width, 2 if unit == 0 else 1))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*units))
        self.linear = nn.Linear(channels, num_classes)

    def features(self, x):
        return self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))


def normalised_conv(channels, width, size, stride=1, groups=1):
    """A convolution without bias, padded to keep the size, and its batch normalisation."""
    conv = nn.Conv2d(channels, width, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(width)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = normalised_conv(channels, width, 3, stride)
        self.conv2, self.bn2 = normalised_conv(width, width, 3)
        self.downsample = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(*normalised_conv(channels, width, 1, stride))

    def forward(self, x):
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNetCifar(nn.Module):
    """Three stages of basic blocks, for small images."""

    def __init__(self, depth, stem_width, widths, num_classes):
        super().__init__()
        self.conv1, self.bn1 = normalised_conv(3, stem_width, 3)
        channels = stem_width
        for stage, width in enumerate(widths, start=1):
            blocks = []
            for block in range((depth - 2) // 6):
                blocks.append(BasicBlock(channels, width, 2 if stage > 1 and block == 0 else 1))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def features(self, x):
        return self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = normalised_conv(channels, width, 1)
        self.conv2, self.bn2 = normalised_conv(width, width, 3, stride)
        self.conv3, self.bn3 = normalised_conv(width, 4 * width, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != 4 * width:
            self.shortcut = nn.Sequential(*normalised_conv(channels, 4 * width, 1, stride))

    def forward(self, x):
        y = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        return relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """Four stages of bottlenecks after a 3x3 stem without stride, as for CIFAR."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.bn1 = normalised_conv(3, 64, 3)
        channels = 64
        for stage, size in enumerate((3, 4, 6, 3), start=1):
            width, blocks = 32 * 2**stage, []
            for block in range(size):
                blocks.append(Bottleneck(channels, width, 2 if stage > 1 and block == 0 else 1))
                channels = 4 * width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, num_classes)

    def features(self, x):
        return self.layer4(self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x)))))))


class InvertedResidual(nn.Module):
    """Expand 1x1, filter each channel 3x3, project 1x1 without ReLU; a shortcut where the shape stays."""

    def __init__(self, channels, width, expansion, stride):
        super().__init__()
        inner = channels * expansion
        self.same = stride == 1 and channels == width
        self.conv = nn.Sequential(
            *normalised_conv(channels, inner, 1),
            nn.ReLU(inplace=True),
            *normalised_conv(inner, inner, 3, stride, groups=inner),
            nn.ReLU(inplace=True),
            *normalised_conv(inner, width, 1),
        )

    def forward(self, x):
        return x + self.conv(x) if self.same else self.conv(x)


class MobileNetV2(nn.Module):
    """Half as wide as the original, 1280 channels at the end, for small images."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Sequential(*normalised_conv(3, 16, 3, 2), nn.ReLU(inplace=True))
        channels, stages = 16, []
        for expansion, width, size, stride in INVERTED:
            blocks = []
            for block in range(size):
                blocks.append(InvertedResidual(channels, width, expansion, stride if block == 0 else 1))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*normalised_conv(channels, 1280, 1), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))

    def features(self, x):
        return self.conv2(self.blocks(self.conv1(x)))


class TorchvisionVGG11(nn.Module):
    """torchvision's layout, with or without batch normalisation."""

    def __init__(self, num_classes, batch_norm):
        super().__init__()
        layers, channels = [], 3
        for size, width in zip(VGG_SIZES["vgg11"], WIDTHS, strict=True):
            for _ in range(size):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        dense = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
        self.classifier = nn.Sequential(*dense, nn.Linear(4096, num_classes))

    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 7).flatten(1))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": partial(ResNetCifar, 8, 16, (16, 32, 64)),
    "resnet20": partial(ResNetCifar, 20, 16, (16, 32, 64)),
    "resnet8x4": partial(ResNetCifar, 8, 32, (64, 128, 256)),
    "resnet32x4": partial(ResNetCifar, 32, 32, (64, 128, 256)),
    "resnet50": ResNet50,
    "vgg8": partial(VGG, "vgg8"),
    "vgg11": partial(VGG, "vgg11"),
    "vgg13": partial(VGG, "vgg13"),
    "shufflenet_v1": ShuffleNetV1,
    "mobilenet_v2": MobileNetV2,
}


def create(name, num_classes):
    """The network that this project calls `name`, with PyTorch's own initial values."""
    return NETWORKS[name](num_classes)


def head(model):
    """The layer that makes logits, under the name that the network's family gives it."""
    return next(getattr(model, name) for name in ("fc", "linear", "classifier") if hasattr(model, name))


def logits_and_cells(model, images, scales=(1, 2, 4)):
    """Logits [B,K], and cells [B,R,K]: 4x4 adaptive averages of the logit map, the coarser ones from them."""
    features = model.features(images)
    logit_map = head(model)(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    finest = F.adaptive_avg_pool2d(logit_map, 4)
    cells = [F.adaptive_avg_pool2d(finest, scale).flatten(2) for scale in scales]
    return head(model)(features.mean((2, 3))), torch.cat(cells, 2).transpose(1, 2)


def randomise_statistics(model):
    """Running statistics as if it had been trained, so that a swapped or forgotten one shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model
