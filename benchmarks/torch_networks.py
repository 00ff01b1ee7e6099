"""Networks and an SDD training step written with plain PyTorch, to hold this project's against."""

import torch
from torch import nn
from torch.nn import functional as F

VGG_SIZES = {"vgg8": (1, 1, 1, 1, 1), "vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """For small images, with the names of the distillation papers' code; `features` gives the map."""

    def __init__(self, name, num_classes):
        super().__init__()
        channels = 3
        for block, (size, width) in enumerate(zip(VGG_SIZES[name], WIDTHS, strict=True)):
            layers = []
            for _ in range(size):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            self.add_module(f"block{block}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, x):
        for block in range(5):
            x = F.relu(getattr(self, f"block{block}")(x))
            if block < 3:
                x = F.max_pool2d(x, 2)
        return x


class ShuffleUnit(nn.Module):
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
        y = F.relu(self.bn1(self.conv1(x)))
        y = nn.ChannelShuffle(self.first)(y)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        if self.stride == 2:
            return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))
        return F.relu(x + y)


class ShuffleNetV1(nn.Module):
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
        return self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))


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


def head(model):
    return model.classifier if isinstance(model, VGG) else model.linear


def logits_and_cells(model, images):
    """Logits [B,K], and cells [B,21,K]: 4x4 adaptive averages of the logit map, the coarser ones from them."""
    features = model.features(images)
    logit_map = head(model)(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    finest = F.adaptive_avg_pool2d(logit_map, 4)
    cells = [F.adaptive_avg_pool2d(finest, scale).flatten(2) for scale in (1, 2, 4)]
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


def sdd_kd_step(student, teacher, optimizer, images, labels, temperature=4.0):
    """One step by SDD-KD as released: (cross-entropy, distillation, gradient norm before clipping)."""
    student.train()
    with torch.no_grad():
        _, target = logits_and_cells(teacher.eval(), images)
    logits, cells = logits_and_cells(student, images)
    right = target.argmax(2) == labels[:, None]
    weight = 1.0 + (right != right[:, :1])
    divergence = F.kl_div(
        F.log_softmax(cells / temperature, 2), F.log_softmax(target / temperature, 2), reduction="none", log_target=True
    ).sum(2)
    task, distill = F.cross_entropy(logits, labels), (weight * divergence).mean() * temperature**2
    optimizer.zero_grad()
    (0.1 * task + 0.9 * distill).backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), 40.0)
    optimizer.step()
    return task.item(), distill.item(), norm.item()
