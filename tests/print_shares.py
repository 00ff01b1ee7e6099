"""What each of two real processes is given: python tests/print_shares.py PROCESS PORT ROOT; a line of JSON."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import run_streamed
import tiny

from sdd_jax.data import eval_data, train_data
from sdd_jax.mesh import make_mesh, pick, split_batch

STEPS, BATCH = 5, 8


def main(process, port, root):
    """Prints the positions and numbers of this process's rows, and what a sum over all of them is inside `jit`."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    dataset, mesh = run_streamed.load("folder", root, workers=0), make_mesh()
    source = train_data(dataset, seeds=[0], epochs=9, batch_size=BATCH, steps_per_call=1, mesh=mesh)
    whole = jax.jit(lambda batch: ((batch["position"][0] * jnp.arange(BATCH)).sum(), batch["image"].astype(int).sum()))
    seen, sums = [], []
    for step in range(STEPS):
        batch = source.own(step)
        assert batch["label"].shape == (1, BATCH)
        own = {name: np.concatenate([part.data for part in batch[name].addressable_shards], axis=1)[0] for name in rows}
        seen += [[int(own[name][i]) for name in rows] for i in range(len(own["index"]))]
        sums.append([int(value) for value in whole({name: batch[name] for name in ("position", "image")})])
    source.close()
    counted = 0
    for arrays in eval_data(dataset, dataset.test, batch_size=BATCH, mesh=mesh).batches():
        counted += int(jax.jit(lambda valid: valid.sum())(arrays["valid"]))
    print(json.dumps({"seen": seen, "sums": sums, "evaluated": counted, "memory": in_memory(mesh)}), flush=True)


def in_memory(mesh):
    """The numbers of the examples that this process's devices have, step by step, of the tiny run's data."""
    source = train_data(tiny.dataset(), seeds=[0], epochs=4, batch_size=BATCH, steps_per_call=1, mesh=mesh)
    make_batch = source.batch_function(np.float32)
    numbers = jax.jit(lambda data, own, step: split_batch(make_batch({**data, **pick(own, 0)}, step), mesh)["index"])
    found = []
    for step in range(4 * len(tiny.dataset().train.index) // BATCH):
        parts = numbers(source.shared, source.own(step), step).addressable_shards
        found.append([int(number) for part in parts for number in part.data])
    return found


rows = ("position", "index", "label")

if __name__ == "__main__":
    main(*sys.argv[1:])
