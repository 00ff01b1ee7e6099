"""The runner as processes: kills, failures, what a line holds, and mistakes on the command line."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_tiny_table import SLEEP
from test_experiments_plan import planned

from experiments import recipes, results, run, tables
from experiments.cells import Cell, Table
from experiments.recipes import RELEASED
from sdd_jax import sealed
from sdd_jax.training import run_dir
from sdd_jax.training.logbook import read_metrics

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("run_tiny_table.py")
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}
FASHION = tables.TABLES["fashion"]
COLUMN = "RN20 -> RN8"


def tiny(folder, *arguments):
    """The command that runs the tiny table with everything below ``folder``."""
    return [sys.executable, str(SCRIPT), str(folder / "results"), "tiny", f"--workdir={folder}/runs", *arguments]


def started(command):
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


def ended(process, code=0):
    output = process.communicate(timeout=240)[0]
    assert process.returncode == code, output
    return output


def lines_of(folder):
    return results.read_file(folder / "results" / "tiny.jsonl")


def comparable(one):
    """A line without what differs between two times of running it."""
    timed = ("seconds", "images_per_second", "starts", "started", "commit", results.SEAL)
    return {name: value for name, value in one.items() if name not in timed}


@pytest.mark.slow
def test_killed_and_started_again_it_has_the_lines_of_an_uninterrupted_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted, process = started(tiny(whole)), started(tiny(killed))
    until(lambda: list(killed.glob("runs/*/seed_0/checkpoints/*/MANIFEST.json")), process)
    process.send_signal(signal.SIGKILL)  # its run goes on, and keeps its folder
    process.communicate()
    (left,) = (path.parent for path in killed.glob("runs/*/seed_0.lock"))
    assert not (killed / "results").exists()
    again = started(tiny(killed))
    output = ended(uninterrupted)
    assert "tiny: quoted, not run: FitNet" in output and "2 to run, 0 have their line" in output
    assert f"the table's own, {whole}/runs/digits-resnet8-" in output and "is trained first" in output
    output = ended(again)
    assert "is held by a process of another start" in output or (left / "seed_0" / "done.json").exists()
    assert "2 done, 0 failed, 0 had their line before" in output

    first, second = lines_of(whole), lines_of(killed)
    assert len(first) == 2 and [comparable(one) for one in first] == [comparable(one) for one in second]
    keys = [(results.run_key(one), one["seed"]) for one in second]
    assert len(set(keys)) == 2
    student = first[1]
    assert student["teacher"]["id"] == f"trained {results.run_key(first[0]).config} seed 0" and first[0]["seed"] == 0
    assert student["teacher"]["accuracy"] == first[0]["last"]["accuracy"]
    assert (student["train_examples"], student["select_on"], first[0]["train_examples"]) == (64, "validation", 96)
    assert student["seconds"] > 0 and student["images_per_second"] > 0 and student["versions"]["jax"]
    assert student["device"].startswith("1 x ") and student["last"]["epoch"] == 2.0

    output = ended(started(tiny(killed, "--seeds=0")))
    assert "0 to run, 2 have their line" in output and len(lines_of(killed)) == 2
    # A line whose run is gone counts; a folder whose line is gone is not run again, but gets its line.
    path = killed / "results" / "tiny.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:-1]))
    output = ended(started(tiny(killed, "--rows=sd-*")))
    assert "1 to run, 0 have their line" in output
    assert [comparable(one) for one in lines_of(killed)] == [comparable(one) for one in first]


@pytest.mark.slow
def test_a_signal_ends_the_runs_as_well(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path / "results"), "--sleep", "tiny", f"--workdir={tmp_path}/runs"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text(), process)
    child = int((tmp_path / "started").read_text())
    process.send_signal(signal.SIGTERM)
    output = ended(process, 143)
    assert "stopped by SIGTERM; the same command goes on" in output
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


# ---------------------------------------------------------------------- processes


def scheduled(tmp_path, jobs, at_a_time=1):
    """How many are done, the reasons of those that failed, and what was said."""
    said = []
    done, failures = run.run_jobs(jobs, at_a_time, tmp_path / "results", say=said.append, stopped=lambda: False)
    return done, failures, "\n".join(said)


def test_a_failing_job_stops_its_students_alone(tmp_path, monkeypatch):
    code = "import sys; print('step 7 is not finite'); sys.exit('resnet20' in sys.argv[1] and 3 or 5)"
    monkeypatch.setattr(run, "COMMAND", (sys.executable, "-c", code))
    jobs = planned(tmp_path, FASHION, rows=["student", "KD"], seeds=(0, 1))[1]
    done, failures, said = scheduled(tmp_path, jobs, 2)
    reasons = {name.partition(": ")[2] or "teacher": reason for name, reason in failures.items()}
    assert done == 0 and len(reasons) == 5
    assert reasons["teacher"].startswith("exit code 3") and "step 7 is not finite" in reasons["teacher"]
    assert reasons["student, seed 1"].startswith("exit code 5")
    assert reasons["KD, seed 0"] == "not run: its teacher failed"
    assert said.count("start ") == said.count("FAILED after") == 3
    assert not (tmp_path / "results").exists()


def test_jobs_run_side_by_side(tmp_path, monkeypatch):
    """Each waits until the other has begun: one at a time they would wait for ever. None has a processor of another."""
    code = (
        "import os, pathlib, sys, time; begun = pathlib.Path(sys.argv[-1].partition('=')[2]); begun.touch()\n"
        "while len(list(begun.parent.glob('seed_[01]'))) < 2: time.sleep(0.01)\n"
        "sys.exit(f'on {sorted(os.sched_getaffinity(0))}')"
    )
    monkeypatch.setattr(run, "COMMAND", (sys.executable, "-c", code))
    _, failures, said = scheduled(tmp_path, planned(tmp_path, FASHION, rows=["student"], seeds=(0, 1))[1], 2)
    assert len(failures) == 2 and [text.split()[0] for text in said.splitlines()[:2]] == ["start", "start"]
    own = sorted(os.sched_getaffinity(0))
    half = len(own) // 2  # as many for each: a run rounds by their number
    shares = [own[:half], own[half : 2 * half]] if half else [own, own]
    told = sorted(json.loads(reason.rpartition("on ")[2]) for reason in failures.values())
    assert told == sorted(shares)


def test_who_stops_the_runner_stops_its_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "COMMAND", (sys.executable, "-c", SLEEP))
    monkeypatch.chdir(tmp_path)
    started = tmp_path / "started"
    jobs = planned(tmp_path, FASHION, rows=["student"])[1]
    assert run.run_jobs(jobs, 1, tmp_path, say=print, stopped=lambda: started.exists() and started.read_text()) == (
        0,
        {},
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_a_process_that_outlives_its_runner_keeps_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "COMMAND", (sys.executable, "-c", SLEEP))
    monkeypatch.chdir(tmp_path)
    (job,) = planned(tmp_path, FASHION, rows=["student"])[1]
    lock = run._lock(job)
    process = run._start(job, lock, frozenset())
    os.close(lock)  # as when the runner is killed
    assert run._lock(job) is None
    process.kill()
    process.wait()
    os.close(run._lock(job))


def test_a_job_that_is_done_gets_its_line_once(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "COMMAND", (sys.executable, "-c", "pass"))
    jobs = planned(tmp_path, FASHION, rows=["student"])[1]
    finished(jobs[0].folder, jobs[0].recipe)
    for _ in range(2):  # the second time as a runner beside the first one, which had planned the same job
        assert scheduled(tmp_path, jobs)[:2] == (1, {})
    (one,) = results.read(tmp_path / "results")
    assert (results.run_key(one), one["seed"]) == (jobs[0].key, 0)
    assert planned(tmp_path, FASHION, rows=["student"], lines=[one])[1] == []


def test_a_job_that_leaves_no_results_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "COMMAND", (sys.executable, "-c", "pass"))
    _, failures, _ = scheduled(tmp_path, planned(tmp_path, FASHION, rows=["student"])[1])
    (reason,) = failures.values()
    assert reason.startswith("no result line: ") and "not a run's folder" in reason


def test_a_folder_that_another_process_holds_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "COMMAND", (sys.executable, "-c", "pass"))
    jobs = planned(tmp_path, FASHION, rows=["student"], seeds=(0, 1))[1]
    held = run._lock(jobs[0])
    assert run._lock(jobs[0]) is None
    looks = []

    def stopped():
        looks.append(time.monotonic())
        if len(looks) == 8:
            fcntl.flock(held, fcntl.LOCK_UN)
        return False

    said = []
    run.run_jobs(jobs, 1, tmp_path / "results", say=said.append, stopped=stopped)
    order = [text for text in said if "held" in text or text.startswith("start")]
    assert "is held by a process of another start" in order[0]
    assert ["seed 1" in order[1], "seed 0" in order[2]] == [True, True] and len(order) == 3


def test_the_run_of_another_config_gets_no_line(tmp_path):
    recipe = FASHION.find("student", COLUMN).recipe
    settings = recipes.settings(recipe, RELEASED)
    other = recipes.Settings({**settings, "epochs": 3})
    folder = finished(tmp_path / "a", recipe)
    done = run_dir.read_done(folder)
    (folder / "config.json").write_text(json.dumps(other.nested()))
    run_dir.write_sealed(folder, "done.json", done)
    with pytest.raises(ValueError, match="holds another run: epochs was 3, now 10"):
        results.make(folder, recipe, RELEASED, "none")


def test_lines_of_results_are_no_changes_of_the_code(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    assert run_dir.commit(tmp_path) is None  # no checkout
    line_file, code = tmp_path / "experiments" / "results" / "a.jsonl", tmp_path / "code.py"
    line_file.parent.mkdir(parents=True)
    for path in (line_file, code):
        path.write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    revision = run_dir.commit(line_file.parents[1])
    assert revision is not None and len(revision) == 40
    line_file.write_text("2\n")
    assert run_dir.commit(line_file.parents[1]) == revision
    code.write_text("2\n")
    assert run_dir.commit(line_file.parents[1]) == f"{revision}+changes"
    installed = tmp_path / ".venv" / "site-packages"  # of a package, inside of somebody's project
    installed.mkdir(parents=True)
    (installed / "package.py").write_text("3\n")
    assert run_dir.commit(installed) is None


def finished(folder, recipe, fields=None):
    """A folder as a finished run leaves it, as far as a line is made of it."""
    folder.mkdir(parents=True)
    score = {"step": 5, "epoch": 10.0, "accuracy": 0.5}
    done = {"select_on": "validation", "last": score, "best": score, "seed": 0, "train_examples": 10_000}
    done |= {"teacher_accuracy": None, "seconds": 9.5}
    start = {
        "commit": "abc+changes",
        "started": "2026-01-01T00:00:00Z",
        "python": "3.11.7",
        "versions": {"jax": "0.10.2"},
        "processors": 6,
    }
    start["devices"] = {"platform": "gpu", "kind": "A100", "count": 2}
    shared = {"kind": "train", "epoch": 1.0, "elapsed": 1.0}
    rates = [{**shared, "step": int(n), "images_per_second": n} for n in (1.0, 9.0, 5.0)]
    settings = recipes.Settings({**recipes.settings(recipe, RELEASED), **(fields or {})})
    (folder / "config.json").write_text(json.dumps(settings.nested()))
    scores = [
        {"kind": "evaluation", "split": split, **score, "step": step, "accuracy": accuracy, "elapsed": 1.0}
        for split, step, accuracy in (
            ("validation", 4, 0.8),
            ("validation", 5, 0.7),
            ("test", 4, 0.6),
            ("test", 5, 0.5),
        )
    ]
    run_dir.write_sealed(folder, "environment.json", {"starts": [start | {"commit": "def"}, start, start]})
    write_log(folder, done, [*rates, *scores])
    return folder


def write_log(folder, done, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    run_dir.write_sealed(folder, "done.json", {**done, "steps": 9, "log": sealed.digest(lines)})


def test_what_a_line_holds(tmp_path):
    recipe = FASHION.find("student", COLUMN).recipe
    one = results.make(finished(tmp_path / "a", recipe), recipe, RELEASED, "none")
    assert (one["config"], one["argument"]) == ("configs/fashion_mnist.py", "teacher=none,student=resnet8")
    assert one["overrides"] == {"data.train_examples": 10_000} and one["train_examples"] == 10_000
    assert (one["device"], one["commit"], one["starts"]) == ("2 x A100", "def, abc+changes", 3)
    assert (one["processors"], one["seconds"]) == (6, 9.5)
    assert one["images_per_second"] == 5.0 and one["teacher"] == {"id": "none", "accuracy": None, "cached": False}
    assert one["config_hash"] == recipes.key(recipes.settings(recipe, RELEASED))
    assert one["held_out"] == {"step": 5, "epoch": 10.0, "accuracy": 0.7}
    cached = finished(tmp_path / "b", recipe, {"teacher.cache": str(tmp_path / "cache")})
    teacher = {"id": "none", "accuracy": None, "cached": True}
    assert results.make(cached, recipe, RELEASED, "none")["teacher"] == teacher  # the cache is gone
    (tmp_path / "cache").mkdir()
    sealed.write(tmp_path / "cache" / "cache.json", "cache", "its owner", {"header": {"store": "int8"}})
    assert results.make(cached, recipe, RELEASED, "none")["teacher"] == {**teacher, "store": "int8"}
    for noted, kept in (("float16", {"store": "float16"}), (None, {})):  # what the run itself noted counts
        run_dir.write_sealed(cached, "done.json", {**run_dir.read_done(cached), "teacher_stores": noted})
        assert results.make(cached, recipe, RELEASED, "none")["teacher"] == teacher | kept
    kept = [line for line in read_metrics(tmp_path / "a" / "metrics.jsonl") if line.get("split") != "validation"]
    write_log(tmp_path / "a", run_dir.read_done(tmp_path / "a"), kept)
    assert results.make(tmp_path / "a", recipe, RELEASED, "none")["held_out"] is None


# ---------------------------------------------------------------------- the command line


def test_a_table_without_a_run_says_so(tmp_path, capsys):
    table = Table("none", "Nothing", "nowhere", (Cell("CRD", "a -> b", {"top1": 2.0}),))
    assert run.main(["none", f"--workdir={tmp_path}"], {"none": table}, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "none: quoted, not run: CRD" in printed and "0 to run, 0 have their line" in printed


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        run.main(["--help"])
    assert end.value.code == 0 and "python -m experiments.run table2" in capsys.readouterr().out
