"""Starting from weights: what a student takes of a run or a file, and a run that gets more epochs."""

import json
import re
import shutil

import chex
import jax
import numpy as np
import pytest
from commands import call
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from served import variables

from sdd_jax import saved
from sdd_jax.build import build, check
from sdd_jax.configs import quickstart
from sdd_jax.models import create_model
from sdd_jax.torch_io import to_state_dict
from sdd_jax.training import run_dir
from sdd_jax.training.logbook import read_metrics
from sdd_jax.training.programs import Programs, replaced
from sdd_jax.training.step import AveragedState

SHAPE = (32, 32, 1)  # of the digits
HEAD = ("params", "head")
TOLD = r"begins with the trunk of .*, 77,104 parameters"


def config(place, student="resnet8"):
    made = quickstart.get_config(f"method=plain,student={student}")
    made.model.init = str(place)
    return made


def write_run(folder, values, name="resnet8", classes=10, stem="cifar"):
    given = {"name": name, "stem": stem, "num_classes": classes, "source": {}, "image_size": 32}
    saved.write_imported(folder, variables=values, **given)
    return folder


def write_file(path, values, classes, without=()):
    state_dict = to_state_dict(create_model("resnet8", classes), values)
    save_file({name: array for name, array in state_dict.items() if name not in without}, path)
    return path


def leaves(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree).items()}


@pytest.mark.parametrize(
    ("place", "classes", "told"),
    [
        ("run", 10, TOLD + r", and its head of 10 classes$"),
        ("run", 7, TOLD + r"; the head for 10 classes is new \(run has one for 7\)$"),
        ("a.safetensors", 10, TOLD + r", and its head of 10 classes$"),
        ("a.safetensors", 7, TOLD + r"; the head for 10 classes is new \(a.safetensors has none that fits\)$"),
        (
            "headless.safetensors",
            10,
            TOLD + r"; the head for 10 classes is new \(headless.safetensors has none that fits\)$",
        ),
    ],
)
def test_the_trunk_is_taken_and_the_head_where_it_fits(tmp_path, place, classes, told):
    values = variables(create_model("resnet8", classes), SHAPE)
    if place == "run":
        write_run(tmp_path / place, values, classes=classes)
    else:
        headless = place.startswith("headless")
        write_file(tmp_path / place, values, classes, ("fc.weight", "fc.bias") if headless else ())
    initial = build(config(tmp_path / place)).initial
    assert re.match(told, initial.told), initial.told
    expected = {path: leaf for path, leaf in leaves(values).items() if path[:2] != HEAD or "and its head" in told}
    chex.assert_trees_all_equal(dict(initial.arrays), expected)


def test_a_run_begins_with_these_weights_and_draws_the_rest_by_its_seed(tmp_path):
    values = variables(create_model("resnet8", 7), SHAPE)
    write_run(tmp_path / "run", values, classes=7)
    built = build(config(tmp_path / "run"))
    states = [Programs([run]).begin(jax.random.key(3)) for run in (built, built._replace(initial=None))]
    begun, drawn = (leaves({"params": state.params["student"], "batch_stats": state.batch_stats}) for state in states)
    assert begun.keys() == drawn.keys()
    given = leaves(values)
    for path, leaf in begun.items():
        np.testing.assert_array_equal(leaf, drawn[path] if path[:2] == HEAD else given[path])
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    averaged = replaced(AveragedState(*vars(states[1]).values(), ema=drawn), dict(built.initial.arrays))
    chex.assert_trees_all_equal(leaves(averaged.ema), begun)


def test_other_weights_in_the_same_place_are_another_run(tmp_path):
    model = create_model("resnet8", 10)
    file = write_file(tmp_path / "a.safetensors", variables(model, SHAPE), 10)
    before = check(config(file))
    assert before == check(before.nested())  # as config.json has it
    run_dir.open_folder(tmp_path / "begun", before.nested())
    file.unlink()
    write_file(file, variables(model, SHAPE, seed=6), 10)
    after = check(config(file))
    with pytest.raises(ValueError, match=r"another config, .*\(model.init_digest was '\w{64}', now '\w{64}'\)"):
        run_dir.check_same_config(tmp_path / "begun", after.nested())
    with pytest.raises(ValueError, match="model.init_digest is '.*', that of model.init '.*' is '"):
        check(before.nested())
    folder = write_run(tmp_path / "run", variables(model, SHAPE))
    shutil.copytree(folder, tmp_path / "copy")
    same = [check(config(path))["model.init_digest"] for path in (folder, tmp_path / "copy")]
    assert same[0] == same[1] and re.fullmatch(r"\w{64}", same[0])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("none", "model.init: there is no run's folder and no file .*none"),
        ("resnet14", "model.init: .* holds resnet14 with the stem cifar, model.student is resnet8 with cifar"),
        ("stem", "model.init: .* holds resnet8 with the stem cub200, model.student is resnet8 with cifar"),
        (
            "colours",
            r"model.init: .* does not fit resnet8 here: params/trunk/stem_conv/kernel has shape \(3, 3, 3, 16\)",
        ),
        ("colours.safetensors", r"model.init: .*colours.safetensors does not fit resnet8 here: .* \(3, 3, 3, 16\)"),
        ("short.safetensors", r"model.init: .*short.safetensors: .*; +missing: layer2.0.bn1.bias \(32,\)$"),
        ("config.json", "model.init: .*config.json is neither a safetensors nor a PyTorch file"),
        ("unfinished", "model.init: the run in .*unfinished has not finished"),
        ("pictures", "model.init: .*pictures is not a run's folder: it has no config.json"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, place, message):
    path = tmp_path / place
    colours = (32, 32, 3) if "colours" in place else SHAPE
    values = variables(create_model("resnet8", 10), colours)
    if place in ("short.safetensors", "colours.safetensors"):
        write_file(path, values, 10, ("layer2.0.bn1.bias",) if "short" in place else ())
    elif place == "config.json":
        path.write_text("{}")
    elif place == "pictures":
        path.mkdir()
    elif place == "unfinished":
        run_dir.open_folder(path, check(quickstart.get_config("run=plain")).nested())
    elif place == "resnet14":
        write_run(path, variables(create_model("resnet14", 10), SHAPE), "resnet14")
    elif place == "stem":
        write_run(path, variables(create_model("resnet8", 10, "cub200"), SHAPE), stem="cub200")
    elif place == "colours":
        write_run(path, values)
    with pytest.raises(ValueError, match=message):
        build(config(path))


