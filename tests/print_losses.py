"""Trains the tiny run on every device there is and prints its losses as JSON: ``print_losses.py DTYPE FOLDER``."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import tiny

from sdd_jax.training import loop
from sdd_jax.training.logbook import read_metrics

loop.LOG_EVERY = 1
workdir = Path(sys.argv[2])
loop.train(tiny.built(epochs=4, dtype=jnp.dtype(sys.argv[1])), workdir)
rows = read_metrics(workdir / "metrics.jsonl")
result = {
    "devices": jax.device_count(),
    "losses": [row["loss"] for row in rows if row["kind"] == "train"],
    "examples": [row["examples"] for row in rows if row["kind"] == "evaluation"],
}
print(json.dumps(result))
