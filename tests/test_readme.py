"""The README's Python runs; its links and files are checked with the other pages'."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_python_block_runs(block, capsys):
    namespace = {}
    exec(compile(block, "README.md", "exec"), namespace)
    if "outputs" in namespace:
        assert capsys.readouterr().out == "(4, 10) (4, 16, 16, 10) (4, 21, 10)\n"
    else:
        assert namespace["loss"].shape == (16,)
