"""Several teachers as one: the two means, region by region; live, cached and mixed; and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import own_teachers
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from test_build import digits
from test_foreign_teacher import augmented, fill, normalised, views_of
from test_teacher_cache import Filler

from sdd_jax import saved
from sdd_jax.build import build, check
from sdd_jax.commands.cache import fill as fill_cache
from sdd_jax.ensemble import mean_of_teachers
from sdd_jax.models import create_model
from sdd_jax.training import loop, teacher
from sdd_jax.training.teacher import join_teachers, live_teacher


def student(method="sdd_kd", **overrides):
    return digits(method=method, model__teacher="ensemble", model__student="resnet8", **overrides)


# ---------------------------------------------------------------------- the mean


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(0.1, 10), min_size=1, max_size=4), st.floats(0.1, 30))
@settings(deadline=None, max_examples=25)
def test_the_means_are_the_arithmetic_and_the_geometric_one(seed, weights, size):
    rng = np.random.default_rng(seed)
    logits = (size * rng.standard_normal((len(weights), 3, 5, 7))).astype(np.float32)
    shares = np.array(weights) / sum(weights)
    arithmetic = np.einsum("t,t...->...", shares, softmax(np.float64(logits), -1))
    found = mean_of_teachers(list(logits), weights)
    np.testing.assert_allclose(np.exp(found), arithmetic, rtol=1e-4, atol=1e-30)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-5)  # its logits are logarithms of probabilities
    for temperature in (1, 4):
        geometric = np.prod(softmax(np.float64(logits) / temperature, -1) ** shares[:, None, None, None], 0)
        found = mean_of_teachers(list(logits), weights, "logits") / temperature
        np.testing.assert_allclose(
            log_softmax(np.float64(found), -1), np.log(geometric / geometric.sum(-1, keepdims=True)), atol=1e-3
        )
    if len(weights) == 1:
        np.testing.assert_array_equal(mean_of_teachers(list(logits), weights, "logits"), logits[0])


def test_known_cases():
    one, other = jnp.log(jnp.array([0.8, 0.2])), jnp.log(jnp.array([0.2, 0.8])) + 5  # a shift says nothing
    np.testing.assert_allclose(jnp.exp(mean_of_teachers([one, other], [1, 1])), [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(mean_of_teachers([one, other], [3, 1])), [0.65, 0.35], rtol=1e-6)
    np.testing.assert_allclose(mean_of_teachers([one, other], [3, 1], "logits"), 0.75 * one + 0.25 * other, rtol=1e-6)
    left_out = jnp.array([0.0, 1.0, -jnp.inf])
    assert mean_of_teachers([left_out, left_out], [1, 1]).tolist()[2] == -np.inf
    assert np.isnan(mean_of_teachers([left_out, left_out * jnp.nan], [1, 1])).all()
    sure = jnp.array([0.0, 200.0])  # beyond float32's exponents
    assert jnp.isfinite(mean_of_teachers([sure, -sure], [1, 1])).all()


@pytest.mark.parametrize(
    ("weights", "shapes", "mean", "message"),
    [
        ([1], [(2, 3), (2, 3)], "logits", "a weight above 0 for each teacher"),
        ([1, 0], [(2, 3), (2, 3)], "logits", "a weight above 0"),
        ([1, np.nan], [(2, 3), (2, 3)], "probabilities", "a weight above 0"),
        ([1, 1], [(2, 3), (2, 4)], "logits", "expected one shape"),
        ([1, 1], [(2, 3), (2, 3)], "median", "mean must be one of probabilities, logits; got 'median'"),
    ],
)
def test_what_has_no_mean_is_refused(weights, shapes, mean, message):
    with pytest.raises(ValueError, match=message):
        mean_of_teachers([jnp.zeros(shape) for shape in shapes], weights, mean)


# ---------------------------------------------------------------------- from a config


def of_two(dataset, index, view):
    """The two functions' maps for some views: what caches of them are of."""
    images = np.float32(normalised(dataset, augmented(dataset, index, view)))
    first = own_teachers.patch_logits(images, 10)
    return first, -0.5 * first[:, ::-1]


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    root = tmp_path_factory.mktemp("caches")
    for name in ("patches", "turned"):
        fill(root / name, name)
    return root


@pytest.mark.parametrize("mean", [None, "logits"])
def test_two_caches_teach_by_their_mean_region_by_region(caches, mean):
    both = {"teacher__runs": "none,none", "teacher__cache": f"{caches}/patches,{caches}/turned"}
    built = build(student(**both, teacher__weights="3,1", teacher__mean=mean))
    assert built.teacher.name == "patches + turned" and built.teacher.stores == "float32,float32"
    index, view = (column[:32].astype(np.int32) for column in views_of(built.dataset))
    outputs = built.teacher.apply(built.teacher.arrays, {"index": index, "view": view, "position": np.arange(32)})
    maps = of_two(built.dataset, index, view)
    regions = [own_teachers.region_means(one, built.objective.regions) for one in maps]
    expected = mean_of_teachers(regions, [3, 1], mean or "probabilities")
    np.testing.assert_allclose(outputs.region_logits, expected, rtol=1e-3, atol=1e-3)
    whole = mean_of_teachers([one.mean((1, 2)) for one in maps], [3, 1], mean or "probabilities")
    np.testing.assert_allclose(outputs.logits, whole, rtol=1e-3, atol=1e-3)


