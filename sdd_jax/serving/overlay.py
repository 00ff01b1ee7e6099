"""An image with its region grids, as a picture: what the network says of each region."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdd_jax.serving.regions import Region

PANEL, GAP, HEAD = 448, 16, 30  # pixels
# Blue and vermilion of Okabe and Ito, which colour-blind readers tell apart; the latter is hatched as well.
CONSISTENT, COMPLEMENTARY = (0, 114, 178), (213, 94, 0)
WASH = 90  # of 255: how much colour lies over the image
TEXT, PAPER = (20, 20, 20), (255, 255, 255)


def draw_overlay(pixels: np.ndarray, regions: Sequence[Region], names: Sequence[str], title: str) -> Image.Image:
    """A panel for each scale: the image, its cells coloured, and in each the network's word for it.

    Blue cells have the class of the whole image, hatched orange ones another.

    Args:
      pixels: uint8 ``[H, W, C]``, C 1 or 3.
      regions: of every scale.
      names: of the classes.
      title: a line above.
    """
    scales = sorted({region.place.scale for region in regions})
    sheet = Image.new("RGB", (GAP + len(scales) * (PANEL + GAP), 2 * HEAD + PANEL + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 8), title, fill=TEXT, font=_font(18))
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    image = image.resize((PANEL, PANEL), Image.Resampling.NEAREST if image.width < 100 else Image.Resampling.BICUBIC)
    for number, scale in enumerate(scales):
        left = GAP + number * (PANEL + GAP)
        pen.text((left, HEAD + 6), f"{scale}x{scale}", fill=TEXT, font=_font(15))
        cells = [region for region in regions if region.place.scale == scale]
        sheet.paste(_panel(image, cells, names), (left, 2 * HEAD))
    return sheet


def _panel(image: Image.Image, regions: Sequence[Region], names: Sequence[str]) -> Image.Image:
    wash = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(wash)
    for region in regions:
        box, colour = _box(region), CONSISTENT if region.consistent else COMPLEMENTARY
        pen.rectangle(box, fill=(*colour, WASH))
        if not region.consistent:
            _hatch(wash, box, colour)
    panel = Image.alpha_composite(image.convert("RGBA"), wash).convert("RGB")
    pen = ImageDraw.Draw(panel)
    for region in regions:
        pen.rectangle(_box(region), outline=PAPER, width=2)
        _write(pen, _box(region), [names[region.label], f"{100 * region.probability:.0f} %"])
    return panel


def _box(region: Region) -> tuple[int, int, int, int]:
    scale, row, column = region.place
    left, top, right, bottom = (n * PANEL // scale for n in (column, row, column + 1, row + 1))
    return left, top, right - 1, bottom - 1


def _hatch(wash: Image.Image, box: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
    cell = wash.crop((box[0], box[1], box[2] + 1, box[3] + 1))
    pen = ImageDraw.Draw(cell)
    for start in range(-height, width, 14):
        pen.line((start, height, start + height, 0), fill=(*colour, 220), width=2)
    wash.paste(cell, box[:2])


def _write(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], lines: Sequence[str]) -> None:
    """The lines in the middle of the box, on paper of their own, as large as fits."""
    width, height = box[2] - box[0] - 8, box[3] - box[1] - 8
    for size in range(20, 7, -1):
        font = _font(size)
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


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
