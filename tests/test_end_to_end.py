"""The program as a person runs it. Quick tests call its commands in this process, slow ones start processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import pytest
import sets
from commands import call

from sdd_jax import saved
from sdd_jax.__main__ import COMMANDS
from sdd_jax.training.logbook import read_metrics

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}
# A student of the quickstart, short: three steps an epoch, 27 in all.
SHORT = ("--config=configs/quickstart.py:run=plain", "--config.epochs=9", "--config.optim.learning_rate=0.05")


def command(*arguments):
    return [sys.executable, "-m", "sdd_jax", *map(str, arguments)]


def run(*arguments, environment=ENVIRONMENT):
    return subprocess.run(command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True)


def refused(*arguments):
    """The one line that a refused command prints, in this process."""
    return call(*arguments).refused()


def final_variables(workdir):
    return saved.load_variables(workdir, "last")


@pytest.mark.slow
def test_killed_and_started_again_it_ends_bit_for_bit_as_if_nothing_had_been(tmp_path):
    arguments = ("train", *SHORT, "--config.save_every_epochs=1", "--config.eval_every_epochs=1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run(*arguments, f"--workdir={whole}")
    assert result.returncode == 0, result.stderr

    process = subprocess.Popen(
        command(*arguments, f"--workdir={killed}"), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/*/MANIFEST.json")):
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint to kill it after"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "done.json").exists()

    result = run(*arguments, f"--workdir={killed}")
    assert result.returncode == 0, result.stderr
    assert re.search(r"going on from step \d+ of 29", result.stdout)
    chex.assert_trees_all_equal(final_variables(killed), final_variables(whole))
    first, second = (read_metrics(folder / "metrics.jsonl") for folder in (whole, killed))
    assert [(row["kind"], row["step"], row["loss"]) for row in first] == [
        (row["kind"], row["step"], row["loss"]) for row in second
    ]

    result = run(*arguments, f"--workdir={killed}")
    assert result.returncode == 0 and "has finished" in result.stdout


@pytest.mark.slow
def test_several_seeds_are_each_the_single_run(tmp_path):
    short = (*SHORT, "--config.epochs=1")
    both = run("train", *short, "--config.seeds=3,5", f"--workdir={tmp_path}/both")
    assert both.returncode == 0 and "seed 5 | epoch" in both.stdout, both.stderr
    result = run("train", *short, "--config.seed=5", f"--workdir={tmp_path}/five")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["seed_3", "seed_5"]
    alone, together = tmp_path / "five", tmp_path / "both" / "seed_5"
    chex.assert_trees_all_close(
        final_variables(together), final_variables(alone), atol=1e-3
    )  # float32, another program
    assert (together / "config.json").read_text() == (alone / "config.json").read_text()


@pytest.mark.slow
def test_own_images_on_disk_are_trained_on_measured_and_named_if_broken(tmp_path):
    sets.write_folder(tmp_path / "images", classes=("a", "b"), train=20, test=5)
    common = [
        "--config=configs/image_folder.py:teacher=none,student=resnet8",
        f"--config.data.path={tmp_path}/images",
        "--config.data.image_size=32",
        "--config.data.in_memory=false",
        "--config.model.stem=cifar",
        "--config.epochs=1",
        "--config.batch_size=16",
        "--config.data.workers=2",
    ]
    result = run("train", *common, f"--workdir={tmp_path}/run")
    assert result.returncode == 0 and not result.stderr, result.stderr
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    result = run("evaluate", f"--workdir={tmp_path}/run")
    assert f"accuracy {100 * done['last']['accuracy']:.2f}%" in result.stdout
    assert "on 10 test images of image_folder" in result.stdout
    for name in ("a", "b"):
        for number in range(20):
            (tmp_path / "images" / "train" / name / f"{number}.png").write_bytes(b"no image")
    assert re.match(r"sdd: .*/train/[ab]/\d+.png cannot be read", refused("train", *common, f"--workdir={tmp_path}/b"))


@pytest.mark.slow
def test_compiled_programs_are_kept_where_nothing_else_is_said(tmp_path):
    script = "import jax, sdd_jax.__main__ as m; m.keep_programs(); print(jax.config.jax_compilation_cache_dir)"
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    unset = {name: value for name, value in ENVIRONMENT.items() if name not in names}
    for given, folder in (
        ({"XDG_CACHE_HOME": str(tmp_path)}, tmp_path / "sdd_jax" / "programs"),
        ({"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}, tmp_path / "own"),
    ):
        command = [sys.executable, "-c", script]
        printed = subprocess.run(command, cwd=ROOT, env=unset | given, capture_output=True, text=True, check=True)
        assert printed.stdout.strip() == str(folder)


REFUSALS = {
    "a student of another name": (["--config=configs/cifar100.py:student=resnet9"], "resnet9.*resnet8"),
    "a file that is not there": (["--config=configs/cifar1000.py"], "configs/cifar1000.py"),
    "a field of another name": (
        ["--config=configs/cifar10.py", "--config.sdd.scale=1"],
        "no (such )?field.*scale.*scales",
    ),
    "text for a number": (["--config=configs/cifar10.py", "--config.seed=one"], "config.seed=one"),
    "a tuple of text": (["--config=configs/cifar10.py", "--config.sdd.scales=a,b"], "sdd.scales must be integers"),
    "no teacher": (["--config=configs/cifar10.py"], "teacher.run must name the folder"),
    "no config": ([], "--config"),
    "a word too many": (["--config=configs/quickstart.py", "now"], "'now'"),
    "an unknown flag": (["--config=configs/quickstart.py", "--wrkdir=a"], "wrkdir.*workdir"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_mistake_is_one_line_and_leaves_no_folder(tmp_path, case):
    arguments, message = REFUSALS[case]
    workdir = tmp_path / "run"
    assert re.search(message, refused("train", *arguments, f"--workdir={workdir}"))
    assert not workdir.exists()


def test_it_trains_and_measures_where_implicit_transfers_are_forbidden(tmp_path):
    with jax.transfer_guard("disallow"):
        trained = call("train", *SHORT, "--config.epochs=1", f"--workdir={tmp_path}/run")
        measured = call("evaluate", f"--workdir={tmp_path}/run")
    assert trained.code == measured.code == 0 and not trained.err and not measured.err, (trained, measured)
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    assert f"accuracy {100 * done['last']['accuracy']:.2f}%" in measured.out


def test_missing_data_say_how_to_get_them(tmp_path):
    config = "--config=configs/cifar100.py:teacher=none,student=resnet8"
    ended = call("train", config, f"--config.data.path={tmp_path}/none", f"--workdir={tmp_path}/run")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert f"{tmp_path}/none" in ended.err and "cifar-100-python.tar.gz" in ended.err
    assert not (tmp_path / "run").exists()


def test_an_unknown_command_names_the_closest():
    assert "'train'" in refused("trian")


def test_a_folder_without_a_run_is_refused(tmp_path):
    assert "not a run's folder" in refused("evaluate", f"--workdir={tmp_path}")


@pytest.mark.parametrize("arguments", [("--help",), *((name, "--help") for name in COMMANDS)])
def test_help_shows_an_example(arguments):
    ended = call(*arguments)
    assert ended.code == 0 and "sdd " in ended.out
    assert "--workdir" in ended.out or {"plan", "report"} & {*arguments}
