"""The loop's promises: the same result however it was interrupted, chunked or spread over devices."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_streamed
import sets
import tiny
from tensorboardX import RecordWriter
from tensorboardX.proto import event_pb2

from sdd_jax import saved
from sdd_jax.data import memory, train_data
from sdd_jax.processes import Preempted
from sdd_jax.sealed import Damaged
from sdd_jax.training import logbook, loop, programs, run_dir
from sdd_jax.training import objective as objectives
from sdd_jax.training.checkpoint import Checkpoints
from sdd_jax.training.logbook import Logbook, read_metrics, scalars
from sdd_jax.training.run_writer import Trace
from sdd_jax.training.teacher import Teacher

TIMED = ("elapsed", "images_per_second")

OF_TIME = {"seconds": 0, "log": ""}


def lines(workdir):
    """The run's metrics without what a clock measured."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def assert_same(first, second):
    chex.assert_trees_all_equal(jax.device_get(first), jax.device_get(second))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    state = loop.train(tiny.built(), workdir)
    shares = [
        line["complementary_share"] for line in read_metrics(workdir / "metrics.jsonl") if line["kind"] == "train"
    ]
    assert 0.1 < min(shares) <= max(shares) < 0.9  # what is compared has regions of both kinds
    return state, workdir


def events(path):
    """The records of a TensorBoard file, which are written as tensorboardX writes them."""
    data, found = path.read_bytes(), []
    rest = data
    while rest:
        size = int.from_bytes(rest[:8], "little")
        found.append(event_pb2.Event.FromString(rest[12 : 12 + size]))
        rest = rest[16 + size :]
    again = RecordWriter(str(path.parent.parent / "again"))
    for event in found:
        again.write(event.SerializeToString())
    again.close()
    assert (path.parent.parent / "again").read_bytes() == data
    return found


def shown(folder):
    """What TensorBoard shows of a run: `{(name, step): value}`, each start's file without what a later one hides."""
    values = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        version, start, *rest = events(path)
        assert version.file_version == "brain.Event:2" and start.session_log.status == start.session_log.START
        values = {(name, step): value for (name, step), value in values.items() if step < start.step}
        later = {(value.tag, event.step): value.simple_value for event in rest for value in event.summary.value}
        assert not values.keys() & later.keys()  # or TensorBoard would show both
        values |= later
    return values


def interrupt(monkeypatch, name, at):
    """Makes the ``at``-th call of a method of the logbook raise as a person's Ctrl-C would."""
    original, calls = getattr(Logbook, name), []

    def method(self, *args):
        calls.append(args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Logbook, name, method)


@pytest.mark.parametrize(
    ("method", "at"), [pytest.param("evaluation", 1, marks=pytest.mark.slow), ("evaluation", 4), ("write_means", 2)]
)
def test_interrupted_run_ends_as_the_uninterrupted(uninterrupted, tmp_path, monkeypatch, method, at):
    state, workdir = uninterrupted
    with monkeypatch.context() as patched:
        interrupt(patched, method, at)
        with pytest.raises(KeyboardInterrupt):
            loop.train(tiny.built(), tmp_path)
    assert not (tmp_path / "done.json").exists()
    assert_same(loop.train(tiny.built(), tmp_path), state)
    assert lines(tmp_path) == lines(workdir)
    done, expected = (run_dir.read_done(folder) for folder in (tmp_path, workdir))
    assert {**done, **OF_TIME} == {**expected, **OF_TIME}
    log = {
        (name, row["step"]): value
        for row in read_metrics(tmp_path / "metrics.jsonl")
        for name, value in scalars(row).items()
    }
    assert shown(tmp_path) == {key: np.float32(value) for key, value in log.items()}
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_training_imports_no_pytorch_where_there_is_one(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported')\n")
    code = "import tiny; from sdd_jax.training import loop; loop.train(tiny.built(epochs=1), 'run'); print('trained')"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), str(Path(__file__).parents[1])])
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": path}, "capture_output": True, "text": True}
    ended = subprocess.run([sys.executable, "-c", f"{code}; import torch"], check=True, **options)
    assert ended.stdout.splitlines()[-2:] == ["trained", "imported"] and ended.stdout.count("imported") == 1