# ---- more epochs


def settled(epochs, *milestones, schedule="step", batch_size=64):
    made = quickstart.get_config("method=plain")
    made.epochs, made.batch_size = epochs, batch_size
    made.optim.schedule, made.optim.milestones = schedule, milestones
    return check(made).nested()


@pytest.mark.parametrize(
    ("before", "after", "changes", "message"),
    [
        ((2,), (4,), {}, None),
        ((2, 1), (4, 1, 3), {}, None),
        ((2, 1), (4, 1, 2), {}, None),  # the new rate begins where the shorter run ended
        ((2, 1), (4, 3), {}, r"milestones before epoch 2 must stay \[1\], got \[3\]"),
        ((3,), (4, 2), {}, r"milestones before epoch 3 must stay \[\], got \[2\]"),
        ((4,), (2,), {}, "another config, .*epochs was 4, now 2"),
        ((2,), (4,), {"batch_size": 32}, "another config, .*batch_size was 64, now 32; epochs was 2, now 4"),
        ((2,), (4,), {"schedule": "cosine"}, "another config, .*optim.schedule was 'step', now 'cosine'"),
    ],
)
def test_which_runs_can_be_given_more_epochs(tmp_path, before, after, changes, message):
    before, after, folder = settled(*before), settled(*after, **changes), tmp_path / "run"
    run_dir.open_folder(folder, before)
    owner, text = run_dir.owner(run_dir.read_config(folder)), (folder / "config.json").read_text()
    if message is not None:
        with pytest.raises(ValueError, match=message):
            run_dir.open_folder(folder, after)
        assert (folder / "config.json").read_text() == text
        return
    (folder / run_dir.DONE).write_text("{}")
    run_dir.open_folder(folder, after)
    assert (folder / run_dir.DONE).exists() and (folder / "config.json").read_text() == text  # so far
    assert run_dir.extend(folder, after) == [f"extended from 2 epochs to {after['epochs']}"]
    assert not (folder / run_dir.DONE).exists() and run_dir.extend(folder, after) == []
    config = run_dir.read_config(folder)
    assert config["epochs"] == 4 and config["optim"] == after["optim"]
    assert run_dir.owner(config) == owner != run_dir.owner(after)  # so that its checkpoints stay its own
    longer = after | {"epochs": 6}
    run_dir.open_folder(folder, longer)
    assert run_dir.extend(folder, longer) == ["extended from 4 epochs to 6"]
    assert run_dir.owner(run_dir.read_config(folder)) == owner
    assert run_dir.flat_fields(run_dir.read_config(folder)) == run_dir.flat_fields(longer)


@pytest.mark.parametrize("change", ["schedule", "warmup_share"])
def test_a_run_that_its_epochs_shape_is_not_extended_and_the_way_out_is_named(tmp_path, change):
    made = quickstart.get_config("method=kd")
    made.optim.schedule = "cosine" if change == "schedule" else "step"
    made.loss.update({"warmup_epochs": 0, "warmup_share": 0.1 if change == "warmup_share" else 0.0})
    before = check(made).nested()
    run_dir.open_folder(tmp_path / "run", before)
    reason = "the cosine schedule of its rate ends" if change == "schedule" else "its warm-up, .* is a share of its"
    with pytest.raises(
        ValueError, match=f"{reason}.* epochs. Another run can begin with its weights: --config.model.init="
    ):
        run_dir.check_same_config(tmp_path / "run", before | {"epochs": 80})


@pytest.mark.slow
def test_an_extended_run_is_the_longer_run_bit_for_bit(tmp_path):
    def train(folder, epochs, milestones):
        return call(
            "train",
            "--config=configs/quickstart.py:run=plain",
            "--config.optim.schedule=step",
            f"--config.optim.milestones={milestones}",
            f"--config.epochs={epochs}",
            "--config.eval_every_epochs=1",
            "--config.save_every_epochs=1",
            f"--workdir={tmp_path}/{folder}",
        )

    assert train("extended", 3, "2").code == 0
    result = train("extended", 5, "2,4")
    assert result.code == 0 and "extended from 3 epochs to 5" in result.out and "going on from step" in result.out
    assert train("whole", 5, "2,4").code == 0
    extended, whole = tmp_path / "extended", tmp_path / "whole"
    chex.assert_trees_all_equal(*(saved.load_variables(run, "last") for run in (extended, whole)))
    first, second = (json.loads((run / "done.json").read_text()) for run in (extended, whole))
    for which in saved.WHICH:
        assert first[which]["step"] == second[which]["step"] and first[which]["accuracy"] == second[which]["accuracy"]
    logs = ([(line["step"], line["loss"]) for line in read_metrics(run / "metrics.jsonl")] for run in (extended, whole))
    assert next(logs) == next(logs)
    assert "has finished" in train("extended", 5, "2,4").out
    saved.check_finished(extended)
    assert call("evaluate", f"--workdir={extended}").code == 0
