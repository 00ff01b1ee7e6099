"""The teacher's cache: what it holds is what the teacher says, for whom, and what it refuses."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from types import SimpleNamespace
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from test_build import digits
from test_end_to_end import ENVIRONMENT, ROOT, refused, run

from sdd_jax import sealed
from sdd_jax.build import build, check
from sdd_jax.commands import cache as cache_command
from sdd_jax.data import from_arrays
from sdd_jax.data.augment import num_views
from sdd_jax.data.memory import MemoryData
from sdd_jax.mesh import pick
from sdd_jax.regions import Regions
from sdd_jax.sealed import Damaged
from sdd_jax.training import logbook, loop, teacher_cache
from sdd_jax.training.logbook import NonFinite, read_metrics
from sdd_jax.training.loop import train
from sdd_jax.training.teacher import cached_teacher, make_compute
from sdd_jax.training.teacher_cache import (
    Cache,
    Layout,
    added_error,
    filling,
    outputs_of_rows,
    pack,
    packed_arrays,
    teacher_rows,
    unpack,
)
from sdd_jax.training.views import run_keys

FILL_BATCH = 16
SCALES = (1, 2, 4)


class Filler:
    """The cache of the teacher of ``tiny.built``, and how often that teacher was asked."""

    def __init__(self, folder, *, store="float32", dtype=jnp.float32, pooling="nested", change=lambda rows: rows):
        self.built = tiny.built(dtype=dtype)
        self.data = self.built.dataset
        self.model, self.variables = tiny.model(12, dtype), self.built.teacher.arrays
        self.layout = Layout.of_map(Regions(SCALES, pooling), (8, 8), store)
        views = {"count": num_views(self.data.pad, self.data.flip)}
        rows = {"count": self.layout.rows, **self.layout.cache_key()}
        self.header = {"teacher": "tiny", "views": views, "rows": rows, "num_classes": tiny.CLASSES, "store": store}
        self.folder, self.asked = folder, 0
        with filling(folder, self.header) as self.cache:
            pass
        compute = make_compute(self.model, self.variables, self.data, self.layout, dtype, FILL_BATCH)

        def counted(index, view):
            self.asked += len(index)
            return change(compute(index, view))

        self.compute = counted

    def keys(self, seed=0, epochs=3):
        return np.unique(run_keys(self.data, seed=seed, epochs=epochs, batch_size=tiny.BATCH))

    def fill(self, **run):
        with filling(self.folder, self.header) as cache:
            for _ in cache.add(self.keys(**run), self.compute, FILL_BATCH):
                pass
        return self

    def run(self, *, steps_per_call=1, on_device=None, seed=0, epochs=3, **changes):
        """``tiny.built`` with this cache as its teacher."""
        changes["teacher"] = cached_teacher(
            self.cache,
            self.layout,
            self.data,
            seeds=(seed,),
            epochs=epochs,
            batch_size=tiny.BATCH,
            steps_per_call=steps_per_call,
            on_device=on_device,
        )
        changes["steps_per_call"] = steps_per_call
        dtype = self.built.dtype
        return tiny.built(seed=seed, epochs=epochs, dtype=dtype, **changes)


@pytest.fixture
def small_shards(monkeypatch):
    """Sixteen views a shard, where a run of ``tiny`` needs some 130."""
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 17 * tiny.CLASSES * 4 * FILL_BATCH)


# ---------------------------------------------------------------------- what it holds


def rows_at(cache, slots):
    """The rows [S, rows, K] of `slots`, in their order."""
    return unpack(cache.read(slots), cache.classes)


def test_cached_values_are_the_teachers_bit_for_bit_in_whatever_company_an_image_was(tmp_path, small_shards):
    filler = Filler(tmp_path / "cache").fill()
    keys = filler.cache.keys()
    slots = np.random.default_rng(1).permutation(len(keys))[: 3 * FILL_BATCH]
    kept = rows_at(filler.cache, slots)
    live = [filler.compute(*np.divmod(keys[s], filler.cache.views)) for s in slots.reshape(3, FILL_BATCH)]
    np.testing.assert_array_equal(kept, np.concatenate(live))
    assert len(np.unique(kept.round(6), axis=0)) > 40  # and they are not all one value


@pytest.mark.parametrize("pooling", ["nested", "direct"])
@pytest.mark.parametrize("size", [16, 14, 4])  # maps of 8x8; 7x7, which 2 and 4 do not tile; and 2x2, below scale 4
def test_outputs_from_rows_are_the_live_outputs(pooling, size, x64):
    model = tiny.model(12, jnp.float64)
    images = jax.random.normal(jax.random.key(5), (3, size, size, 3), jnp.float64)
    variables = model.init(jax.random.key(6), images, train=False)
    live = model.apply(variables, images, train=False, regions=Regions(SCALES, pooling))
    regions = Regions(SCALES, pooling)
    layout = Layout(regions, regions.grid(*live.logit_map.shape[1:3]))
    rows = teacher_rows(model, variables, images, layout)
    cached = outputs_of_rows(rows, layout)
    chex.assert_trees_all_close(cached.logits, live.logits, rtol=1e-12)
    chex.assert_trees_all_close(cached.region_logits, live.region_logits, rtol=1e-12, atol=1e-14)
    assert rows.shape[1] == (17 if pooling == "nested" or size == 16 else 22)


def test_a_run_needs_the_views_that_it_draws_and_no_others(tmp_path):
    built = tiny.built()
    data = built.dataset
    for batch_size, epochs in ((8, 3), (100, 5)):  # the second batch covers more than two epochs
        memory = MemoryData(data, seeds=(4,), epochs=epochs, batch_size=batch_size, steps_per_call=1, mesh=built.mesh)
        batch = jax.jit(memory.batch_function(jnp.float32))
        drawn = set()
        for step in range(-(-epochs * len(data.train.labels) // batch_size)):
            arrays = {**memory.shared, **pick(memory.own(step), 0)}
            got = jax.device_get(batch(arrays, step))
            drawn |= set((got["index"].astype(int) * num_views(data.pad, data.flip) + got["view"]).tolist())
        assert set(run_keys(data, seed=4, epochs=epochs, batch_size=batch_size).tolist()) == drawn


# ---------------------------------------------------------------------- runs that read it


@pytest.mark.parametrize("on_device", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_cached_teacher_teaches_as_the_live_one(tmp_path, x64, on_device):
    filler = Filler(tmp_path / "cache", store="float64", dtype=jnp.float64).fill(epochs=4)
    live = loop.train(tiny.built(epochs=4, dtype=jnp.float64), tmp_path / "live")
    cached = loop.train(filler.run(epochs=4, on_device=on_device, steps_per_call=3), tmp_path / "cached")
    assert int(live.step) >= 20
    chex.assert_trees_all_close(jax.device_get(cached), jax.device_get(live), rtol=1e-9, atol=1e-12)


def test_in_float32_the_first_loss_agrees_and_both_places_give_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "LOG_EVERY", 1)
    filler = Filler(tmp_path / "cache").fill()
    states = [loop.train(filler.run(on_device=place), tmp_path / str(place)) for place in (True, False)]
    chex.assert_trees_all_close(*map(jax.device_get, states), rtol=1e-6, atol=1e-7)  # two programs
    loop.train(tiny.built(), tmp_path / "live")
    cached, live = (read_metrics(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("True", "live"))
    assert cached == pytest.approx(live, rel=1e-5)


@pytest.mark.slow
def test_ten_thousand_classes_are_taught_live_and_from_a_cache(tmp_path, monkeypatch):
    def many(select_on="test"):
        rng = np.random.default_rng(0)
        images, labels = (rng.integers(0, high, shape, dtype) for high, shape, dtype in (
            (256, (tiny.TRAIN + tiny.TEST, 16, 16, 3), np.uint8), (10_000, tiny.TRAIN + tiny.TEST, np.int64)
        ))  # fmt: skip
        parts = images[: tiny.TRAIN], labels[: tiny.TRAIN], images[tiny.TRAIN :], labels[tiny.TRAIN :]
        return from_arrays(*parts, class_names=range(10_000), select_on=select_on)

    monkeypatch.setattr(tiny, "CLASSES", 10_000)
    monkeypatch.setattr(tiny, "dataset", many)
    filler = Filler(tmp_path / "cache").fill()
    found = []
    for name, built in (("live", tiny.built()), ("cached", filler.run())):
        loop.train(built, tmp_path / name)
        lines = read_metrics(tmp_path / name / "metrics.jsonl")
        found.append(next(line["loss"] for line in lines if line["kind"] == "train"))
        assert {line["examples"] for line in lines if line["kind"] == "evaluation"} == {tiny.TEST}
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)  # the mean of an epoch in float32


def test_a_view_that_is_not_there_stops_the_run(tmp_path):
    filler = Filler(tmp_path / "cache").fill()
    built = filler.run(on_device=True)
    arrays = built.teacher.arrays
    gone = {**arrays, "table": np.full_like(arrays["table"], -1)}
    with pytest.raises(loop.NonFinite, match="step 0"):
        loop.train(built._replace(teacher=built.teacher._replace(arrays=gone)), tmp_path / "run")


# ---------------------------------------------------------------------- filling


def test_more_seeds_and_epochs_add_what_is_missing_and_nothing_else(tmp_path, small_shards):
    filler = Filler(tmp_path / "cache").fill(seed=0)
    before = filler.cache.keys()
    assert before.tolist() == filler.keys(seed=0).tolist()
    with pytest.raises(ValueError, match=r"lacks \d+ of the \d+ views that this run \(seed 1, 3 epochs\)"):
        filler.run(seed=1)
    filler.asked = 0
    filler.fill(seed=1).fill(seed=0, epochs=5)
    wanted = set(filler.keys(seed=1).tolist()) | set(filler.keys(seed=0, epochs=5).tolist())
    keys = filler.cache.keys()
    assert keys[: len(before)].tolist() == before.tolist() and sorted(keys.tolist()) == sorted(wanted)
    assert filler.asked < len(wanted) - len(before) + 2 * FILL_BATCH  # each at most one batch that was filled up
    loop.train(filler.run(seed=1), tmp_path / "run")


def test_interrupted_at_any_write_it_redoes_one_shard_at_most(tmp_path, monkeypatch, small_shards):
    whole = Filler(tmp_path / "whole").fill()
    for at in (1, 4, 8):  # the header of the cache is the first write, then three a shard: keys, values, manifest
        folder = tmp_path / str(at)
        calls = [0]
        with monkeypatch.context() as patched:
            for name in ("write_whole", "write_json"):
                patched.setattr(sealed, name, dying(getattr(sealed, name), calls, at))
            with pytest.raises(KeyboardInterrupt):
                Filler(folder).fill()
        again = Filler(folder)
        kept = len(again.cache.keys())
        again.fill().cache.check_files()
        assert again.asked == -(-(len(again.keys()) - kept) // FILL_BATCH) * FILL_BATCH
        assert kept == max(at - 2, 0) // 3 * FILL_BATCH and not list(folder.glob("*.shard"))
        (keys, rows), (wanted, right) = (
            (f.cache.keys(), f.cache.read(np.arange(len(f.keys())))) for f in (again, whole)
        )
        np.testing.assert_array_equal(keys, wanted)
        assert rows.keys() == right.keys() and all(np.ptp(row) > 0 for row in right.values())
        jax.tree.map(np.testing.assert_array_equal, rows, right)


def dying(function, calls, at):
    """``function``, interrupted at call ``at`` of all that count in ``calls``."""

    def called(*arguments, **named):
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return called


# ---------------------------------------------------------------------- storing


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=30)
def test_stored_values_are_as_near_as_they_say(seed, size):
    rng = np.random.default_rng(seed)
    rows = (size * rng.standard_normal((4, 5, 7))).astype(np.float32)
    rows[0, 0] = 0
    largest = np.abs(rows).max(-1, keepdims=True)
    bounds = {"float32": 0 * largest, "float16": largest * 2.0**-11 + 2.0**-25, "int8": largest / 254 * (1 + 1e-5)}
    for store, bound in bounds.items():
        packed = pack(rows, store)
        assert packed["values"].dtype == store and ("scales" in packed) == (store == "int8")
        stored = unpack(packed, 7)
        assert stored.dtype == np.float32 and (np.abs(stored - rows) <= bound).all()
        assert added_error(rows, packed)["max_logit"] == np.abs(stored - rows).max()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(1e-2, 1e2))
@settings(deadline=None, max_examples=30)
def test_the_largest_logits_are_kept_and_the_others_share_what_is_left(seed, count, size):
    rng = np.random.default_rng(seed)
    rows = (size * rng.standard_normal((4, 5, 7))).astype(np.float32)
    packed = pack(rows, f"top{count}")
    shapes = {name: (array.shape[1:], array.dtype) for name, array in packed.items()}
    assert shapes == packed_arrays(f"top{count}", 5, 7)
    stored, order = unpack(packed, 7), np.argsort(-rows, -1)
    np.testing.assert_array_equal(unpack({name: jnp.asarray(array) for name, array in packed.items()}, 7), stored)
    exact, kept = (log_softmax(np.float64(x), -1) for x in (rows, stored))
    largest, others = order[..., :count], order[..., count:]
    np.testing.assert_array_equal(*(np.take_along_axis(x, largest, -1) for x in (stored, rows)))
    np.testing.assert_allclose(*(np.take_along_axis(x, largest, -1) for x in (kept, exact)), rtol=1e-5, atol=1e-5)
    shared = logsumexp(np.take_along_axis(exact, others, -1), -1, keepdims=True) - np.log(7 - count)
    np.testing.assert_allclose(*np.broadcast_arrays(np.take_along_axis(kept, others, -1), shared), rtol=1e-5, atol=1e-5)
    error = added_error(rows, packed)
    divergence = (np.exp(exact) * (exact - kept)).sum(-1).mean()
    assert error["max_logit"] == 0 and error["mean_kl"] == pytest.approx(divergence, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("store", ["top7", "top0", "top", "top-1", "float8", ""])
def test_a_store_that_there_is_not_is_refused(store):
    with pytest.raises(ValueError, match=f"topN with N from 1 to 6, such as top32; got '{store}'"):
        packed_arrays(store, 5, 7)


def test_nothing_is_made_of_a_store_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="topN with N from 1 to 2"):
        Filler(tmp_path / "cache", store="top3")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("store", [pytest.param("float16", marks=pytest.mark.slow), "int8", "top1"])
def test_the_error_that_a_store_adds_is_stated_and_true(tmp_path, store, small_shards):
    exact, small = Filler(tmp_path / "exact").fill(), Filler(tmp_path / "small", store=store).fill()
    slots = np.arange(len(exact.cache.keys()))
    stated = small.cache.error()
    if store == "top1":  # which has a row for each region
        rows, stored = (outputs_of_rows(rows_at(one.cache, slots), one.layout).region_logits for one in (exact, small))
        np.testing.assert_array_equal(rows.argmax(-1), stored.argmax(-1))
        rows, stored = rows.max(-1), stored.max(-1)
    else:
        rows, stored = (rows_at(filler.cache, slots) for filler in (exact, small))
    assert np.abs(rows - stored).max() == pytest.approx(stated["max_logit"], abs=1e-6) and stated["mean_kl"] > 0
    assert exact.cache.error() == {"max_logit": 0, "mean_kl": 0}
    if store != "top1":
        ends = [loop.train(filler.run(), tmp_path / f"{filler.cache.store}-run").params for filler in (exact, small)]
        chex.assert_trees_all_close(*map(jax.device_get, ends), atol=0.02)


def test_a_shard_is_packed_by_batch_and_its_error_is_that_of_all_its_rows(tmp_path):
    classes, regions, views = 300, 4, 16 * 64 + 5
    header = {"views": {"count": views}, "rows": {"count": regions}, "num_classes": classes, "store": "top2"}
    rows = np.float32(np.random.default_rng(0).normal(size=(16, regions, classes)))

    def compute(index, view):
        return rows * np.float32(1 + view[:, None, None] / views)  # the later, the more is lost

    with filling(tmp_path / "cache", header) as cache:
        tracemalloc.start()
        assert list(cache.add(np.arange(views), compute, 16)) == [(views, views)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < views * regions * classes * 4 / 2  # of what all rows of the shard take
        numbers = np.pad(np.arange(views), (0, -views % 16), mode="edge").reshape(-1, 16)
        whole = np.concatenate([compute(None, some) for some in numbers])[:views]
        assert cache.error() == pytest.approx(added_error(whole, pack(whole, "top2")), rel=1e-4)


def test_the_error_of_several_shards_is_the_mean_over_their_views(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 8 * 5 * 4)
    header = {"views": {"count": 20}, "rows": {"count": 1}, "num_classes": 5, "store": "top2"}
    rows = np.float32(np.random.default_rng(0).normal(size=(20, 1, 5)) * np.arange(20)[:, None, None])
    with filling(tmp_path / "cache", header) as cache:
        for _ in cache.add(np.arange(20), lambda index, view: rows[view], 4):
            pass
        assert len({cache._facts(shard)["slots"] for shard in cache.shards()}) == 2  # the last one has fewer
        assert cache.error() == pytest.approx(added_error(rows, pack(rows, "top2")), rel=1e-4)


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_logits_that_cannot_be_kept_are_refused(tmp_path, store):
    value = {"float32": np.nan, "float16": 1e5}[store]  # the second is beyond float16's largest
    filler = Filler(tmp_path / "cache", store=store, change=lambda rows: np.full_like(rows, value))
    with pytest.raises(FloatingPointError, match="not finite"):
        filler.fill()
    assert not len(filler.cache.keys())


def test_a_cache_of_nan_stops_the_run_before_anything_is_saved(tmp_path):
    """Sealed by somebody: the command keeps nothing that is not finite."""
    filler = Filler(tmp_path / "cache").fill()
    folder = tmp_path / "cache" / "00000"
    facts = json.loads((folder / "MANIFEST.json").read_text())
    content = {name: facts[name] for name in ("number", "slots", "error")}
    np.save(folder / "values.npy", np.load(folder / "values.npy") * np.nan)
    sealed.seal(folder, "shard", filler.cache.owner, content)
    filler.cache.check_files()
    with pytest.raises(NonFinite, match="step 0 is not finite: .*distill_loss nan"):
        loop.train(filler.run(), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


# ---------------------------------------------------------------------- refusals


def test_a_flipped_byte_and_a_missing_file_are_found(tmp_path, small_shards):
    filler = Filler(tmp_path / "cache").fill()
    for name in ("00002/values.npy", "00001/keys.npy"):
        file = tmp_path / "cache" / name
        content = file.read_bytes()
        file.write_bytes(content[:-5] + bytes([content[-5] ^ 4]) + content[-4:])
        with pytest.raises(Damaged, match=f"{name}: the manifest has .*; remove .*{name[:5]} and fill the cache again"):
            filler.cache.check_files()
        file.unlink()
        with pytest.raises(Damaged, match=f"{name}: the manifest has .* found None"):
            filler.cache.check_files()
        file.write_bytes(content)
    filler.cache.check_files()


def test_a_file_that_ends_too_early_stops_the_run_that_reads_it(tmp_path):
    filler = Filler(tmp_path / "cache").fill()
    filler.cache.read(np.arange(4))
    values = tmp_path / "cache" / "00000" / "values.npy"
    os.truncate(values, 100)
    with pytest.raises(Damaged, match=r"values.npy ends before its row \d+: it was changed"):
        filler.cache.read(np.arange(4))


def test_a_folder_of_something_else_is_refused(tmp_path):
    filler = Filler(tmp_path / "cache").fill()
    for change in ({"teacher": "another"}, {"views": {"count": 81}}, {"store": "int8"}):
        name = next(iter(change))
        with pytest.raises(ValueError, match=f"is another's.*{name}"):
            Cache(tmp_path / "cache", filler.header | change)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no cache"):
        Filler(tmp_path / "notes")
    with pytest.raises(ValueError, match="notes holds no cache"):
        Cache(tmp_path / "notes", filler.header)


def test_a_cache_of_an_earlier_version_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "cache.json").write_text(json.dumps({"teacher": "tiny", "store": "float32"}))
    with pytest.raises(Damaged, match="cache.json has no digest: it was changed, or an earlier version of sdd_jax"):
        Filler(tmp_path)


def test_a_shard_of_another_cache_or_another_place_is_found(tmp_path, small_shards):
    """Each is whole in itself: its files match its manifest."""
    mine, foreign = Filler(tmp_path / "mine").fill(), Filler(tmp_path / "foreign", store="float16").fill()
    kept = tmp_path / "kept"
    (mine.folder / "00001").rename(kept)
    shutil.copytree(foreign.folder / "00001", mine.folder / "00001")
    with pytest.raises(Damaged, match="00001/MANIFEST.json is another's: its owner is"):
        mine.cache.check_files()
    shutil.rmtree(mine.folder / "00001")
    shutil.copytree(mine.folder / "00002", mine.folder / "00001")
    with pytest.raises(Damaged, match="00001/MANIFEST.json is another's: its number is 2, expected 1"):
        mine.cache.check_files()
    shutil.rmtree(mine.folder / "00001")
    kept.rename(mine.folder / "00001")
    for name in ("values.npy", "MANIFEST.json"):  # a part of one with the other parts of another
        with exchanged(mine.folder / "00001" / name, mine.folder / "00002" / name), pytest.raises(Damaged, match=name):
            mine.cache.check_files()
    mine.cache.check_files()


@contextlib.contextmanager
def exchanged(one, other):
    contents = one.read_bytes(), other.read_bytes()
    for file, content in zip((other, one), contents, strict=True):
        file.write_bytes(content)
    yield
    for file, content in zip((one, other), contents, strict=True):
        file.write_bytes(content)


# ---------------------------------------------------------------------- two writers


def test_a_second_writer_is_refused_and_the_lock_ends_with_its_process(tmp_path):
    filler = Filler(tmp_path / "cache")
    with filling(filler.folder, filler.header), pytest.raises(ValueError, match=f"is in use by process {os.getpid()}"):
        filler.fill(seed=1)
    lines = (
        "import os, pathlib",
        "from sdd_jax.training.run_dir import lock_folder",
        f"lock = lock_folder(pathlib.Path({str(filler.folder)!r}))",
        "os.kill(os.getpid(), 9)",
    )
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], check=False).returncode == -9
    filler.fill().cache.check_files()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_two_writes_at_once_never_give_one_the_values_of_the_other(tmp_path, monkeypatch, at):
    """Where no lock holds: one writer comes between the other's keys, values and seal, and both mean the same shard."""
    first, second = Filler(tmp_path / "cache"), Filler(tmp_path / "cache")
    second.header = first.header
    calls, writes = [0], {name: getattr(sealed, name) for name in ("write_whole", "write_json")}

    def interleaved(name, path, content):
        calls[0] += 1
        if calls[0] == at:
            second.fill(seed=1)
        writes[name](path, content)

    monkeypatch.setattr(teacher_cache, "lock_folder", lambda folder: None)
    monkeypatch.setattr(teacher_cache, "unlock_folder", lambda folder, lock: None)
    for name in writes:
        monkeypatch.setattr(sealed, name, partial(interleaved, name))
    with pytest.raises(OSError):  # there is a shard of that number now
        first.fill(seed=0)
    monkeypatch.undo()
    cache = first.cache
    cache.check_files()
    assert cache.keys().tolist() == second.keys(seed=1).tolist()
    kept = rows_at(cache, np.arange(FILL_BATCH))
    np.testing.assert_array_equal(kept, first.compute(*np.divmod(cache.keys()[:FILL_BATCH], cache.views)))
    first.fill(seed=0).cache.check_files()
    first.run(seed=0)