def test_interrupted_run_repeats_no_more_than_the_steps_since_its_checkpoint(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, "evaluation", 5)  # two evaluations at each of two epoch ends are whole
        with pytest.raises(KeyboardInterrupt):
            loop.train(tiny.built(), tmp_path)
    taken = []
    make = programs.make_run_chunk

    def counting(*args):
        run_chunk = make(*args)

        def counted(states, *rest):
            jax.debug.callback(lambda steps: taken.append(int(steps[0])), states.step)
            return run_chunk(states, *rest)

        return counted

    monkeypatch.setattr(programs, "make_run_chunk", counting)
    loop.train(tiny.built(), tmp_path)
    jax.effects_barrier()
    assert sorted(taken) == list(range(11, 17))  # 44 examples, batches of 8: epochs end at steps 6, 11 and 17


@pytest.mark.parametrize("changed", ["teacher", "training images", "held-out images", "test images", "flip"])
def test_a_run_does_not_go_on_with_another_teacher_or_other_images(tmp_path, monkeypatch, changed):
    built = tiny.built()
    built = built._replace(teacher=built.teacher._replace(digest="a"))
    with monkeypatch.context() as patched:
        interrupt(patched, "evaluation", 5)
        with pytest.raises(KeyboardInterrupt):
            loop.train(built, tmp_path)
    other = built._replace(teacher=built.teacher._replace(digest="b"))
    splits = {"training images": "train", "held-out images": "selection", "test images": "test"}
    if changed in splits:
        split = getattr(built.dataset, splits[changed])
        images = split.images.copy()
        images[0, 0, 0, 0] ^= 1
        dataset = dataclasses.replace(built.dataset, **{splits[changed]: split._replace(images=images)})
        other = built._replace(dataset=dataset)
    elif changed == "flip":
        other = built._replace(dataset=dataclasses.replace(built.dataset, flip=not built.dataset.flip))
    with pytest.raises(ValueError, match=changed):
        loop.train(other, tmp_path)
    loop.train(built, tmp_path)


def test_a_run_does_not_go_on_where_images_on_disk_came_went_or_moved(tmp_path):
    sets.write_folder(tmp_path / "set", classes=("a", "b", "c"), train=5, test=1, test_name="val")
    place = tmp_path / "set"
    train = place / "train"

    def start(should_stop=lambda step: None):
        dataset = run_streamed.load("folder", place, workers=0)
        built = tiny.built(epochs=1, dataset=dataset, teacher=Teacher(), objective=objectives.plain())
        return loop.train(built, tmp_path / "run", should_stop=should_stop)

    with pytest.raises(Preempted):
        start(lambda step: 15 if step == 1 else None)
    image = sorted((train / "a").iterdir())[0]
    moves = [(image, tmp_path / image.name), (image, train / "b" / f"moved{image.suffix}")]
    for before, after in moves:  # one fewer, one of another class
        before.rename(after)
        with pytest.raises(ValueError, match="holds a run that began with another training images"):
            start()
        after.rename(before)
    place = place.rename(tmp_path / "elsewhere")  # as they lie on another machine
    with pytest.raises(Preempted):
        start(lambda step: 15)


