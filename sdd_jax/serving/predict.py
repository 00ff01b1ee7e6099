"""A run's network on pictures: class, probability, and what it says of every region."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sdd_jax.serving.network import Served, forward
from sdd_jax.serving.overlay import draw_overlay
from sdd_jax.serving.pictures import prepare
from sdd_jax.serving.regions import Region, read_regions, softmax

BATCH = 64
TOP = 5
CSV, JSON = "predictions.csv", "predictions.jsonl"


class Prediction(NamedTuple):
    """What the network says of one picture.

    Attributes:
      picture: the file.
      pixels: what the network saw, uint8 ``[H, W, C]``.
      label: the predicted class.
      probabilities: ``[K]``.
      regions: of every scale of the run.
    """

    picture: Path
    pixels: np.ndarray
    label: int
    probabilities: np.ndarray
    regions: list[Region]

    @property
    def probability(self) -> float:
        """Of the predicted class, 0 to 1."""
        return float(self.probabilities[self.label])


def predict(served: Served, pictures: Sequence[Path]) -> Iterator[Prediction]:
    """A prediction for each picture, in their order.

    Raises:
      ValueError: names a picture that cannot be read, once those before it are done.
    """
    size = min(BATCH, len(pictures))
    outputs = forward(served, scales=served.scales, pooling=served.pooling)
    run = jax.jit(lambda variables, images: outputs(variables, images)._replace(logit_map=None, feature_map=None))
    variables = jax.device_put(served.variables)
    for first in range(0, len(pictures), size):
        group = pictures[first : first + size]
        pixels, problem = [], None
        for picture in group:
            try:
                pixels.append(prepare(picture, served))
            except ValueError as error:
                problem = error
                break
        if pixels:
            padded = np.stack(pixels + [pixels[-1]] * (size - len(pixels)))  # one size, compiled once
            results = jax.device_get(run(variables, padded))
            for row, (picture, image) in enumerate(zip(group, pixels, strict=False)):
                logits = results.logits[row]
                if not np.isfinite(logits).all():
                    raise FloatingPointError(f"{picture}: the network's logits are not finite: {logits}")
                regions = read_regions(results.region_logits[row], logits, served.scales)
                yield Prediction(picture, image, int(np.argmax(logits)), softmax(logits), regions)
        if problem is not None:
            raise problem


def as_text(prediction: Prediction, names: Sequence[str]) -> str:
    """One line for a person."""
    best = np.argsort(-prediction.probabilities, kind="stable")[1:3]
    others = ", ".join(f"{names[label]} {100 * prediction.probabilities[label]:.1f} %" for label in best)
    first = f"{prediction.picture}: {names[prediction.label]} {100 * prediction.probability:.1f} %"
    apart = sum(not region.consistent for region in prediction.regions)
    return f"{first}{f', then {others}' if others else ''}; {apart} of {len(prediction.regions)} regions say otherwise"


def as_json(prediction: Prediction, names: Sequence[str]) -> dict[str, Any]:
    """All of it."""
    order = np.argsort(-prediction.probabilities, kind="stable")[:TOP]
    return {
        "picture": str(prediction.picture),
        "class": names[prediction.label],
        "label": prediction.label,
        "probability": prediction.probability,
        "top": [{"class": names[label], "probability": float(prediction.probabilities[label])} for label in order],
        "regions": [
            {
                **region.place._asdict(),
                "class": names[region.label],
                "probability": region.probability,
                "consistent": region.consistent,
            }
            for region in prediction.regions
        ],
    }


class Writer:
    """Writes predictions to a folder as they come: a CSV file, JSON lines, and a picture of the regions for each."""

    def __init__(self, folder: Path, root: Path, names: Sequence[str]):
        """``root`` is what the pictures were found in: their places below it are kept.

        Raises:
          ValueError: if ``folder`` holds predictions already.
        """
        if (folder / CSV).exists() or (folder / JSON).exists():
            raise ValueError(f"{folder} holds predictions already: give --output another folder, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._names = folder, names
        self._root = root if root.is_dir() else root.parent
        self._csv = open(folder / CSV, "w", newline="", encoding="utf-8")
        self._json = open(folder / JSON, "w", encoding="utf-8")
        self._rows = csv.writer(self._csv)
        self._rows.writerow(("picture", "class", "label", "probability"))

    def add(self, prediction: Prediction) -> None:
        """Writes one."""
        name, names = str(prediction.picture), self._names
        row = (name, names[prediction.label], prediction.label, f"{prediction.probability:.6f}")
        self._rows.writerow(row)
        self._json.write(json.dumps(as_json(prediction, names), ensure_ascii=False) + "\n")
        title = (
            f"{names[prediction.label]} {100 * prediction.probability:.1f} %   blue: as the whole, orange: otherwise"
        )
        path = self._folder / prediction.picture.relative_to(self._root)
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet = draw_overlay(prediction.pixels, prediction.regions, names, title)
        sheet.save(path.with_name(path.name + ".regions.png"))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._csv.close()
        self._json.close()
