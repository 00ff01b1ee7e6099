"""Predictions for a person's pictures: prepared as evaluation images, classified as a whole and region by region."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from scipy.special import softmax

from sdd_jax.data import images
from sdd_jax.data.folders import SUFFIXES, Files
from sdd_jax.files import walk
from sdd_jax.serving.network import Served, check_names
from sdd_jax.serving.regions import Region, draw_overlay, read_regions
from sdd_jax.training.compiling import jit_network

BATCH = 64
CSV, JSON = "predictions.csv", "predictions.jsonl"
# Sets whose own images are smaller than the network's input: digits are enlarged, the others get a border of zeros.
OWN_SIDE = {"digits": 8, "mnist": 28, "fashion_mnist": 28}


class Prediction(NamedTuple):
    """What the network says of one picture."""

    picture: Path
    pixels: np.ndarray  # what the network saw, uint8 [H, W, C]
    label: int  # the predicted class
    probabilities: np.ndarray  # [K]
    regions: list[Region]

    @property
    def probability(self) -> float:
        """Of the predicted class, 0 to 1."""
        return float(self.probabilities[self.label])

    @property
    def order(self) -> np.ndarray:
        """The classes, the most probable first."""
        return np.argsort(-self.probabilities, kind="stable")


def find_pictures(path: Path, output: Path | None = None) -> list[Path]:
    """The picture at ``path``, or every picture below it in the order of their names; hidden ones are left out.

    So is what lies in the folder ``output``: a start before this one may have written it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: expected a picture or a folder of pictures")
    if output is not None and path.is_dir() and output.resolve() == path.resolve():
        raise ValueError(f"--output={output} is the folder of the pictures: name another, which may lie in it")
    found = [] if path.is_dir() else [path]
    for place, files in walk(path, output) if path.is_dir() else ():
        found += [Path(place, name) for name in files if name.lower().endswith(SUFFIXES)]
    if not found:
        raise ValueError(f"{path} holds no picture: expected files with a suffix of {', '.join(SUFFIXES)}")
    check_names(map(str, found))
    return found


