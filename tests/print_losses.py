"""Trains the tiny run on every device there is and prints its losses as JSON: ``print_losses.py --help``."""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import tiny

from sdd_jax import processes
from sdd_jax.training import logbook, loop
from sdd_jax.training.features import contrast
from sdd_jax.training.hints import hint, review
from sdd_jax.training.logbook import read_metrics
from sdd_jax.training.objective import added

parser = argparse.ArgumentParser()
parser.add_argument("workdir", type=Path)
parser.add_argument("--dtypes", default="float64", help="one run in each")
parser.add_argument("--seeds", type=int, default=1, help="runs to train together; the one of seed 0 is printed")
parser.add_argument("--stop_at", type=int, help="end before the evaluation after so many steps, as a killed run would")
parser.add_argument("--joins", choices=("flags", "environment"), help="be one of several processes, told by either")
FEATURES = {
    "contrast": contrast(0.1, dimensions=8, negatives=20),
    "review": review(0.1, warmup_epochs=2),
    "hint": hint(0.1),
}
parser.add_argument("--features", choices=FEATURES, help="a feature loss beside the distillation")
parser.add_argument("--recipe", action="store_true", help="by the recipe of tiny.py")
parser.add_argument("--process", help="INDEX,COUNT,PORT of the flags")


class Stopped(Exception):
    """The run ended before its time."""


def main(given):
    """Trains, and prints as the first process."""
    if given.joins == "flags":
        index, count, port = map(int, given.process.split(","))
        processes.join(f"127.0.0.1:{port}", count, index, wait=60)
    elif given.joins == "environment":
        processes.join(wait=60)
    logbook.LOG_EVERY = 1
    printed = {"devices": jax.device_count(), "processes": jax.process_count()}
    try:
        for dtype in given.dtypes.split(","):
            printed[dtype] = train(dtype, given.workdir / dtype, given)
    except Stopped:
        printed["stopped"] = True
    if processes.is_first():
        print(json.dumps(printed))


def train(dtype, folder, given):
    """The losses of every step and what evaluations found."""

    def should_stop(step):
        if step == given.stop_at:
            raise Stopped
        return processes.preemption_requested(step)

    jax.config.update("jax_enable_x64", dtype == "float64")  # of every thread, those that restore among them
    runs = [tiny.built(epochs=4, dtype=jnp.dtype(dtype), seed=seed) for seed in range(given.seeds)]
    if given.features:
        features = FEATURES[given.features]
        runs = [run._replace(objective=added(logits=run.objective, features=features)) for run in runs]
    if given.recipe:
        runs = [tiny.recipe(run) for run in runs]
    loop.train_together(runs, [folder / str(run.seed) for run in runs], should_stop=should_stop)
    rows = read_metrics(folder / "0" / "metrics.jsonl")
    return {
        "losses": [row["loss"] for row in rows if row["kind"] == "train"],
        "evaluations": [
            [row["step"], row["split"], row["examples"], row["accuracy"], row.get("ema_loss", 0.0)]
            for row in rows
            if row["kind"] == "evaluation"
        ],
    }


if __name__ == "__main__":
    main(parser.parse_args())
