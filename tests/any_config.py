"""A config file for the tests of bad input: the quickstart's student by SDD-KD, with fields as its argument says.

``any_config.py:{"epochs": 1.5, "optim.momentum": None}``: any Python value for any field, also of another type.
"""

import ast

from ml_collections import ConfigDict

from sdd_jax.configs import quickstart


def get_config(argument="{}"):
    if argument == "{}":
        return quickstart.get_config("run=sdd_kd")
    tree = quickstart.get_config("run=sdd_kd").to_dict()
    for name, value in ast.literal_eval(argument).items():
        *rooms, leaf = name.split(".")
        room = tree
        for part in rooms:
            room = room[part]
        room[leaf] = value
    return ConfigDict(tree)