def test_a_finished_run_stays_as_it_is_where_more_epochs_are_refused(tmp_path):
    def config(epochs):
        return {"seed": 0, "epochs": epochs, "method": "plain", "optim": {"schedule": "step", "milestones": []}}

    run = tiny.built(epochs=1)
    run = run._replace(config=config(1), teacher=run.teacher._replace(digest="a", stores="float32"))
    loop.train(run, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("config.json", "done.json")}
    longer = run._replace(config=config(2), epochs=2)
    for name, other in {"teacher": {"digest": "b"}, "form of the teacher's cache": {"stores": "int8"}}.items():
        with pytest.raises(ValueError, match=f"holds a run that began with another {name}:"):
            loop.train(longer._replace(teacher=run.teacher._replace(**other)), tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    run_dir.check_same_config(tmp_path, config(1))
    assert run_dir.read_done(tmp_path)["teacher_stores"] == "float32"
    with pytest.raises(Preempted):
        loop.train(longer, tmp_path, should_stop=lambda step: 15)
    assert run_dir.read_config(tmp_path)["epochs"] == 2 and not (tmp_path / "done.json").exists()


def test_a_finished_run_that_is_started_again_changes_nothing(uninterrupted):
    state, workdir = uninterrupted
    before = lines(workdir)
    assert_same(loop.train(tiny.built(), workdir), state)
    assert lines(workdir) == before


def test_the_step_is_traced_once(tmp_path, monkeypatch):
    make = programs.make_train_step

    def make_once(*args, **kwargs):
        return chex.assert_max_traces(make(*args, **kwargs), n=1)

    chex.clear_trace_counter()
    monkeypatch.setattr(programs, "make_train_step", make_once)
    loop.train(tiny.built(epochs=2), tmp_path)


def test_nothing_crosses_to_the_device_unsaid(tmp_path, monkeypatch):
    """The transfer guard is on inside the loop: a source that hands NumPy arrays to the step is refused."""
    own = memory.MemoryData.own

    def on_the_host(self, step):
        return {**own(self, step), "first_epoch": np.zeros(1, np.int32)}

    monkeypatch.setattr(memory.MemoryData, "own", on_the_host)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train(tiny.built(epochs=1), tmp_path)


def test_evaluation_sees_every_example_once_and_says_how_many(uninterrupted):
    _, workdir = uninterrupted
    seen = {(row["split"], row["examples"]) for row in lines(workdir) if row["kind"] == "evaluation"}
    assert seen == {("test", tiny.TEST), ("validation", 6)}


def test_an_evaluation_that_misses_an_example_stops(tmp_path, monkeypatch):
    batches = memory.MemoryEval.batches
    monkeypatch.setattr(memory.MemoryEval, "batches", lambda self: list(batches(self))[:-1])
    monkeypatch.setattr(loop, "EVAL_BATCH", 4)
    with pytest.raises(AssertionError, match="saw 4 of 6"):
        loop.train(tiny.built(epochs=1), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    loop.train(tiny.built(epochs=1), tmp_path / "good")
    built = tiny.built(learning_rate=1e30)
    with pytest.raises(loop.NonFinite, match=r"step 1 is not finite: .*(task_loss|distill_loss)") as stopped:
        loop.train(built, tmp_path / "bad")
    source = train_data(built.dataset, seeds=[0], epochs=3, batch_size=tiny.BATCH, steps_per_call=1, mesh=built.mesh)
    arrays = {**source.shared, **jax.tree.map(lambda leaf: leaf[0], source.own(1))}
    examples = source.batch_function(jnp.float32)(arrays, 1)["index"].tolist()
    assert f"its examples: {', '.join(map(str, examples))} (all 8 in " in str(stopped.value)
    assert json.loads((tmp_path / "bad" / "not_finite.json").read_text())["examples"] == examples
    assert "NaN" not in (tmp_path / "bad" / "metrics.jsonl").read_text()
    assert not saved.checkpoints(tmp_path / "bad").steps()
    assert not (tmp_path / "bad" / "lock.json").exists()  # a run that fails unlocks its folder


def test_an_evaluation_that_is_not_finite_stops(tmp_path):
    built = tiny.built()
    broken = jax.tree.map(
        lambda leaf: leaf * np.nan, built.model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    )
    with pytest.raises(loop.NonFinite, match="rows is not finite"):
        loop.make_evaluator(built.model, built.dataset.test, built.dataset, built.mesh, built.dtype)(broken)


def test_another_config_is_refused_by_field(uninterrupted):
    _, workdir = uninterrupted
    other = tiny.built(seed=1)
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        loop.train(other, workdir)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        loop.train(tiny.built(), tmp_path)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(uninterrupted, tmp_path, monkeypatch, capsys):
    state, _ = uninterrupted
    with monkeypatch.context() as patched:
        interrupt(patched, "evaluation", 5)
        with pytest.raises(KeyboardInterrupt):
            loop.train(tiny.built(), tmp_path)
    checkpoints = saved.checkpoints(tmp_path)
    assert checkpoints.steps() == [6, 11]
    largest = max((tmp_path / "checkpoints" / "00000011").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert_same(loop.train(tiny.built(), tmp_path), state)
    output = capsys.readouterr().out
    assert "damaged checkpoint passed over" in output and largest.name in output and "going on from step 6" in output
    assert (tmp_path / "checkpoints" / "00000011.replaced-1").is_dir()  # nothing is deleted


def test_only_damaged_checkpoints_are_no_fresh_start(uninterrupted, tmp_path):
    loop.train(tiny.built(epochs=1), tmp_path)
    (tmp_path / "done.json").unlink()
    for manifest in tmp_path.rglob("MANIFEST.json"):
        next(path for path in manifest.parent.rglob("_METADATA")).write_text("")
    with pytest.raises(Damaged, match="every checkpoint of this run is damaged"):
        loop.train(tiny.built(epochs=1), tmp_path)


def test_a_trace_holds_the_steps_that_were_asked_for(uninterrupted, tmp_path, capsys):
    state, _ = uninterrupted
    assert_same(loop.train(tiny.built(profile_steps=(2, 5)), tmp_path), state)
    assert f"trace of steps 2 to 4 in {tmp_path / 'profile'}" in capsys.readouterr().out
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {event["args"]["step_num"] for event in events if event.get("name") == "train"} == {"2", "3", "4"}


def test_a_trace_that_ends_with_the_run_is_named_too(tmp_path, monkeypatch):
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, lambda *given, **named: None)
    said = []
    trace = Trace(tmp_path, (2, 1010), said.append)
    for step in range(5):
        trace.at(step, ())
    trace.close()
    trace.close()
    assert len(said) == 1 and f"trace of the steps from 2 on in {tmp_path / 'profile'}: open" in said[0]


def losses(state_and_workdir):
    return np.array([row["loss"] for row in lines(state_and_workdir[1]) if row["kind"] == "train"])


def test_chunks_of_any_length_take_the_same_steps(x64, tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "LOG_EVERY", 1)
    runs = {}
    for length in (1, 4):
        built = tiny.built(dtype=jnp.float64, steps_per_call=length)
        runs[length] = losses((loop.train(built, tmp_path / str(length)), tmp_path / str(length)))
    assert len(runs[1]) == 17
    np.testing.assert_allclose(runs[4], runs[1], rtol=1e-9)


# ---------------------------------------------------------------------- seeds together


def test_held_out_images_choose_the_best_which_is_saved_between_two_checkpoints(tmp_path, monkeypatch):
    told, kept, save = iter([(0.2, 0.9), (0.6, 0.1), (0.6, 0.3), (0.4, 0.1), (0.5, 0.2)]), [], Checkpoints.save

    def measure(evaluators, networks):
        values = zip(("validation", "test"), next(told), strict=True)
        return {split: {"accuracy": value, "loss": 1.0, "examples": 9} for split, value in values}

    def keep(self, state, step, progress):
        kept.append(step)
        save(self, state, step, progress)

    monkeypatch.setattr(loop, "measure", measure)
    monkeypatch.setattr(Checkpoints, "save", keep)
    run = tiny.built(epochs=5, eval_every_epochs=1, save_every_epochs=3)
    with pytest.raises(Preempted):
        loop.train(run, tmp_path, should_stop=lambda step: 15 if step == 20 else None)
    loop.train(run, tmp_path)
    evaluated = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if line.get("split") == "test"]
    assert evaluated == [6, 11, 17, 22, 28]
    assert kept == [6, 11, 17, 20, 28]  # better, better, three epochs, the signal, the end; as good is not better
    assert saved.step_of(tmp_path, "best") == 11 and saved.step_of(tmp_path, "last") == 28
    done = run_dir.read_done(tmp_path)
    assert (done["best"]["accuracy"], done["last"]["accuracy"]) == (0.1, 0.2)  # of the test images


def train_seeds(folder, seeds, **changes):
    runs = [tiny.built(seed=seed, **changes) for seed in seeds]
    return loop.train_together(runs, [folder / f"seed_{seed}" for seed in seeds])


def test_seeds_without_a_common_checkpoint_go_on_one_after_the_other(tmp_path):
    changes = {"epochs": 2, "save_every_epochs": 2}
    for seed, stop in ((0, 8), (3, 9)):
        with pytest.raises(Preempted):
            loop.train(
                tiny.built(seed=seed, **changes),
                tmp_path / f"seed_{seed}",
                should_stop=lambda step, stop=stop: 15 if step == stop else None,
            )
    states = train_seeds(tmp_path, (0, 3), **changes)
    for seed, state in zip((0, 3), states, strict=True):
        assert_same(state, loop.train(tiny.built(seed=seed, **changes), tmp_path / "alone" / str(seed)))
        assert run_dir.read_done(tmp_path / f"seed_{seed}")["trained_together"] == 1


@pytest.mark.parametrize("length", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_seeds_together_are_each_the_single_run(x64, tmp_path, length):
    changes = {"dtype": jnp.float64, "epochs": 4, "steps_per_call": length}
    together = train_seeds(tmp_path, (0, 3), **changes)
    for seed, state in zip((0, 3), together, strict=True):
        alone = loop.train(tiny.built(seed=seed, **changes), tmp_path / "alone" / str(seed))
        chex.assert_trees_all_close(jax.device_get(state), jax.device_get(alone), rtol=1e-9, atol=1e-12)
        rows, expected = (lines(tmp_path / name) for name in (f"seed_{seed}", f"alone/{seed}"))
        for row, wanted in zip(rows, expected, strict=True):
            assert row == {
                name: value if isinstance(value, str) else pytest.approx(value, rel=1e-9)
                for name, value in wanted.items()
            }
        done, expected = (run_dir.read_done(tmp_path / name) for name in (f"seed_{seed}", f"alone/{seed}"))
        assert (done["seed"], done["trained_together"], expected["trained_together"]) == (seed, 2, 1)
        chex.assert_trees_all_close((done["last"], done["best"]), (expected["last"], expected["best"]), rtol=1e-9)


def test_in_float32_the_first_loss_of_seeds_together_agrees(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "LOG_EVERY", 1)
    train_seeds(tmp_path, (0, 3), epochs=1)
    loop.train(tiny.built(epochs=1), tmp_path / "alone")
    together, alone = (lines(tmp_path / name)[0]["loss"] for name in ("seed_0", "alone"))
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    "at", [pytest.param(5, marks=pytest.mark.slow), 8]
)  # evaluations: two splits of two seeds at the end of each epoch
def test_seeds_interrupted_together_go_on(tmp_path, monkeypatch, at):
    """At 5, both have one of the first epoch; at 8, only the first seed has one of the second, and goes back."""
    expected = train_seeds(tmp_path / "whole", (0, 3))
    with monkeypatch.context() as patched:
        interrupt(patched, "evaluation", at)
        with pytest.raises(KeyboardInterrupt):
            train_seeds(tmp_path, (0, 3))
    steps = [saved.checkpoints(tmp_path / f"seed_{seed}").steps() for seed in (0, 3)]
    assert steps == {5: [[6], [6]], 8: [[6, 11], [6]]}[at]
    for state, whole in zip(train_seeds(tmp_path, (0, 3)), expected, strict=True):
        assert_same(state, whole)
    assert [row["step"] for row in lines(tmp_path / "seed_3")] == [row["step"] for row in lines(tmp_path / "seed_0")]


def test_a_seed_that_is_far_ahead_does_not_go_back(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        interrupt(patched, "evaluation", 5)  # seed 0 alone, at the end of its third epoch
        with pytest.raises(KeyboardInterrupt):
            train_seeds(tmp_path, (0,))
    train_seeds(tmp_path, (0, 3))
    assert "going on from step 11 of 17" in capsys.readouterr().out
    assert run_dir.read_done(tmp_path / "seed_3")["trained_together"] == 1


def test_a_seed_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(loop.NonFinite, match="^seed 0: step [0-9]+ is not finite"):
        train_seeds(tmp_path, (0, 3), learning_rate=1e30)
