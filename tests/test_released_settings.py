"""Every setting beside the released files: 101 yaml files field by field, 119 commands, and every file that is cited.

`tests/golden/released_settings.json` has them. A difference that is meant stands in ``EXCEPTIONS`` with its reason; a
difference that does not, and an exception without its difference, fail.
"""

import fnmatch
import functools
import importlib
import itertools
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import official
import pytest
from pages import PAGES, ROOT

from experiments import recipes, tables
from experiments.recipes import RELEASED, Recipe
from sdd_jax import methods
from sdd_jax.build import check
from sdd_jax.configs import pairs, rows

GOLDEN = json.loads((Path(__file__).parent / "golden" / "released_settings.json").read_text())
YAML = {one["file"]: one for one in GOLDEN["yaml"]}
COMMANDS = GOLDEN["commands"]
DATA = ("cifar100", "cub200", "imagenet")
FIELDS = {
    "type": "method",
    "dataset": "data.name",
    "teacher": "model.teacher",
    "student": "model.student",
    "learning_rate": "optim.learning_rate",
    "milestones": "optim.milestones",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "weight_decay": "optim.weight_decay",
    "momentum": "optim.momentum",
    "task_weight": "loss.task_weight",
    "distill_weight": "loss.distill_weight",
    "warmup_epochs": "loss.warmup_epochs",
    "temperature": "loss.options.temperature",
    "alpha": "loss.options.alpha",
    "beta": "loss.options.beta",
    "gamma": "loss.options.gamma",
    "DKD.T": "loss.options.temperature",
    "DKD.BETA": "loss.options.gamma",
    "with _sdd": None,
}
# What the code fixes, and no file states. SDD-DKD's warm-up is that of the command's --warmup already.
FIXED = {
    "KD": {"warmup_epochs": 0},
    "SDD_KD": {"warmup_epochs": 0},
    "DKD": {"distill_weight": 1.0},
    "SDD_DKD": {"distill_weight": 1.0},
    "GL_DKD": {"distill_weight": 1.0},
    "NKD": {"distill_weight": 1.0, "temperature": 1.0, "gamma": 1.5},
    "SDD_NKD": {"distill_weight": 1.0},
}


class Run(NamedTuple):
    """What a released file is the file of."""

    data: str
    teacher: str
    student: str
    method: str


class Meant(NamedTuple):
    """A difference that is meant."""

    reason: str
    field: str
    there: Any
    here: Any
    files: tuple[str, ...]


def in_folders(*names, folders=("sdd_kd", "sdd_dkd", "sdd_nkd")):
    return tuple(f"configs/cifar100/{folder}/{name}.yaml" for folder in folders for name in names)


BROKEN = in_folders("resnet32_mobinetv2")
EXCEPTIONS = {
    "a batch over all devices": Meant(
        "train.py takes the batch for each of its two processes, here it is that of the run; the paper has 512",
        "batch_size",
        256,
        512,
        tuple(
            f"configs/imagenet/{name}.yaml"
            for name in (
                "r34_r18/nkd",
                "r34_r18/sdd_kd",
                "r34_r18/sdd_nkd",
                "r50_mv2/nkd",
                "r50_mv2/sdd_dkd",
                "r50_mv2/sdd_kd",
                "r50_mv2/sdd_nkd",
            )
        ),
    ),
    "a batch of four": Meant(
        "left over from a trial, it seems; the paper has 512",
        "batch_size",
        4,
        512,
        ("configs/imagenet/r34_r18/sdd_dkd.yaml",),
    ),
    "a distiller that is not there": Meant(
        "GL_DKD is in no table of distillers; the file is DKD's own, and is held against DKD",
        "type",
        "gl_dkd",
        "dkd",
        BROKEN,
    ),
    "a data set left to its default": Meant(
        "the file lacks DATASET.TYPE, which is cifar100 in cfg.py: as it stands it would run on CIFAR-100",
        "dataset",
        "cifar100",
        "cub200",
        ("configs/cub200/kd.yaml",),
    ),
    "networks without regions": Meant(
        "the file names networks that do not return regions, so that it cannot run; the settings are held all the same",
        "with _sdd",
        False,
        True,
        in_folders("res110_res32", "res56_res20"),
    ),
    "a gamma that is not read": Meant(
        "NKD has gamma 1.5 in its code, whatever the DKD section of its file says",
        "DKD.BETA",
        0.5,
        1.5,
        ("configs/imagenet/r34_r18/nkd.yaml", "configs/imagenet/r50_mv2/nkd.yaml"),
    ),
    "a MobileNetV1 called MobileNetV2": Meant(
        "the class of that name is MobileNetV1, as its author says (official repository, issue 1)",
        "student",
        "mobilenet_v2",
        "mobilenet_v1",
        tuple(f"configs/imagenet/r50_mv2/{method}.yaml" for method in pairs.OF_PAPER),
    ),
}


