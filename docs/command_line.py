"""Writes `docs/command_line.md`, what every command's --help says: `python -m docs.command_line`."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.command_line import Parser
from sdd_jax.__main__ import COMMANDS

PAGE = Path(__file__).with_suffix(".md")
COLUMNS = 100  # of the terminal that the page is written in
HEAD = """# Command line

`sdd COMMAND --flag=value ...`, or `python -m sdd_jax` in `sdd`'s place. What stands here is what `sdd COMMAND --help`
says; the fields behind `--config.` are in [fields.md](fields.md). `--config` takes the name of a config that comes with
the package, such as `quickstart` or `cifar100:teacher=resnet32x4,student=resnet8x4`, or a file of your own.

Exit codes: 0 done; 1 failed; 2 a mistake in what was given, or a refusal, in one line that says what was expected; 130
interrupted and 143 ended by SIGTERM, after which the same command goes on.

Tables and benchmarks are programs of their own, each with its `--help`: `python -m experiments.run`,
`python -m experiments.summarize` and `python -m experiments.complementary` ([experiments.md](experiments.md)),
`python -m benchmarks.run` ([speed.md](speed.md)), `python -m benchmarks.accelerator` and `python -m benchmarks.travel`
([accelerator.md](accelerator.md)).

This page is written by `python -m docs.command_line`.
"""


def page(help_of: Callable[[str], str]) -> str:
    """The page's text, given what ``--help`` says of a command."""
    parts = [HEAD]
    for command, short in COMMANDS.items():
        parts.append(f"## {command}\n\nTo {short}.\n\n```text\n{help_of(command).strip()}\n```\n")
    return "\n".join(parts)


def printed(command: str) -> str:
    """What the command's ``--help`` prints."""
    asked = [sys.executable, "-m", "sdd_jax", command, "--help"]
    environment = {**os.environ, "COLUMNS": str(COLUMNS)}
    return subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout


def main(arguments: Sequence[str]) -> None:
    """Writes the page; takes no arguments."""
    Parser(prog="python -m docs.command_line", description=__doc__).parse_args(arguments)
    PAGE.write_text(page(printed))


if __name__ == "__main__":
    main(sys.argv[1:])
