"""Trains the tiny run on every device there is and prints its losses as JSON.

``print_losses.py DTYPE FOLDER SEEDS OBJECTIVE``: SEEDS is how many runs to train together; what is printed is the one
of seed 0. OBJECTIVE is "distill", or "contrast", which adds CRD to it.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import tiny

from sdd_jax.training import loop
from sdd_jax.training.contrast import contrast
from sdd_jax.training.logbook import read_metrics
from sdd_jax.training.objective import added

loop.LOG_EVERY = 1
dtype, workdir, seeds = jnp.dtype(sys.argv[1]), Path(sys.argv[2]), range(int(sys.argv[3]))
runs = [tiny.built(epochs=4, dtype=dtype, seed=seed) for seed in seeds]
if sys.argv[4] == "contrast":
    small = contrast(0.1, dimensions=8, negatives=20)
    runs = [run._replace(objective=added(logits=run.objective, features=small)) for run in runs]
loop.train_together(runs, [workdir / str(seed) for seed in seeds])
rows = read_metrics(workdir / "0" / "metrics.jsonl")
result = {
    "devices": jax.device_count(),
    "losses": [row["loss"] for row in rows if row["kind"] == "train"],
    "examples": [row["examples"] for row in rows if row["kind"] == "evaluation"],
}
print(json.dumps(result))
