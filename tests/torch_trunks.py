"""Vision transformers, ConvNeXt and EfficientNet in plain PyTorch, with timm's names, for any sizes."""

import torch
from torch import nn
from torch.nn import functional as F


def named(**parts):
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


class ViT(nn.Module):
    """Patches of 16 pixels; embeddings for 14x14 of them, interpolated for others."""

    def __init__(self, width, depth, heads, classes, class_token):
        super().__init__()
        self.heads, tokens = heads, 14 * 14 + class_token
        self.patch_embed = named(proj=nn.Conv2d(3, width, 16, 16))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(
            named(
                norm1=nn.LayerNorm(width, 1e-6),
                attn=named(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width)),
                norm2=nn.LayerNorm(width, 1e-6),
                mlp=named(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width)),
            )
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, classes)

    def tokens(self, images):
        x = self.patch_embed.proj(images)
        size, first = x.shape[2:], self.cls_token is not None
        grid = self.pos_embed[:, first:].transpose(1, 2).unflatten(2, (14, 14))
        grid = F.interpolate(grid, size, mode="bicubic", antialias=True)
        x = (x + grid).flatten(2).transpose(1, 2)
        if first:
            token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            x = torch.cat([token, x], 1)
        for block in self.blocks:
            y = block.attn.qkv(block.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*y).transpose(1, 2).flatten(2)
            x = x + block.attn.proj(y)
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        return self.norm(x)

    def forward(self, images):
        x = self.tokens(images)
        return self.head(x.mean(1) if self.cls_token is None else x[:, 0])


class ChannelsNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.mlp = named(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.norm(self.conv_dw(x).movedim(1, -1))
        y = self.mlp.fc2(F.gelu(self.mlp.fc1(y))) * self.gamma
        return x + y.movedim(-1, 1)


class ConvNeXt(nn.Module):
    def __init__(self, sizes, widths, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelsNorm(widths[0], 1e-6))
        self.stages, before = nn.ModuleList(), None
        for size, width in zip(sizes, widths, strict=True):
            stage = nn.Module()
            if before:
                stage.downsample = nn.Sequential(ChannelsNorm(before, 1e-6), nn.Conv2d(before, width, 2, 2))
            stage.blocks = nn.Sequential(*(ConvNeXtBlock(width) for _ in range(size)))
            self.stages.append(stage)
            before = width
        self.head = named(norm=nn.LayerNorm(widths[-1], 1e-6), fc=nn.Linear(widths[-1], classes))

    def forward(self, images):
        x = self.stem(images)
        for stage in self.stages:
            x = stage.blocks(stage.downsample(x) if hasattr(stage, "downsample") else x)
        return self.head.fc(self.head.norm(x.mean((2, 3))))  # normalised after the mean


class EfficientBlock(nn.Module):
    def __init__(self, channels, width, expansion, stride, kernel):
        super().__init__()
        inner, count = channels * expansion, 0
        self.layers = []
        filters = {"groups": inner, "stride": stride, "padding": kernel // 2}
        wanted = [("conv_pw", nn.Conv2d(channels, inner, 1, bias=False))] if expansion > 1 else []
        wanted.append(("conv_dw", nn.Conv2d(inner, inner, kernel, bias=False, **filters)))
        wanted.append(("conv_pwl" if expansion > 1 else "conv_pw", nn.Conv2d(inner, width, 1, bias=False)))
        for count, (name, layer) in enumerate(wanted, start=1):
            setattr(self, name, layer)
            setattr(self, f"bn{count}", nn.BatchNorm2d(layer.out_channels))
            self.layers.append((name, f"bn{count}"))
        squeezed = channels // 4
        self.se = named(conv_reduce=nn.Conv2d(inner, squeezed, 1), conv_expand=nn.Conv2d(squeezed, inner, 1))

    def forward(self, x):
        y = x
        for conv, norm in self.layers[:-1]:
            y = F.silu(getattr(self, norm)(getattr(self, conv)(y)))
        y = y * self.se.conv_expand(F.silu(self.se.conv_reduce(y.mean((2, 3), keepdim=True)))).sigmoid()
        conv, norm = self.layers[-1]
        y = getattr(self, norm)(getattr(self, conv)(y))
        return x + y if x.shape == y.shape else y


class EfficientNet(nn.Module):
    def __init__(self, stages, classes):
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.blocks, channels = nn.Sequential(), 32
        for expansion, width, size, first_stride, kernel in stages:
            stage = nn.Sequential()
            for number in range(size):
                stride = 1 if number else first_stride
                stage.append(EfficientBlock(channels, width, expansion, stride, kernel))
                channels = width
            self.blocks.append(stage)
        self.conv_head, self.bn2 = nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, images):
        x = self.blocks(F.silu(self.bn1(self.conv_stem(images))))
        return self.classifier(F.silu(self.bn2(self.conv_head(x))).mean((2, 3)))
