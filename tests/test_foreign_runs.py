"""A run's folder from somebody else: no code of it runs, and a file of it that is not as it should be is named."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import call

from sdd_jax import saved, sealed
from sdd_jax.build import build, check
from sdd_jax.build_teacher import read_teacher
from sdd_jax.config import read
from sdd_jax.configs import quickstart
from sdd_jax.models import create_model
from sdd_jax.training import run_dir
from sdd_jax.training.checkpoint import Checkpoints

EVIL = (
    "import pathlib\nfrom own_networks import plain_function as x\npathlib.Path(__file__).with_name('it_ran').touch()\n"
)
OWN = "own_networks:plain_function"
SCORE = {"step": 3, "epoch": 1.0, "accuracy": 0.1}
LINES = [{"kind": "evaluation", **SCORE, "split": split, "elapsed": 1.0} for split in ("validation", "test")]
PROGRESS = {"select_on": "validation", "last": SCORE, "best": SCORE, "steps": 3, "log": sealed.digest(LINES)}
DONE = {**PROGRESS, "seed": 0, "train_examples": 10, "seconds": 1.0, "teacher_accuracy": None}


def write_run(folder, student=OWN, method="teacher", **teacher):
    """A finished run on digits, of weights that were never trained."""
    config = quickstart.get_config(f"run={method}")
    config.model.student, config.argument = student, {}
    config.teacher.update(teacher)
    run_dir.open_folder(folder, check(config).nested())
    model = create_model(student, 10)
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32), train=False)
    checkpoints = saved.checkpoints(folder)
    state = {"params": {"student": variables["params"]}, "batch_stats": variables.get("batch_stats", {})}
    checkpoints.save(state, 3, PROGRESS)
    checkpoints.close()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    run_dir.write_sealed(folder, run_dir.DONE, DONE)


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
    starts = run_dir.read_starts(run)
    put(tmp_path / "folder" / "evil", "model.student", "evil.code:x")
    for name, content in ((run_dir.DONE, DONE), (run_dir.ENVIRONMENT, {"starts": starts})):  # its digests are right
        run_dir.write_sealed(tmp_path / "folder" / "evil", name, content)
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


# ---------------------------------------------------------------------- files that are not as they should be

DEEP = "[" * 100_000
NETWORK = {"student": "resnet8", "stem": "cifar", "dtype": "float32"}
IMPORTED = {"imported": {"file": "a"}, "model": NETWORK, "num_classes": 10}


def changed(name, value):
    """The file's text with one field of it set."""

    def change(text):
        content = json.loads(text)
        *rooms, last = name.split(".")
        inside = content
        for room in rooms:
            inside = inside[room]
        inside[last] = value
        return json.dumps(content)

    return change


def line(number, text):
    """The file with its line ``number`` replaced."""
    return lambda whole: "".join(text if n == number else old for n, old in enumerate(whole.splitlines(True), 1))


def without(*names):
    return lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name not in names})


