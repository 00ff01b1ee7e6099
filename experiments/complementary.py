"""Which regions of a network are complementary, on the test images of its run, as numbers.

python -m experiments.complementary runs/teacher --output=regions.csv

Lines for each scale and rule: of all its regions, and of each place. Of all scales together, "any", also of the images
of each class. Besides, how many images that are wrong as a whole have a region that is right. What is printed are the
lines of all regions.
"""

import argparse
import csv
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.command_line import Parser, guarded, integers, table
from sdd_jax import complementary_mask, data, saved
from sdd_jax.own import ALLOW
from sdd_jax.regions import POOLINGS, Regions
from sdd_jax.sdd import CONSISTENCIES
from sdd_jax.serving.network import open_network
from sdd_jax.training.compiling import jit_network

BATCH = 250
ANY, ALL = "any", "all"  # scale; regions of it


class Share(NamedTuple):
    """A line: the share of the regions ``where`` of so many ``images`` that is ``what``, in percent.

    Of "right somewhere" it is the share of the images.
    """

    what: str
    scale: str
    where: str
    percent: float
    images: int


class Verdicts(NamedTuple):
    """What a network says of the regions of N images."""

    complementary: dict[str, np.ndarray]  # bool [N, R], by rule
    right: np.ndarray  # bool [N, R]
    labels: np.ndarray  # [N]


def ask(
    folder: Path,
    regions: Regions,
    data_name: str | None = None,
    data_path: str | None = None,
    allow: Collection[str] = (),
) -> tuple[Verdicts, tuple[str, ...]]:
    """The verdicts of the network in ``folder`` on the test images of its run, and the names of its classes.

    ``data_name`` is needed for an imported network. ``ValueError`` if it is named by MODULE:FUNCTION and not in
    ``allow``.
    """
    served = open_network(folder, data_name=data_name, data_path=data_path, allow=allow)
    dataset = saved.load_test_data(served.network, data_name, data_path)
    program = jit_network(lambda variables, images: served.apply(variables, images, regions).region_logits)
    found: list[tuple[np.ndarray, ...]] = []
    count = len(dataset.test.index)
    for first in range(0, count, BATCH):
        rows = np.minimum(np.arange(first, first + BATCH), count - 1)  # one shape: the last images are asked again
        images, labels = data.read_test_examples(dataset, rows)
        logits = jax.device_get(program(served.variables, images))
        masks = [np.asarray(complementary_mask(logits, labels, consistency=rule)) for rule in CONSISTENCIES]
        found.append(tuple(one[: count - first] for one in (*masks, logits.argmax(-1) == labels[:, None], labels)))
    *masks, right, labels = map(np.concatenate, zip(*found, strict=True))
    return Verdicts(dict(zip(CONSISTENCIES, masks, strict=True)), right, labels), served.names


def shares(verdicts: Verdicts, regions: Regions, names: Sequence[str]) -> Iterator[Share]:
    """The lines of every scale above 1, and of all of these together."""
    places, wrong = np.array(regions.places()), ~verdicts.right[:, 0]
    for scale in (*map(str, regions.scales[1:]), ANY):
        own = [number for number, place in enumerate(places) if number and scale in (ANY, str(place[0]))]
        for rule, mask in verdicts.complementary.items():
            what = f"complementary by {rule}"
            yield Share(what, scale, ALL, 100 * mask[:, own].mean(), len(mask))
            for number in own if scale != ANY else ():
                _, row, column = places[number]
                yield Share(what, scale, f"row {row} column {column}", 100 * mask[:, number].mean(), len(mask))
            for label, name in enumerate(names if scale == ANY else ()):
                if (chosen := verdicts.labels == label).any():
                    yield Share(what, scale, f"images of {name}", 100 * mask[chosen][:, own].mean(), int(chosen.sum()))
        if wrong.any():
            right = verdicts.right[wrong][:, own].any(1)
            yield Share("right somewhere, wrong as a whole", scale, ALL, 100 * right.mean(), len(right))


def main(arguments: list[str]) -> None:
    """Runs the command."""
    parser = Parser(
        prog="python -m experiments.complementary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run's folder, such as a teacher's")
    parser.add_argument("--scales", type=integers, default=(1, 2, 4), help="default 1,2,4")
    parser.add_argument("--pooling", choices=POOLINGS, default="nested", help="default nested, the released code's")
    parser.add_argument("--allow", default="", help=ALLOW)
    parser.add_argument("--data", help="the data set of an imported network")
    parser.add_argument("--data_path", help="where the images are; where the run found them if left out")
    parser.add_argument("--output", type=Path, metavar="FILE", help="gets every line, as CSV")
    options = parser.parse_args(arguments)
    with guarded("experiments.complementary"):
        regions = Regions(options.scales, options.pooling)
        if regions.count == 1:
            raise ValueError(f"--scales needs a scale above 1, such as 1,2; got {','.join(map(str, regions.scales))}")
        verdicts, names = ask(options.run, regions, options.data, options.data_path, options.allow.split(","))
        lines = [(*one[:3], f"{one.percent:.2f}", one.images) for one in shares(verdicts, regions, names)]
        print(*table(Share._fields, [line for line in lines if ALL in line]), sep="\n")
        if options.output:
            with open(options.output, "w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([Share._fields, *lines])


if __name__ == "__main__":
    main(sys.argv[1:])
