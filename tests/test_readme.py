"""The README's Python runs, and the names and files that it speaks of exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_python_block_runs(block, capsys):
    namespace = {}
    exec(compile(block, "README.md", "exec"), namespace)
    if "outputs" in namespace:
        assert capsys.readouterr().out == "(4, 10) (4, 16, 16, 10) (4, 21, 10)\n"
    else:
        assert namespace["loss"].shape == (16,)


def test_every_file_that_a_command_names_is_there():
    named = set(re.findall(r"(?:configs|docs|tests)/[\w/.]*\w", TEXT))
    assert len(named) >= 4 and all((ROOT / path).exists() for path in named), named
