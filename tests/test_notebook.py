"""The notebook runs from the top in a fresh kernel, and what it prints is what its words say."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from pages import missing_imports

ROOT = Path(__file__).parents[1]
SHORTER = {10: 2, 40: 4}  # epochs of teacher and students: every cell runs
NOTEBOOK = ROOT / "examples" / "sdd_in_ten_minutes.ipynb"


def printed(notebook):
    """What the cells printed, all of it."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


def check(notebook):
    """The numbers that the text leans on, and what each run ended with."""
    text = printed(notebook)
    assert pictures(notebook) == 4
    assert "SDD at scales {1} less KD, at most: 0.0\n" in text
    assert float(re.search(r"weighted mean by hand, at most: (\S+)", text)[1]) < 1e-5
    assert "logits (359, 10)  logit map (359, 8, 8, 10)  regions (359, 21, 10)" in text
    assert "1x1:  0.00 % of the test set's regions are complementary" in text

    rows = re.findall(r"^(teacher|plain|kd|sdd_kd) +(resnet\d+) +(\d+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    images = {"teacher": 1293, "plain": 200, "kd": 200, "sdd_kd": 200}
    assert [(name, int(count)) for name, _, count, _, _ in rows] == list(images.items())
    parts = re.findall(r"^  (?:consistent|complementary)_loss_\dx\d +([\d.]+)$", text, re.MULTILINE)
    whole = float(re.search(r"^  distill_loss +([\d.]+)$", text, re.MULTILINE)[1])
    assert len(parts) == 5 and sum(map(float, parts)) == pytest.approx(whole, abs=5e-4)  # four digits each
    return {name: float(last) for name, _, _, last, _ in rows}


@pytest.mark.slow
def test_it_runs_from_the_top(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it keeps its runs
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            for epochs, fewer in SHORTER.items():
                cell.source = cell.source.replace(f"epochs={epochs},", f"epochs={fewer},")
    assert all(sum(f"epochs={fewer}," in cell.source for cell in notebook.cells) == 1 for fewer in SHORTER.values())
    client = nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    check(notebook)


def test_what_is_committed_is_such_a_run():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 500_000 and notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    last = check(notebook)
    assert last["teacher"] > 90 and last["plain"] < min(last["kd"], last["sdd_kd"]), last
    words = NOTEBOOK.read_text()
    assert not re.search(r"/(tmp|home|work|usr|Users)/|[Ww]arning", words)
    for cell in code:
        assert not [*missing_imports(cell.source)]  # and it is plain Python: no shell, no magic


def test_the_pages_it_links_to_are_there():
    words = "".join(cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", words) if "://" not in link]
    assert len(links) > 5 and all((NOTEBOOK.parent / link).exists() for link in links), links
