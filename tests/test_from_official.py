"""The page from the official code to this one names every option there, and what it says of this side is so."""

import inspect
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest

from sdd_jax import methods
from sdd_jax.build import check
from sdd_jax.commands import train
from sdd_jax.config import option_fields, parse_method
from sdd_jax.configs import cifar100, common
from sdd_jax.fields import FIELDS
from sdd_jax.models import create_model, model_stems
from sdd_jax.torch_io import to_state_dict

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "from_official.md").read_text()

# What there is at commit e412036: options of train_origin.py and train.py, fields of mdistiller/engine/cfg.py,
# distiller_dict, and the networks by their names without _sdd; and the options of RepDistiller's train_student.py.
OPTIONS = "--cfg --resume opts --gpu --warmup --M --local_rank --seed --world-size --dist-url".split()
CFG = """
EXPERIMENT.PROJECT EXPERIMENT.NAME EXPERIMENT.TAG
DATASET.TYPE DATASET.NUM_WORKERS DATASET.TEST.BATCH_SIZE
DISTILLER.TYPE DISTILLER.TEACHER DISTILLER.STUDENT
SOLVER.TRAINER SOLVER.BATCH_SIZE SOLVER.EPOCHS SOLVER.LR SOLVER.LR_DECAY_STAGES SOLVER.LR_DECAY_RATE
SOLVER.WEIGHT_DECAY SOLVER.MOMENTUM SOLVER.TYPE
LOG.TENSORBOARD_FREQ LOG.SAVE_CHECKPOINT_FREQ LOG.PREFIX LOG.WANDB
KD.TEMPERATURE KD.LOSS.CE_WEIGHT KD.LOSS.KD_WEIGHT
DKD.CE_WEIGHT DKD.ALPHA DKD.BETA DKD.T DKD.WARMUP
SP.LOSS.CE_WEIGHT SP.LOSS.FEAT_WEIGHT
CRD.MODE CRD.FEAT.DIM CRD.FEAT.STUDENT_DIM CRD.FEAT.TEACHER_DIM CRD.LOSS.CE_WEIGHT CRD.LOSS.FEAT_WEIGHT
CRD.NCE.K CRD.NCE.MOMENTUM CRD.NCE.TEMPERATURE
AT.* RKD.* FITNET.* KDSVD.* OFD.* NST.* PKT.* VID.* REVIEWKD.*
""".split()
DISTILLERS = """
NONE KD AT OFD RKD FITNET KDSVD CRD NST PKT SP VID REVIEWKD DKD SDD_DKD SDD_KD NKD SDD_NKD
""".split()
CIFAR = """
resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 resnet8x4 resnet32x4 ResNet18 ResNet50
wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2 vgg8 vgg11 vgg13 vgg16 vgg19 MobileNetV2 ShuffleV1 ShuffleV2
""".split()
IMAGENET = "ResNet18 ResNet34 ResNet50 ResNet101 MobileNetV2".split()
CUB200 = "resnet32x4 vgg13 ResNet50 resnet8x4 ShuffleV1 vgg8 MobileNetV2".split()
REPDISTILLER = """
--print_freq --tb_freq --save_freq --batch_size --num_workers --epochs --init_epochs --learning_rate --lr_decay_epochs
--lr_decay_rate --weight_decay --momentum --dataset --model_s --path_t --distill --trial -r --gamma -a --alpha -b --beta
--kd_T --feat_dim --mode --nce_k --nce_t --nce_m --hint_layer
""".split()


def section(title):
    """What stands under a heading, up to the next."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def rows(text):
    """Every table of ``text`` as rows: {heading of a column: cell}."""
    found, heads = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            heads = None
        elif heads is None:
            heads = cells
        elif not set("".join(cells)) <= set("-:"):
            assert len(cells) == len(heads), line
            found.append(dict(zip(heads, cells, strict=True)))
    return found


def quoted(cell):
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def as_written(value):
    """A field's value as the page has it."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else "none" if value is None else str(value)


def value_of(field, method=""):
    """The default of a field: of every config, or of CIFAR-100's with a method."""
    config = cifar100.get_config(f"method={method}") if method else common.base()
    for room in field.split("."):
        config = config[room]
    return config


def option_fields_of(method):
    """The fields of a method's options."""
    flat = {"method": method, "loss.base": value_of("loss.base", method)} if method else {}
    return option_fields(flat, parse_method(flat)) if method else {}


# Two forms: a column for the default, or `name`: `default`, and `name`: `default` with `method`.
DEFAULTS = [row for row in rows(PAGE) if "default here" in row or "here, and its default" in row]