def runs():
    """The released files, as ``sdd_jax.configs.pairs`` names them: file -> run."""
    found = {}
    for data in DATA:
        for pair, method in itertools.product({*pairs.PAIRS[data], pairs.KD_PAIR}, pairs.OF_PAPER):
            own, _ = pairs.released_files(data, *pair, method)
            if own is not None:
                assert own not in found
                found[own] = Run(data, *pair, method)
    return found


RUNS = runs()


@functools.cache
def settings_of(run):
    argument = f"teacher={run.teacher},student={run.student},method={run.method}"
    return check(importlib.import_module(f"sdd_jax.configs.{run.data}").get_config(argument))


def there(file):
    """What a released file says, in the terms of this side."""
    stated = {name: value for name, value in YAML[file].items() if name != "file"} | FIXED[YAML[file]["type"]]
    stated["type"] = stated["type"].lower()
    stated["with _sdd"] = {stated[role].endswith("_sdd") for role in ("teacher", "student")} == {True}
    stated |= {role: official.network(stated[role]) for role in ("teacher", "student")}
    return stated | {"milestones": tuple(stated["milestones"])}


def here(file):
    run = RUNS.get(file) or Run("cifar100", *pairs.DKD_OF_ITS_OWN, "dkd")  # of ``BROKEN``, as its exception says
    settings = settings_of(run)
    regions = methods.parse(run.method).regions
    return {name: regions if field is None else settings.get(field) for name, field in FIELDS.items()}


def test_every_released_file_is_that_of_a_run_here_and_no_other_is_named():
    assert len(YAML) == len(GOLDEN["yaml"]) == 101 and len(COMMANDS) == 119
    assert YAML.keys() - RUNS.keys() == set(BROKEN) and not RUNS.keys() - YAML.keys()


def test_every_field_of_every_released_file_is_that_of_its_run():
    expected = {(file, one.field, one.there, one.here): name for name, one in EXCEPTIONS.items() for file in one.files}
    compared, differences = 0, set()
    for file in YAML:
        ours = here(file)
        for field, value in there(file).items():
            compared += 1
            if ours[field] != value:
                differences.add((file, field, value, ours[field]))
    assert not differences - expected.keys(), "differences that are no named exception"
    assert not expected.keys() - differences, "exceptions that nothing needs"
    assert compared == 1639  # 1433 that files state, 105 that the code fixes, 101 names with or without _sdd
    assert all(one.reason for one in EXCEPTIONS.values())


# ---------------------------------------------------------------------- commands

# Commands whose accuracies no cell has.
OTHER_SCALES = "run at {1,2} as well as at {1,2,4}; the cell of SD-NKD has a note"
NO_CELL = "no table of the paper has this pair with this method"
UNPLACED = {
    ("configs/cifar100/sdd_nkd/vgg13_mv2.yaml", (1, 2)): OTHER_SCALES,
    ("configs/cifar100/sdd_nkd/res32x4_res8x4.yaml", (1, 2)): NO_CELL,
    ("configs/cifar100/sdd_kd/vgg13_vgg8.yaml", (1, 2)): NO_CELL,
    ("configs/cifar100/sdd_dkd/vgg13_vgg8.yaml", (1, 2)): NO_CELL,
    ("configs/cifar100/sdd_nkd/vgg13_vgg8.yaml", (1, 2)): NO_CELL,
}
# Commands that stand in two scripts with the same accuracy: one run, noted twice.
NOTED_TWICE = {("configs/cub200/sdd_nkd/res32x4_mv2.yaml", (1,)): (57.38,)}
# Commands whose scales are not those of the row.
PLAIN = "at [1] the distillers fall back to the base loss: the row is that of the base loss"


def placed(command):
    """File and scales of a command."""
    return command["cfg"].removeprefix("./"), tuple(command["scales"])


def accuracies():
    """(file, scales) -> what the scripts note beside their commands, in order."""
    noted = defaultdict(tuple)
    for command in COMMANDS:
        noted[placed(command)] += tuple(command["accuracies_written_beside"])
    return noted | NOTED_TWICE


