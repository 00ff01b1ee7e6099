"""Writes `experiments/VALUES.md`, every pair's settings with their sources: `python -m experiments.values`.

The numbers are read from the configs; what stands here is where each comes from, and where sources disagree.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from configs import cifar100, cub200, imagenet
from experiments import recipes
from experiments.command_line import Parser, table
from experiments.disagreements import DISAGREEMENTS
from experiments.recipes import PAPER, PRESETS, RELEASED, Recipe
from sdd_jax.config import Settings

PAGE = Path(__file__).with_name("VALUES.md")
METHODS = ("kd", "sdd_kd", "dkd", "sdd_dkd", "nkd", "sdd_nkd")
DATA = {"cifar100": cifar100, "cub200": cub200, "imagenet": imagenet}
TITLES = {"cifar100": "CIFAR-100", "cub200": "CUB-200-2011", "imagenet": "ImageNet"}
SOURCES = {
    "a": "the paper, section 4.1",
    "b": "configs/DATA/METHOD/NAME.yaml, SOLVER; DATA, METHOD and NAME as in the row",
    "c": "mdistiller/engine/cfg.py:60-64, the KD section; no yaml changes it, or has it",
    "d": "configs/imagenet/NAME/kd.yaml:23-27",
    "e": "mdistiller/engine/cfg.py:162-167, the DKD section, over it that of NAME.yaml",
    "f": "mdistiller/distillers/nkd.py:44-45, hard-coded",
    "g": "mdistiller/distillers/SDD_nkd.py:163-166, which reads cfg.DKD: its T, its BETA as gamma, its WARMUP",
    "h": "none in mdistiller/distillers/KD.py (of SD-KD: lines 133 and 142, commented out)",
    "i": "train_origin.py:198,207: the default of --warmup",
    "j": "configs/imagenet/NAME/METHOD.yaml and train.py:195: 1, which is none",
    "k": "the --M of the released script in the row; section 4.1 of the paper where there is none",
    "l": "the paper, section 4.1, and hard-coded in KD.py:87-90, SDD_DKD.py:112-115, SDD_nkd.py:139-142",
    "m": "the NKD paper (Yang et al., ICCV 2023): T = 1, gamma = 1.5",
    "n": "implicit: the losses are added",
    "o": "none in mdistiller/distillers/nkd.py",
    "p": "the paper, section 4.1: what KD has, which is configs/imagenet/NAME/kd.yaml:23-27",
}
# Methods that the paper does not use, with the source of their numbers. Each has an SDD form with the same ones.
OTHERS = {
    "ls_kd": "the README of logit standardisation's code (Sun et al., CVPR 2024), --base-temp 2 --kd-weight 9; its KD "
    "section, CE_WEIGHT 0.1. Pairs with other numbers have them from the names of its logs (logs/KD): ",
    "ls_dkd": "the same command, which multiplies DKD's alpha and beta by 9, here the distill weight; alpha, beta and "
    "warm-up are the pair's of dkd. The logs of most pairs have a beta of 2 and weights of 9 to 18",
    "dist": "the paper and the code of DIST (Huang et al., NeurIPS 2022)",
    "ttm": "the README of TTM's code (Zheng and Yang, ICLR 2024), its one example: vgg13 -> vgg8 on CIFAR-100",
    "wttm": "the same README's one example, vgg13 -> vgg8 on CIFAR-100 with CRD: --add wttm --ttm_l 0.2 -a 4",
}
# Methods of the paper's appendix 6.1, which names their parts and states no numbers.
FEATURES = {
    "sp": "RepDistiller, scripts/run_cifar_distill.sh: -r 1 -a 0 -b 3000",
    "crd": "the same script, -b 0.8; train_student.py: nce_k 16384, nce_t 0.07, nce_m 0.5, feat_dim 128. Its negatives "
    "are of other classes there, of all examples here",
    "sdd_sp": "scales as of the pair's sdd_kd; weight not stated, SP's here; what is done with regions not stated, the "
    "mean over them here",
    "sdd_kd_sp": "weights not stated: sdd_kd's numbers and SP's weight",
    "sdd_kd_crd": "weights not stated: sdd_kd's numbers and CRD's weight",
}
COLUMNS = {
    "rate": "optim.learning_rate",
    "T": "loss.temperature",
    "alpha": "loss.alpha",
    "beta": "loss.beta",
    "gamma": "loss.gamma",
    "task weight": "loss.task_weight",
    "distill weight": "loss.distill_weight",
    "scales": "sdd.scales",
    "complementary weight": "sdd.complementary_weight",
    "warm-up epochs": "loss.warmup_epochs",
    "epochs": "epochs",
    "batch": "batch_size",
}
HEAD = """# Settings of every pair, with their sources