def prepare(path: Path, served: Served) -> np.ndarray:
    """The picture's pixels as the network takes them, uint8 ``[H, W, C]``; docs/export.md says how.

    ``ValueError`` if it cannot be read, or if the network takes neither grey nor RGB images.
    """
    height, width, channels = served.info.image_shape
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, {served.network.folder} takes images of {channels}")
    try:
        content, _ = Files(path.parent, [path.name], [0]).read(0)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    picture = images.decode(content, str(path))
    if served.info.augment in images.AUGMENTS:
        return np.ascontiguousarray(images.eval_image(picture, served.info.augment, height))
    if served.info.augment == images.BOXED:
        return images.whole_image(picture, height)
    side = OWN_SIDE.get(served.data_name)
    own = (width, height) if side is None or picture.size == (width, height) else (side, side)
    if picture.size != own:
        across = min(picture.width, max(1, round(picture.height * own[0] / own[1])))
        down = min(picture.height, max(1, round(picture.width * own[1] / own[0])))
        left, top = (picture.width - across) // 2, (picture.height - down) // 2
        picture = picture.crop((left, top, left + across, top + down))  # first: resizing would look past its edges
        picture = picture.resize(own, Image.Resampling.BILINEAR)
    pixels = np.asarray(picture.convert("L"))[..., None] if channels == 1 else np.asarray(picture)
    if served.data_name == "digits":
        return pixels.repeat(height // own[1], axis=0).repeat(width // own[0], axis=1)
    border = (height - own[1]) // 2
    return np.pad(pixels, ((border, border), (border, border), (0, 0)))


def predict(served: Served, pictures: Sequence[Path]) -> Iterator[Prediction]:
    """A prediction for each picture, in order; ``ValueError`` at one that cannot be read, after those before it."""
    size = min(BATCH, len(pictures))

    @jit_network
    def run(variables, images):
        outputs = served.apply(variables, images, served.regions)
        return outputs.logits, outputs.region_logits

    variables = jax.device_put(served.variables)
    for first in range(0, len(pictures), size):
        pixels, problem = [], None
        try:
            for picture in pictures[first : first + size]:
                pixels.append(prepare(picture, served))
        except ValueError as error:
            problem = error
        if pixels:
            padded = np.stack(pixels + [pixels[-1]] * (size - len(pixels)))  # one size, compiled once
            results = jax.device_get(run(variables, padded))
            for picture, image, logits, region_logits in zip(pictures[first:], pixels, *results, strict=False):
                if not np.isfinite(logits).all():
                    raise FloatingPointError(f"{picture}: the network's logits are not finite: {logits}")
                regions = read_regions(region_logits, logits, served.regions)
                probabilities = softmax(logits.astype(np.float64))
                yield Prediction(picture, image, int(np.argmax(logits)), probabilities, regions)
        if problem is not None:
            raise problem


def as_text(prediction: Prediction, names: Sequence[str]) -> str:
    """One line for a person."""
    first, *others = (f"{names[label]} {100 * prediction.probabilities[label]:.1f} %" for label in prediction.order[:3])
    then = f", then {', '.join(others)}" if others else ""
    apart = sum(not region.consistent for region in prediction.regions)
    return f"{prediction.picture}: {first}{then}; {apart} of {len(prediction.regions)} regions say otherwise"


def as_json(prediction: Prediction, names: Sequence[str]) -> dict[str, Any]:
    """All of it."""
    top = prediction.order[:5]
    return {
        "picture": str(prediction.picture),
        "class": names[prediction.label],
        "label": prediction.label,
        "probability": prediction.probability,
        "top": [{"class": names[label], "probability": float(prediction.probabilities[label])} for label in top],
        "regions": [
            {
                "scale": region.scale,
                "row": region.row,
                "column": region.column,
                "class": names[region.label],
                "probability": region.probability,
                "consistent": region.consistent,
            }
            for region in prediction.regions
        ],
    }


def _cell(value: Any) -> str:
    """``value`` so that no spreadsheet computes it: after an apostrophe if it begins as a formula does."""
    return f"'{value}" if str(value).startswith(("=", "+", "-", "@")) else str(value)


def write(predictions: Iterable[Prediction], folder: Path, root: Path, names: Sequence[str]) -> Iterator[Prediction]:
    """Passes predictions on and writes each to ``folder``: a line of CSV, a line of JSON, a picture of its regions.

    The pictures were found in ``root``: their places below it are kept. The tables have names that end in ``.part``
    until they are whole. If the disk fails, all that was written is removed, and the ``OSError`` names the folder.
    """
    if (folder / CSV).exists() or (folder / JSON).exists():
        raise ValueError(f"{folder} holds predictions already: give --output another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    root, written = root if root.is_dir() else root.parent, [folder / f"{name}.part" for name in (CSV, JSON)]
    try:
        with (
            open(written[0], "w", newline="", encoding="utf-8") as table,
            open(written[1], "w", encoding="utf-8") as lines,
        ):
            rows = csv.writer(table)
            rows.writerow(("picture", "class", "label", "probability"))
            for prediction in predictions:
                name, chance = names[prediction.label], prediction.probability
                rows.writerow((_cell(prediction.picture), _cell(name), prediction.label, f"{chance:.6f}"))
                lines.write(json.dumps(as_json(prediction, names), ensure_ascii=False) + "\n")
                title = f"{name} {100 * chance:.1f} %   blue: as the whole, orange: otherwise"
                path = folder / prediction.picture.relative_to(root)
                path.parent.mkdir(parents=True, exist_ok=True)
                written.append(path.with_name(path.name + ".regions.png"))
                draw_overlay(prediction.pixels, prediction.regions, names, title).save(written[-1])
                yield prediction
        for part in written[:2]:
            part.rename(part.with_suffix(""))
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(folder)) from error
