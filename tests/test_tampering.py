"""What was changed in a run's folder, in its log or between runs is never taken for what it was."""

import json
import shutil
import signal

import chex
import jax
import pytest
import tiny

from sdd_jax import saved
from sdd_jax.fields import SAVED
from sdd_jax.processes import Preempted
from sdd_jax.sealed import Damaged
from sdd_jax.training import loop, run_dir
from sdd_jax.training.logbook import read_log, read_metrics

RESULTS = ("last", "best", "seed", "steps", "select_on")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds, finished and ended after step 13 of 17: checkpoints 6, 11 and 13; the first one's best is 6."""
    root = tmp_path_factory.mktemp("tampering")
    for seed in (0, 1):
        loop.train(tiny.built(seed=seed), root / f"finished_{seed}")
        with pytest.raises(Preempted):
            built = tiny.built(seed=seed)
            loop.train(built, root / f"begun_{seed}", should_stop=lambda step: signal.SIGTERM if step == 13 else None)
    assert {saved.step_of(root / f"{name}_0", "best") for name in ("finished", "begun")} == {6}
    return root


@pytest.fixture
def copied(runs, tmp_path):
    """``copied(name)`` is a copy of one of them."""

    def copy(name):
        return shutil.copytree(runs / name, tmp_path / name)

    return copy


def swap(folder, other):
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(other / "checkpoints", folder / "checkpoints")


def checkpoint(folder, step):
    return folder / "checkpoints" / f"{step:08d}"


def test_checkpoints_of_another_seed_are_refused(runs, copied):
    begun, finished = copied("begun_0"), copied("finished_0")
    swap(begun, runs / "begun_1")
    with pytest.raises(Damaged, match="every checkpoint of this run is damaged; .*seed 1', expected '.* seed 0'"):
        loop.train(tiny.built(), begun)
    swap(finished, runs / "finished_1")
    for which in SAVED:
        with pytest.raises(Damaged, match="is another's: its owner is"):
            saved.step_of(finished, which)
    for step in (6, 17):
        with pytest.raises(Damaged, match="is another's: its owner is"):
            saved.checkpoints(finished).load_variables(step)
    with pytest.raises(Damaged, match="has finished, but .*another's"):
        saved.check_finished(finished)


def test_a_checkpoint_under_another_step_is_passed_over(runs, copied, capsys):
    begun = copied("begun_0")
    checkpoint(begun, 13).rename(checkpoint(begun, 16))
    with pytest.raises(Damaged, match="its step is 13, expected 16"):
        saved.step_of(begun, "last")
    state = loop.train(tiny.built(), begun)
    output = capsys.readouterr().out
    assert "its step is 13, expected 16" in output and "going on from step 11 of 17" in output
    assert_results(begun, runs / "finished_0")
    assert int(state.step) == 17


@pytest.mark.parametrize("gone", [True, False])
def test_best_is_never_another(copied, gone, capsys):
    begun, finished = copied("begun_0"), copied("finished_0")
    for folder in (begun, finished):
        if gone:
            shutil.rmtree(checkpoint(folder, 6))
        else:
            (checkpoint(folder, 6) / "MANIFEST.json").write_text("")
        with pytest.raises(Damaged, match="00000006/MANIFEST.json (is not there|does not read)"):
            saved.step_of(folder, "best")
    assert saved.step_of(finished, "last") == 17
    with pytest.raises(Damaged, match="has finished, but .*00000006.*Without its done.json the same command goes on"):
        saved.check_finished(finished)
    loop.train(tiny.built(), begun)
    assert "the best checkpoint is lost, unless a later one is better: " in capsys.readouterr().out
    with pytest.raises(Damaged, match="00000006"):
        saved.step_of(begun, "best")


def test_a_finished_run_without_its_last_checkpoint_says_so(runs, copied):
    finished = copied("finished_0")
    shutil.rmtree(checkpoint(finished, 17))
    with pytest.raises(Damaged, match="has finished, but .*00000017/MANIFEST.json is not there"):
        saved.check_finished(finished)
    with pytest.raises(Damaged, match="00000017/MANIFEST.json is not there"):
        saved.step_of(finished, "last")
    (finished / "done.json").unlink()  # as the message says
    loop.train(tiny.built(), finished)
    assert_results(finished, runs / "finished_0")


CHANGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_text(""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "a better accuracy": lambda path: path.write_text(path.read_text().replace('"accuracy": 0.', '"accuracy": 1.')),
    "another form": lambda path: path.write_text("[]\n{}\nnull\n3"),
    "a line too many": lambda path: path.write_bytes(b"\xff\n" + path.read_bytes()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_log_that_was_changed_is_said_and_changes_nothing(runs, copied, change, capsys):
    begun, finished = copied("begun_0"), copied("finished_0")
    for folder in (begun, finished):
        CHANGES[change](folder / "metrics.jsonl")
        with pytest.raises(ValueError, match="metrics.jsonl(:1 | is not as this run wrote it up to)"):
            read_log(folder, saved.read_results(folder))
    state = loop.train(tiny.built(), begun)
    said = "metrics.jsonl is not as this run wrote it: " in capsys.readouterr().out
    assert said or change == "a line too many"  # which is left out
    assert_results(begun, runs / "finished_0")
    finished_state = loop.train(tiny.built(), finished)
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(finished_state))
    assert read_log(begun, saved.read_results(begun)) == read_metrics(begun / "metrics.jsonl")  # a log once more


def test_results_and_starts_that_were_edited_are_refused(copied):
    finished = copied("finished_0")
    for name, read in (("done.json", run_dir.read_done), ("environment.json", run_dir.read_starts)):
        content = (finished / name).read_text()
        for text in (content.replace("1", "2", 1), "{}", "[]", "null", ""):
            (finished / name).write_text(text)
            with pytest.raises(Damaged, match=name):
                read(finished)
        (finished / name).write_text(json.dumps(json.loads(content)))  # other spaces
        assert read(finished)
    (finished / "environment.json").unlink()
    with pytest.raises(Damaged, match="environment.json is not there"):
        run_dir.read_starts(finished)


def assert_results(folder, expected):
    found, wanted = run_dir.read_done(folder), run_dir.read_done(expected)
    assert [found[name] for name in RESULTS] == [wanted[name] for name in RESULTS]


@pytest.mark.slow
def test_no_change_of_a_file_goes_unnoticed():
    from tests.faults import tampering

    counted = tampering.main(share=0.05, seed=1)
    assert not [key for key in counted if key[2] == "wrong"] and sum(counted.values()) > 100