Written by `python -m experiments.values` from the configs; a test holds this page to them. The rows are the pairs of
the released code, the paper's among them. A letter behind a value is its source; an empty cell is a number that the
method does not read. Files are those of the official code, commit e412036, unless the paper is named.
"""


def sources_of(data: str, method: str, preset: str) -> dict[str, str]:
    """The source of each column, as a letter of ``SOURCES``."""
    large, paper, base = data == "imagenet", preset == PAPER, method.removeprefix("sdd_")
    found = {"rate": "ab", "epochs": "ab", "batch": "a" if large else "ab", "scales": "a" if paper else "k"}
    found["complementary weight"] = "l"
    if base == "kd":
        numbers = ("p" if method == "sdd_kd" else "d") if large and (paper or method == "kd") else "c"
        found |= dict.fromkeys(("T", "task weight", "distill weight"), numbers)
        warmup = "h"
    else:
        found |= {"alpha": "e", "beta": "e", "task weight": "n", "distill weight": "n"}
        own = {"dkd": "e", "nkd": "m" if paper else "g" if method == "sdd_nkd" else "f"}[base]
        found |= {"T": own, "gamma": own}
        warmup = "j" if large else {"dkd": "e", "sdd_dkd": "i", "nkd": "o", "sdd_nkd": "g"}[method]
        warmup = "o" if method == "nkd" else warmup
    return found | {"warm-up epochs": "a" if paper else warmup}


def cells(settings: Settings, data: str, method: str, preset: str) -> list[str]:
    """The values of a row with their sources; empty where the method does not read one."""
    read, sources = recipes.identity(settings), sources_of(data, method, preset)
    return [f"{_text(settings[field])} {sources[name]}" if field in read else "" for name, field in COLUMNS.items()]


def section(data: str, preset: str) -> list[str]:
    """The table of a data set under a preset."""
    rows = []
    for (teacher, student), pair in DATA[data].PAIRS.items():
        where = pair[2] if data == "imagenet" else pair.source
        for method in METHODS:
            settings = recipes.settings(Recipe(data, student, teacher, method), preset)
            first = f"{teacher} -> {student}" if method == METHODS[0] else ""
            source = where if method == METHODS[0] else ""
            rows.append([first, method, *cells(settings, data, method, preset), source])
    return table(["pair", "method", *COLUMNS, "NAME; script"], rows)


def other_lines() -> list[str]:
    """The methods that the paper does not use: their numbers for a pair of two data sets, and the sources."""
    names = ("T", "alpha", "beta", "gamma", "task weight", "distill weight", "warm-up epochs")
    rows = []
    for method in OTHERS:
        for data, pair in (("cifar100", ("resnet32x4", "resnet8x4")), ("imagenet", ("resnet34", "resnet18"))):
            settings = recipes.settings(Recipe(data, pair[1], pair[0], method), RELEASED)
            read = recipes.identity(settings)
            numbers = [_text(settings[COLUMNS[name]]) if COLUMNS[name] in read else "" for name in names]
            rows.append([method, f"{TITLES[data]}, {pair[0]} -> {pair[1]}", *numbers])
    exceptions = (
        f"{teacher} -> {student} T {loss['temperature']:g}, weight {loss['distill_weight']:g}"
        for (teacher, student), loss in cifar100.LS_KD.items()
    )
    sources = OTHERS | {"ls_kd": OTHERS["ls_kd"] + "; ".join(exceptions)}
    return [
        *table(["method", "pair", *names], rows),
        "",
        *(f"- {method}: {source}." for method, source in sources.items()),
        "",
        "Of ImageNet DIST's numbers alone were found; the others' are those of CIFAR-100. The SDD form of each has the "
        "same numbers; nothing is published of it. The preset `paper` gives them its warm-up of 30 epochs too.",
    ]


def feature_lines() -> list[str]:
    """The methods that read feature maps: their numbers for a pair, and the sources."""
    names = ("T", "beta", "task weight", "distill weight", "scales", "complementary weight")
    rows = []
    for method in FEATURES:
        settings = recipes.settings(Recipe("cifar100", "resnet8x4", "resnet32x4", method), RELEASED)
        read = recipes.identity(settings)
        rows.append([method, *(_text(settings[COLUMNS[name]]) if COLUMNS[name] in read else "" for name in names)])
    return [
        "beta is the weight of the term that reads features. CIFAR-100, resnet32x4 -> resnet8x4:",
        "",
        *table(["method", *names], rows),
        "",
        *(f"- {method}: {source}." for method, source in FEATURES.items()),
    ]


def common_lines(data: str) -> list[str]:
    """What all runs on a data set share."""
    settings = recipes.settings(Recipe(data, next(iter(DATA[data].PAIRS))[1]), RELEASED)
    rates = {}
    for pair in DATA[data].PAIRS:
        for network in pair:
            rate = recipes.settings(Recipe(data, network), RELEASED)["optim.learning_rate"]
            rates.setdefault(rate, {})[network] = None
    plain = "; ".join(f"{rate:g}: {', '.join(networks)}" for rate, networks in rates.items())
    optim = {name: settings[f"optim.{name}"] for name in ("momentum", "weight_decay", "clip_norm", "milestones")}
    return [
        f"All runs: SGD, momentum {optim['momentum']:g}, weight decay {optim['weight_decay']:g} on every parameter "
        f"(trainer.py:38-48, SOLVER), gradients clipped to {optim['clip_norm']:g} (trainer.py:189), a tenth of the "
        f"rate after {_text(optim['milestones'])} epochs (section 4.1), selection on {settings['data.select_on']} "
        "(trainer.py:97-99).",
        "",
        f"Plain runs, teachers and students: {settings['epochs']} epochs, batch {settings['batch_size']}, rate by "
        f"network: {plain} (section 4.1 and SOLVER).",
    ]


def preset_lines() -> list[str]:
    """What the presets choose."""
    one = {p: recipes.settings(Recipe("cifar100", "resnet8x4", "resnet32x4", "sdd_nkd"), p) for p in PRESETS}
    fields = ("sdd.pooling", "sdd.consistency", "sdd.reduction", "loss.base")
    rows = [[field, *(one[preset][field] for preset in PRESETS)] for field in fields]
    return table(["field", *PRESETS], rows)


def page() -> str:
    """The page's text."""
    lines = [HEAD, *(f"- {letter}: {text}" for letter, text in SOURCES.items()), ""]
    lines += ["## Presets", "", "`released` is the default. Beside the numbers below the preset chooses", ""]
    lines += [*preset_lines(), "", "(`loss.base` of NKD and SD-NKD.)", ""]
    lines += ["## Where sources disagree", "", *_disagreements(), ""]
    lines += ["## Base losses that the paper does not use", "", *other_lines(), ""]
    lines += ["## Distillation of features (appendix 6.1)", "", *feature_lines(), ""]
    for data, title in TITLES.items():
        lines += [f"## {title}", "", *common_lines(data), ""]
        for preset in PRESETS:
            lines += [f"### {title}, preset {preset}", "", *section(data, preset), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _disagreements() -> Iterable[str]:
    head = ["what", "one source", "another", "here"]
    return table(head, [list(one) for one in DISAGREEMENTS])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "{" + ",".join(map(str, value)) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str]) -> None:
    """Writes the page; takes no arguments."""
    Parser(prog="python -m experiments.values", description=__doc__).parse_args(arguments)
    PAGE.write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
