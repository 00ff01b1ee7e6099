"""What a user can get wrong on a command line, in folders and in data: one line, exit code 2, nothing half made."""

import importlib
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import call
from experiment_lines import line as result_line

from experiments import recipes, tables
from sdd_jax import saved
from sdd_jax.__main__ import keep_programs
from sdd_jax.files import write_safetensors
from sdd_jax.models import create_model

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

PLAIN = "--config=configs/quickstart.py:run=plain"
KD = "--config=configs/quickstart.py:run=kd"
IMPORT = ("--model=resnet8", "--num_classes=10", "--workdir=DIR/new")
SILENT = ("--processes=2", "--process=1", "--coordinator=127.0.0.1:1", "--coordinator_wait=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with things that are not what a command asks for."""
    root = tmp_path_factory.mktemp("given")
    (root / "file").write_text("text")
    (root / "full").mkdir()
    (root / "full" / "a.txt").write_text("text")
    for name, classes, channels in (("teacher", 10, 1), ("colour", 10, 3), ("hundred", 100, 1)):
        model, images = create_model("resnet14", classes, "cifar"), jnp.zeros((1, 32, 32, channels))
        shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        given = {"name": "resnet14", "stem": "cifar", "num_classes": classes, "source": {"file": "a.pth"}}
        saved.write_imported(root / name, variables=variables, **given)
    broken = {
        "no_json": ("config.json", "{"),
        "other_json": ("config.json", "[1, 2]"),
        "other_config": ("config.json", '{"model": 3}'),
        "unknown_network": ("config.json", (root / "teacher" / "config.json").read_text().replace("resnet14", "net")),
        "torn_results": ("done.json", '{"last": '),
        "other_results": ("done.json", "3"),
        "step_that_is_none": ("done.json", '{"last": {"step": 7}}'),
    }
    for name, (file, text) in broken.items():
        shutil.copytree(root / "teacher", root / name)
        (root / name / file).write_text(text)
    shutil.copytree(root / "teacher", root / "unfinished")
    (root / "unfinished" / "done.json").unlink()
    shutil.copytree(root / "teacher", root / "no_checkpoint")
    shutil.rmtree(root / "no_checkpoint" / "checkpoints")
    shutil.copytree(root / "teacher", root / "damaged")
    for path in (root / "damaged").rglob("*"):
        if path.is_file() and "checkpoints" in path.parts and path.name != "MANIFEST.json":
            path.write_bytes(path.read_bytes()[:-1])
    for name, text in {"torn": '{"a": 1', "none": "[]", "twice": '{"teacher": 1}'}.items():
        (root / f"cache_{name}").mkdir()
        (root / f"cache_{name}" / "cache.json").write_text(text)
    write_safetensors(root / "one.safetensors", {"a": np.zeros(3, np.float32)}, {})
    return root


def files(root):
    """All that is there, but for a teacher's measured accuracy, which is kept beside it."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != "measured.json")


# What is typed, DIR standing for the folder above, and what the one line says.
COMMANDS = {
    ("trian",): "unknown command 'trian'; the closest is 'train', known are train",
    ("",): "unknown command ''",
    ("train",): "--config and --workdir must be given: sdd train --help",
    ("train", PLAIN, "--workdir="): "--workdir must name a place, got an empty name",
    ("train", PLAIN, "--workdir=DIR/new", "--seeds=1"): "'seeds': sdd train --help shows those that there are",
    ("train", PLAIN, "--workdir=DIR/new", "now"): "unexpected argument 'now'",
    ("train", PLAIN, "--workdir=DIR/new", "--config.epochs"): "Missing value for flag --config.epochs",
    ("train", PLAIN, "--workdir=DIR/new", "--config.optim=1"): "config.optim=1: Failed to parse",
    ("train", PLAIN, "--workdir=DIR/new", "--config.optim.lr=1"): "no (such )?field.*'(optim.)?lr'",
    ("train", PLAIN, "--workdir=DIR/new", "--config.sdd.scale=1"): "no (such )?field.*scale.*scales",
    ("train", PLAIN, "--workdir=DIR/new", "--config.no.room=1"): "no (such )?field.*'no",
    ("train", "--config", "configs/quickstar.py", "--workdir=DIR/new"): "there is no config file configs/quickstar.py",
    (
        "train",
        "--config",
        "quickstar:run=kd",
        "--workdir=DIR/new",
    ): "no config of that name; the closest is 'quickstart'",
    ("train", PLAIN, "--workdir=DIR/new", "--config.epochs=none"): "epochs must be an integer, got None",
    ("train", KD, "--workdir=DIR/new", "--config.sdd.scales=1,2"): "sdd.scales: the method 'kd' does not read it",
    ("train", KD, "--workdir=DIR/new", "--config.features.weight=7"): "features.weight: the method 'kd' does not read",
    ("train", PLAIN, "--workdir=DIR/new", "--config.loss.distill_weight=2"): "the method 'plain' does not read it",
    (
        "train",
        PLAIN,
        "--workdir=DIR/new",
        "--config.optim.optimizer=adamw",
        "--config.optim.momentum=0.8",
    ): "optim.momentum: optim.optimizer=adamw does not read it",
    (
        "train",
        "--config=configs/quickstart.py",
        "--workdir=DIR/new",
        "--config.runs.kd.sdd.scales=1,2",
    ): "sdd.scales: the method 'kd' does not read it",
    ("train", PLAIN, "--workdir=DIR/file/below"): "DIR/file/below cannot be a run's folder: DIR/file is a file",
    ("train", PLAIN, "--workdir=DIR/full"): "DIR/full is not empty and holds no run",
    ("train", PLAIN, "--workdir=DIR/teacher"): "DIR/teacher holds a run of another config",
    ("train", PLAIN, "--workdir=DIR/no_json"): "DIR/no_json/config.json does not read as JSON",
    ("train", PLAIN, "--workdir=DIR/new", "--processes=two"): "processes=two: invalid literal",
    ("train", PLAIN, "--workdir=DIR/new", "--processes=2"): "go together, got None, 2 and None",
    ("train", PLAIN, "--workdir=DIR/new", "--coordinator_wait=0"): "coordinator_wait=0: 0.0 is not number >= 1.0",
    ("train", PLAIN, "--workdir=DIR/new", *SILENT): "no coordinator answers at 127.0.0.1:1 within 1 s",
    ("evaluate", "--workdir=DIR/none"): "DIR/none is not a run's folder: it has no config.json",
    ("evaluate", "--workdir=DIR/teacher"): "names no data: add --data, one of digits, mnist",
    ("evaluate", "--workdir=DIR/teacher", "--data=digit"): "'digit'.*known are digits",
    ("evaluate", "--workdir=DIR/hundred", "--data=digits"): "DIR/hundred does not fit digits .*10 classes",
    ("evaluate", "--workdir=DIR/other_config", "--data=digits"): "DIR/other_config/config.json must have model.student",
    (
        "evaluate",
        "--workdir=DIR/no_checkpoint",
        "--data=digits",
    ): "DIR/no_checkpoint/checkpoints/00000000/MANIFEST.json is not there",
    ("evaluate", "--workdir=DIR/damaged", "--data=digits"): "DIR/damaged/checkpoints/00000000",
    ("train", PLAIN, "--workdir=DIR/new", "--config.teacher.run=DIR/teacher"): "teacher.run: the run has no teacher",
    ("export", "--workdir=DIR/teacher", "--output="): "--output must name a place",
    ("export", "--workdir=DIR/teacher", "--output=DIR/file"): "DIR/file exists: it is not overwritten",
    ("export", "--workdir=DIR/teacher", "--output=DIR/a", "--format=caffe"): "one of <safetensors",
    ("import", *IMPORT): "FILE is missing: sdd import FILE",
    ("import", "DIR/file", *IMPORT): "DIR/file is neither a safetensors nor a PyTorch file",
    ("import", "DIR/one.safetensors", *IMPORT): "DIR/one.safetensors: ",
    ("import", "DIR/one.safetensors", *IMPORT, "--num_classes=0"): "num_classes=0: 0 is not a positive",
    ("cache", PLAIN, "--workdir=DIR/new"): "this config has no teacher",
    ("cache", "--config=configs/quickstart.py", "--workdir=DIR/new"): "sequence of runs: choose one of .*'sdd_kd'",
    (
        "cache",
        KD,
        "--workdir=DIR/cache_twice",
        "--config.teacher.run=DIR/teacher",
    ): "DIR/cache_twice/cache.json has no digest: it was changed, or an earlier version",
    ("plan", PLAIN): "--topology must be given",
    ("plan", PLAIN, "--topology=v5e:3x3"): "v5e slices are 1x1, 2x2",
    ("experiments.run", "tabel"): "no table is called 'tabel'.*known are table1",
    ("experiments.run", "fashion", "--seeds=one"): "expected integers such as 0,1,2, got 'one'",
    ("experiments.run", "fashion", "--teachers=DIR/none"): "DIR/none is no folder: expected one that holds DATA/NAME",
    ("experiments.summarize", "fashion", "--output=DIR/file"): "DIR/file: File exists",
    ("benchmarks.run", "--only=speed"): "no section 'speed': there are pairs, loss",
    ("benchmarks.accelerator", "--output=DIR/new", "--data=cifar"): "--data=cifar: there is no configs/cifar.py",
    ("docs.networks", "now"): "unrecognized arguments: now",
}
# More of the same kinds.
MORE = {
    ("--version",): "unknown command '--version'",
    ("train", PLAIN): "--workdir must be given",
    ("train", PLAIN, "--workdir"): "Missing value for flag --workdir",
    ("train", PLAIN, "--wrkdir=DIR/new"): "wrkdir.*workdir",
    ("train", PLAIN, "--workdir=DIR/new", "--config.optim.momentum=none"): "momentum must be a finite number, got None",
    ("train", PLAIN, "--workdir=DIR/new", "--config.data.select_on=none"): "data.select_on: unknown 'none'",
    ("train", PLAIN, "--workdir=DIR/file"): "DIR/file is a file",
    ("train", PLAIN, "--workdir=DIR/other_json"): "DIR/other_json/config.json",
    ("train", PLAIN, "--workdir=DIR/new", "--process=0"): "go together, got None, None and 0",
    ("train", PLAIN, "--workdir=DIR/new", "--processes=2", "--process=2", "--coordinator=a:1"): "from 0 to 1 .* got 2",
    ("train", PLAIN, "--workdir=DIR/new", "--processes=0", "--process=0", "--coordinator=a:1"): "processes.*got 0",
    ("train", PLAIN, "--workdir=DIR/new", "--processes=2", "--process=1", "--coordinator=a"): "HOST:PORT, got 'a'",
    ("train", PLAIN, "--workdir=DIR/new", "--processes=2", "--process=1", "--coordinator=a:99999"): "HOST:PORT, got",
    ("evaluate",): "--workdir must be given",
    ("evaluate", "--workdir="): "--workdir must name a place",
    ("evaluate", "--workdir=DIR/file"): "DIR/file is not a run's folder",
    ("evaluate", "--workdir=DIR/full"): "DIR/full is not a run's folder",
    ("evaluate", "--workdir=DIR/teacher", "--data=digits", "--data_path=DIR"): "have no path, got 'DIR'",
    ("evaluate", "--workdir=DIR/colour", "--data=digits"): r"does not fit digits .*\(3, 3, 3, 16\), expected",
    ("evaluate", "--workdir=DIR/no_json", "--data=digits"): "DIR/no_json/config.json does not read as JSON",
    ("evaluate", "--workdir=DIR/other_json", "--data=digits"): "DIR/other_json/config.json must hold names",
    ("evaluate", "--workdir=DIR/unknown_network", "--data=digits"): "unknown model 'net'",
    ("export", "--workdir=DIR/teacher"): "--output must be given",
    ("export", "--workdir=DIR/teacher", "--output=DIR/none/a"): "DIR/none is no directory",
    ("export", "--workdir=DIR/teacher", "--output=DIR/a", "--checkpoint=first"): "one of <last|best>",
    ("export", "--workdir=DIR/full", "--output=DIR/a"): "DIR/full is not a run's folder",
    ("export", "--workdir=DIR/damaged", "--output=DIR/a"): "DIR/damaged/checkpoints/00000000",
    ("import",): "--model and --num_classes and --workdir must be given",
    ("import", "DIR/none", *IMPORT): "there is no file DIR/none",
    ("import", "DIR/full", *IMPORT): "DIR/full is a directory, expected a file",
    ("import", "DIR/file", "again", *IMPORT): "unexpected argument 'again'",
    ("import", "DIR/one.safetensors", *IMPORT, "--entry=model"): "DIR/one.safetensors: .*model",
    ("import", "DIR/one.safetensors", *IMPORT, "--prefix=module."): "DIR/one.safetensors: .*module",
    ("import", "DIR/one.safetensors", *IMPORT, "--model=resnet9"): "unknown model 'resnet9', did you mean 'resnet8'",
    ("import", "DIR/one.safetensors", *IMPORT, "--model=my:net"): "my:net: a network of your own",
    ("import", "DIR/one.safetensors", *IMPORT, "--stem=large"): "no stem 'large'; it has: cifar",
    ("import", "DIR/one.safetensors", *IMPORT, "--num_classes=ten"): "num_classes=ten: invalid literal",
    ("cache", KD, "--workdir=DIR/new", "--store=int4"): "a cache's store must be one of float32.*got 'int4'",
    ("cache", KD, "--workdir=DIR/new", "--verify=maybe"): "verify=maybe.*oolean",
    ("cache", KD, "--workdir=DIR/new", "--config.teacher.run=DIR/none"): "DIR/none is not a run's folder",
    ("cache", KD, "--workdir=DIR/new", "--config.teacher.run=DIR/teacher", "--verify"): "DIR/new holds no cache",
    ("cache", KD, "--workdir=DIR/file", "--config.teacher.run=DIR/teacher"): "DIR/file",
    ("cache", KD, "--workdir=DIR/full", "--config.teacher.run=DIR/teacher"): "DIR/full is not empty and holds no cache",
    ("cache", KD, "--workdir=DIR/cache_torn", "--config.teacher.run=DIR/teacher"): "cache.json does not read as JSON",
    ("cache", KD, "--workdir=DIR/cache_none", "--config.teacher.run=DIR/teacher"): "DIR/cache_none",
    ("plan", PLAIN, "--topology="): "there is no topology '': topologies are written",
    ("plan", PLAIN, "--topology=v5e"): "topologies are written GENERATION:SHAPE, such as v4:2x2x4",
    ("plan", PLAIN, "--topology=v9:2x2"): "no topology 'v9:2x2': .* such as v4:2x2x4, v5e:16x16",
    ("plan", PLAIN, "--topology=v5e:0x4"): "'v5e:0x4' does not exist",
    ("plan", PLAIN, "--topology=v5e:2x4", "--batch_size=0"): "at least 1, such as 1024,4096; got '0'",
    ("plan", PLAIN, "--topology=v5e:2x4", "--batch_size=many"): "got 'many'",
    ("plan", PLAIN, "--topology=v5e:2x4", "--batch_size=7"): "batch_size 7 does not divide by the 8 chips",
    ("plan", PLAIN, "--topology=v5e:2x4,v5e:4x4", "--batch_size=16,32,64"): "go in pairs, got 2 and 3",
    ("plan", PLAIN, "--topology=v5e:2x4", "--compare=dkd"): "compare=dkd",
    ("plan", PLAIN, "--topology=v5e:2x4", "--config.seeds=1,2"): r"leave seeds out, got \(1, 2\)",
    ("plan", "--config=configs/quickstart.py", "--topology=v5e:2x4"): "sequence of runs: choose one of .*argument",
    ("experiments.run",): "required: TABLE",
    ("experiments.run", "fashion", "more"): "unrecognized arguments: more",
    ("experiments.run", "fashion", "--seed=1", "--sed=2"): "unrecognized arguments: --sed=2",
    ("experiments.run", "fashion", "--seeds="): "expected integers such as 0,1,2, got ''",
    ("experiments.run", "fashion", "--seeds=1,1"): "that differ, are not negative and below 2.32, got '1,1'",
    ("experiments.run", "fashion", "--seeds=-1"): "not negative and below 2.32, got '-1'",
    ("experiments.run", "fashion", f"--seeds={2**33}"): f"below 2.32, got '{2**33}'",
    ("experiments.run", "fashion", "--preset=thesis"): "invalid choice: 'thesis' .choose from",
    ("experiments.run", "fashion", "--rows=none"): "--rows=none: no row that is run fits; rows are teacher",
    ("experiments.run", "fashion", "--workers=0"): "at least 1, got '0'",
    ("experiments.run", "fashion", "--jobs=few"): "at least 1, got 'few'",
    ("experiments.run", "fashion", "--teachers=DIR/file"): "DIR/file is no folder",
    ("experiments.run", "fashion", "--data_path=DIR/none"): "DIR/none is not there",
    ("experiments.run", "fashion", "--seeds=99", "--workdir=DIR/file"): "DIR/file/.*: Not a directory",
    ("experiments.summarize",): "required: TABLE",
    ("experiments.summarize", "tabel"): "no table is called 'tabel'",
    ("experiments.summarize", "fashion", "--output=DIR/file/below"): "DIR/file/below: Not a directory",
    ("benchmarks.run", "--only="): "no section '': there are pairs, loss",
    ("benchmarks.run", "now"): "unrecognized arguments: now",
    ("benchmarks.run", "--output=DIR/none/a.md"): "DIR/none/a.md must name a file",
    ("benchmarks.run", "--output=DIR/full"): "DIR/full must name a file",
    ("benchmarks.accelerator",): "required: --output",
    ("benchmarks.accelerator", "--output=DIR/file", "--data=digits"): "DIR/file: File exists",
    ("benchmarks.accelerator", "--output=DIR/new", "--minutes=many"): "invalid float value: 'many'",
    ("benchmarks.travel",): "required: --output",
    ("docs.values", "--check"): "unrecognized arguments: --check",
    ("docs.fields", "--check"): "unrecognized arguments: --check",
    ("docs.command_line", "now"): "unrecognized arguments: now",
}


def parametrized(name, cases, quick):
    """Those of ``cases`` that are not ``quick`` are slow."""
    some = [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize(name, some, ids=" ".join if name == "typed" else str)


@parametrized("typed", COMMANDS | MORE, COMMANDS)
def test_a_mistake_on_the_command_line_is_one_line(folder, typed):
    before = files(folder)
    arguments = [argument.replace("DIR", str(folder)) for argument in typed]
    name = arguments.pop(0) if "." in arguments[0] else "sdd"
    line = call(*arguments, name=name).refused()
    message = (COMMANDS | MORE)[typed].replace("DIR", re.escape(str(folder)))
    assert line.startswith(f"{name}: ") and re.search(message, line), line
    assert files(folder) == before


def without_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("home", ["none", "a file", "read-only"])
def test_without_a_home_that_can_be_written_programs_are_not_kept_and_it_says_so(tmp_path, monkeypatch, capsys, home):
    """As under ``docker run -u``."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", without_home if home == "none" else lambda: tmp_path)
    if home == "a file":
        (tmp_path / ".cache").touch()
    if home == "read-only":
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        keep_programs()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    told = capsys.readouterr().err
    assert told.startswith("sdd: compiled programs are not kept: ") and told.count("\n") == 1
    assert "home directory" in told if home == "none" else str(tmp_path) in told


