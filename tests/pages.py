"""The pages' blocks of code, and the training configs that their commands name."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from absl import flags
from commands import forget_config_files
from ml_collections import config_flags

from sdd_jax.__main__ import with_config_files

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*.md")])
FENCE = re.compile(r"^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->\n$")
NAMED = re.compile(r"`(?P<file>\w+\.py)`:\n\n$")  # what stands before a block that is a file's text


class Block(NamedTuple):
    """A block of a page.

    Attributes:
      line: of the page, from 1, where its text begins.
      language: "bash", "python", "text", or what Sphinx reads.
      text: what stands in it.
      not_run: why it is not run, or None.
      file: the name of the file that it is the text of, or None.
    """

    line: int
    language: str
    text: str
    not_run: str | None
    file: str | None


def blocks(page):
    """The page's blocks in their order."""
    text, found = page.read_text(), []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()]
        mark, named = NOT_RUN.search(before), NAMED.search(before)
        line = before.count("\n") + 2
        reason, file = mark and mark["reason"], named and named["file"]
        found.append(Block(line, fence["language"], fence["text"], reason, file))
    return found


def missing_imports(text):
    """What Python code imports from this project and is not there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("sdd_jax", "configs", "experiments"):
            for alias in node.names:
                if not hasattr(importlib.import_module(node.module), alias.name):
                    try:
                        importlib.import_module(f"{node.module}.{alias.name}")
                    except ModuleNotFoundError:
                        yield f"{node.module}.{alias.name}"


def commands(text):
    """The words of every command of this project in a block for the shell: module and arguments."""
    found, rest = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        rest += line + "\n"
        try:
            words = shlex.split(rest, comments=True)
        except ValueError:  # a quotation goes on
            continue
        rest = ""
        for start, word in enumerate(words):
            end = next((i for i in range(start, len(words)) if words[i] in ("&&", "|", ">")), len(words))
            if word == "-m" and re.fullmatch(r"(\S*/)?python", words[start - 1]):
                found.append(words[start + 1 : end])
            elif re.fullmatch(r"(\S*/)?sdd", word) and (start == 0 or re.search("&&|[|]|=", words[start - 1])):
                found.append(["sdd_jax", *words[start + 1 : end]])
            elif "python -m" in word:  # a command for another machine
                found += commands(word.partition("=")[2] if word.startswith("--") else word)
    return found


def config_of(arguments):
    """The config that a command makes of its flags ``--config...``, in flags of the test's own, and the other words."""
    given = with_config_files([word for word in arguments if word.startswith("--config")])
    others = [word for word in arguments if not word.startswith("--config")]
    values, modules = flags.FlagValues(), set(sys.modules)
    with mock.patch.object(sys, "argv", ["command", *given]):  # where the config's flag looks for overrides
        config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
        assert not values(["command", *given])[1:]
    forget_config_files(modules)
    return values.config.to_dict(), others
