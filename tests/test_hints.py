"""AT, FitNet and ReviewKD: against formulas of their own in float64, finite differences, and maps that do not fit."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.test_util import check_grads
from test_loop import assert_same, interrupt
from test_processes import alone

from sdd_jax.build import check
from sdd_jax.build_shapes import trace
from sdd_jax.configs import cifar100
from sdd_jax.models import Outputs, create_model
from sdd_jax.models.classifier import HEAD, stage
from sdd_jax.training import loop
from sdd_jax.training.hints import attention, attention_loss, hierarchical_loss, hint, review
from sdd_jax.training.objective import added

BATCH = 3


def network(sizes, channels, seed, head=6):
    """Outputs with a map for each stage, of any sign before its ReLU, and a head's map."""
    rng = np.random.default_rng(seed)
    maps = {}
    for number, (size, width) in enumerate(zip(sizes, channels, strict=True), start=1):
        before = rng.standard_normal((BATCH, size, size, width))
        maps |= {stage(number): jnp.maximum(before, 0), stage(number, before_relu=True): jnp.asarray(before)}
    maps[HEAD] = jnp.abs(rng.standard_normal((BATCH, 2, 2, head)))
    return Outputs(jnp.zeros((BATCH, 4)), None, None, {name: jnp.asarray(one) for name, one in maps.items()})


def shrunk(x, size):
    """Cell means of maps that the cells tile."""
    step = x.shape[1] // size
    return x.reshape(len(x), size, step, size, step, -1).mean((2, 4))


def correlated(x, kernel, stride=1, pad=0):
    x, (height, width) = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), kernel.shape[:2]
    rows, columns = (range(0, x.shape[axis] - size + 1, stride) for axis, size in ((1, height), (2, width)))
    places = [[np.tensordot(x[:, i : i + height, j : j + width], kernel, 3) for j in columns] for i in rows]
    return np.moveaxis(np.array(places), 2, 0)


def normalised(x, norm):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5) * np.asarray(norm["scale"]) + np.asarray(norm["bias"])


