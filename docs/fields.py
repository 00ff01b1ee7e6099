"""Writes `docs/fields.md`, every field of a config: `python -m docs.fields`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.command_line import Parser
from sdd_jax import methods
from sdd_jax.config import NONE
from sdd_jax.fields import FIELDS, Field

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Config fields

A config file is Python with a `get_config(argument)`; its argument chooses by name, and any field can be overridden:
`--config=cifar100:teacher=resnet32x4,student=resnet8x4,method=sdd_dkd --config.sdd.scales=1,2`. The defaults
are those of `sdd_jax/fields.py`; the config file of a data set, and the table `configs/rows.py`, set their own. A field
of `loss`, `features` or `sdd` that the method does not read changes nothing, and is refused on the command line of a
new run; `sdd.scales` and `sdd.pooling` are read with a `teacher.cache` too. Where `none` stands among what a field may
hold, it unsets what a config file has set: `--config.optim.clip_norm=none`.

`method`, `preset`, `teacher` and `student` are chosen together by the argument: other fields follow from them, and so
they are not overridden alone.

This page is written by `python -m docs.fields`.
"""
OPTIONS = """## `loss.options` and `features.options`

The options of the loss that the method names: the parameters of its function, with the function's defaults or those of
`sdd_jax/methods.py`. A method has the fields of its own losses and no others. The options of an own loss
([own_loss.md](own_loss.md)) are those of its signature.
"""


def shown(value: Any) -> str:
    """A default as it is typed; "unset" where there is none."""
    typed = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
    return f"`{typed}`" if typed else "unset"


def holds(field: Field) -> str:
    """What a field may hold."""
    if field.known:
        return ", ".join(f"`{name}`" for name in (*field.known, *([NONE] if field.optional else [])))
    kinds = {"int": "whole number", "float": "number", "str": "text", "bool": "True or False", "tuple": "whole numbers"}
    kind = kinds[field.kind.__name__]
    least = f", at least {field.least:g}" if field.least > float("-inf") else ""
    above = f", above {field.above:g}" if field.above > float("-inf") else ""
    below = f" and below {field.below:g}" if field.below < float("inf") else ""
    return kind + least + above + below + (f", or `{NONE}`" if field.optional else "")


def options() -> list[str]:
    """A line for each loss that has options."""
    lines = ["| loss | options and their defaults |", "|---|---|"]
    losses = {f"`{name}`": base for name, base in methods.BASES.items()}
    losses |= {f"`{name}` (`features.options`)": features for name, features in methods.FEATURES.items()}
    for name, loss in losses.items():
        defaults = {option: field.default for option, field in methods.options_of(loss).items()}
        texts = (f"{value:g}" if isinstance(value, float) else str(value) for value in defaults.values())
        found = ", ".join(f"`{option}` {text}" for option, text in zip(defaults, texts, strict=True))
        lines.append(f"| {name} | {found} |")
    return lines


def page() -> str:
    """The page's text."""
    rooms: dict[str, list[str]] = {}
    for name, field in FIELDS.items():
        line = f"| `{name}` | {shown(field.default)} | {holds(field)} | {field.meaning} |"
        rooms.setdefault(name.rpartition(".")[0], []).append(line)
    parts = [HEAD]
    for room, lines in rooms.items():
        parts.append(f"## {f'`{room}`' if room else 'The run'}\n")
        parts.append("\n".join(["| field | default | may hold | meaning |", "|---|---|---|---|", *lines]) + "\n")
    return "\n".join([*parts, OPTIONS, "\n".join(options()) + "\n"])


def main(arguments: Sequence[str]) -> None:
    """Writes the page; takes no arguments."""
    Parser(prog="python -m docs.fields", description=__doc__).parse_args(arguments)
    PAGE.write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
