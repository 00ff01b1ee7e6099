"""Writes `experiments/VALUES.md`, every setting with its source: `python -m experiments.values`.

Everything on it is read from `configs/rows.py` and `sdd_jax/methods.py`; where sources disagree is said in
`experiments/disagreements.md`.
"""

import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import rows
from configs.rows import PAIRS, PAPER, RELEASED, Setting
from experiments.command_line import Parser, table
from sdd_jax import methods
from sdd_jax.fields import FIELDS

PAGE = Path(__file__).with_name("VALUES.md")
DISAGREEMENTS = Path(__file__).with_name("disagreements.md")
PRESETS = (RELEASED, PAPER)
OF_PAPER = ("kd", "sdd_kd", "dkd", "sdd_dkd", "nkd", "sdd_nkd")
TITLES = {"cifar100": "CIFAR-100", "cub200": "CUB-200-2011", "imagenet": "ImageNet"}
EXAMPLES = {"cifar100": ("resnet32x4", "resnet8x4"), "imagenet": ("resnet34", "resnet18")}
OPTIONS = "loss.options."
COLUMNS = {
    "rate": "optim.learning_rate",
    "T": f"{OPTIONS}temperature",
    "alpha": f"{OPTIONS}alpha",
    "beta": f"{OPTIONS}beta",
    "gamma": f"{OPTIONS}gamma",
    "task weight": "loss.task_weight",
    "distill weight": "loss.distill_weight",
    "warm-up epochs": "loss.warmup_epochs",
    "epochs": "epochs",
    "batch": "batch_size",
}
OF_REGIONS = {"scales": "sdd.scales", "complementary weight": "sdd.complementary_weight"}
HEAD = """# Settings of every pair, with their sources

Written by `python -m experiments.values` from `configs/rows.py` and `sdd_jax/methods.py`; a test holds this page to
them. The rows are the pairs of the released code, the paper's among them. A letter behind a value is its source; an
empty cell is a number that the method does not read. Files are those of the official code, commit e412036, unless the
paper or another code is named.
"""


class Sources:
    """Sources by letter, in the order in which they are first used."""

    def __init__(self):
        self._letters: dict[str, str] = {}

    def letter(self, source: str) -> str:
        """The letter of a source."""
        count = len(self._letters)
        new = string.ascii_letters[count] if count < 52 else f"{string.ascii_letters[count % 52]}{count // 52}"
        return self._letters.setdefault(source, new)

    def lines(self) -> list[str]:
        """The list of all of them."""
        return [f"- {letter}: {source}" for source, letter in self._letters.items()]


def cell(settled: Mapping[str, Setting], field: str, sources: Sources) -> str:
    """The value of a field with its source; empty if the method has no such field."""
    if field not in settled:
        return ""
    setting = settled[field]
    return f"{_text(setting.value)} {sources.letter(setting.source)}"


def section(data: str, preset: str, sources: Sources) -> list[str]:
    """The table of a data set under a preset."""
    lines = []
    for (teacher, student), pair in PAIRS[data].items():
        for method in OF_PAPER:
            settled = rows.settle(data, teacher, student, method, preset)
            first = method == OF_PAPER[0]
            of_regions = [
                cell(settled, field, sources) if method.startswith(methods.SDD) else "" for field in OF_REGIONS.values()
            ]
            lines.append(
                [
                    f"{teacher} -> {student}" if first else "",
                    method,
                    *(cell(settled, field, sources) for field in COLUMNS.values()),
                    *of_regions,
                    f"{pair.name}; {pair.script}" if first else "",
                ]
            )
    return table(["pair", "method", *COLUMNS, *OF_REGIONS, "NAME; script"], lines)


def base_lines(sources: Sources) -> list[str]:
    """Base losses that the paper does not use: their numbers for a pair of two data sets, and pairs that differ."""
    lines = []
    for base in methods.BASES:
        if base in OF_PAPER or base == "nkd_as_released":
            continue
        for data, (teacher, student) in EXAMPLES.items():
            settled = rows.settle(data, teacher, student, base, RELEASED)
            lines.append([base, f"{TITLES[data]}, {teacher} -> {student}", *_losses(settled, sources)])
        usual = _losses(rows.settle("cifar100", *EXAMPLES["cifar100"], base, RELEASED), sources)
        for teacher, student in PAIRS["cifar100"]:
            found = _losses(rows.settle("cifar100", teacher, student, base, RELEASED), sources)
            if found != usual and base != "ls_dkd":  # whose beta is the pair's of dkd
                lines.append([base, f"{TITLES['cifar100']}, {teacher} -> {student}", *found])
    return table(["base loss", "pair", "options", "task weight", "distill weight", "warm-up epochs"], lines)