def test_two_caches_share_what_is_free_and_a_container_has_no_more_than_its_own(caches, monkeypatch):
    both = {"teacher__runs": "none,none", "teacher__cache": f"{caches}/patches,{caches}/turned"}
    one = build(
        digits(method="kd", model__teacher="cache", model__student="resnet8", teacher__cache=f"{caches}/patches")
    )
    needed = sum(array.nbytes for name, array in one.teacher.arrays.items() if name != "table")
    for free, on_device in ((3 * needed, False), (5 * needed, True)):  # either alone would lie on the device
        monkeypatch.setattr(teacher, "memory_bytes", lambda free=free: free)
        arrays = build(student(**both)).teacher.arrays
        assert [bool(arrays[f"kept{number}"]) for number in range(2)] == [on_device] * 2


@pytest.mark.slow
def test_live_cached_and_mixed_are_one_teacher(tmp_path, caches):
    for number in range(2):
        model = create_model("resnet8", num_classes=10)
        variables = jax.jit(lambda key, model=model: model.init(key, jnp.zeros((1, 32, 32, 1)), train=False))(
            jax.random.key(number)
        )
        where = tmp_path / f"run{number}"
        saved.write_imported(
            where, name="resnet8", stem="cifar", num_classes=10, variables=jax.device_get(variables), source={}
        )
    one = digits(method="kd", model__teacher="resnet8", model__student="resnet8", teacher__run=f"{tmp_path}/run1")
    fill_cache(check(one), tmp_path / "cache1", "float32")
    runs = f"{tmp_path}/run0,{tmp_path}/run1,none"
    found = []
    for kept in ("none", f"{tmp_path}/cache1"):
        built = build(student(teacher__runs=runs, teacher__cache=f"none,{kept},{caches}/patches"))
        assert built.teacher.stores == ("none,none,float32" if kept == "none" else "none,float32,float32")
        assert built.teacher.name == "resnet8 + resnet8 + patches" and built.teacher_accuracy is None
        index, view = (column[:16].astype(np.int32) for column in views_of(built.dataset))
        images = np.float32(normalised(built.dataset, augmented(built.dataset, index, view)))
        batch = {"image": images, "index": index, "view": view, "position": np.arange(16)}
        found.append(jax.jit(built.teacher.apply)(built.teacher.arrays, batch))
    chex.assert_trees_all_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert np.ptp(found[0].region_logits, axis=1).max() > 1e-2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "teacher.runs must name the folders of two teachers or more, a,b; got None"),
        ({"teacher__runs": "a"}, "two teachers or more, a,b; got a"),
        ({"teacher__runs": "a,b", "teacher__cache": "c"}, "teacher.cache must name a cache, or none, for each of"),
        ({"teacher__runs": "a,b"}, "a is not a run's folder"),
        ({"teacher__runs": "none,none"}, "nobody would teach"),
        ({"teacher__runs": "a,b", "teacher__run": "c"}, "'ensemble', of those in teacher.runs: leave teacher.run out"),
        ({"teacher__runs": "a,b", "teacher__accuracy": 9.0}, "leave teacher.accuracy out"),
    ],
)
def test_what_does_not_make_an_ensemble_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(student(**overrides))


def test_weights_and_methods_that_do_not_go_with_it_are_refused(caches):
    both = {"teacher__runs": "none,none", "teacher__cache": f"{caches}/patches,{caches}/turned"}
    for weights in ("1", "1,0", "1,x", "1,2,3", "1,inf"):
        with pytest.raises(ValueError, match="teacher.weights must be 2 numbers above 0, such as 2,1; got"):
            build(student(**both, teacher__weights=weights))
    with pytest.raises(ValueError, match="'sp' reads the teacher's feature_maps: an ensemble has logits alone"):
        build(student("sp", **both))
    for name, value in (("runs", "a,b"), ("weights", "1,2"), ("mean", "logits")):
        alone = digits(method="kd", model__teacher="resnet8", model__student="resnet8", **{f"teacher__{name}": value})
        with pytest.raises(ValueError, match=f"teacher.{name} goes with teacher=ensemble, and the teacher is 'resnet"):
            check(alone)
    with pytest.raises(ValueError, match="fill a cache of each by itself"):
        fill_cache(check(student(**both)), caches / "none", "float32")


@pytest.mark.slow
def test_runs_of_two_teachers_end_alike_wherever_their_rows_come_from(tmp_path, x64):
    filler = Filler(tmp_path / "cache", store="float64", dtype=jnp.float64).fill(epochs=4)
    other = tiny.model(12, jnp.float64)
    images = jnp.zeros((1, 16, 16, 3))
    live = [
        filler.built.teacher,
        live_teacher(other, other.init(jax.random.key(5), images, train=False), tiny.REGIONS),
    ]
    ends = []
    for name in ("live", "on the device", "in files"):
        first = live[0] if name == "live" else filler.run(epochs=4, on_device=name != "in files").teacher
        both = join_teachers([first, live[1]], [2, 1], "probabilities")
        ends.append(jax.device_get(loop.train(tiny.built(epochs=4, dtype=jnp.float64, teacher=both), tmp_path / name)))
    assert int(ends[0].step) >= 20
    for end in ends[1:]:
        chex.assert_trees_all_close(end, ends[0], rtol=1e-9, atol=1e-12)
