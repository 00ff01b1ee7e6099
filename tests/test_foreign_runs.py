"""A run's folder from somebody else: no code of it runs, and a file of it that is not as it should be is named."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import call

from configs import quickstart
from sdd_jax import saved
from sdd_jax.build import check
from sdd_jax.build_teacher import read_teacher
from sdd_jax.config import read
from sdd_jax.files import write_json
from sdd_jax.models import create_model
from sdd_jax.training import run_dir
from sdd_jax.training.checkpoint import Checkpoints

EVIL = (
    "import pathlib\nfrom own_networks import plain_function as x\npathlib.Path(__file__).with_name('it_ran').touch()\n"
)
OWN = "own_networks:plain_function"
SCORE = {"step": 3, "epoch": 1.0, "accuracy": 0.1}
DONE = {"select_on": "validation", "last": SCORE, "best": SCORE, "seed": 0, "train_examples": 10, "seconds": 1.0}


def write_run(folder, student=OWN, method="teacher", **teacher):
    """A finished run on digits, of weights that were never trained."""
    config = quickstart.get_config(f"run={method}")
    config.model.student, config.argument = student, {}
    config.teacher.update(teacher)
    run_dir.open_folder(folder, check(config).nested())
    model = create_model(student, 10)
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32), train=False)
    checkpoints = Checkpoints(folder / run_dir.CHECKPOINTS, "")
    state = {"params": {"student": variables["params"]}, "batch_stats": variables.get("batch_stats", {})}
    checkpoints.save(state, 3, 0.1)
    checkpoints.close()
    lines = [{"kind": "evaluation", **SCORE, "split": split, "elapsed": 1.0} for split in ("validation", "test")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / run_dir.DONE, {**DONE, "teacher_accuracy": None})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "run"
    write_run(folder)
    return folder


def put(folder, name, value):
    """Sets the field ``name`` of the folder's config."""
    config = json.loads((folder / "config.json").read_text())
    *rooms, last = name.split(".")
    inside = config
    for room in rooms:
        inside = inside[room]
    inside[last] = value
    (folder / "config.json").write_text(json.dumps(config))


# ---------------------------------------------------------------------- code


def commands(folder, network, output):
    """Each command that reads a folder, and the flags with which it takes a network by name."""
    distil = ("--config=configs/quickstart.py:run=kd", f"--config.teacher.run={folder}")
    return {
        "evaluate": ("evaluate", f"--workdir={folder}"),
        "export": ("export", f"--workdir={folder}", "--format=onnx", f"--output={output}/a"),
        "safetensors": ("export", f"--workdir={folder}", f"--output={output}/a"),
        "predict": ("predict", Path(__file__).parents[1] / "docs/pictures/sdd.png", f"--workdir={folder}"),
        "report": ("report", folder, f"--output={output}/page"),
        "train": ("train", *distil, f"--workdir={output}/run"),
        "cache": ("cache", *distil, f"--workdir={output}/cache"),
    }


READERS = tuple(commands("", "", ""))


@pytest.fixture
def evil(run, tmp_path, monkeypatch):
    """A run's folder with a module in it that Python would find."""
    shutil.copytree(run, tmp_path / "folder" / "evil")
    (tmp_path / "folder" / "evil" / "code.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path / "folder")
    put(tmp_path / "folder" / "evil", "model.student", "evil.code:x")
    yield tmp_path / "folder" / "evil"
    for name in ("evil", "evil.code"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_does_not_choose_what_code_runs(evil, tmp_path, reader):
    line = call(*commands(evil, "", tmp_path)[reader]).refused()
    assert str(evil) in line and "evil.code:x" in line
    if reader not in ("train", "cache"):  # which hold the name against their config's
        assert line.endswith("add --allow=evil.code:x")
    assert not (evil / "it_ran").exists() and [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("reader", READERS[:4])
@pytest.mark.parametrize("start", [".", ".."], ids=["inside", "outside"])
def test_the_folder_itself_is_never_imported_from(evil, tmp_path, monkeypatch, reader, start):
    name = {".": "code_of_it:x", "..": "evil.code:x"}[start]
    (evil / "code_of_it.py").write_text(EVIL)
    monkeypatch.syspath_prepend(evil / start)
    put(evil, "model.student", name)
    line = call(*commands(evil, "", tmp_path)[reader], f"--allow={name}").refused()
    assert f"{evil} asks for code in itself, {name}" in line and not (evil / "it_ran").exists()


def test_a_teacher_in_the_folder_itself_is_never_imported(evil, tmp_path):
    config = quickstart.get_config("run=kd")
    config.model.teacher, config.argument, config.teacher.run = "evil.code:x", {}, str(evil)
    with pytest.raises(ValueError, match="asks for code in itself"):
        read_teacher(read(config))
    assert not (evil / "it_ran").exists()


def test_a_network_that_the_user_names_is_read(run, tmp_path):
    result = call("evaluate", f"--workdir={run}", f"--allow=no:such,{OWN}")
    assert result.code == 0 and "359 test images of digits" in result.out, result
    assert saved.read(run, [OWN]).name == OWN
    with pytest.raises(ValueError, match="asks for code"):
        saved.read(run)


def test_the_users_own_config_names_its_teacher(run):
    config = quickstart.get_config("run=kd")
    config.model.teacher, config.argument, config.teacher.run = OWN, {}, str(run)
    assert read_teacher(check(config))[0].name == OWN