def drawn(params, seed=5):
    """Parameters of which none leaves a layer out."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape)), params)


def apply(objective, params, student, teacher, epoch=100):
    now = {"epoch": epoch, "epochs_done": 1.0, "key": None}
    return objective.apply(params, {}, student, teacher, {}, **now)


def test_attention_is_that_of_the_formula_over_the_stages_of_both(x64):
    student, teacher = network((8, 4, 2), (3, 4, 5), 0), network((8, 8, 2, 2), (6, 7, 8, 9), 1)
    objective = attention(10.0)
    assert objective.init(jax.random.key(0), student, teacher, None) == ({}, {})
    loss, metrics, _ = apply(objective, {}, student, teacher)
    expected = 0
    for number, size in ((1, 8), (2, 4), (3, 2)):
        rows = []
        for one in (student, teacher):
            q = (shrunk(np.asarray(one.feature_maps[stage(number)]), size) ** 2).mean(-1).reshape(BATCH, -1)
            rows.append(q / np.sqrt((q**2).sum(1, keepdims=True)))
        expected = expected + ((rows[0] - rows[1]) ** 2).mean(1)
    np.testing.assert_allclose(metrics["attention_loss"], expected, rtol=1e-10)
    np.testing.assert_allclose(loss, 10 * expected, rtol=1e-10)


def test_attention_does_not_mind_scale_and_sees_what_is_not_a_number(x64):
    maps = [one.feature_maps[stage(1)] for one in (network((4,), (3,), 0), network((4,), (5,), 1))]
    value = attention_loss(*maps)
    np.testing.assert_allclose(attention_loss(7 * maps[0], 0.1 * maps[1]), value, rtol=1e-10)
    np.testing.assert_allclose(attention_loss(maps[0], 3 * maps[0]), 0, atol=1e-15)
    check_grads(partial(attention_loss, power=3), maps, order=1, modes=("rev",), rtol=1e-4)
    assert np.isnan(attention_loss(maps[0].at[1, 2, 0, 0].set(jnp.nan), maps[1])).tolist() == [False, True, False]
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(attention_loss(x, maps[1])))(0 * maps[0])
    np.testing.assert_allclose(value, BATCH / 16, rtol=1e-10)  # the teacher's attention has length 1
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("sizes", [(8, 4), (4, 8), (6, 4), (4, 4)])
def test_fitnet_is_that_of_the_formula_for_every_size(sizes, x64):
    student, teacher = network((4, sizes[0]), (3, 4), 0), network((4, sizes[1]), (3, 5), 1)
    objective = hint(10.0)
    params, state = objective.init(jax.random.key(0), student, teacher, None)
    assert state == {} and set(params) == {"conv", "bn"} and set(params["conv"]) == {"kernel"}
    params = drawn(params)
    x, kernel = np.asarray(student.feature_maps[stage(2)]), np.asarray(params["conv"]["kernel"])
    if sizes == (8, 4):
        y = correlated(x, kernel, 2, 1)
    elif sizes == (4, 8):
        spread = np.zeros((BATCH, 7, 7, 4))
        spread[:, ::2, ::2] = x
        y = correlated(spread, kernel, 1, 2)
    else:
        y = correlated(x, kernel)
    made = np.maximum(normalised(y, params["bn"]), 0)
    expected = ((made - np.asarray(teacher.feature_maps[stage(2)])) ** 2).mean((1, 2, 3))
    loss, metrics, _ = apply(objective, params, student, teacher)
    np.testing.assert_allclose(metrics["hint_loss"], expected, rtol=1e-9)
    np.testing.assert_allclose(loss, 10 * expected, rtol=1e-9)
    if sizes == (8, 4):

        def value(params, features):
            moved = student._replace(feature_maps={**student.feature_maps, stage(2): features})
            return apply(objective, params, moved, teacher)[0]

        check_grads(value, (params, student.feature_maps[stage(2)]), order=1, modes=("rev",), rtol=1e-4)


def nearest(x, size):
    index = np.arange(size) * x.shape[1] // size
    return x[:, index][:, :, index]


def reviewed(params, student, teacher, before_relu):
    """The paper's fusion and its loss, level by level."""
    numbers, total, deeper = range(3, 0, -1), 0, None
    ours = [student.feature_maps[HEAD].mean((1, 2), keepdims=True)]
    ours += [student.feature_maps[stage(n, before_relu=before_relu)] for n in numbers]
    theirs = [teacher.feature_maps[HEAD].mean((1, 2), keepdims=True)]
    theirs += [teacher.feature_maps[stage(n, before_relu=True)] for n in numbers]
    for number, (x, target) in enumerate(zip(map(np.asarray, ours), map(np.asarray, theirs), strict=True)):
        x = normalised(x @ np.asarray(params[f"narrow{number}_conv"]["kernel"])[0, 0], params[f"narrow{number}_bn"])
        if deeper is not None:
            deeper = nearest(deeper, x.shape[1])
            gates = jax.tree.map(np.asarray, params[f"gates{number}"])
            gate = 1 / (1 + np.exp(-(np.concatenate([x, deeper], -1) @ gates["kernel"] + gates["bias"])))
            x = x * gate[..., :1] + deeper * gate[..., 1:]
        size = target.shape[1]
        deeper = nearest(x, size)
        made = correlated(deeper, np.asarray(params[f"widen{number}_conv"]["kernel"]), 1, 1)
        made, weight, weights, loss = normalised(made, params[f"widen{number}_bn"]), 1.0, 1.0, 0
        loss = ((made - target) ** 2).mean((1, 2, 3))
        for side in (4, 2, 1):
            if side < size:
                weight /= 2
                weights += weight
                loss = loss + weight * ((shrunk(made, side) - shrunk(target, side)) ** 2).mean((1, 2, 3))
        total = total + loss / weights
    return total