def test_a_batch_that_is_more_than_an_epoch_is_said(tmp_path):
    given = ("--config.batch_size=256", "--config.data.train_examples=100", "--config.epochs=1")
    result = call("train", PLAIN, *given, f"--workdir={tmp_path}/run")
    assert "a batch of 256 is more than an epoch: each step shows some of 100 images again" in result.out, result


TEACHERS = {
    "none": "teacher.run DIR/none is not a run's folder|DIR/none is not a run's folder",
    "file": "DIR/file is not a run's folder",
    "full": "DIR/full is not a run's folder",
    "unfinished": "DIR/unfinished has not finished",
    "colour": r"DIR/colour does not fit digits .*\(3, 3, 3, 16\), expected \(3, 3, 1, 16\)",
    "hundred": "DIR/hundred does not fit digits .*10 classes",
    "no_json": "DIR/no_json/config.json does not read as JSON",
    "other_json": "DIR/other_json/config.json must hold names and values",
    "other_config": "DIR/other_config/config.json must have model.student",
    "unknown_network": "DIR/unknown_network/done.json is another's: its owner",
    "torn_results": "DIR/torn_results/done.json does not read as JSON",
    "other_results": "DIR/other_results/done.json must hold names and values, got 3",
    "step_that_is_none": "DIR/step_that_is_none/done.json has no digest: it was changed, or an earlier version",
    "no_checkpoint": "DIR/no_checkpoint",
    "damaged": "DIR/damaged/checkpoints/00000000",
}