def feature_lines(sources: Sources) -> list[str]:
    """Feature losses and their numbers."""
    lines = []
    for name in methods.FEATURES:
        settled = rows.settle("cifar100", *EXAMPLES["cifar100"], name, RELEASED)
        options = [field for field in settled if field.startswith("features.options.")]
        lines.append([name, cell(settled, "features.weight", sources), _options(settled, options, sources)])
    return table(["feature loss", "weight", "options"], lines)


def _losses(settled: Mapping[str, Setting], sources: Sources) -> list[str]:
    options = [field for field in settled if field.startswith(OPTIONS)]
    weights = ("loss.task_weight", "loss.distill_weight", "loss.warmup_epochs")
    return [_options(settled, options, sources), *(cell(settled, field, sources) for field in weights)]


def _options(settled: Mapping[str, Setting], fields: Sequence[str], sources: Sources) -> str:
    return ", ".join(f"{field.rpartition('.')[2]} {cell(settled, field, sources)}" for field in fields)


def plain_lines(data: str, sources: Sources) -> list[str]:
    """What all runs on a data set share, and the rates of plain runs."""
    rates: dict[str, dict[str, None]] = {}
    for network in dict.fromkeys(network for pair in PAIRS[data] for network in pair):
        settled = rows.settle(data, "none", network, methods.PLAIN, RELEASED)
        rates.setdefault(cell(settled, "optim.learning_rate", sources), {})[network] = None
    shared = {name: FIELDS[f"optim.{name}"].default for name in ("momentum", "weight_decay", "clip_norm", "milestones")}
    shared |= {name: settled[f"optim.{name}"].value for name in shared if f"optim.{name}" in settled}
    return [
        f"All runs: SGD, momentum {shared['momentum']:g}, weight decay {shared['weight_decay']:g} on every parameter "
        f"(trainer.py:38-48, SOLVER), gradients clipped to {shared['clip_norm']:g} (trainer.py:189), a tenth of the "
        f"rate after {_text(shared['milestones'])} epochs (section 4.1), selection on test (trainer.py:97-99).",
        "",
        f"Plain runs, teachers and students: {cell(settled, 'epochs', sources)} epochs, batch "
        f"{cell(settled, 'batch_size', sources)}, rate by network: "
        + "; ".join(f"{rate}: {', '.join(networks)}" for rate, networks in rates.items())
        + ".",
    ]


def preset_lines(sources: Sources) -> list[str]:
    """What the presets choose."""
    one = [rows.settle("cifar100", *EXAMPLES["cifar100"], "sdd_nkd", preset) for preset in PRESETS]
    fields = ("sdd.pooling", "sdd.consistency", "sdd.reduction", "loss.base")
    return table(["field", *PRESETS], [[field, *(cell(each, field, sources) for each in one)] for field in fields])


def page() -> str:
    """The page's text."""
    sources = Sources()
    body = ["## Presets", "", "`released` is the default. Beside the numbers below the preset chooses", ""]
    body += [*preset_lines(sources), "", "(`loss.base` of NKD and SD-NKD.)", ""]
    body += [DISAGREEMENTS.read_text(), "## Base losses that the paper does not use", "", *base_lines(sources), ""]
    body += [
        "The `sdd_` form of each has the same numbers; nothing is published of it. The preset `paper` gives them a"
    ]
    body += ["warm-up of 30 epochs too. `ls_dkd` has the beta of the pair's `dkd`.", ""]
    body += ["## Feature losses (appendix 6.1)", "", *feature_lines(sources), ""]
    body += ["Behind a base loss (`sdd_kd+sp`) each side has its own numbers: the paper states none for such sums.", ""]
    for data, title in TITLES.items():
        body += [f"## {title}", "", *plain_lines(data, sources), ""]
        for preset in PRESETS:
            body += [f"### {title}, preset {preset}", "", *section(data, preset, sources), ""]
    return "\n".join([HEAD, *sources.lines(), "", *body]).rstrip("\n") + "\n"


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
