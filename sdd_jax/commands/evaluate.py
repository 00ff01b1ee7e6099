"""Measures a run's last and best checkpoint on every test image, and the average of its weights if it keeps one.

sdd evaluate --workdir=runs/a

An imported network names no data, so the command does:

sdd evaluate --workdir=runs/resnet32x4 --data=cifar100 --data_path=DIR

Images on disk are brought to the size that the network was trained at; a line says so where they are not.
"""

from pathlib import Path

from absl import flags

from sdd_jax import saved
from sdd_jax.fields import AVERAGE, SAVED
from sdd_jax.mesh import make_mesh
from sdd_jax.own import ALLOW
from sdd_jax.training import run_dir
from sdd_jax.training.loop import make_evaluator


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "The run's folder, or a folder of runs.")
    flags.DEFINE_string("data", None, "The data set; the run's own if this is left out.")
    flags.DEFINE_string("data_path", None, "Where its files are; where the run found them if this is left out.")
    flags.DEFINE_integer(
        "image_size", None, "The side of images on disk; the network's own if left out.", lower_bound=1
    )
    flags.DEFINE_list("allow", [], ALLOW)
    flags.mark_flags_as_required(["workdir"])


def main() -> None:
    """Runs the command."""
    args, workdir = flags.FLAGS, Path(flags.FLAGS.workdir)
    folders = saved.find_folders(workdir) or [workdir]
    for folder in folders:
        if len(folders) > 1 and args.data is None and saved.read(folder, args.allow).data is None:
            print(f"{folder} holds an imported network, which names no data: left out")
        elif len(folders) > 1 and run_dir.read_done(folder) is None and not saved.checkpoints(folder).steps():
            print(f"{folder} has no checkpoint yet: left out")
        else:
            evaluate(folder, args.data, args.data_path, args.image_size, args.allow)


def evaluate(folder: Path, name: str | None, path: str | None, image_size: int | None, allow: list[str]) -> None:
    """Prints the results of one run on the data set ``name``, its own if None."""
    network, known = saved.read(folder, allow), saved.read_results(folder)
    shown = [which for which in SAVED if which == "last" or saved.result_of(known, which)]
    dataset = saved.load_test_data(network, name, path, image_size)
    saved.check_fits(network, saved.load_variables(folder, "last"), dataset)
    if (note := network.other_size(dataset.name, dataset.image_shape)) is not None:
        print(note)
    evaluator = make_evaluator(network.model, dataset.test, dataset, make_mesh(), network.image_dtype)
    measured: dict[tuple[int, bool], dict[str, float]] = {}  # the last checkpoint is often the best
    for which in shown:
        asked = step, _ = saved.step_of(folder, which), which == AVERAGE
        if asked not in measured:
            measured[asked] = evaluator(saved.load_variables(folder, which))
        results = measured[asked]
        numbers = " ".join(
            f"{key} {value:.4f}" if key == "loss" else f"{key} {100 * value:.2f}%"
            for key, value in results.items()
            if key != "examples"
        )
        seen = f"{results['examples']} test images of {dataset.name}"
        print(f"{folder} {which} (step {step}): {numbers} on {seen}", flush=True)
        if network.data is None:
            break  # its one checkpoint is the last and the best
