"""Measures a run's last and best checkpoint on every test image.

python -m sdd_jax evaluate --workdir=runs/a
"""

from pathlib import Path

from absl import flags

from sdd_jax import data
from sdd_jax.build import check, image_dtype, load_variables, make_parts
from sdd_jax.training import run_folder, sharding
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training.loop import make_evaluator


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "The run's folder, or a folder of runs.")
    flags.mark_flags_as_required(["workdir"])


def main() -> None:
    """Runs the command."""
    workdir = Path(flags.FLAGS.workdir)
    folders = [workdir]
    if workdir.is_dir() and not (workdir / run_folder.CONFIG).exists():
        folders = sorted(path.parent for path in workdir.rglob(run_folder.CONFIG)) or [workdir]
    for folder in folders:
        evaluate(folder)


def evaluate(folder: Path) -> None:
    """Prints the results of one run."""
    settings = check(run_folder.read_config(folder))
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, settings.hash())
    steps = checkpoints.steps()
    if not steps:
        raise ValueError(f"{folder} has no checkpoint yet")
    dataset = data.load(settings["data.name"], path=settings["data.path"], select_on=settings["data.select_on"])
    model = make_parts(settings, dataset.num_classes).model
    evaluator = make_evaluator(model, dataset.test, dataset, sharding.make_mesh(), image_dtype(settings))
    best = checkpoints.best_step()
    for name, step in {"last": steps[-1], "best": steps[-1] if best is None else best}.items():
        results = evaluator(load_variables(folder, step))
        numbers = " ".join(
            f"{key} {value:.4f}" if key == "loss" else f"{key} {100 * value:.2f}%"
            for key, value in results.items()
            if key != "examples"
        )
        print(f"{folder} {name} (step {step}): {numbers} on {results['examples']} test images", flush=True)