@parametrized("teacher", TEACHERS, ("unfinished", "hundred", "torn_results", "damaged"))
def test_a_teacher_that_does_not_serve_is_named(folder, tmp_path, teacher):
    before = files(folder)
    given = f"--config.teacher.run={folder / teacher}"
    line = call("train", KD, given, f"--workdir={tmp_path}/run").refused()
    assert re.search(TEACHERS[teacher].replace("DIR", re.escape(str(folder))), line), line
    assert not (tmp_path / "run").exists() and files(folder) == before


def torn_lines():
    cell = next(cell for cell in tables.TABLES["fashion"].cells if cell.recipe is not None)
    line = result_line(cell.recipe, 0, 90.0)
    whole, sealed = json.dumps(line), line | {"digest": recipes.digest(line)}
    better, nobody = sealed | {"last": line["last"] | {"accuracy": 0.99}}, line | {"teacher": {}}
    return {
        "torn": (whole[:-20] + "\n", "lines.jsonl:1 is torn or no result line"),
        "torn at its end": (f"{whole}\n{whole}", "lines.jsonl:2 is torn .*no line break"),
        "no JSON": (f"{whole}\nresults\n", "lines.jsonl:2 is torn or no result line"),
        "a number": ("3\n", "lines.jsonl:1 is torn or no result line"),
        "changed by hand": (whole.replace('"epochs": 10', '"epochs": 11') + "\n", "lines.jsonl:1 was changed: "),
        "a better accuracy": (json.dumps(better) + "\n", "lines.jsonl:1 was changed: "),
        "without a seed": (whole.replace('"seed": 0, "last"', '"sed": 0, "last"') + "\n", "must have seed, of type"),
        "a teacher without a name": (json.dumps(nobody) + "\n", "must have teacher.id, of type str"),
        "settings that are a list": ('{"settings": [], "config_hash": ""}\n', "lines.jsonl:1"),
        "no text": (b"\xff\xfe\n", "lines.jsonl:1 is torn"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["experiments.run", "experiments.summarize"])
@parametrized("case", torn_lines(), ("torn", "changed by hand"))
def test_a_torn_result_line_is_named(tmp_path, monkeypatch, name, case):
    content, message = torn_lines()[case]
    (tmp_path / "lines.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    line = call("fashion", name=name, folder=tmp_path).refused()
    assert re.search(message, line), line
    assert files(tmp_path) == ["lines.jsonl"]


@pytest.mark.parametrize(("command", "goes_on"), [("train", True), ("report", False)])
def test_an_interrupted_command_says_that_it_goes_on_if_it_does(tmp_path, monkeypatch, command, goes_on):
    module = importlib.import_module(f"sdd_jax.commands.{command}")
    monkeypatch.setattr(module, "main", mock.Mock(side_effect=KeyboardInterrupt))
    ended = call(command, *((PLAIN, f"--workdir={tmp_path}/run") if command == "train" else ("run",)))
    assert ended.code == 130 and ended.err.startswith("sdd: interrupted")
    assert ("the same command goes on" in ended.err) == goes_on
