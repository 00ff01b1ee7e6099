"""Draws what SDD does with one test image of a trained teacher: `python -m docs.picture --workdir=RUN --output=FILE`.

The image is chosen by a rule, `choose`; its row in the test split is printed. All that is drawn comes from the
teacher's logit map by the functions that a training step calls.
"""

import argparse
import io
import itertools
import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image
from scipy.special import softmax

from sdd_jax import complementary_mask, pool_regions, saved
from sdd_jax.data import read_test_examples
from sdd_jax.regions import Regions
from sdd_jax.serving.network import open_network
from sdd_jax.serving.regions import COMPLEMENTARY, CONSISTENT, Region, read_regions

SCALES, WEIGHTS = (1, 2, 4), {False: 1, True: 2}  # by whether a region is complementary; the released code's
BATCH, COLOURS_KEPT = 250, 128
LETTER = 0.6  # how wide one is at a size of 1
MOST_CLASSES = 8  # at the places of the map: as many have room below it
WIDTH, HEIGHT, DPI = 900, 474, 200  # the figure's units are pixels of a page that shows it 900 wide
INK, FAINT, PAPER = "#1c1e21", "#8b9099", "#ffffff"
COLOURS = {False: np.divide(CONSISTENT, 255), True: np.divide(COMPLEMENTARY, 255)}
TOP = 52  # of the teacher's panels
LEFT = {"image": 8, "map": 138, 1: 348, 2: 484, 4: 652}
SIDE = {"image": 104, "map": 184, 1: 112, 2: 144, 4: 240}
STUDENT_TOP, STUDENT_SIDE = 350, 84


class Shown(NamedTuple):
    """One test image and what the teacher says of it: every location's and every region's word."""

    row: int
    label: int
    pixels: np.ndarray
    regions: list[Region]
    complementary: list[bool]
    locations: np.ndarray


def choose(regions: np.ndarray, locations: np.ndarray, labels: np.ndarray) -> int:
    """The image to draw: right as a whole, several meanings inside, and sure of all of it.

    Of the images that the teacher gets right, of whose 2x2 complementary regions it names two or more classes, and of
    whose places it names few enough to list, the one whose least sure verdict, of the whole and the 2x2 regions, is the
    surest. The first of equals.

    Args:
      regions: the teacher's region logits ``[N, R, K]`` at scales 1, 2 and so on.
      locations: the top class of every place ``[N, H, W]``.
      labels: ``[N]``.
    """
    verdicts, sureness = regions.argmax(-1)[:, :5], softmax(regions[:, :5].astype(np.float64), axis=-1).max(-1)
    apart = np.asarray(complementary_mask(regions, labels))[:, :5]
    named = np.array([len(set(row[mask])) for row, mask in zip(verdicts, apart, strict=True)])
    able = (verdicts[:, 0] == labels) & (named >= 2) & [np.unique(one).size <= MOST_CLASSES for one in locations]
    if not able.any():
        raise ValueError(
            f"the teacher names two classes beside the right one, and at most {MOST_CLASSES} in all, in no image: "
            "there is nothing to show"
        )
    return int(np.argmax(np.where(able, sureness.min(-1), -1)))


def ask(workdir: Path, data_path: str | None) -> tuple[Shown, tuple[str, ...]]:
    """The chosen test image of the run in ``workdir``, and the classes' names."""
    served = open_network(workdir, data_path=data_path)
    dataset = saved.load_test_data(served.network, path=data_path)

    @jax.jit
    def maps(variables, images):
        got = served.apply(variables, images)
        return got.logits, got.logit_map

    count = len(dataset.test.index)
    batches = [
        read_test_examples(dataset, range(first, min(first + BATCH, count)))[0] for first in range(0, count, BATCH)
    ]
    answers = [jax.device_get(maps(served.variables, batch)) for batch in batches]
    logits, logit_map = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    labels, regions = np.asarray(dataset.test.labels), np.asarray(pool_regions(logit_map, SCALES))
    locations = logit_map.argmax(-1)
    row = choose(regions, locations, labels)
    one = slice(row, row + 1)
    shown = Shown(
        row=row,
        label=int(labels[row]),
        pixels=read_test_examples(dataset, [row])[0][0],
        regions=read_regions(regions[row], logits[row], Regions(SCALES)),
        complementary=np.asarray(complementary_mask(regions[one], labels[one]))[0].tolist(),
        locations=locations[row],
    )
    return shown, served.names


