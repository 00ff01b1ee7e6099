"""A tiny run over images on disk: python tests/run_streamed.py KIND ROOT WORKDIR WORKERS [DIE_AT_STEP]."""

import os
import signal
import sys
import time
from pathlib import Path

import tiny

from sdd_jax import data
from sdd_jax.data.grain_source import GrainData
from sdd_jax.training import loop

NAMES = {"cub200": "cub200", "folder": "imagenet", "tfds": "tfds:birds"}
SIZE, EPOCHS = 16, 2


def load(kind, root, workers, augment=None):
    """One of the tiny sets that tests/sets.py writes."""
    options = {"image_size": SIZE, "select_on": "validation", "workers": workers, "in_memory": False}
    return data.load(NAMES[kind], path=root, augment=augment, **options)


def built(kind, root, workers):
    """A distillation by SDD-KD over it, as tests/tiny.py has one; a checkpoint after each of two epochs."""
    return tiny.built(epochs=EPOCHS)._replace(dataset=load(kind, root, workers))


def main(kind, root, workdir, workers, die_at=None):
    """Trains; before step ``die_at``, once a checkpoint is whole, the process is killed without notice."""
    own = GrainData.own

    def dying(self, step):
        if die_at is not None and step == int(die_at):
            while not list(Path(workdir).glob("checkpoints/*/MANIFEST.json")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, step)

    GrainData.own = dying
    loop.train(built(kind, root, int(workers)), workdir)


if __name__ == "__main__":
    main(*sys.argv[1:])
