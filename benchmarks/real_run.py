"""A teacher and its students by KD and SDD-KD on a data set of configs/, as one config for `benchmarks.accelerator`.

    sdd train --config=benchmarks/real_run.py:data=fashion_mnist,epochs=5 --workdir=runs/real_run

Digits have no config of their own and take that of Fashion-MNIST, whose images have the same shape.
"""

import importlib

from ml_collections import ConfigDict

from sdd_jax.configs import common

METHODS = {"teacher": "plain", "kd": "kd", "sdd_kd": "sdd_kd"}


def get_config(argument: str | None = None):
    """A sequence of the runs that `runs` names, joined by +."""
    defaults = {"data": "fashion_mnist", "teacher": "resnet32x4", "student": "resnet8x4", "epochs": "1"}
    chosen = common.parse(argument, **defaults, runs="+".join(METHODS))
    names = chosen["runs"].split("+")
    module = importlib.import_module(f"sdd_jax.configs.{chosen['data'].replace('digits', 'fashion_mnist')}")
    runs = {}
    for name in names:
        teaches = name == "teacher"
        networks = ("none", chosen["teacher"]) if teaches else (chosen["teacher"], chosen["student"])
        config = module.get_config(f"teacher={networks[0]},student={networks[1]},method={METHODS[name]}")
        config.data.name = chosen["data"] if chosen["data"] == "digits" else config.data.name
        config.epochs = config.eval_every_epochs = config.save_every_epochs = int(chosen["epochs"])
        config.optim.update({"schedule": "cosine", "milestones": ()})
        config.teacher.run = None if teaches else "teacher"
        runs[name] = config
    return ConfigDict({"sequence": tuple(names), "runs": runs})