def draw(shown: Shown, names: Sequence[str]) -> Figure:
    """The figure."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=DPI, facecolor=PAPER)
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0), autoscale_on=False)
    page.set_axis_off()
    middle = TOP + SIDE[4] / 2
    tops = {name: middle - side / 2 for name, side in SIDE.items()}

    _heading(page, "image", tops, ["a test image", f'label "{names[shown.label]}"'])
    _image(page, shown.pixels, LEFT["image"], tops["image"], SIDE["image"], faded=False)
    height, width = shown.locations.shape
    _heading(page, "map", tops, ["teacher's logit map:", f"top class at {height} x {width} places"])
    _map(page, shown, names, tops["map"])
    for scale in SCALES:
        cells = "the whole" if scale == 1 else f"{scale**2} regions"
        _heading(page, scale, tops, [f"{scale}x{scale}: {cells}"])
        _regions(page, shown, names, scale, tops[scale])
    for first, second in (("image", "map"), ("map", 1)):
        _arrow(page, (LEFT[first] + SIDE[first] + 3, middle), (LEFT[second] - 3, middle))
    _lines(page, LEFT[1], 18, ["region logits: the map's mean over each cell", "(top class, and its probability)"])
    _student(page, shown)
    _legend(page, shown)
    return figure


def save(figure: Figure, output: Path) -> None:
    """As a PNG of few colours, a quarter of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    Image.open(buffer).convert("RGB").quantize(COLOURS_KEPT, dither=Image.Dither.NONE).save(output, optimize=True)


def _heading(page, panel, tops, lines):
    for number, line in enumerate(reversed(lines)):
        where = LEFT[panel] + SIDE[panel] / 2
        weight = "bold" if line is lines[0] else "normal"
        _text(page, where, tops[panel] - 11 - 15 * number, line, _size(12, 2 * where, line), weight=weight)