def recipe_of(file, scales):
    """How a command is run here; at [1] it is the base loss with the numbers of its SDD form."""
    run = RUNS[file]
    base = run.method.removeprefix(methods.SDD)
    if scales == (1,):
        return Recipe(run.data, run.student, run.teacher, base, loss_of=run.method)
    return Recipe(run.data, run.student, run.teacher, run.method, (("sdd.scales", scales),))


def key_of(recipe):
    return recipes.key(recipes.settings(recipe, RELEASED))


def test_commands_run_the_scales_of_their_rows_and_no_warm_up_of_their_own():
    assert all(command["warmup_flag"] is None for command in COMMANDS)  # hence 20, its default
    others = set()
    for file, scales in {placed(command) for command in COMMANDS}:
        run = RUNS[file]
        assert run.method.startswith(methods.SDD)
        if scales == (1,):
            assert run.data == "cub200", PLAIN
        elif settings_of(run)["sdd.scales"] != scales:
            others.add((file, scales))
    assert others == {where for where, reason in UNPLACED.items() if reason == OTHER_SCALES}


def test_each_pair_names_the_scripts_that_run_it():
    scripts = defaultdict(set)
    for command in COMMANDS:
        run = RUNS[placed(command)[0]]
        scripts[run.data, run.teacher, run.student].add(command["script"])
    for data in DATA:
        for pair, one in pairs.PAIRS[data].items():
            expected = scripts.get((data, *pair))
            assert one.script == (", ".join(sorted(expected)) if expected else pairs.NO_SCRIPT), pair


def test_recorded_accuracies_are_those_of_the_scripts():
    noted = {where: values for where, values in accuracies().items() if values}
    by_key = {key_of(recipe_of(*where)): values for where, values in noted.items()}
    assert len(by_key) == len(noted)
    of_accuracies = [table for table in tables.OF_PAPER if table.measures[0] == "top1"]
    cells = [one for table in of_accuracies for one in table.cells if one.recipe and one.recipe.teacher != "none"]
    found = set()
    for one in cells:
        key = key_of(one.recipe)
        assert one.recorded == by_key.get(key, ()), (one.row, one.column)
        found.add(key)
    unplaced = {where for where in noted if key_of(recipe_of(*where)) not in found}
    assert unplaced == set(UNPLACED)
    note = tables.TABLES["table2"].find("SD-NKD", "VGG13 -> MobileNetV2").note
    (where,) = (where for where, reason in UNPLACED.items() if reason == OTHER_SCALES)
    assert all(f"{value:.2f}" in note for value in noted[where])


def test_what_is_noted_twice_is_one_accuracy():
    for where, values in NOTED_TWICE.items():
        same = [tuple(one["accuracies_written_beside"]) for one in COMMANDS if placed(one) == where]
        assert same == [values] * 2


# ---------------------------------------------------------------------- files that are cited

CITING = [*PAGES, ROOT / "docs" / "values_template.txt", *sorted(ROOT.glob("configs/*.py"))]


@pytest.mark.parametrize("path", CITING, ids=lambda path: path.name)
def test_every_yaml_file_that_is_cited_is_released(path):
    for name in re.findall(r"[\w./*]*\*?\w+\.yaml(?![:\d-]*\s+of )", path.read_text()):  # "of" another code
        ours = (ROOT / name).exists() or (path.parent / name).exists() or (ROOT / "launch" / name).exists()
        theirs = name.removeprefix("CONFIGS/")  # the folder of a command that is quoted
        assert ours or any(fnmatch.fnmatchcase(file, f"*{theirs}") for file in YAML), name
    assert "yaml" in (ROOT / "experiments" / "VALUES.md").read_text()


def test_a_source_cites_the_file_of_the_run_where_there_is_one():
    assert pairs.released_files("cifar100", "wrn_40_2", "vgg8", "dkd") == (
        None,
        "configs/cifar100/sdd_dkd/wrn40_2_vgg8.yaml",
    )
    assert pairs.released_files("cifar100", "resnet20", "resnet8", "dkd") == (None, None)
    for data in DATA:
        for pair, method in itertools.product(pairs.PAIRS[data], pairs.OF_PAPER):
            own, other = pairs.released_files(data, *pair, method)
            sources = {setting.source for setting in rows.settle(data, *pair, method, RELEASED).values()}
            assert (own is None) != (other is None) and (own or other) in YAML
            assert any(source.endswith(" of FILE") for source in sources) == (own is not None)
            assert any(" of OTHER, since" in source for source in sources) == (other is not None)
