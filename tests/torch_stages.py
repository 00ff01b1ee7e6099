"""The last stages of three networks in plain PyTorch: what RepDistiller's SP reads of them (``feat[-2]``).

Only what comes before the map that SP reads; the layers after it have no part in its loss. Weights are called as in
the distillation papers' code, which `sdd_jax.torch_io` reads.
"""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.plain_torch import MobileNetV2, normalised_conv


class LastStageOfMobileNetV2(MobileNetV2):
    """Before the last 1x1 convolution: 160 channels, 2x2 on CIFAR."""

    def last_stage(self, x):
        return self.blocks(self.conv1(x))


class PreActivation(nn.Module):
    """Normalise, ReLU, convolve, twice; a shortcut of the activated input where the width changes."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = None if channels == width else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return y + (x if self.convShortcut is None else self.convShortcut(active))


class LastStageOfWideResNet(nn.Module):
    """wrn_16_2 before its last batch normalisation and ReLU: 128 channels, 8x8 on CIFAR, of any sign."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, channels = nn.Conv2d(3, 16, 3, 1, 1, bias=False), 16
        for stage, (width, stride) in enumerate(((32, 1), (64, 2), (128, 2)), start=1):
            block = nn.Module()
            block.layer = nn.Sequential(PreActivation(channels, width, stride), PreActivation(width, width, 1))
            self.add_module(f"block{stage}", block)
            channels = width
        self.bn1, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)

    def last_stage(self, x):
        return self.block3.layer(self.block2.layer(self.block1.layer(self.conv1(x))))


class Split(nn.Module):
    """The first half of the channels passes, the second is filtered; then the two are shuffled."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = normalised_conv(half, half, 1)
        self.conv2, self.bn2 = normalised_conv(half, half, 3, groups=half)
        self.conv3, self.bn3 = normalised_conv(half, half, 1)

    def forward(self, x):
        kept, y = x.chunk(2, 1)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y)))))
        return nn.ChannelShuffle(2)(torch.cat([kept, F.relu(self.bn3(self.conv3(y)))], 1))


class Down(nn.Module):
    """Two branches with stride 2, each half of the result."""

    def __init__(self, channels, width):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = normalised_conv(channels, channels, 3, 2, groups=channels)
        self.conv2, self.bn2 = normalised_conv(channels, half, 1)
        self.conv3, self.bn3 = normalised_conv(channels, half, 1)
        self.conv4, self.bn4 = normalised_conv(half, half, 3, 2, groups=half)
        self.conv5, self.bn5 = normalised_conv(half, half, 1)

    def forward(self, x):
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        right = F.relu(self.bn5(self.conv5(right)))
        return nn.ChannelShuffle(2)(torch.cat([left, right], 1))


class LastStageOfShuffleNetV2(nn.Module):
    """Before the last 1x1 convolution: 464 channels, 4x4 on CIFAR."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.bn1 = normalised_conv(3, 24, 1)
        channels = 24
        for stage, (width, size) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
            splits = (Split(width) for _ in range(size))
            self.add_module(f"layer{stage}", nn.Sequential(Down(channels, width), *splits))
            channels = width
        self.conv2, self.bn2 = normalised_conv(channels, 1024, 1)
        self.linear = nn.Linear(1024, num_classes)

    def last_stage(self, x):
        return self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))


NETWORKS = {
    "mobilenet_v2": LastStageOfMobileNetV2,
    "shufflenet_v2": LastStageOfShuffleNetV2,
    "wrn_16_2": LastStageOfWideResNet,
}


def similarity_loss(student, teacher):
    """SP as its paper has it: Gram matrices of the batch, each row of length 1, their squared distance over B^2."""
    first, second = (F.normalize(one.flatten(1) @ one.flatten(1).T) for one in (student, teacher))
    return ((second - first) ** 2).sum() / len(student) ** 2
