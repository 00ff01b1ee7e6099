"""Trains the tiny run on every device there is and prints its losses as JSON: ``print_losses.py DTYPE FOLDER SEEDS``.

SEEDS is how many runs to train together; what is printed is the one of seed 0.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import tiny

from sdd_jax.training import loop
from sdd_jax.training.logbook import read_metrics

loop.LOG_EVERY = 1
dtype, workdir, seeds = jnp.dtype(sys.argv[1]), Path(sys.argv[2]), range(int(sys.argv[3]))
runs = [tiny.built(epochs=4, dtype=dtype, seed=seed) for seed in seeds]
loop.train_together(runs, [workdir / str(seed) for seed in seeds])
rows = read_metrics(workdir / "0" / "metrics.jsonl")
result = {
    "devices": jax.device_count(),
    "losses": [row["loss"] for row in rows if row["kind"] == "train"],
    "examples": [row["examples"] for row in rows if row["kind"] == "evaluation"],
}
print(json.dumps(result))
