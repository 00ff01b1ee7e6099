"""Plain PyTorch, to hold this project against: networks, and one step of SDD-KD as its released code takes it.

The names of weights are those of the distillation papers' code, which `sdd_jax.torch_io` reads. Each network has
`features(x)`, the map before its head.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

VGG_SIZES = {"vgg8": (1, 1, 1, 1, 1), "vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2)}
# Expansion, output channels, blocks and stride of the first block, of each stage of the half-width MobileNetV2.
INVERTED = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))

CLIP_NORM = 40.0

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

    def features(self, x):
        return self.conv2(self.blocks(self.conv1(x)))


NETWORKS = {
    "resnet8": partial(Stages, BasicBlock, (16, 3), (16, 32, 64), (1, 1, 1), (1, 2, 2), "fc"),
    "resnet20": partial(Stages, BasicBlock, (16, 3), (16, 32, 64), (3, 3, 3), (1, 2, 2), "fc"),
    "resnet8x4": partial(Stages, BasicBlock, (32, 3), (64, 128, 256), (1, 1, 1), (1, 2, 2), "fc"),
    "resnet32x4": partial(Stages, BasicBlock, (32, 3), (64, 128, 256), (5, 5, 5), (1, 2, 2), "fc"),
    "resnet50": partial(Stages, Bottleneck, (64, 3), (256, 512, 1024, 2048), (3, 4, 6, 3), (1, 2, 2, 2), "linear"),
    "resnet18": partial(Stages, BasicBlock, (64, 7, 2), (64, 128, 256, 512), (2, 2, 2, 2), (1, 2, 2, 2), "fc"),
    "resnet34": partial(Stages, BasicBlock, (64, 7, 2), (64, 128, 256, 512), (3, 4, 6, 3), (1, 2, 2, 2), "fc"),
    "shufflenet_v1": partial(Stages, ShuffleUnit, (24, 1), (240, 480, 960), (4, 8, 4), (2, 2, 2), "linear"),
    "mobilenet_v2": MobileNetV2,
    **{name: partial(VGG, name) for name in VGG_SIZES},
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


def sdd_kd_losses(student, teacher, images, labels, *, scales=(1, 2, 4), temperature=4.0):
    """Cross-entropy, and the distillation of `student` (in training mode) by `teacher` (in evaluation mode)."""
    with torch.no_grad():
        _, target = logits_and_cells(teacher, images, scales)
        right = target.argmax(2) == labels[:, None]
        weight = 1.0 + (right != right[:, :1])
        target = F.log_softmax(target / temperature, 2)
    logits, cells = logits_and_cells(student, images, scales)
    divergence = F.kl_div(F.log_softmax(cells / temperature, 2), target, reduction="none", log_target=True).sum(2)
    return F.cross_entropy(logits, labels), (weight * divergence).mean() * temperature**2


def sdd_kd_step(student, teacher, optimizer, images, labels, *, losses=sdd_kd_losses):
    """One step of `student` under `teacher`.

    Returns:
      Cross-entropy, distillation, and the gradient's norm before clipping, as tensors: nothing waits for the device.
    """
    task, distill = losses(student, teacher, images, labels)
    optimizer.zero_grad(set_to_none=True)
    (0.1 * task + 0.9 * distill).backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
    optimizer.step()
    return task.detach(), distill.detach(), norm


def torch_step(spec):
    """`(call, wait, about)`: `call` takes a whole step by `spec` on one batch that is already in the device's memory.

    PyTorch's batches are drawn and cropped by other processes, which costs its step nothing here; this project's step
    pays for its own.
    """
    torch.manual_seed(0)
    if spec["precision"] is not None and not hasattr(torch.backends, "fp32_precision"):
        raise ValueError(f"PyTorch {torch.__version__} has no fp32_precision: 2.9 or later is needed")
    device = torch.accelerator.current_accelerator() if spec["on_accelerator"] else torch.device("cpu")
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[spec["format"]]
    placed = {"device": device, "memory_format": layout}
    memory = torch.accelerator if spec["on_accelerator"] else None
    if memory:
        memory.reset_peak_memory_stats()
        held = memory.memory_allocated()
    teacher, student = (create(spec[role], spec["classes"]).to(**placed) for role in ("teacher", "student"))
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    size = spec["size"] or 32
    images = torch.randn(spec["batch"], 3, size, size).to(**placed)
    labels = torch.randint(0, spec["classes"], (spec["batch"],)).to(device)
    losses = partial(sdd_kd_losses, scales=tuple(spec["scales"]))
    losses = torch.compile(losses) if spec["compiled"] else losses

    def forward(*arguments):
        with torch.autocast(device.type, torch.bfloat16, enabled=spec["dtype"] == "bfloat16"):
            return losses(*arguments)

    def call():
        if spec["precision"] is not None:  # of products and convolutions of float32, in the whole process
            torch.backends.fp32_precision = spec["precision"]
        sdd_kd_step(student, teacher, optimizer, images, labels, losses=forward)

    def wait():
        if spec["on_accelerator"]:
            torch.accelerator.synchronize()

    def about():
        return {"bytes": memory.max_memory_allocated() - held} if spec["on_accelerator"] else {}

    return call, wait, about
