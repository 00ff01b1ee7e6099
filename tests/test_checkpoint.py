"""A checkpoint is what its manifest says, or it is none."""

import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import sealed
from sdd_jax.files import write_json
from sdd_jax.mesh import make_mesh, replicated
from sdd_jax.sealed import Damaged
from sdd_jax.training.checkpoint import Checkpoints

SHARDING = replicated(make_mesh())


def state(number):
    params = {"student": {"kernel": jnp.arange(12.0).reshape(3, 4) + number}, "objective": {}}
    tree = {"step": jnp.int32(number), "params": params, "batch_stats": {"mean": jnp.ones(3) * number}, "opt": ((), {})}
    return jax.device_put(tree, SHARDING)


def progress(best):
    return {"best": {} if best is None else {"step": best}}


@pytest.fixture
def checkpoints(tmp_path):
    """Of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path, "a run")
    for step in (1, 2):
        checkpoints.save(state(step), step, progress(1))
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def a_data_file(checkpoints, step):
    return max((checkpoints.folder / f"{step:08d}").rglob("d/*"), key=lambda path: path.stat().st_size)


def restore_latest(checkpoints):
    step, problems = checkpoints.newest_whole()
    return checkpoints.load(step, state(0), SHARDING), problems


def test_what_is_saved_comes_back_bit_for_bit(checkpoints):
    restored, problems = restore_latest(checkpoints)
    chex.assert_trees_all_equal(restored, state(2))
    assert problems == [] and checkpoints.manifest(2)["progress"] == progress(1)


def test_only_the_student_is_loaded_for_evaluation(checkpoints):
    variables = checkpoints.load_variables(2)
    assert set(variables) == {"params", "batch_stats"}
    np.testing.assert_array_equal(variables["params"]["kernel"], state(2)["params"]["student"]["kernel"])
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], [2, 2, 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": (flip_a_bit, r"{'size': (\d+), 'sha256': '(\w+)'}, found {'size': \1, 'sha256': '(?!\2)"),
    "a truncated file": (
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        r"'size': (\d+),.* found {'size': (?!\1)",
    ),
    "an empty file": (lambda path: path.write_bytes(b""), "found {'size': 0,"),
    "a missing file": (lambda path: path.unlink(), "has {'size': .*, found None"),
    "a file too many": (
        lambda path: path.with_name("extra").write_bytes(b"x"),
        "extra: .* has None, found {'size': 1,",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named_and_the_checkpoint_before_used(checkpoints, damage):
    spoil, reason = DAMAGES[damage]
    path = a_data_file(checkpoints, 2)
    spoil(path)
    with pytest.raises(Damaged, match=reason):
        checkpoints.verify(2)
    restored, problems = restore_latest(checkpoints)
    chex.assert_trees_all_equal(restored, state(1))
    assert len(problems) == 1 and "00000002" in problems[0]


@pytest.mark.parametrize("text", ["", '{"step": 2', "3", '{"step": 2, "owner": "a run", "files": {}}'])
def test_a_manifest_that_does_not_read_is_damage(checkpoints, text):
    (checkpoints.folder / "00000002" / "MANIFEST.json").write_text(text)
    restored, problems = restore_latest(checkpoints)
    assert int(restored["step"]) == 1
    assert re.search(
        "MANIFEST.json (does not read as JSON|must hold names and values|has no digest: .*earlier version)", problems[0]
    )


@pytest.mark.parametrize("field", ["owner", "step", "best", "progress", "files", "kind"])
def test_everything_that_a_manifest_says_is_under_its_digest(checkpoints, field):
    path = checkpoints.folder / "00000002" / "MANIFEST.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, field: {}}))
    with pytest.raises(Damaged, match="its digest differs"):
        checkpoints.verify(2)
    path.write_text(json.dumps(dict(reversed(content.items()))))  # the same in another order
    checkpoints.verify(2)


def test_a_checkpoint_belongs_to_one_run_and_one_step(checkpoints, tmp_path):
    other = Checkpoints(checkpoints.folder, "another run")
    with pytest.raises(Damaged, match="is another's: its owner is 'a run', expected 'another run'"):
        other.load_variables(2)
    with pytest.raises(Damaged, match="every checkpoint of this run is damaged"):
        other.newest_whole()
    (checkpoints.folder / "00000002").rename(checkpoints.folder / "00000007")
    restored, problems = restore_latest(checkpoints)
    assert int(restored["step"]) == 1 and "its step is 2, expected 7" in problems[0]


def test_best_is_the_one_that_the_last_names_and_never_another(checkpoints):
    assert checkpoints.best(2) == 1
    (checkpoints.folder / "00000001" / "MANIFEST.json").unlink()
    with pytest.raises(Damaged, match="00000001/MANIFEST.json is not there"):
        checkpoints.best(2)
    step, problems = checkpoints.newest_whole()
    assert step == 2 and "the best checkpoint is lost, unless a later one is better: " in problems[0]
    checkpoints.save(state(3), 3, progress(None))
    checkpoints.wait()
    with pytest.raises(ValueError, match="no best checkpoint yet"):
        checkpoints.best(3)


def test_checkpoints_of_another_run_are_never_removed(checkpoints):
    sealed.seal(checkpoints.folder / "00000001", "checkpoint", "another run", {"step": 1, "best": None})
    for step in (3, 4, 5):
        checkpoints.save(state(step), step, progress(None))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 4, 5]


def test_a_folder_without_a_manifest_is_no_checkpoint(checkpoints):
    (checkpoints.folder / "00000002" / "MANIFEST.json").unlink()
    (checkpoints.folder / "00000003.orbax-checkpoint-tmp").mkdir()
    (checkpoints.folder / "notes").mkdir()
    assert checkpoints.steps() == [1]
    assert sorted(checkpoints.remove_unfinished()) == [
        "a checkpoint without its MANIFEST.json is set aside: 00000002 is now 00000002.unfinished-1",
        "removed an unfinished checkpoint: 00000003.orbax-checkpoint-tmp",
    ]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["00000001", "00000002.unfinished-1", "notes"]


def test_two_newest_and_their_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, "a run")
    kept = {}
    for step, best in enumerate([1, 2, 2, 4, 4, 4], start=1):
        checkpoints.save(state(step), step, progress(best))
        checkpoints.wait()
        kept[step] = checkpoints.steps()
    checkpoints.close()
    assert kept == {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [4, 5], 6: [4, 5, 6]}


def test_a_run_that_goes_on_from_before_damaged_checkpoints_keeps_what_it_saves_and_leaves_them_behind(tmp_path):
    checkpoints = Checkpoints(tmp_path, "a run")
    for step in (10, 20, 30):
        checkpoints.save(state(step), step, progress(10))
    checkpoints.wait()
    for step in (20, 30):
        a_data_file(checkpoints, step).write_bytes(b"damaged")
    assert checkpoints.newest_whole()[0] == 10
    for step in (13, 25, 28):  # it was stopped between two of its saves, three times
        checkpoints.save(state(step), step, progress(10))
        checkpoints.wait()
        assert checkpoints.newest_whole() == (step, [])
    assert checkpoints.steps() == [10, 25, 28]
    assert {path.name for path in tmp_path.glob("*.replaced-*")} == {"00000020.replaced-1", "00000030.replaced-1"}


def test_up_to_a_step_there_may_be_none_that_is_whole_though_a_later_one_is(checkpoints):
    a_data_file(checkpoints, 1).write_bytes(b"damaged")
    step, problems = checkpoints.newest_whole(1)
    assert step is None and "00000001" in problems[0]
    assert checkpoints.newest_whole()[0] == 2
    a_data_file(checkpoints, 2).write_bytes(b"damaged")
    with pytest.raises(Damaged, match="every checkpoint of this run is damaged"):
        checkpoints.newest_whole()


def test_values_are_those_of_the_moment_of_saving(tmp_path):
    """The state is donated to the next step while it is still being written."""
    checkpoints = Checkpoints(tmp_path, "a run")
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    tree = step(jax.device_put({"params": {"student": {"w": jnp.zeros((512, 512))}}, "batch_stats": {}}, SHARDING))
    checkpoints.save(tree, 1, progress(1))
    for _ in range(5):
        tree = step(tree)
    checkpoints.close()
    np.testing.assert_array_equal(checkpoints.load_variables(1)["params"]["w"], np.ones((512, 512)))


def test_an_error_while_writing_is_raised(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, "a run")

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sdd_jax.sealed.write_json", full)
    checkpoints.save(state(1), 1, progress(1))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    assert checkpoints.steps() == []


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "done.json"
    write_json(path, {"accuracy": 1})
    with pytest.raises(ValueError):
        write_json(path, {"accuracy": float("nan")})
    assert json.loads(path.read_text()) == {"accuracy": 1}
