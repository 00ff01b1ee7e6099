"""Networks of a user's own, by "module:function": each trains as a student and then serves as a teacher."""

import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import own_networks
import pytest
from commands import call
from flax import nnx
from test_build import digits

from sdd_jax.build import build
from sdd_jax.build_shapes import trace
from sdd_jax.models import Classifier, FunctionNetwork, LogitMapClassifier, create_model
from sdd_jax.models.classifier import HEAD
from sdd_jax.models.layers import torch_affine_init
from sdd_jax.regions import Regions, pool_regions
from sdd_jax.saved import load_variables
from sdd_jax.training import optim
from sdd_jax.training.features import similarity
from sdd_jax.training.loop import train
from sdd_jax.training.objective import plain
from sdd_jax.training.step import init_state, make_train_step

CHAIN = ["own_networks:vit", "own_networks:nnx_convnet", "own_networks:plain_function"]


def taught(student, teacher, **overrides):
    return digits(
        method="sdd_kd", loss__base="kd", model__teacher=teacher, model__student=student, epochs=2, **overrides
    )


@pytest.mark.parametrize("number", range(3))
def test_each_kind_is_traced_as_student_and_as_teacher(number):
    name = CHAIN[number]
    state, metrics = trace(taught(name, CHAIN[number - 1]))
    start = jax.eval_shape(
        lambda: create_model(name, 10).init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False)
    )
    assert jax.tree.structure(state.params["student"]) == jax.tree.structure(start["params"])
    assert metrics["complementary_share"].shape == ()


@pytest.mark.slow
def test_each_kind_trains_and_teaches_the_next(tmp_path):
    """Linen vision transformer -> NNX module -> plain function, each taught by SDD-KD by the one before."""
    teacher = None
    for number, name in enumerate(CHAIN):
        folder = tmp_path / str(number)
        config = digits(model__student=name, epochs=2)
        if teacher is not None:
            config = taught(name, CHAIN[number - 1], teacher__run=teacher)
        built = build(config)
        state = train(built, folder)
        start = built.model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False)
        assert jax.tree.structure(state.params["student"]) == jax.tree.structure(start["params"])
        kept = load_variables(folder, "last")  # what the next one is taught by
        jax.tree.map(np.testing.assert_array_equal, kept["params"], jax.device_get(state.params["student"]))
        if name == "own_networks:nnx_convnet":
            mean = state.batch_stats["network"]["norm"]["mean"]
            assert np.any(mean != 0), "running statistics of an NNX module are updated"
        teacher = str(folder)


def test_dropout_draws_anew_in_every_step_and_never_in_evaluation():
    model = own_networks.vit(num_classes=3, stem="cifar", dtype=jnp.float32)
    batch = {"image": jax.random.normal(jax.random.key(0), (4, 16, 16, 1)), "label": jnp.arange(4) % 3}
    optimizer = optim.sgd(0.1, momentum=0.9, weight_decay=0.0, clip_norm=40.0)

    @jax.jit
    def begin(key):
        return init_state(key, model, None, {}, plain(), optimizer, image_shape=(16, 16, 1), labels=np.arange(4) % 3)

    state = begin(jax.random.key(1))
    step = jax.jit(make_train_step(model, None, plain(), optimizer, num_examples=4))
    first, again, other = (float(step(state, {}, batch, jax.random.key(n))[1]["loss"]) for n in (2, 2, 3))
    assert first == again != other
    evaluate = jax.jit(functools.partial(model.apply, train=False))  # without a key, it could not draw
    assert np.isfinite(evaluate({"params": state.params["student"]}, batch["image"]).logits).all()