def stated_in(row):
    """What a row names here, the default that it states, and the method that this is the default of."""
    if "default here" in row:
        names, (default,) = quoted(row["here"]), quoted(row["default here"]) or [row["default here"]]
        return names, default, ""
    cell, _, method = row["here, and its default"].partition(" with ")
    name, _, default = cell.partition(": ")
    return quoted(name), default.strip("`"), method.strip("`")


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: next(iter(row.values())).replace("`", "")[:30])
def test_what_a_row_names_here_exists_with_that_default(row):
    names, default, method = stated_in(row)
    assert len(names) == (row.get("here", row.get("here, and its default")) != "-"), row
    for name in names:
        if name in FIELDS or name in option_fields_of(method):
            assert default in (as_written(value_of(name, method)), "set by the config file"), row
        else:  # a flag of the command, without a default
            assert name == "--config.FIELD=VALUE" or f'"{name.removeprefix("--")}", None' in inspect.getsource(train)
            assert default in ("none", ""), row


def test_every_option_there_is_in_its_table():
    def named(title):
        cells = [row.get("there", row.get("there, and its default", "")) for row in rows(section(title))]
        return Counter(name for cell in cells for name in quoted(cell))

    options = rows(section("Options of the training scripts"))
    assert sorted(quoted(row["there"])[0].split()[0] for row in options if "there" in row) == sorted(OPTIONS)
    assert set(named("Config fields")) == set(CFG)
    assert named("Distillers") == Counter(DISTILLERS)
    assert set(named("RepDistiller")) == set(REPDISTILLER)
    assert [row["fixed there"] for row in rows(section("Config fields")) if "fixed there" in row]


def test_methods_are_here_under_their_names():
    for row in rows(section("Distillers")):
        assert row["here"] == "-" or all(methods.parse(name) for name in quoted(row["here"])), row
    missing = {name for row in rows(section("Distillers")) if row["here"] == "-" for name in quoted(row["there"])}
    assert not {name.lower() for name in missing} & set(methods.names())
    named = set(re.findall(r"`((?:sdd_)?(?:ls_|kd\+)?(?:kd|dkd|nkd|sp|crd))`", PAGE))
    assert all(methods.parse(name) for name in named) and {"sdd_sp", "sdd_kd+sp", "sdd_kd+crd"} <= named


def test_networks_are_here_under_their_names():
    there = {"cifar": [], "imagenet": [], "cub200": []}
    for row in rows(section("Networks")):
        left, right = (quoted(row[column]) for column in ("there, with and without `_sdd`", "here"))
        (stem,) = quoted(row["stem"])
        assert len(left) == len(right), row
        for name, ours in zip(left, right, strict=True):
            there[stem].append(name)
            assert stem in model_stems(ours), (name, ours, stem)
            assert ours == ("mobilenet_v1" if (stem, name) == ("imagenet", "MobileNetV2") else official.network(name))
    assert sorted(there["cifar"]) == sorted(CIFAR)
    assert (there["imagenet"], there["cub200"]) == (IMAGENET, CUB200)


def test_the_two_command_lines_run_with_what_the_table_says():
    (argument,) = re.findall(r"--config=cifar100:(\S+)", section("One command line, there and here"))
    settings = check(cifar100.get_config(argument))
    effective = rows(section("One command line, there and here"))
    assert len(effective) > 20
    for row in effective:
        (field,), (stated,) = quoted(row["field here"]), quoted(row["value here"])
        assert as_written(settings[field]) == stated, row
    said = {quoted(row["field here"])[0] for row in effective}
    read = {"loss.options.temperature", "loss.options.alpha", "loss.options.beta"}
    read |= {"loss.task_weight", "loss.distill_weight"}
    assert read | {"loss.warmup_epochs", "sdd.scales", "sdd.complementary_weight", "optim.clip_norm"} <= said


def test_what_the_differences_are_shown_by_is_there():
    for row in rows(section("What it does otherwise")):
        files = quoted(row["shown by"])
        assert all((ROOT / name).exists() for name in files) and (files or "above" in row["shown by"]), row


@pytest.mark.slow
def test_a_checkpoint_of_a_distillation_there_is_read_as_the_page_says(tmp_path):
    """Student and teacher in one file, as its trainer saves them: with optimizer, a tensor for the best accuracy."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch-tests]'")
    from sdd_jax.files import read_checkpoint
    from sdd_jax.torch_io import from_state_dict

    state = {}
    for role, name, seed in (("student", "resnet8", 0), ("teacher", "resnet14", 1)):
        model = create_model(name, num_classes=10)
        variables = model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)), train=False)
        arrays = to_state_dict(model, variables)
        state |= {f"module.{role}.{key}": torch.tensor(np.asarray(array)) for key, array in arrays.items()}
        if role == "student":
            student, expected = model, variables
    buffers = {0: {"momentum_buffer": torch.zeros(3)}}
    optimizer = {"state": buffers, "param_groups": [{"lr": 0.01, "nesterov": False, "params": [0]}]}
    with open(tmp_path / "best", "wb") as file:
        torch.save({"epoch": 3, "model": state, "optimizer": optimizer, "best_acc": torch.tensor([70.0])}, file)
    (prefix,) = set(re.findall(r"--prefix=(\S+?)[` ]", PAGE))
    found = from_state_dict(student, read_checkpoint(tmp_path / "best"), prefix=prefix)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
