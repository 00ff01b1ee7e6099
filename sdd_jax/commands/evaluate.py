"""Measures a run's last and best checkpoint on every test image.

python -m sdd_jax evaluate --workdir=runs/a

An imported network names no data, so the command does:

python -m sdd_jax evaluate --workdir=runs/resnet32x4 --data=cifar100 --data_path=DIR
"""

from pathlib import Path

import jax.numpy as jnp
from absl import flags

from sdd_jax import data, saved
from sdd_jax.config import DTYPES
from sdd_jax.mesh import make_mesh
from sdd_jax.training import run_dir
from sdd_jax.training.loop import make_evaluator


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "The run's folder, or a folder of runs.")
    flags.DEFINE_string("data", None, "The data set; the run's own if this is left out.")
    flags.DEFINE_string("data_path", None, "Where its files are; where the run found them if this is left out.")
    flags.mark_flags_as_required(["workdir"])


def main() -> None:
    """Runs the command."""
    workdir = Path(flags.FLAGS.workdir)
    folders = [workdir]
    if workdir.is_dir() and not (workdir / run_dir.CONFIG).exists():
        folders = sorted(path.parent for path in workdir.rglob(run_dir.CONFIG)) or [workdir]
    for folder in folders:
        if len(folders) > 1 and flags.FLAGS.data is None and saved.read(folder).imported:
            print(f"{folder} holds an imported network, which names no data: left out")
            continue
        evaluate(folder, flags.FLAGS.data, flags.FLAGS.data_path)


def evaluate(folder: Path, name: str | None, path: str | None) -> None:
    """Prints the results of one run on the data set ``name``, its own if None."""
    network = saved.read(folder)
    own = network.data if network.data and name in (None, network.data["name"]) else {}
    if name is None and network.imported:
        raise ValueError(f"{folder} holds an imported network, which names no data: add --data, one of {_known()}")
    steps = saved.steps(folder)
    dataset = data.load(
        name or own["name"],
        path=path or own.get("path"),
        select_on=own.get("select_on", "test"),
        image_size=own.get("image_size"),
        augment=own.get("augment"),
        workers=own.get("workers", 0),
    )
    saved.check_fits(network, saved.load_variables(folder, steps["last"]), dataset)
    image_dtype = jnp.promote_types(DTYPES[network.dtype], jnp.float32)
    evaluator = make_evaluator(network.model, dataset.test, dataset, make_mesh(), image_dtype)
    measured = {step: evaluator(saved.load_variables(folder, step)) for step in set(steps.values())}
    for which, step in steps.items():
        results = measured[step]
        numbers = " ".join(
            f"{key} {value:.4f}" if key == "loss" else f"{key} {100 * value:.2f}%"
            for key, value in results.items()
            if key != "examples"
        )
        seen = f"{results['examples']} test images of {dataset.name}"
        print(f"{folder} {which} (step {step}): {numbers} on {seen}", flush=True)
        if network.imported:
            break  # it has one checkpoint, which is both


def _known() -> str:
    return f"{', '.join((*data.INFO, data.FOLDER))} and {data.PREFIX}NAME"
