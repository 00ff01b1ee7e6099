"""Says what is on a picture, or on every picture of a folder: class and probability, also for every region.

sdd predict PICTURE_OR_FOLDER --workdir=runs/a --output=predictions

Prints a line for each picture. --output takes predictions.csv, predictions.jsonl with every region, and for each a
picture of its regions: those with the class of the whole image, and those with another. Pictures are prepared as the
run's evaluation images were; docs/export.md says how. An imported network names no data, so the command does:
--data=cifar100.
"""

import sys
from pathlib import Path

from absl import flags

from sdd_jax.fields import SAVED
from sdd_jax.own import ALLOW
from sdd_jax.saved import CHECKPOINT
from sdd_jax.serving.network import open_network
from sdd_jax.serving.predict import as_text, find_pictures, predict, write

ARGUMENTS = ("PICTURE_OR_FOLDER",)


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "The run's folder, trained or imported.")
    flags.DEFINE_string("output", None, "A folder for tables and pictures; none are written if this is left out.")
    flags.DEFINE_enum("checkpoint", "last", SAVED, CHECKPOINT)
    flags.DEFINE_string("data", None, "The data set of an imported network.")
    flags.DEFINE_string("data_path", None, "Where the folder with the class names is. A trained run has noted its own.")
    flags.DEFINE_list("allow", [], ALLOW)
    flags.mark_flags_as_required(["workdir"])


def main(path: str) -> None:
    """Runs the command."""
    args, root = flags.FLAGS, Path(path)
    pictures = find_pictures(root, Path(args.output) if args.output else None)
    given = {"data_name": args.data, "data_path": args.data_path, "allow": args.allow}
    served = open_network(Path(args.workdir), checkpoint=args.checkpoint, **given)
    if (note := served.other_size()) is not None:
        print(note, file=sys.stderr)
    if served.class_names is None:
        print(f"the class names of {served.data_name} are not at hand: numbers stand for them", file=sys.stderr)
    predictions = predict(served, pictures)
    if args.output:
        predictions = write(predictions, Path(args.output), root, served.names)
    for prediction in predictions:
        print(as_text(prediction, served.names), flush=True)