# The file, what it holds or becomes, the command that reads it, what the line says after the file's or folder's name.
FILES = {
    "config nested deep": ("config.json", DEEP, "evaluate", "does not read as JSON"),
    "config nested somewhat": ("config.json", "[" * 50 + "]" * 50, "evaluate", "nests deeper than 32"),
    "config with NULs": ("config.json", "\0" * 99, "evaluate", "does not read as JSON"),
    "config that is not UTF-8": ("config.json", b"\xff", "evaluate", "does not read as JSON"),
    "config of a list": ("config.json", "[]", "evaluate", "must hold names"),
    "data.name 7": ("config.json", changed("data.name", 7), "evaluate", "must have data.name, of type str"),
    "data 7": ("config.json", changed("data", 7), "evaluate", "must have data.name, of type str"),
    "an unknown set": ("config.json", changed("data.name", "x"), "evaluate", "'x'"),
    "an unknown dtype": ("config.json", changed("model.dtype", "int4"), "export", ": model.dtype: unknown"),
    "a stem 3": ("config.json", changed("model.stem", 3), "export", "must have model.stem, of type str"),
    "1e9 classes": ("config.json", changed("data.num_classes", 10**9), "evaluate", "says 1000000000"),
    "1e9 classes, as a float": ("config.json", changed("data.num_classes", 1e9), "evaluate", "must have data.num"),
    "1e9 imported": ("config.json", json.dumps({**IMPORTED, "num_classes": 10**9}), "predict", "says 1000000000"),
    "-1 imported": ("config.json", json.dumps({**IMPORTED, "num_classes": -1}), "predict", ": num_classes"),
    "imported 3": ("config.json", json.dumps({**IMPORTED, "imported": 3}), "predict", "must have imported"),
    "sdd of no scales": ("config.json", changed("sdd", {"pooling": "nested"}), "predict", "must have sdd.sc"),
    "seed null": ("config.json", changed("seed", None), "report", "must have seed, of type int; got None"),
    "in memory 1": ("config.json", changed("data.in_memory", 1), "report", "must have data.in_memory, of type"),
    "seed true": ("config.json", changed("seed", True), "report", "must have seed, of type int; got True"),
    "done {}": ("done.json", "{}", "report", "has no digest"),
    "done {} of a teacher": ("done.json", "{}", "train", "has no digest"),
    "done {} of this run": ("done.json", "{}", "again", "has no digest"),
    "done null": ("done.json", "null", "again", "must hold names.*got None"),
    "no select_on": ("done.json", without("select_on"), "again", "its digest differs"),
    "a step that is a text": ("done.json", changed("last.step", "3"), "train", "its digest differs"),
    "an accuracy that is NaN": ("done.json", changed("last.accuracy", float("nan")), "train", "its digest differs"),
    "environment null": ("environment.json", "null", "report", "must hold names.*got None"),
    "environment of a number": ("environment.json", "[3]", "report", "must hold names.*got \\[3\\]"),
    "environment {}": ("environment.json", "{}", "report", "has no digest"),
    "environment null, go on": ("environment.json", "null", "go on", "must hold names"),
    "a line []": ("metrics.jsonl", line(2, "[]\n"), "report", ":2 must hold names.*got \\[\\]"),
    "a line without step": ("metrics.jsonl", line(2, '{"kind": "train"}\n'), "report", ":2 must have step"),
    "a line cut": ("metrics.jsonl", line(1, '{"kind": "tra\n'), "report", ":1 does not read as JSON"),
    "a line of NULs": ("metrics.jsonl", line(1, "\0" * 40 + "\n"), "report", ":1 does not read as JSON"),
    "a line that is not UTF-8": ("metrics.jsonl", b'{"kind": "\xff"}\n', "report", ":1 does not read as"),
    "no split": ("metrics.jsonl", lambda text: text.replace("split", "splat"), "report", ", an eval.*have split"),
    "measured []": ("measured.json", "[]", "train", "must hold names"),
    "skipped {}": ("skipped.json", "{}", "go on", "has no digest"),
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "teacher"
    write_run(folder, "resnet14")
    return folder


def read_by(command, folder, tmp_path):
    """What is typed; "again" is a finished run's own command, "go on" that of one that has not finished."""
    if command == "go on":
        (folder / "done.json").unlink()
        shutil.rmtree(folder / "checkpoints")
    own = ("train", "--config=configs/quickstart.py:run=teacher", f"--workdir={folder}")
    return {"again": own, "go on": own, **commands(folder, "", tmp_path)}[command]


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_as_it_should_be_is_named(teacher, tmp_path, case):
    name, content, command, message = FILES[case]
    folder = tmp_path / "it"
    shutil.copytree(teacher, folder)
    path = folder / name
    content = content(path.read_text()) if callable(content) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(folder.rglob("*"))
    typed = read_by(command, folder, tmp_path)
    typed = (*typed, "--data=digits") if "imported" in case else typed
    line = call(*typed).refused()
    assert re.search(f"{folder}(/{name})?.*{message}", line), line
    assert command == "go on" or sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["select_on", "last", "best"])
def test_results_that_somebody_sealed_without_a_field_are_named(teacher, tmp_path, name):
    """A digest is no signature."""
    folder = tmp_path / "it"
    shutil.copytree(teacher, folder)
    done = run_dir.read_done(folder)
    run_dir.write_sealed(folder, run_dir.DONE, {field: value for field, value in done.items() if field != name})
    line = call(*read_by("again", folder, tmp_path)).refused()
    assert f"{folder}/done.json must have {name}" in line


@pytest.mark.parametrize("holder", ["[]", "{}", "5", '{"host": "x"}', "", DEEP], ids=lambda text: text[:20])
def test_a_folder_in_use_is_refused_whatever_its_lock_file_holds(tmp_path, holder):
    lock = run_dir.lock_folder(tmp_path)
    (tmp_path / run_dir.HOLDER).write_text(holder)
    with pytest.raises(ValueError, match=f"^{tmp_path} is in use by another process .*lock.json .*: wait for it"):
        run_dir.lock_folder(tmp_path)
    lock.release()


def test_a_teacher_folder_that_cannot_be_written_serves(teacher, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "it"
    shutil.copytree(teacher, folder)

    def refuse(*arguments):  # as root, a mode would not keep anybody from writing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_dir, "write_sealed", refuse)
    config = quickstart.get_config("run=kd")
    config.teacher.run, config.teacher.accuracy = str(folder), measured(folder)
    assert 100 * build(config).teacher_accuracy == pytest.approx(config.teacher.accuracy, abs=0.01)
    told = capsys.readouterr().err
    assert f"{folder}/measured.json cannot be written: the next start measures it again" in told
    assert not (folder / "measured.json").exists()


def test_weights_that_are_nan_are_named_by_whatever_reads_them(tmp_path, monkeypatch):
    """Sealed by somebody: no run saves them. A teacher of such weights does not begin to teach."""
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, state, *rest: save(self, jax.tree.map(lambda leaf: leaf * np.nan, state), *rest),
    )
    write_run(tmp_path / "it", "resnet14")
    monkeypatch.undo()
    place = f"{tmp_path}/it/checkpoints/00000003: .* holds NaN or an infinite number"
    for reader, typed in commands(tmp_path / "it", "", tmp_path).items():
        line = call(*typed).refused()
        assert re.search(place, line), (reader, line)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def measured(folder):
    """The test accuracy of the run in ``folder``, in percent."""
    result = call("evaluate", f"--workdir={folder}")
    return float(re.search(r"accuracy ([\d.]+)%", result.out)[1])
