"""What a run says while it trains, and whom else it tells."""

import json
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from commands import call
from pages import blocks

from sdd_jax.commands import train
from sdd_jax.processes import Preempted
from sdd_jax.training import logbook, loop, run_dir


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_run_says_where_it_is_from_its_first_steps_on(tmp_path, monkeypatch, capsys, seconds):
    monkeypatch.setattr(logbook, "SECONDS_BETWEEN_LINES", seconds)
    loop.train(tiny.built(), tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "compiling the training step"
    steps = [line for line in said if line.startswith("step ")]
    form = r"step (\d+)/17 \| loss \d+\.\d{3} acc \d+\.\d% \d+ img/s \| \d\d:\d\d left"
    shown = [int(re.fullmatch(form, line)[1]) for line in steps]
    assert shown == (list(range(2, 17)) if seconds == 0 else [2])  # the first chunk, a step, is compiled
    epochs = [line for line in said if line.startswith("epoch ")]
    assert [line.partition(" | ")[0] for line in epochs] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all(re.search(r"\| validation: accuracy .* \| test: accuracy ", line) for line in epochs)


WATCH = """
import json
def track(folder, config):
    def told(line):
        with open(folder / "told.jsonl", "a") as file:
            print(json.dumps({"name": config["name"], **line}), file=file)
        line.clear()  # it is the function's own
    return told
def nothing(folder, config): pass
def of_one(folder): pass
"""


def test_every_line_of_the_log_is_told_to_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "watching.py").write_text(WATCH)
    monkeypatch.syspath_prepend(tmp_path)
    built = tiny.built()
    loop.train(built._replace(config={**built.config, "name": "tiny", "track": "watching:track"}), tmp_path / "run")
    told = [json.loads(line) for line in (tmp_path / "run" / "told.jsonl").read_text().splitlines()]
    assert told == [{"name": "tiny", **line} for line in logbook.read_metrics(tmp_path / "run" / logbook.METRICS)]
    assert logbook.scalars(told[-1]).keys() >= {"test/accuracy", "test/loss"}
    done = run_dir.read_done(tmp_path / "run")
    assert len(logbook.read_log(tmp_path / "run", done)) == len(told)
    for name, message in (("nothing", "must return a function .* got NoneType"), ("of_one", "folder, config")):
        with pytest.raises(ValueError, match=f"track 'watching:{name}' {message}|must be a function of {message}"):
            loop.train(built._replace(config={**built.config, "track": f"watching:{name}"}), tmp_path / name)


def test_a_function_of_python_itself_is_refused_in_one_line(tmp_path):
    given = ("--config=quickstart:method=plain", "--config.track=time:sleep", f"--workdir={tmp_path}/run")
    assert "track 'time:sleep' must be a function of folder, config in time" in call("train", *given).refused()


def test_a_function_that_is_not_there_is_named_before_anything_is_read(tmp_path):
    given = ("--config=quickstart:method=plain", "--config.track=nowhere:track", f"--workdir={tmp_path}/run")
    assert "track 'nowhere:track': No module named 'nowhere'" in call("train", *given).refused()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_each_seed_is_a_run_of_the_service_and_goes_on_as_the_same(tmp_path, monkeypatch, service):
    begun, lines = [], {}

    def init(**given):
        begun.append(given)
        log = lines.setdefault(len(begun), [])
        return SimpleNamespace(log=lambda values, step: log.append((step, values)))

    monkeypatch.setitem(sys.modules, service, SimpleNamespace(init=init))
    text = next(block.text for block in blocks(Path("docs/tracking.md")) if f"def {service}" in block.text)
    exec(text, watch := {})
    folders = [tmp_path / name / "seed_0" for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    first, second = (watch[service](folder, {"seed": 0}) for folder in folders)
    first({"kind": "train", "step": 50, "loss": 2.0})
    second({"kind": "train", "step": 50, "loss": 3.0})
    assert lines == {1: [(50, {"train/loss": 2.0})], 2: [(50, {"train/loss": 3.0})]}
    watch[service](folders[0], {"seed": 0})
    named = [(given.get("id"), given["name"]) for given in begun]
    assert named[0] == named[2] != named[1] and begun[2]["resume"] == "allow"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_has_every_number_of_runs_that_take_turns_and_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    text = next(block.text for block in blocks(Path("docs/tracking.md")) if "def mlflow" in block.text)
    (tmp_path / "watch.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    folders, runs = [tmp_path / f"seed_{seed}" for seed in (0, 1)], []
    for seed in (0, 1):
        built = tiny.built(seed=seed)
        named = {"method": "sdd_kd", "model": {"student": "tiny"}, "track": "watch:mlflow"}
        runs.append(built._replace(config={**built.config, **named}))
    with pytest.raises(Preempted):
        loop.train_together(runs, folders, should_stop=lambda step: signal.SIGTERM if step == 9 else None)
    loop.train_together(runs, folders)
    while mlflow.active_run():
        mlflow.end_run()

    client = mlflow.MlflowClient()
    kept = client.search_runs(["0"])
    assert {run.data.tags["mlflow.runName"] for run in kept} == {str(folder) for folder in folders}
    assert sorted(run.data.params["seed"] for run in kept) == ["0", "1"] and len(kept) == 2
    for run in kept:
        wanted = {}
        for line in logbook.read_metrics(Path(run.data.tags["mlflow.runName"]) / logbook.METRICS):
            for name, value in logbook.scalars(line).items():
                wanted.setdefault(name, {})[line["step"]] = value
        assert {"train/loss", "test/accuracy"} <= wanted.keys() == run.data.metrics.keys()
        for name, values in wanted.items():
            assert {told.step: told.value for told in client.get_metric_history(run.info.run_id, name)} == values


@pytest.mark.parametrize("epoch, shown", [(1.7778, 1), (9.9999999999, 10), (0.9, 0), (3.0, 3)])
def test_best_is_of_the_epoch_that_had_ended(epoch, shown):
    score = {"accuracy": 0.25, "epoch": epoch}
    done = {"last": score, "best": score, "select_on": "validation", "skipped_images": 0, "seconds": 1.0}
    assert f"(epoch {shown}, chosen on held-out images)" in train.summary(done)
