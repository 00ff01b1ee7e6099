"""Writes `experiments/VALUES.md`, every setting with its source: `python -m docs.values`.

Its numbers are read from `configs/rows.py`, `configs/pairs.py` and `sdd_jax/methods.py`, its text from
`docs/values_template.txt`.
"""

import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.command_line import Parser, table
from sdd_jax import methods
from sdd_jax.configs import rows
from sdd_jax.configs.pairs import OF_PAPER, PAIRS, released_files
from sdd_jax.configs.rows import RELEASED, Setting
from sdd_jax.fields import FIELDS, PRESETS

PAGE = Path(__file__).parents[1] / "experiments" / "VALUES.md"
TEMPLATE = Path(__file__).with_name("values_template.txt")
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
    "scales": "sdd.scales",
    "complementary weight": "sdd.complementary_weight",
}
WEIGHTS = ("loss.task_weight", "loss.distill_weight", "loss.warmup_epochs")
Settled = Mapping[str, Setting]  # what ``rows.settle`` returns
Sources = dict[str, str]  # the letter of each, in the order in which they are first used


def cell(settled: Settled, field: str, sources: Sources) -> str:
    """The value of a field with the letter of its source; empty if the method has no such field."""
    if field not in settled:
        return ""
    count = len(sources)
    letter = string.ascii_letters[count % 52] + str(count // 52 or "")
    return f"{_text(settled[field].value)} {sources.setdefault(settled[field].source, letter)}"


def options(settled: Settled, prefix: str, sources: Sources) -> str:
    """Every field whose name begins with ``prefix``."""
    fields = [field for field in settled if field.startswith(prefix)]
    return ", ".join(f"{field.removeprefix(prefix)} {cell(settled, field, sources)}" for field in fields)


def section(data: str, preset: str, sources: Sources) -> str:
    """The table of a data set under a preset."""
    lines = []
    for (teacher, student), pair in PAIRS[data].items():
        for method in OF_PAPER:
            settled = rows.settle(data, teacher, student, method, preset)
            if not method.startswith(methods.SDD):
                settled = {field: setting for field, setting in settled.items() if not field.startswith("sdd.")}
            cells = [cell(settled, field, sources) for field in COLUMNS.values()]
            names = [f"{teacher} -> {student}", pair.script] if method == OF_PAPER[0] else ["", ""]
            lines.append([names[0], method, *cells, file(data, teacher, student, method), names[1]])
    return _table(["pair", "method", *COLUMNS, "FILE", "script"], lines)


def file(data: str, teacher: str, student: str, method: str) -> str:
    """The released file of a run, or "none" and the file that stands in."""
    own, other = released_files(data, teacher, student, method)
    return own or ("none" if other is None else f"none; OTHER is {other}")


def base_losses(sources: Sources) -> str:
    """Base losses that the paper does not use: their numbers for a pair of two data sets, and pairs that differ."""

    def line(base: str, data: str, pair: tuple[str, str]) -> list[str]:
        settled = rows.settle(data, *pair, base, RELEASED)
        weights = (cell(settled, field, sources) for field in WEIGHTS)
        return [base, f"{TITLES[data]}, {' -> '.join(pair)}", options(settled, OPTIONS, sources), *weights]

    lines = []
    for base in methods.BASES:
        if base in (*OF_PAPER, "nkd_as_released"):
            continue
        examples = {data: line(base, data, pair) for data, pair in EXAMPLES.items()}
        lines += examples.values()
        if base == "ls_dkd":  # whose beta is the pair's of dkd
            continue
        for data, example in examples.items():
            of_rows = [row.pair for row in rows.ROWS if row.pair and row.data == (data,) and row.bases == (base,)]
            others = (line(base, data, pair) for pair in dict.fromkeys((*PAIRS[data], *of_rows)))
            lines += [one for one in others if one[2:] != example[2:]]
    return _table(["base loss", "pair", "options", "task weight", "distill weight", "warm-up epochs"], lines)


def feature_losses(sources: Sources) -> str:
    """Feature losses and their numbers: for a pair of CIFAR-100, and for pairs that differ."""

    def line(name: str, data: str, pair: tuple[str, str]) -> list[str]:
        settled = rows.settle(data, *pair, name, RELEASED)
        numbers = options(settled, "features.options.", sources)
        return [name, f"{TITLES[data]}, {' -> '.join(pair)}", cell(settled, "features.weight", sources), numbers]

    lines = []
    for name in methods.FEATURES:
        first = line(name, "cifar100", EXAMPLES["cifar100"])
        of_rows = [(row.data[0], row.pair) for row in rows.ROWS if row.features == (name,) and row.pair and row.data]
        every = dict.fromkeys([*((data, pair) for data in TITLES for pair in PAIRS[data]), *of_rows])
        others = [line(name, data, pair) for data, pair in every]
        lines += [first, *(other for other in others if other[2:] != first[2:])]
    return _table(["feature loss", "pair", "weight", "options"], lines)


def plain_runs(data: str, sources: Sources) -> str:
    """What all runs on a data set share, and the rates of plain runs."""
    rates: dict[str, list[str]] = {}
    for network in dict.fromkeys(network for pair in PAIRS[data] for network in pair):
        settled = rows.settle(data, "none", network, methods.PLAIN, RELEASED)
        rates.setdefault(cell(settled, "optim.learning_rate", sources), []).append(network)
    by_rate = "; ".join(f"{rate}: {', '.join(networks)}" for rate, networks in rates.items())
    shared = {name: field.default for name, field in FIELDS.items()}
    shared |= {name: setting.value for name, setting in settled.items()}
    return (
        f"All runs: SGD, momentum {shared['optim.momentum']:g}, weight decay {shared['optim.weight_decay']:g} on every "
        f"parameter (trainer.py:38-48, SOLVER), gradients clipped to {shared['optim.clip_norm']:g} (trainer.py:189), a "
        f"tenth of the rate after {_text(shared['optim.milestones'])} epochs (section 4.1), selection on test "
        "(trainer.py:97-99).\n\n"
        f"Plain runs, teachers and students: {cell(settled, 'epochs', sources)} epochs, batch "
        f"{cell(settled, 'batch_size', sources)}, rate by network: {by_rate}."
    )


def presets(sources: Sources) -> str:
    """What the presets choose."""
    both = [rows.settle("cifar100", *EXAMPLES["cifar100"], "sdd_nkd", preset) for preset in PRESETS]
    fields = ("sdd.pooling", "sdd.consistency", "sdd.reduction", "loss.base")
    return _table(["field", *PRESETS], [[field, *(cell(one, field, sources) for one in both)] for field in fields])


def page() -> str:
    """The page's text."""
    sources: Sources = {}
    parts = {part.__name__: part(sources) for part in (presets, base_losses, feature_losses)}
    of_data = []
    for data, title in TITLES.items():
        of_data += [f"## {title}", plain_runs(data, sources)]
        for preset in PRESETS:
            of_data += [f"### {title}, preset {preset}", section(data, preset, sources)]
    parts["data_sets"] = "\n\n".join(of_data)
    parts["sources"] = "\n".join(f"- {letter}: {source}" for source, letter in sources.items())
    return string.Template(TEMPLATE.read_text()).substitute(parts)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(table(head, lines))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "{" + ",".join(map(str, value)) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str]) -> None:
    """Writes the page; takes no arguments."""
    Parser(prog="python -m docs.values", description=__doc__).parse_args(arguments)
    PAGE.write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
