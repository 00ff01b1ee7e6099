"""The cache of images read from disk: one view for each epoch of each seed, the same that a run is shown."""

import dataclasses
import re
from types import SimpleNamespace
from unittest import mock

import chex
import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_streamed
import sets
import tiny
from pages import config_of

from sdd_jax.build import build
from sdd_jax.commands import cache as cache_command
from sdd_jax.data import train_data
from sdd_jax.data.augment import normalize
from sdd_jax.mesh import make_mesh
from sdd_jax.processes import Preempted
from sdd_jax.regions import Regions
from sdd_jax.training import logbook, loop
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.logbook import read_metrics
from sdd_jax.training.teacher import cached_teacher, live_teacher, make_compute
from sdd_jax.training.teacher_cache import Layout, filling, teacher_rows
from sdd_jax.training.views import EPOCHS, SEEDS, keys_at, make_pictures, needed_keys, views_header

BATCH, EPOCHS_RUN = 8, 2
LAYOUT = Layout(Regions((1, 2, 4)), 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of 7 images: 21, or 18 where some are held out, are no whole number of batches."""
    root = tmp_path_factory.mktemp("images")
    sets.write_folder(root, classes=("a", "b", "c"), train=7, test=4, test_name="val")
    return root


def load(folder, augment="random_resized_crop"):
    return run_streamed.load("folder", folder, workers=0, augment=augment)


def seen(dataset, seed, steps):
    """What a run is shown, position by position: index and pixels."""
    options = {"epochs": EPOCHS_RUN, "batch_size": BATCH, "steps_per_call": 1, "mesh": make_mesh(jax.devices()[:1])}
    source = train_data(dataset, seeds=(seed,), **options)
    try:
        found = [jax.device_get({**source.own(step), "key": None}) for step in range(steps)]
    finally:
        source.close()
    return [np.concatenate([batch[name][0] for batch in found]) for name in ("index", "image")]


# ---------------------------------------------------------------------- which views, and what they show


@pytest.mark.parametrize("randaugment", [(), (2, 9)])
@pytest.mark.parametrize("augment", ["random_resized_crop", "resize_crop"])
def test_a_key_shows_what_the_run_is_shown(folder, augment, randaugment):
    dataset = dataclasses.replace(load(folder, augment), randaugment=randaugment)
    length = {"epochs": EPOCHS_RUN, "batch_size": BATCH}
    steps = -(-EPOCHS_RUN * len(dataset.train.index) // BATCH)
    index, pixels = seen(dataset, 3, steps)
    keys = keys_at(dataset, seed=3, **length)(0, steps * BATCH)
    np.testing.assert_array_equal(keys // (SEEDS * EPOCHS), index)
    np.testing.assert_array_equal(make_pictures(dataset)(*np.divmod(keys, SEEDS * EPOCHS)), pixels)
    ordered = needed_keys(dataset, seed=3, **length)
    assert sorted(set(keys.tolist())) == ordered.tolist()
    assert len(ordered) == len(keys)  # an example is seen once an epoch
    np.testing.assert_array_equal(
        make_pictures(dataset)(*np.divmod(ordered, SEEDS * EPOCHS)), pixels[np.argsort(keys)]
    )  # where the views of an image stand together, it is decoded once


def test_seeds_and_epochs_have_views_of_their_own(folder):
    dataset = load(folder)
    views = {
        key for seed in (0, 1, SEEDS - 1) for key in needed_keys(dataset, seed=seed, epochs=3, batch_size=1).tolist()
    }
    assert len(views) == 3 * 3 * len(dataset.train.index) and 0 <= min(views) and max(views) < 2**63
    longer = needed_keys(dataset, seed=1, epochs=4, batch_size=1)
    assert set(needed_keys(dataset, seed=1, epochs=3, batch_size=1).tolist()) < set(longer.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": SEEDS}, f"a seed must be below {SEEDS}, got {SEEDS}"),
        ({"epochs": EPOCHS + 1}, f"an? epoch must be below {EPOCHS}, got {EPOCHS}"),
    ],
)
def test_what_has_no_number_is_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        needed_keys(load(folder), **{"seed": 0, "epochs": 1, "batch_size": 1, **options})


def test_the_header_tells_rules_sizes_and_other_draws_apart(folder, monkeypatch):
    headers = [views_header(load(folder, augment)) for augment in ("random_resized_crop", "resize_crop")]
    headers.append(views_header(dataclasses.replace(load(folder), randaugment=(2, 9))))
    monkeypatch.setattr(np.random, "Philox", np.random.PCG64)
    headers.append(views_header(load(folder)))
    assert len({repr(sorted(header.items())) for header in headers}) == 4


# ---------------------------------------------------------------------- runs


def run(dataset, teacher):
    """``tiny.built`` over a folder of pictures."""
    return tiny.built(dataset=dataset, epochs=EPOCHS_RUN, teacher=teacher)


class Cached:
    """A cache of the network of ``tiny``, for images on disk."""

    def __init__(self, dataset, folder):
        self.dataset, self.model = dataset, tiny.model(12)
        self.variables = self.model.init(jax.random.key(99), jnp.zeros((1, *dataset.image_shape)), train=False)
        rows, views = {"count": LAYOUT.rows, **LAYOUT.cache_key()}, views_header(dataset)
        self.header = {"teacher": "a", "views": views, "rows": rows, "num_classes": tiny.CLASSES, "store": "float32"}
        self.folder, self.asked = folder, 0
        self.compute = make_compute(self.model, self.variables, dataset, LAYOUT, jnp.float32, BATCH)

    def fill(self, epochs=EPOCHS_RUN):
        def counted(index, view):
            self.asked += len(index)
            return self.compute(index, view)

        with filling(self.folder, self.header) as self.cache:
            for _ in self.cache.add(needed_keys(self.dataset, seed=0, epochs=epochs, batch_size=BATCH), counted, BATCH):
                pass
        return self

    def teacher(self, cache=None):
        length = {"epochs": EPOCHS_RUN, "batch_size": BATCH, "steps_per_call": 1}
        return cached_teacher(cache or self.cache, LAYOUT, self.dataset, seeds=(0,), **length)

    def asked_anew(self):
        """The network, asked at every step for what the run is shown there: no program differs but its own."""
        source = seen(self.dataset, 0, -(-EPOCHS_RUN * len(self.dataset.train.index) // BATCH))[1]

        @jit_network
        def rows(pixels):
            images = normalize(pixels, self.dataset.mean, self.dataset.std)
            return teacher_rows(self.model, self.variables, images, LAYOUT)

        def chunk(seed, step):
            start = step * BATCH
            asked = rows(jax.device_put(source[start : start + BATCH]))
            return {"values": jax.device_get(asked), "first": np.int32(start)}

        return self.teacher()._replace(chunk=chunk)


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]


def test_a_run_is_that_of_the_network_itself_to_the_last_bit_and_a_stopped_one_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "LOG_EVERY", 1)
    dataset = load(folder)
    cached = Cached(dataset, tmp_path / "cache").fill(epochs=1)
    first = cached.asked
    cached.fill()  # more epochs add what is missing
    assert cached.asked - first < first + 2 * BATCH
    ends = {}
    for name, teacher in (("cached", cached.teacher()), ("anew", cached.asked_anew())):
        ends[name] = jax.device_get(loop.train(run(dataset, teacher), tmp_path / name))
    chex.assert_trees_all_equal(ends["cached"], ends["anew"])
    assert losses(tmp_path / "cached") == losses(tmp_path / "anew")
    assert len(losses(tmp_path / "cached")) == int(ends["cached"].step) == 5

    with pytest.raises(Preempted):
        stopped = run(dataset, cached.teacher())
        loop.train(stopped, tmp_path / "stopped", should_stop=lambda step: 15 if step == 3 else None)
    again = loop.train(run(dataset, cached.teacher()), tmp_path / "stopped")
    chex.assert_trees_all_equal(jax.device_get(again), ends["cached"])


@pytest.mark.slow
def test_the_live_program_begins_with_the_same_loss(folder, tmp_path, monkeypatch):
    """Another program, with the network in it: its rounding drifts apart after the first update."""
    monkeypatch.setattr(logbook, "LOG_EVERY", 1)
    dataset = load(folder)
    cached = Cached(dataset, tmp_path / "cache").fill()
    live = live_teacher(cached.model, cached.variables, LAYOUT.regions)
    for name, teacher in (("cached", cached.teacher()), ("live", live)):
        loop.train(run(dataset, teacher), tmp_path / name)
    found, expected = losses(tmp_path / "cached"), losses(tmp_path / "live")
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_cache_that_lacks_an_epoch_is_refused(folder, tmp_path):
    cached = Cached(load(folder), tmp_path / "cache").fill(epochs=1)
    with pytest.raises(ValueError, match=r"lacks \d+ of the \d+ views that this run \(seed 0, 2 epochs\) needs"):
        cached.teacher()


# ---------------------------------------------------------------------- the command


def test_the_command_says_what_it_takes_before_it_fills_and_a_run_reads_it(folder, tmp_path):
    shared = [
        f"--config={commands.ROOT}/configs/image_folder.py:teacher=cache,student=resnet8,method=sdd_kd",
        *(f"--config.data.path={folder}", "--config.data.image_size=32", "--config.data.in_memory=False"),
        *("--config.model.stem=cifar", "--config.epochs=2", "--config.batch_size=8"),
    ]
    fill = ["cache", *shared, "--teacher=own_teachers:patches", f"--workdir={tmp_path}/cache", "--store=top2"]
    with mock.patch.object(cache_command.shutil, "disk_usage", return_value=SimpleNamespace(free=1000)):
        ended = commands.call(*fill)
    told = ended.err
    assert ended.code == 1 and "Traceback" not in told
    assert re.search(r"No space left on device for 40 views of 352 bytes: .* GiB \(9.31e-07 GiB are free\)", told), told
    assert not [*(tmp_path / "cache").glob("0*")]
    told = commands.call(*fill).out.splitlines()
    size, kept, error = told[1], told[3], told[4]
    assert size.startswith("to be added: 40 views of 352 bytes:") and "22 x 3 logits of each in top2" in kept
    assert re.match(r"error added by top2: at most 0 to a logit that is kept, .* nats of KL divergence", error)
    assert "all files whole; 40 of 40 views asked again, equal bit for bit" in commands.call(*fill, "--verify").out
    given = [*shared, f"--config.teacher.cache={tmp_path}/cache"]
    config = config_of(given)[0]
    assert build(config).teacher.name == "patches"
    config["sdd"]["scales"] = (1, 2, 4, 8)
    config["sdd"]["pooling"] = "direct"
    with pytest.raises(ValueError, match="another's.*rows"):
        build(config)