class Dropping(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.drop = nnx.Conv(1, 3, (3, 3), strides=4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images, *, train):
        return self.drop(self.conv(images), deterministic=not train)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        self.variable("counts", "calls", lambda: 0)
        return nn.Conv(3, (3, 3))(images)


def test_an_nnx_module_may_have_dropout_and_another_collection_is_refused():
    optimizer = optim.sgd(0.1, momentum=0.9, weight_decay=0.0, clip_norm=40.0)
    given = {"image_shape": (16, 16, 1), "labels": np.arange(4) % 3}
    model = LogitMapClassifier(nnx.bridge.to_linen(Dropping), 3)
    state = init_state(jax.random.key(1), model, None, {}, plain(), optimizer, **given)
    batch = {"image": jax.random.normal(jax.random.key(0), (4, 16, 16, 1)), "label": jnp.arange(4) % 3}
    step = jax.jit(make_train_step(model, None, plain(), optimizer, num_examples=4))
    first, again, other = (float(step(state, {}, batch, jax.random.key(n))[1]["loss"]) for n in (2, 2, 3))
    assert first == again != other
    with pytest.raises(ValueError, match="the network keeps counts: params and batch_stats alone"):
        init_state(jax.random.key(1), LogitMapClassifier(Counting(), 3), None, {}, plain(), optimizer, **given)


def test_the_command_line_takes_such_a_name(tmp_path):
    """It gets as far as the data, which are not there; the name has a colon, as has the config's argument."""
    config = "--config=configs/cifar100.py:teacher=none,student=own_networks:"
    others = (f"--config.data.path={tmp_path}", f"--workdir={tmp_path}/run")
    ended = call("train", f"{config}vit", *others)
    assert ended.code == 2 and "cifar-100-python" in ended.err
    assert "must be a function" in call("train", f"{config}vot", *others).refused()


def test_the_patch_grid_of_a_vision_transformer_is_its_map():
    model = own_networks.vit(num_classes=5, stem="cifar", dtype=jnp.float32)
    images = jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    outputs, variables = model.init_with_output(jax.random.key(1), images, train=False)
    assert outputs.feature_maps[HEAD].shape == (2, 4, 6, 32)
    tokens = model.apply(variables, images, method=lambda model, x: model.trunk(x, train=False))
    head = variables["params"]["head"]
    logit_map = np.asarray(tokens) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(outputs.logit_map, logit_map, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs.region_logits, pool_regions(logit_map), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["direct", "nested"])
def test_a_logit_map_is_pooled_as_that_of_a_classifier(pooling):
    """The same network twice: as a trunk under the head, and as one that applies the head itself."""
    images = jax.random.normal(jax.random.key(0), (2, 56, 56, 3))
    model = own_networks.vit(num_classes=5, stem="cifar", dtype=jnp.float32)
    variables = model.init(jax.random.key(1), images, train=False)
    whole = FunctionNetwork(lambda key, images: {}, lambda _, x: model.apply(variables, x, train=False).logit_map)
    same = LogitMapClassifier(whole, 5)
    got = same.apply(
        same.init(jax.random.key(2), images, train=False), images, train=False, regions=Regions(pooling=pooling)
    )
    expected = model.apply(variables, images, train=False, regions=Regions(pooling=pooling))
    for name in ("logits", "logit_map", "region_logits"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert got.feature_maps == {}


def test_a_network_without_locations_serves_as_one_region():
    model = LogitMapClassifier(FunctionNetwork(lambda key, x: {}, lambda _, x: x.mean((1, 2))[:, None, None, :]), 3)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    outputs, _ = model.init_with_output(jax.random.key(1), images, train=False)
    np.testing.assert_allclose(outputs.region_logits, np.repeat(images.mean((1, 2))[:, None], 21, 1), rtol=1e-5)


def test_a_trunk_that_names_its_maps_shows_them_all():
    class Two(nn.Module):
        """The images, and their mean as the map under the head."""

        @nn.compact
        def __call__(self, images, *, train):
            return {"images": images, "head": jnp.mean(images, (1, 2), keepdims=True)}

    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    outputs, _ = Classifier(Two(), 5, torch_affine_init).init_with_output(jax.random.key(1), images, train=False)
    assert set(outputs.feature_maps) == {"images", "head", "last_stage"}
    np.testing.assert_array_equal(outputs.feature_maps["last_stage"], outputs.feature_maps["head"])
    now = {"epoch": 0, "epochs_done": 0.1, "key": None}
    loss, _, _ = similarity(1.0, feature_map="images").apply({}, {}, outputs, outputs, {}, **now)
    np.testing.assert_allclose(loss, 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda f: Classifier(FunctionNetwork(f.init_fn, lambda _, x: {"stem": x}), 3, torch_affine_init),
            "a trunk's feature maps must have 'head' among them, got stem",
        ),
        (lambda f: Classifier(f, 3, torch_affine_init), r"trunk must give a feature map \[B,h,w,C\].*got \(2, 3\)"),
        (lambda f: LogitMapClassifier(f, 3), r"network must give a logit map \[B,h,w,3\].*got \(2, 3\)"),
    ],
)
def test_what_gives_no_map_is_refused(make, message):
    network = make(FunctionNetwork(lambda key, x: {}, lambda _, x: x.mean((1, 2))))
    with pytest.raises(ValueError, match=message):
        network.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_network:vit", "No module named 'own_network'"),
        ("own_networks:vitt", "must be a function of num_classes, stem, dtype in .*own_networks.py; got None"),
        ("own_networks:CONSTANT", "must be a function .*; got 3"),
        ("own_networks:without_stem", "must be a function .*: got an unexpected keyword argument 'stem'"),
        ("own_networks:of_three_classes", "has 3 classes, asked for 10"),
        (":vit", "expected MODULE:FUNCTION"),
        (".a:vit", "expected MODULE:FUNCTION"),
        ("own_networks:", "expected MODULE:FUNCTION"),
        ("own_networks:not_a_network", "gives a function, expected a Classifier or LogitMapClassifier"),
    ],
)
def test_a_name_that_gives_no_network_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 10)


def test_a_logit_map_of_another_number_of_classes_is_refused():
    model = LogitMapClassifier(FunctionNetwork(lambda key, x: {}, lambda _, x: x), 5)
    with pytest.raises(ValueError, match=r"\[B,h,w,5\] for images .*, got \(2, 8, 8, 3\)"):
        model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:", r"importing broken failed with SyntaxError.*broken.py:1"),
        ("\nundefined_name", r"importing broken failed with NameError: .*undefined_name.*broken.py:2"),
        ("import no_such_package", r"importing broken failed with ModuleNotFoundError: .*no_such_package"),
        ("import brok", r"importing broken failed with ModuleNotFoundError: No module named 'brok' \(.*broken.py:1\)"),
    ],
)
def test_a_module_that_does_not_import_is_named_with_the_line(tmp_path, monkeypatch, source, message):
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)  # another test has one of that name
    with pytest.raises(ValueError, match=message):
        create_model("broken:f", 10)


def test_an_own_teacher_is_measured_anew_each_time(tmp_path, monkeypatch):
    """Its code may have changed under the same weights."""
    train(build(digits(model__student="own_networks:plain_function")), tmp_path / "run")
    config = taught("resnet8", "own_networks:plain_function", teacher__run=str(tmp_path / "run"))
    before = build(config).teacher_accuracy
    apply = own_networks._apply
    monkeypatch.setattr(own_networks, "_apply", lambda params, images: -apply(params, images))
    with pytest.raises(ValueError, match="the teacher's test accuracy is"):
        build(config)
    monkeypatch.undo()
    assert build(config).teacher_accuracy == before
