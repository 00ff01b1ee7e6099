"""What a network says of every region of an image, as values and as a picture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.special import softmax

from sdd_jax.regions import Regions

PANEL, GAP, HEAD = 448, 16, 30  # pixels
# Blue and vermilion of Okabe and Ito, which colour-blind readers tell apart; the latter is hatched as well.
CONSISTENT, COMPLEMENTARY = (0, 114, 178), (213, 94, 0)
WASH = 90  # of 255: how much colour lies over the image
TEXT, PAPER = (20, 20, 20), (255, 255, 255)


class Region(NamedTuple):
    """A cell of a ``scale x scale`` grid over the image, and what a network says of it."""

    scale: int
    row: int
    column: int
    label: int  # the predicted class
    probability: float  # of that class, 0 to 1
    consistent: bool  # whether the prediction for the whole image is the same


def read_regions(region_logits: np.ndarray, logits: np.ndarray, regions: Regions) -> list[Region]:
    """The regions of one image from logits ``[R, K]``.

    ``logits`` ``[K]`` are of the whole image: under nested pooling the first region's may differ from them.
    """
    probabilities = softmax(region_logits.astype(np.float64), axis=-1)
    return [
        Region(*place, int(label), float(row[label]), bool(label == logits.argmax()))
        for place, label, row in zip(regions.places(), region_logits.argmax(-1), probabilities, strict=True)
    ]


def draw_overlay(pixels: np.ndarray, regions: Sequence[Region], names: Sequence[str], title: str) -> Image.Image:
    """A panel for each scale: the image (uint8 ``[H, W, C]``), its cells coloured, in each cell the predicted class."""
    scales = sorted({region.scale for region in regions})
    sheet = Image.new("RGB", (GAP + len(scales) * (PANEL + GAP), 2 * HEAD + PANEL + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 8), title, fill=TEXT, font=ImageFont.load_default(18))
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    image = image.resize((PANEL, PANEL), Image.Resampling.NEAREST if image.width < 100 else Image.Resampling.BICUBIC)
    for number, scale in enumerate(scales):
        left = GAP + number * (PANEL + GAP)
        pen.text((left, HEAD + 6), f"{scale}x{scale}", fill=TEXT, font=ImageFont.load_default(15))
        sheet.paste(_panel(image, [region for region in regions if region.scale == scale], names), (left, 2 * HEAD))
    return sheet


def _panel(image: Image.Image, regions: Sequence[Region], names: Sequence[str]) -> Image.Image:
    wash = Image.new("RGBA", image.size)
    for region in regions:
        left, top, right, bottom = _box(region)
        colour = CONSISTENT if region.consistent else COMPLEMENTARY
        cell = Image.new("RGBA", (right - left + 1, bottom - top + 1), (*colour, WASH))
        if not region.consistent:
            pen = ImageDraw.Draw(cell)
            for start in range(-cell.height, cell.width, 14):
                pen.line((start, cell.height, start + cell.height, 0), fill=(*colour, 220), width=2)
        wash.paste(cell, (left, top))
    panel = Image.alpha_composite(image.convert("RGBA"), wash).convert("RGB")
    pen = ImageDraw.Draw(panel)
    for region in regions:
        pen.rectangle(_box(region), outline=PAPER, width=2)
        _write(pen, _box(region), [names[region.label], f"{100 * region.probability:.0f} %"])
    return panel


def _box(region: Region) -> tuple[int, int, int, int]:
    edges = (region.column, region.row, region.column + 1, region.row + 1)
    left, top, right, bottom = (edge * PANEL // region.scale for edge in edges)
    return left, top, right - 1, bottom - 1


def _write(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], lines: Sequence[str]) -> None:
    """The lines in the middle of the box, on a white ground, as large as fits."""
    width, height = box[2] - box[0] - 8, box[3] - box[1] - 8
    for size in range(20, 7, -1):
        font = ImageFont.load_default(size)
        widest = max(pen.textlength(line, font=font) for line in lines)
        if widest <= width and len(lines) * (size + 3) <= height:
            break
    top = (box[1] + box[3]) / 2 - len(lines) * (size + 3) / 2
    for line in lines:
        length = pen.textlength(line, font=font)
        left = (box[0] + box[2] - length) / 2
        pen.rectangle((left - 3, top - 1, left + length + 3, top + size + 2), fill=PAPER)
        pen.text((left, top), line, fill=TEXT, font=font)
        top += size + 4