@pytest.mark.parametrize("before_relu", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_reviewkd_is_that_of_the_formula(before_relu, x64):
    """Of maps that are smaller, as large and larger than the teacher's; the warm-up counts epochs from 1."""
    student, teacher = network((8, 4, 4), (3, 4, 5), 0), network((4, 4, 8), (6, 7, 8), 1, head=9)
    objective = review(5.0, warmup_epochs=20, student_before_relu=before_relu)
    params, state = objective.init(jax.random.key(0), student, teacher, None)
    assert state == {} and params["narrow1_conv"]["kernel"].shape == (1, 1, 5, 6)  # as wide as the mean feature
    params = drawn(params)
    expected = reviewed(params, student, teacher, before_relu)
    run = jax.jit(lambda epoch: apply(objective, params, student, teacher, epoch))
    for epoch, share in ((0, 1 / 20), (9, 0.5), (19, 1.0), (50, 1.0)):
        loss, metrics, _ = run(epoch)
        np.testing.assert_allclose(metrics["review_loss"], expected, rtol=1e-9)
        np.testing.assert_allclose(loss, 5 * share * expected, rtol=1e-9)


@pytest.mark.slow
def test_reviewkds_gradient_is_that_of_finite_differences(x64):
    student, teacher = network((4, 2, 2), (3, 4, 5), 0), network((4, 4, 2), (2, 3, 4), 1, head=3)
    objective = review(5.0)
    params = drawn(objective.init(jax.random.key(0), student, teacher, None)[0])

    @jax.jit
    def value(params, features):
        moved = student._replace(feature_maps={**student.feature_maps, stage(1): features})
        return apply(objective, params, moved, teacher)[0]

    check_grads(value, (params, student.feature_maps[stage(1)]), order=1, modes=("rev",), rtol=1e-4)


def test_levels_that_are_not_smaller_are_left_out(x64):
    first, second = (np.random.default_rng(seed).standard_normal((2, 2, 2, 3)) for seed in (0, 1))
    difference = first - second
    expected = ((difference**2).mean((1, 2, 3)) + 0.5 * (difference.mean((1, 2)) ** 2).mean(1)) / 1.5
    np.testing.assert_allclose(hierarchical_loss(jnp.asarray(first), jnp.asarray(second)), expected, rtol=1e-12)


THREE, FOUR = network((4, 4, 4), (3, 3, 3), 0), network((4, 4, 4, 4), (3, 3, 3, 3), 1)
PLAIN = Outputs(jnp.zeros((BATCH, 4)), None, None, {HEAD: jnp.zeros((BATCH, 2, 2, 6))})


@pytest.mark.parametrize(
    "objective, student, teacher, message",
    [
        (attention(), PLAIN, THREE, "AT reads the feature map 'stage1', but the student has head"),
        (hint(), THREE, PLAIN, "FitNet reads the feature map 'stage2', but the teacher has head"),
        (hint(feature_map="stage4"), THREE, FOUR, "FitNet reads the feature map 'stage4', but the student has stage1"),
        (hint(), network((4, 3), (2, 2), 0), FOUR, "a student's map of 3x3 and a teacher's of 4x4"),
        (review(), FOUR, THREE, "as many stages in both networks: the student has 4, the teacher 3"),
        (review(), THREE, PLAIN, "ReviewKD reads the feature map 'stage1', but the teacher has head"),
    ],
)
def test_maps_that_are_missing_or_do_not_fit_are_named(objective, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        objective.init(jax.random.key(0), student, teacher, None)


def test_a_teacher_without_maps_before_relu_is_refused_by_reviewkd():
    maps = {name: one for name, one in THREE.feature_maps.items() if "before" not in name}
    with pytest.raises(ValueError, match="reads the feature map 'stage1_before_relu', but the teacher has"):
        review().init(jax.random.key(0), THREE, THREE._replace(feature_maps=maps), None)


@pytest.mark.parametrize(
    "make, message",
    [(partial(attention, power=0), "power of at least 1, got 0"), (partial(review, warmup_epochs=-1), "got -1")],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def with_features(features):
    run = tiny.built()
    return run._replace(objective=added(logits=run.objective, features=features))


@pytest.mark.parametrize("features", [hint(0.1), review(0.1, warmup_epochs=2)], ids=["fitnet", "reviewkd"])
def test_a_killed_run_has_the_layers_of_one_that_was_not(features, tmp_path, monkeypatch):
    state = loop.train(with_features(features), tmp_path / "whole")
    with monkeypatch.context() as patched:
        interrupt(patched, "evaluation", 4)
        with pytest.raises(KeyboardInterrupt):
            loop.train(with_features(features), tmp_path / "killed")
    again = loop.train(with_features(features), tmp_path / "killed")
    assert jax.tree.leaves(state.params["objective"]["features"])
    assert_same(again, state)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(tmp_path):
    one = alone(1, tmp_path / "one", "--features=review")["float64"]  # whose layers are FitNet's and more
    eight = alone(8, tmp_path / "eight", "--features=review")["float64"]
    np.testing.assert_allclose(eight["losses"][:20], one["losses"][:20], rtol=1e-9)


@pytest.mark.parametrize(
    "method, metric, shapes",
    [
        ("sdd_kd+at", "attention_loss", set()),
        ("fitnet", "hint_loss", {(1, 1, 32, 32), (32,)}),
        ("reviewkd", "review_loss", {(1, 1, 16, 64), (3, 3, 64, 16), (128, 2), (2,), (64,), (16,)}),
    ],
)
def test_methods_trace_with_the_objectives_own_parameters(method, metric, shapes):
    config = cifar100.get_config(f"teacher=resnet14,student=resnet8,method={method}")
    config.data.train_examples = 200
    state, metrics = trace(check(config).nested())
    assert {metric, "task_loss"} <= metrics.keys() and ("distill_loss" in metrics) == ("+" in method)
    found = {leaf.shape for leaf in jax.tree.leaves(state.params["objective"])}
    assert shapes <= found if shapes else not found


# Height and channels of every stage at 32x32 (ImageNet: 64x64), as mdistiller's networks give them.
STAGES = {
    ("resnet8x4", "cifar"): [(32, 32), (32, 64), (16, 128), (8, 256)],
    ("wrn_16_2", "cifar"): [(32, 16), (32, 32), (16, 64), (8, 128)],
    ("vgg8", "cifar"): [(32, 64), (16, 128), (8, 256), (4, 512), (4, 512)],
    ("resnet50", "cifar"): [(32, 64), (32, 256), (16, 512), (8, 1024), (4, 2048)],
    ("mobilenet_v2", "cifar"): [(16, 16), (16, 12), (8, 16), (4, 48), (2, 160)],
    ("shufflenet_v1", "cifar"): [(32, 24), (16, 240), (8, 480), (4, 960)],
    ("shufflenet_v2", "cifar"): [(32, 24), (16, 116), (8, 232), (4, 464)],
    ("mobilenet_v1", "imagenet"): [None, (16, 128), (8, 256), (4, 512), (2, 1024)],
}


@pytest.mark.parametrize(
    "name, stem",
    [pytest.param(*one, marks=[pytest.mark.slow] * (one[0] not in ("vgg8", "wrn_16_2"))) for one in STAGES],
)
def test_networks_name_the_maps_of_their_stages(name, stem):
    side = 64 if stem == "imagenet" else 32
    images = jnp.zeros((1, side, side, 3))
    outputs, _ = jax.eval_shape(
        lambda: create_model(name, 5, stem).init_with_output(jax.random.key(0), images, train=False)
    )
    expected = {stage(number): one for number, one in enumerate(STAGES[name, stem]) if one}
    found = {key: one.shape[2:] for key, one in outputs.feature_maps.items() if key in expected}
    assert found == expected
    before = {
        key.removesuffix("_before_relu"): one.shape for key, one in outputs.feature_maps.items() if "before" in key
    }
    assert before.items() <= {key: one.shape for key, one in outputs.feature_maps.items()}.items()
    of_teachers = name not in ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
    assert (stage(1) in before) == of_teachers


@pytest.mark.parametrize("name", ["resnet8", pytest.param("vgg8", marks=pytest.mark.slow)])
def test_a_stages_map_is_its_map_before_relu_without_what_is_below_zero(name):
    model, images = create_model(name, 3), jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    maps = jax.jit(partial(model.init_with_output, train=False))(jax.random.key(1), images)[0].feature_maps
    names = [key for key in maps if key.startswith("stage") and f"{key}_before_relu" in maps]
    for key in names:
        assert np.min(maps[f"{key}_before_relu"]) < 0
        np.testing.assert_array_equal(maps[key], np.maximum(maps[f"{key}_before_relu"], 0))
    np.testing.assert_array_equal(maps[names[-1]], maps[HEAD])
    assert all(maps[a].shape[1] >= maps[b].shape[1] for a, b in pairwise(names))