# ---------------------------------------------------------------------- the command


SMALL_SHARDS = """
import sdd_jax.training.teacher_cache as cache, sdd_jax.__main__ as program
cache.SHARD_BYTES = 256 * 17 * 10 * 4
program.main()
"""


@pytest.mark.slow
def test_the_command_killed_and_started_again(tmp_path):
    teacher, folder = tmp_path / "teacher", tmp_path / "cache"
    train(build(digits(model__student="resnet14")), teacher)
    config = ("--config=configs/quickstart.py:run=sdd_kd", "--config.epochs=8")
    arguments = (*config, f"--config.teacher.run={teacher}")
    fill = [sys.executable, "-c", SMALL_SHARDS, "cache", *arguments, f"--workdir={folder}"]
    folder.mkdir()
    (folder / "cache.json.tmp").write_text('{"teacher"')  # an earlier one, killed as it began
    process = subprocess.Popen(fill, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "00001").exists():
        assert process.poll() is None and time.monotonic() < deadline, "no shard to kill it after"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("0*/MANIFEST.json")}
    result = subprocess.run(fill, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0 and "17 x 10 logits of each in float32" in result.stdout, result.stderr
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    result = run("cache", *arguments, f"--workdir={folder}", "--verify")
    assert result.returncode == 0 and "asked again, equal bit for bit" in result.stdout, result

    values = folder / "00000" / "values.npy"
    values.write_bytes(values.read_bytes()[:-1] + b"?")
    message = refused("cache", *arguments, f"--workdir={folder}", "--verify")
    assert "00000/values.npy: the manifest has" in message


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache that the command filled, and what configs that may name it share."""
    root = tmp_path_factory.mktemp("filled")
    teacher, folder = root / "teacher", root / "cache"
    train(build(digits(model__student="resnet8")), teacher)
    common = {"model__teacher": "resnet8", "model__student": "resnet8", "teacher__run": str(teacher), "epochs": 3}
    given = SimpleNamespace(
        config=digits(method="sdd_kd", **common), workdir=folder, store="float32", verify=False, teacher=None
    )
    with mock.patch.object(flags, "FLAGS", given):
        cache_command.main()
    return folder, common


def test_a_config_names_its_cache_and_no_other_is_taken(tmp_path, filled):
    folder, common = filled
    build(digits(method="kd", teacher__cache=str(folder), **common))  # whatever the method
    with pytest.raises(ValueError, match="lacks .* the cache command"):
        build(digits(method="kd", teacher__cache=str(folder), seed=1, **common))
    with pytest.raises(ValueError, match="another's .*data.train"):
        build(digits(method="kd", teacher__cache=str(folder), data__train_examples=63, **common))
    with pytest.raises(ValueError, match="holds no cache"):
        build(digits(method="kd", teacher__cache=str(tmp_path), **common))
    for method in ("sp", "crd", "sdd_sp", "sdd_kd+sp", "sdd_kd+crd"):
        with pytest.raises(ValueError, match=f"method '{re.escape(method)}' reads the teacher's feature_maps: no"):
            build(digits(method=method, teacher__cache=str(folder), **common))


@pytest.mark.slow
def test_a_small_cache_of_a_network_keeps_every_regions_class(tmp_path, filled):
    exact, common = filled
    given = {"method": "sdd_kd", **common}
    cache_command.fill(check(digits(**given)), tmp_path / "small", "top3")
    logits = []
    for folder in (exact, tmp_path / "small"):
        teacher = build(digits(**given, teacher__cache=str(folder))).teacher
        index, view = np.nonzero(teacher.arrays["table"] >= 0)
        logits.append(teacher.apply(teacher.arrays, {"index": index, "view": view}).region_logits)
    np.testing.assert_array_equal(*(one.argmax(-1) for one in logits))
    np.testing.assert_allclose(*(np.sort(one)[..., -3:] for one in logits), rtol=1e-5, atol=1e-6)


def test_a_config_without_a_teacher_has_nothing_to_keep(tmp_path):
    message = refused("cache", "--config=configs/quickstart.py:run=plain", f"--workdir={tmp_path / 'cache'}")
    assert "has no teacher" in message and not (tmp_path / "cache").exists()
