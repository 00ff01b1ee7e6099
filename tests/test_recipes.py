"""A recipe of today as one run: the average of its student, and a run that is killed, or on eight devices."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from commands import call
from safetensors.numpy import load_file
from test_loop import assert_same, interrupt, lines
from test_processes import assert_same as assert_same_losses
from test_processes import finish, start

import sdd_jax
from sdd_jax import data, saved
from sdd_jax.reporting.groups import find_runs, group_runs
from sdd_jax.reporting.study import Study
from sdd_jax.torch_io import to_state_dict
from sdd_jax.training import loop
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training.run_dir import read_config, read_done
from sdd_jax.training.step import AveragedState, State, moved_average

EMA = ("ema_accuracy", "ema_loss")


def test_the_average_follows_its_formula_from_the_first_update_on(x64):
    rng = np.random.default_rng(0)
    values, decay = rng.normal(size=(200, 3)), 0.95
    expected = average = {"w": jnp.asarray(values[0])}
    for number, value in enumerate(values[1:]):
        factor = min(decay, (1 + number) / (10 + number))
        expected = {"w": factor * expected["w"] + (1 - factor) * value}
        average = moved_average(average, {"w": jnp.asarray(value)}, jnp.int32(number), decay)
        np.testing.assert_allclose(average["w"], expected["w"], rtol=1e-12)


def test_what_a_network_counts_is_not_averaged():
    average, now = {"count": jnp.int32(3), "mean": jnp.zeros(1)}, {"count": jnp.int32(4), "mean": jnp.ones(1)}
    moved = moved_average(average, now, jnp.int32(0), 0.9)
    assert moved["count"].dtype == jnp.int32 and int(moved["count"]) == 4
    np.testing.assert_allclose(moved["mean"], [0.9])  # 1 - (1 + 0) / (10 + 0)


def test_a_decay_near_one_is_not_rounded_away():
    average, now = jnp.zeros(1), jnp.ones(1)
    np.testing.assert_allclose(moved_average(average, now, jnp.int32(10**9), 0.99999), [1e-5], rtol=1e-5)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return loop.train(tiny.recipe(tiny.built()), workdir), workdir


def test_a_run_with_all_of_it_goes_on_as_if_nothing_had_been(uninterrupted, tmp_path, monkeypatch):
    state, workdir = uninterrupted
    assert isinstance(state, AveragedState)
    with monkeypatch.context() as patched:
        interrupt(patched, "evaluation", 4)
        with pytest.raises(KeyboardInterrupt):
            loop.train(tiny.recipe(tiny.built()), tmp_path)
    assert saved.checkpoints(tmp_path).steps() == [6]
    assert_same(loop.train(tiny.recipe(tiny.built()), tmp_path), state)
    assert lines(tmp_path) == lines(workdir)


def test_the_average_is_measured_beside_the_student(uninterrupted):
    state, workdir = uninterrupted
    built, done = tiny.recipe(tiny.built()), read_done(workdir)
    for variables, prefix in (
        ({"params": state.params["student"], "batch_stats": state.batch_stats}, ""),
        (state.ema, "ema_"),
    ):
        evaluator = loop.make_evaluator(built.model, built.dataset.test, built.dataset, built.mesh, built.dtype)
        results = evaluator(variables)
        assert {f"{prefix}{name}": results[name] for name in ("accuracy", "loss")}.items() <= done["last"].items()
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.ema["params"], state.params["student"])
    assert min(jax.tree.leaves(moved)) > 0
    rows = [row for row in lines(workdir) if row["kind"] == "evaluation"]
    assert len(rows) == 6 and all(set(EMA) < row.keys() for row in rows)
    for which in ("last", "best"):  # what is saved of both
        step = saved.step_of(workdir, which)
        averaged = saved.checkpoints(workdir).load_variables(step, averaged=True)
        assert averaged.keys() == {"params", "batch_stats"}
        if which == "last":
            assert_same(averaged, state.ema)
            assert_same(saved.load_variables(workdir, "average"), state.ema)
            chex.assert_trees_all_equal(saved.load_variables(workdir, "last")["params"], state.params["student"])


def test_without_an_average_a_checkpoint_is_what_it_was(tmp_path):
    state = loop.train(tiny.built(epochs=1), tmp_path)
    assert type(state) is State
    kept = json.loads(next(tmp_path.rglob("_METADATA")).read_text())["tree_metadata"]
    rooms = {entry["key_metadata"][0]["key"] for entry in kept.values()}
    assert rooms == {"step", "params", "batch_stats", "objective_state", "opt_state"}
    with pytest.raises(ValueError, match="keeps no average"):
        saved.checkpoints(tmp_path).load_variables(int(state.step), averaged=True)
    assert not any(set(EMA) & row.keys() for row in lines(tmp_path))


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """The folder of a run by the command line that keeps an average."""
    folder = tmp_path_factory.mktemp("averaged") / "teacher"
    fields = ("--config.epochs=2", "--config.batch_size=32", "--config.optim.ema_decay=0.9")
    result = call("train", "--config=quickstart:run=plain", *fields, f"--workdir={folder}")
    assert result.code == 0, result
    return folder


def test_commands_take_the_average(averaged, tmp_path):
    last = read_done(averaged)["last"]
    assert last["loss"] != last["ema_loss"]
    printed = call("evaluate", f"--workdir={averaged}").out.splitlines()
    assert printed[-1].startswith(
        f"{averaged} average (step {last['step']}): accuracy {100 * last['ema_accuracy']:.2f}%"
    )
    assert f"loss {last['ema_loss']:.4f}" in printed[-1] and f"loss {last['loss']:.4f}" in printed[0]
    output, run = tmp_path / "average.safetensors", sdd_jax.load_run(averaged, checkpoint="average")
    call("export", f"--workdir={averaged}", f"--output={output}", "--checkpoint=average")
    chex.assert_trees_all_equal(load_file(output), to_state_dict(run.model, jax.device_get(run.variables)))
    assert_same(run.variables, saved.checkpoints(averaged).load_variables(last["step"], averaged=True))


def test_the_average_teaches(averaged, tmp_path):
    teacher, accuracy = sdd_jax.load_run(averaged, checkpoint="average"), read_done(averaged)["last"]["ema_accuracy"]
    given = {"data": data.load("digits", train_examples=64, select_on="test"), "epochs": 1}
    student = sdd_jax.distill("resnet8", teacher, method="kd", folder=tmp_path / "student", **given)
    assert read_config(student.folder)["teacher"]["checkpoint"] == "average"
    assert read_done(student.folder)["teacher_accuracy"] == accuracy
    study = Study(group_runs(find_runs([student.folder])), None)
    assert [one.label for one in study.every_teacher()] == ["resnet8 (teacher, average)"]
    with pytest.raises(ValueError, match="begins with another's last weights, got the average of"):
        sdd_jax.distill(teacher, averaged, method="kd", folder=tmp_path / "other", **given)
    given["fields"] = {"teacher.checkpoint": "average"}
    with pytest.raises(ValueError, match="keeps no average of the weights: the run had no optim.ema_decay"):
        sdd_jax.distill("resnet8", student.folder, method="kd", folder=tmp_path / "other", **given)


@pytest.mark.slow
def test_two_seeds_on_eight_devices_are_each_the_single_run(tmp_path):
    started = [
        start(["tests/print_losses.py", tmp_path / str(devices), "--recipe", f"--seeds={seeds}"], devices)
        for devices, seeds in ((8, 2), (1, 1))
    ]
    printed, expected = (finish([process]) for process in started)
    assert_same_losses(printed, expected, ["float64"])
    assert all(loss > 0 for *_, loss in expected["float64"]["evaluations"])  # of the average


def test_checkpoints_say_which_average_they_lack(tmp_path):
    checkpoints = Checkpoints(tmp_path, "a test")
    checkpoints.save({"params": {"student": {"w": jnp.ones(2)}}, "batch_stats": {}}, 1, {"best": {"step": 1}})
    checkpoints.close()
    with pytest.raises(ValueError, match="00000001 keeps no average of the weights"):
        checkpoints.load_variables(1, averaged=True)