def _map(page, shown, names, top):
    """The top class of every location, as the first letters of its name; which class they mean is below."""
    height, width = shown.locations.shape
    found = [int(label) for label in np.unique(shown.locations)]
    short = _abbreviations([names[label] for label in found])
    left, side = LEFT["map"], SIDE["map"]
    for row, column in itertools.product(range(height), range(width)):
        label = int(shown.locations[row, column])
        box = (left + column * side / width, top + row * side / height, side / width, side / height)
        _cell(page, box, label != shown.regions[0].label, hatched=False)
        _text(page, box[0] + box[2] / 2, box[1] + box[3] / 2, short[names[label]], 11)
    entries = [f"{short[names[label]]} {names[label]}" for label in found]
    for number, entry in enumerate(entries):
        x, y = left + (number % 2) * side * 0.53, top + side + 14 + 15 * (number // 2)
        _text(page, x, y, entry, _size(10.5, side * 0.53, entry), ha="left")


def _abbreviations(names: Sequence[str]) -> dict[str, str]:
    """The first letters of each name, two or as many as tell it from the others."""
    plain = {
        name: "".join(letter for letter in name if letter in string.ascii_letters + string.digits) for name in names
    }

    def short(name):
        lengths = range(2, len(plain[name]) + 1)
        others = [plain[other] for other in names if other != name]
        return next((plain[name][:n] for n in lengths if not any(o.startswith(plain[name][:n]) for o in others)), name)

    return {name: short(name) for name in names}


def _regions(page, shown, names, scale, top):
    left, side = LEFT[scale], SIDE[scale]
    _image(page, shown.pixels, left, top, side, faded=True)
    for region, apart in zip(shown.regions, shown.complementary, strict=True):
        if region.scale == scale:
            box = _box(region, left, top, side)
            _cell(page, box, apart)
            lines = [*names[region.label].replace("/", "/ ").split(" "), f"{100 * region.probability:.0f} %"]
            size = _size({1: 14, 2: 12.5}.get(scale, 11), box[2], max(lines, key=len))
            for number, line in enumerate(lines):
                y = box[1] + box[3] / 2 + (number - (len(lines) - 1) / 2) * (size + 2.5)
                _text(page, box[0] + box[2] / 2, y, line, size, halo=True)


def _student(page, shown):
    """Under each scale the student's regions, each with its weight, and the terms between the two networks."""
    top, side, below = STUDENT_TOP, STUDENT_SIDE, TOP + SIDE[4]
    for scale in SCALES:
        left = LEFT[scale] + (SIDE[scale] - side) / 2
        for region, apart in zip(shown.regions, shown.complementary, strict=True):
            if region.scale == scale:
                box = _box(region, left, top, side)
                _cell(page, box, apart)
                size = {1: 16, 2: 14}.get(scale, 11.5)
                _text(page, box[0] + box[2] / 2, box[1] + box[3] / 2, str(WEIGHTS[apart]), size, halo=True)
        centre = LEFT[scale] + SIDE[scale] / 2
        start = TOP + SIDE[4] / 2 + SIDE[scale] / 2
        _arrow(page, (centre, start + 3), (centre, top - 3), style="<|-|>")
        _text(page, centre + 7, max(below, start) + 28, "base loss", 12, ha="left")
        _text(page, centre, top + side + 13, f"{scale**2} term{'s' * (scale > 1)}", 12)


def _legend(page, shown):
    """Left of the student's regions: what they are, the two kinds, and the loss."""
    y = STUDENT_TOP + 2
    _lines(page, 8, y, ["the student's regions of the same image,", "each with the weight of its term"])
    words = {False: "consistent: verdict as the whole's", True: "complementary: another verdict"}
    for number, (kind, name) in enumerate(words.items()):
        box = (8, y + 32 + 20 * number, 22, 14)
        _cell(page, box, kind)
        _text(page, 36, box[1] + 7.5, f"{name}, weight {WEIGHTS[kind]}", 12, ha="left")
    loss = f"SDD loss = \N{GREEK CAPITAL LETTER SIGMA} weight \N{MULTIPLICATION SIGN} base loss / {len(shown.regions)}"
    _text(page, 8, y + 86, loss, 14, ha="left", weight="bold")
    _text(page, 8, y + 105, "base loss: KD, DKD, NKD, ... of the two networks' logits", 11, ha="left")


def _lines(page, x, y, lines):
    """The first one bold."""
    for number, line in enumerate(lines):
        _text(page, x, y + 15 * number, line, 12, ha="left", weight="normal" if number else "bold")


def _box(region: Region, left: float, top: float, side: float) -> tuple[float, float, float, float]:
    step = side / region.scale
    return left + region.column * step, top + region.row * step, step, step


def _cell(page, box, apart, *, hatched=True):
    """A tinted cell; a complementary one is hatched and has a heavier border as well, so colour is not all."""
    x, y, width, height = box
    colour, heavy = COLOURS[apart], apart and hatched
    page.add_patch(Rectangle((x, y), width, height, facecolor=(*colour, 0.28), linewidth=0))
    if heavy:
        page.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=(*colour, 0.5), hatch="////", linewidth=0)
        )
    inset, line = (1.2, 1.3) if heavy else (0.6, 0.6)
    inner = (x + inset, y + inset), width - 2 * inset, height - 2 * inset
    page.add_patch(Rectangle(*inner, fill=False, edgecolor=colour, linewidth=line))


def _image(page, pixels, left, top, side, *, faded):
    """The image; a grey one as ink on paper, so that what is written over it can be read."""
    extent = (left, left + side, top + side, top)
    values = pixels / 255
    if pixels.shape[-1] == 1:
        values = np.repeat(1 - values, 3, axis=-1)
    if faded:
        values = 1 - 0.55 * (1 - values)
    page.imshow(values, extent=extent, interpolation="nearest", aspect="auto", zorder=0)
    page.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    page.add_patch(Rectangle((left, top), side, side, facecolor="none", edgecolor=FAINT, linewidth=0.7))


def _arrow(page, start, end, style="-|>"):
    page.add_patch(
        FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=9, linewidth=1.2, color=INK, shrinkA=0, shrinkB=0)
    )


def _size(wanted: float, room: float, text: str) -> float:
    """The ``wanted`` size, or that at which the text fits."""
    return min(wanted, room / (LETTER * len(text)))


def _text(page, x, y, text, pixels, *, ha="center", weight="normal", halo=False):
    effects = [patheffects.withStroke(linewidth=2.4, foreground=PAPER)] if halo else None
    page.text(
        x, y, text, fontsize=0.72 * pixels, ha=ha, va="center_baseline", weight=weight, color=INK, path_effects=effects
    )


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="the teacher's run folder")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--data_path", help="where the data are now, if elsewhere than the run's config says")
    given = parser.parse_args()
    shown, names = ask(given.workdir, given.data_path)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    save(draw(shown, names), given.output)
    print(f"{given.output}: row {shown.row} of the test split, {names[shown.label]}")


if __name__ == "__main__":
    main()
