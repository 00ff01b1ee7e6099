"""Training and distillation from Python: every kind of network that can be given, and runs that commands read."""

import json
import re
from functools import partial
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sets
from commands import call
from flax import linen as nn
from flax import nnx
from PIL import Image

import sdd_jax
from sdd_jax import data, from_python, own
from sdd_jax.build import build, check
from sdd_jax.commands import cache
from sdd_jax.data.augment import normalize
from sdd_jax.models import Classifier, LogitMapClassifier, create_model
from sdd_jax.models.given import given_network, given_variables
from sdd_jax.reporting.groups import find_runs
from sdd_jax.training import run_dir

SHAPE, CLASSES = (8, 8, 1), 3
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (24, *SHAPE), np.uint8), np.arange(24) % CLASSES
TEST = RNG.integers(0, 256, (9, *SHAPE), np.uint8), np.arange(9) % CLASSES
QUICK = {"epochs": 1, "fields": {"batch_size": 8}}


class Features(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, images, *, train):
        return nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(self.width, (3, 3), strides=4)(images)))


class Map(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.Conv(CLASSES, (4, 4), strides=4)(images)


class OfNnx(nnx.Module):
    def __init__(self, rngs, rate=0.0):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs) if rate else None
        self.head = nnx.Conv(4, CLASSES, (1, 1), rngs=rngs)

    def __call__(self, images, *, train):
        return self.head(nnx.relu(self.norm(self.conv(images), use_running_average=not train)))


def init(key, images):
    return {"weights": jax.random.normal(key, (images.shape[-1], CLASSES))}


def apply(params, images):
    return images @ params["weights"]


def named(network):
    return given_network(network, SHAPE, CLASSES)


def test_a_module_is_a_network_by_what_it_gives():
    assert isinstance(named(Features()).model, Classifier)
    assert isinstance(named(Map()).model, LogitMapClassifier)
    assert isinstance(named((init, apply)).model, LogitMapClassifier)
    own_classifier = create_model("resnet8", CLASSES)
    assert named(own_classifier).model is own_classifier
    assert named("resnet8").name == "resnet8"


def test_a_name_tells_networks_apart_and_is_the_same_in_another_process():
    assert named(Features()).name == named(Features()).name == "given_in_python:Features_" + named(Features()).name[-8:]
    assert named(Features(8)).name != named(Features(4)).name
    model = create_model(named(Features(8)).name, CLASSES)  # by its name, as a run's config has it
    assert model.trunk.width == 8


def scaled(factor):
    return init, lambda params, images: factor * apply(params, images)


def test_objects_that_differ_have_names_that_differ():
    two, again, other = scaled(2.0), scaled(2.0), scaled(3.0)
    assert named(two).name == named(again).name != named(other).name
    modules = [OfNnx(nnx.Rngs(seed)) for seed in (0, 0, 1)]
    names = [named(module).name for module in modules]
    assert names[0] == names[1] != names[2]  # an NNX module is its values, too


AGAIN = {  # what a notebook has, and a cell of it that is run again with another text
    "a Linen class": ("nn.relu(", "nn.tanh("),
    "an NNX class": ("nnx.relu(", "nnx.tanh("),
    "an NNX class inside": ("2 * x", "3 * x"),
    "a number outside": ("SLOPE = 0.1", "SLOPE = 0.9"),
    "a function outside": ("jnp.sin(", "jnp.cos("),
    "a number of a class": ("WIDTH = 8", "WIDTH = 16"),
    "a hidden number of a class": ("_factor = 2", "_factor = 4"),
    "a property": ("return 3", "return 5"),
    "a static method": ("nn.swish(", "nn.gelu("),
    "a jitted function": ("jnp.tan(", "jnp.exp("),
    "a function that an NNX module holds": ("jnp.sinh(", "jnp.cosh("),
    "a number that a dataclass holds": ("slope=0.5", "slope=0.6"),
    "a number that an object holds": ("k=7", "k=8"),
    "a method of an object": ("self.k * images", "self.k + images"),
    "a borrowed static method": ("staticmethod(nn.celu)", "staticmethod(nn.elu)"),
}
NOTEBOOK = """
import dataclasses, functools
import flax.linen as nn, jax, jax.numpy as jnp
from flax import nnx
SLOPE = 0.1
def shift(x): return SLOPE + jnp.sin(x)
def init(key, images): return jnp.zeros((1, 3 if 3 in {3, 4} else 0))
def apply(params, images): return (lambda x: shift(x))(images + params[0, 0])
class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, *, train): return nn.relu(nn.Conv(8, (3, 3), strides=8)(x))
class Inner(nnx.Module):
    def __call__(self, x): return 2 * x
class Outer(nnx.Module):
    def __init__(self, rngs): self.conv, self.inner = nnx.Conv(1, 8, (3, 3), rngs=rngs), Inner()
    def __call__(self, x, *, train): return self.inner(nnx.relu(self.conv(x)))
class Parts(nn.Module):
    WIDTH = 8
    _factor = 2
    @property
    def side(self): return 3
    @staticmethod
    def bend(x): return nn.swish(Parts._factor * x)
    @nn.compact
    def __call__(self, x, *, train): return self.bend(nn.Conv(self.WIDTH, (self.side, 3), strides=8)(x))
@jax.jit
def jitted(params, images): return jnp.tan(images) + params[0, 0]
class Holds(nnx.Module):
    def __init__(self, bend, rngs): self.conv, self.bend = nnx.Conv(1, 8, (3, 3), rngs=rngs), (bend,)
    def __call__(self, x, *, train): return self.bend[0](self.conv(x))
def bent(x, times): return times * jnp.sinh(x)
@dataclasses.dataclass(frozen=True)
class Numbers:
    slope: float
class Reads(nn.Module):
    numbers: Numbers
    @nn.compact
    def __call__(self, x, *, train): return nn.leaky_relu(nn.Conv(8, (3, 3), strides=8)(x), self.numbers.slope)
class Bound:
    def __init__(self, k): self.k = k
    def init(self, key, images): return jnp.zeros((1, 3))
    def apply(self, params, images): return self.k * images + params[0, 0]
bound = Bound(k=7)
class Borrows(nn.Module):
    act = staticmethod(nn.celu)
    @nn.compact
    def __call__(self, x, *, train): return self.act(nn.Conv(8, (3, 3), strides=8)(x))
holds = Holds(functools.partial(bent, times=2), nnx.Rngs(0))
given = [Linen(), Outer(nnx.Rngs(0)), (init, apply), Parts(), (init, jitted), holds, Reads(Numbers(slope=0.5))]
given += [(bound.init, bound.apply), Borrows()]
"""


@pytest.mark.parametrize("case", AGAIN)
def test_what_a_notebook_defines_again_is_another_network(case):
    names = []
    for text in (NOTEBOOK, NOTEBOOK, NOTEBOOK.replace(*AGAIN[case])):
        notebook = {"__name__": "__main__"}
        exec(text, notebook)
        names.append([named(given).name for given in notebook["given"]])
    assert names[0] == names[1]
    assert sum(one != other for one, other in zip(names[0], names[2], strict=True)) == 1


class Holds:
    """A callable that cannot be described."""

    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, params, images):
        return self.factor * apply(params, images)

    def init(self, key, images):
        return init(key, images)

    def apply(self, params, images):
        return self(params, images)


def test_an_object_that_cannot_be_described_is_no_other_one():
    first, second = (init, Holds(1.0)), (init, Holds(2.0))
    names = [named(given).name for given in (first, second, first)]
    assert names[0] == names[2] != names[1] == f"{names[0]}_2"
    images = jnp.ones((1, *SHAPE))
    models = [create_model(name, CLASSES) for name in names[:2]]
    variables = models[0].init(jax.random.key(0), images, train=False)
    maps = [model.apply(variables, images, train=False).logit_map for model in models]
    np.testing.assert_allclose(maps[1], 2 * maps[0], rtol=1e-6)


def test_methods_are_those_of_their_object():
    bare = Bare(), Bare(), Bare(width=4)
    names = [named((one.init, one.apply)).name for one in bare]
    assert names[0] == names[1] != names[2]
    first, second = Holds(3.0), Holds(4.0)  # of which nothing can be said
    names = [named((one.init, one.apply)).name for one in (first, second, first)]
    assert names[0] == names[2] != names[1]


class Bare(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.width)(images)


def test_an_object_computes_in_its_own_dtype():
    with pytest.raises(ValueError, match="computes in its own dtype, .*float32.*; asked for bfloat16"):
        create_model(named(Map()).name, CLASSES, dtype="bfloat16")


def test_an_nnx_module_gives_what_it_gives_and_keeps_its_statistics():
    images = jnp.asarray(RNG.normal(size=(5, *SHAPE)), jnp.float32)
    module = OfNnx(nnx.Rngs(1))
    model, variables = named(module).model, given_variables(module, SHAPE, CLASSES)
    outputs, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
    again = OfNnx(nnx.Rngs(1))
    np.testing.assert_array_equal(outputs.logit_map, again(images, train=True))
    after = {**variables, **updates}
    np.testing.assert_array_equal(model.apply(after, images, train=False).logit_map, again(images, train=False))
    assert not np.array_equal(model.apply(variables, images, train=False).logit_map, again(images, train=False))


class Inner(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.Conv(1, 2, (3, 3), strides=4, rngs=rngs)


class OfOneName(nnx.Module):
    """Whose leaves a, one and a_one have the same name where their places are joined by "_"."""

    def __init__(self, rngs):
        self.a_one = nnx.Conv(2, CLASSES, (1, 1), rngs=rngs)
        self.a = Inner(rngs)

    def __call__(self, images, **options):
        assert set(options) == {"train"}
        return self.a_one(self.a.one(images))


def test_leaves_of_an_nnx_module_that_would_have_one_name_have_two():
    module, images = OfOneName(nnx.Rngs(1)), jnp.asarray(RNG.normal(size=(5, *SHAPE)), jnp.float32)
    model, variables = named(module).model, given_variables(module, SHAPE, CLASSES)
    assert len(variables["params"]["network"]) == 4
    np.testing.assert_array_equal(model.apply(variables, images, train=False).logit_map, module(images, train=False))


class NnxWithoutTrain(OfNnx):
    def __call__(self, images):
        return self.head(self.conv(images))


class NnxPooled(OfNnx):
    def __call__(self, images, *, train):
        return super().__call__(images, train=train).mean((1, 2))


class WithoutTrain(nn.Module):
    @nn.compact
    def __call__(self, images):
        return images


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(CLASSES)(images.mean((1, 2)))


REFUSED = {
    "without train": (WithoutTrain(), r"WithoutTrain must be called as module\(images, train=...\)"),
    "pooled": (Pooled(), r"Pooled gives \[1, 3\], one prediction for an image.*leave out its pooling"),
    "NNX without train": (NnxWithoutTrain(nnx.Rngs(0)), r"NnxWithoutTrain must be called as module\(images, train"),
    "NNX pooled": (NnxPooled(nnx.Rngs(0)), r"NnxPooled gives \[1, 3\], one prediction for an image"),
    "with dropout": (OfNnx(nnx.Rngs(0), rate=0.5), "more than parameters and statistics .*drop.*to_linen"),
    "a number": (3, "a network must be a name, MODULE:FUNCTION, .* got int"),
    "of other classes": (create_model("resnet8", 7), "the network has 7 classes, the data have 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_network_is_refused(case):
    network, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        named(network)


def test_a_run_says_what_it_learned_and_goes_on_and_another_process_is_told(tmp_path, monkeypatch, capsys):
    run = sdd_jax.train(Features(), train=TRAIN, test=TEST, folder=tmp_path / "run", **QUICK)
    said = capsys.readouterr().out
    assert "reading arrays: 33 images" in said and "compiling the training step" in said and "epoch 1/1 | " in said
    accuracy = run.results["last"]["accuracy"]
    assert np.mean(run.predict(TEST[0]).argmax(1) == TEST[1]) == pytest.approx(accuracy)
    assert run.predict(TEST[0][:0]).shape == (0, CLASSES) and run.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(run.predict(TEST[0][..., 0]), sdd_jax.load_run(str(run.folder)).predict(TEST[0]))
    assert "accuracy" in repr(run) and "array" not in repr(run)
    again = sdd_jax.train(Features(), train=TRAIN, test=TEST, folder=tmp_path / "run", **QUICK)
    assert "has finished" in capsys.readouterr().out and again.results == run.results
    with pytest.raises(ValueError, match="holds a run of another config, by its config.json .*model.student"):
        sdd_jax.train(Features(8), train=TRAIN, test=TEST, folder=tmp_path / "run", **QUICK)
    for images, got in (
        (TEST[0][:, :4], r"uint8 \(9, 4, 8, 1\)"),
        (TEST[0][:, :4, :, 0], r"uint8 \(9, 4, 8\)$"),
        (TEST[0] / 255, "float64"),
    ):
        with pytest.raises(ValueError, match=rf"images must be uint8 \('N', 8, 8, 1\), got {got}"):
            run.predict(images)
    assert f"{100 * accuracy:.2f}" in call("evaluate", f"--workdir={run.folder}").out
    monkeypatch.setattr(own, "_given", {})  # as in another process
    assert "was given from Python as an object" in call("evaluate", f"--workdir={run.folder}").refused()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return sdd_jax.train(Map(), train=TRAIN, test=TEST, folder=tmp_path_factory.mktemp("runs") / "teacher", **QUICK)


def test_a_report_knows_the_images_of_a_run(teacher):
    (found,), given = find_runs([teacher.folder]), data.from_arrays(*TRAIN, *TEST)
    fingerprints = {"training images": given.fingerprint("train"), "test images": given.fingerprint("test")}
    assert fingerprints.items() <= found.inputs.items() and found.inputs["teacher"] is None


@pytest.mark.parametrize("of", ["a field", "the images' size"])
def test_networks_with_variables_have_the_stem_that_is_asked_for(tmp_path, monkeypatch, of):
    monkeypatch.setattr(from_python, "train_groups", mock.Mock())  # what would be trained is enough
    monkeypatch.setattr(from_python, "load_run", mock.Mock())
    given = {"train": TRAIN, "test": TEST, "fields": {"model.stem": "cub200"}}
    shape, size = (SHAPE, 8) if of == "a field" else ((48, 48, 3), 48)
    if of != "a field":
        sets.write_folder(tmp_path / "images", classes=("a", "b", "c"), train=4, test=1)
        for path in (tmp_path / "images").glob("*/*/*.png"):
            Image.open(path).resize((size, size)).save(path)
        given = {"data": tmp_path / "images"}
    network = create_model("resnet8", CLASSES, "cub200")
    variables = network.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
    sdd_jax.distill("resnet8", ("resnet8", variables), folder=tmp_path / "run", **given)
    ((run,),) = from_python.train_groups.call_args.args[0]
    written = run_dir.read_network(tmp_path / "run-teacher")["model"]["stem"]
    assert (run.config["model"]["stem"], written) == ("cub200", "cub200")
    with pytest.raises(ValueError, match="fields may not have model.stem"):
        fields = {"model.stem": "cifar"}
        sdd_jax.distill(
            "resnet8", ("resnet8", variables), folder=tmp_path / "b", **given | {"stem": "a", "fields": fields}
        )
    assert not (tmp_path / "b-teacher").exists()


def test_what_a_loss_cannot_do_with_the_networks_leaves_no_begun_folder(teacher, tmp_path):
    given = {"train": TRAIN, "test": TEST, "folder": tmp_path / "run", **QUICK}
    with pytest.raises(ValueError, match="ReviewKD reads the feature map"):
        sdd_jax.distill(Map(), teacher, method="reviewkd", **given)
    assert not (tmp_path / "run" / "config.json").exists()
    sdd_jax.distill(Map(), teacher, method="kd", **given)


@pytest.mark.parametrize("kind", ["a folder", "network and variables"])
def test_a_teacher_is_the_same_whichever_way_it_is_given(teacher, tmp_path, kind):
    given = {"train": TRAIN, "test": TEST, **QUICK}
    expected = sdd_jax.distill((init, apply), teacher, folder=tmp_path / "expected", **given)
    bare = {"params": teacher.variables["params"]["network"]}
    other = str(teacher.folder) if kind == "a folder" else (Map(), bare)
    student = sdd_jax.distill((init, apply), other, folder=tmp_path / "student", **given)
    jax.tree.map(np.testing.assert_array_equal, student.variables, expected.variables)
    plain = sdd_jax.train((init, apply), folder=tmp_path / "plain", **given)
    assert not np.array_equal(*(jax.tree.leaves(run.variables)[0] for run in (plain, student)))


def test_data_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data: there is no folder and no .npz file .*/images"):
        sdd_jax.train("resnet8", data=tmp_path / "images", folder=tmp_path / "run")


def test_the_fields_do_not_say_otherwise_than_the_call(teacher, tmp_path):
    fields = QUICK.get("fields", {}) | {"teacher.run": str(tmp_path), "seed": 7}
    given = QUICK | {"train": TRAIN, "test": TEST, "folder": tmp_path / "run", "fields": fields}
    with pytest.raises(ValueError, match="fields may not have seed, teacher.run: arguments of the call say it"):
        sdd_jax.distill((init, apply), teacher, **given)


@pytest.mark.parametrize("kind", ["a run", "network and variables"])
def test_a_student_begins_with_the_weights_it_is_given(teacher, tmp_path, kind):
    bare = Map(), {"params": teacher.variables["params"]["network"]}
    given = {"train": TRAIN, "test": TEST, "epochs": 1, "fields": {"batch_size": 8, "optim.learning_rate": 1e-12}}
    run = sdd_jax.train(teacher if kind == "a run" else bare, folder=tmp_path / "run", **given)
    close = {"rtol": 0, "atol": 1e-6}
    jax.tree.map(partial(np.testing.assert_allclose, **close), run.variables, teacher.variables)


@pytest.mark.slow
def test_a_folder_of_small_images_has_their_size_and_stem(tmp_path, capsys):
    sets.write_folder(tmp_path / "images", classes=("a", "b", "c"), train=4, test=2)
    run = sdd_jax.train("resnet8", data=tmp_path / "images", folder=tmp_path / "run", epochs=1)
    assert run.class_names == ("a", "b", "c")
    config = json.loads((run.folder / "config.json").read_text())
    assert config["model"]["stem"] == "cifar" and config["data"]["image_size"] == 40


WRONG = {
    "no data": ({}, "give train=.* or data="),
    "both": ({"train": TRAIN, "test": TEST, "data": "a.npz"}, "give train=.* or data="),
    "no test images": ({"train": TRAIN}, "give train=.* or data="),
    "images alone": ({"train": TRAIN[0], "test": TEST}, "train must be a pair .* got ndarray"),
    "a number": ({"data": 3}, "data must be a Dataset in memory, an .npz file or a folder, got int"),
    "images of float": ({"train": (TRAIN[0] / 255, TRAIN[1]), "test": TEST}, "train_images must be uint8"),
    "no such field": (
        {"train": TRAIN, "test": TEST, "fields": {"optim.rate": 1}},
        "no field 'optim.rate'; the closest",
    ),
    "seeds": ({"train": TRAIN, "test": TEST, "fields": {"seeds": (1, 2)}}, "fields may not have seeds"),
    "another stem": ({"train": TRAIN, "test": TEST, "stem": "imagenet"}, "one stem: got cifar, imagenet"),
    "no such method": ({"train": TRAIN, "test": TEST, "method": "sdd-kd"}, "the closest is 'sdd_kd'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named_and_no_run_is_begun(teacher, tmp_path, case):
    given, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        sdd_jax.distill("resnet8", teacher, folder=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_distillation_without_a_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"distill needs a teacher, got None: sdd_jax\.train"):
        sdd_jax.distill("resnet8", None, method="sdd_dkd", folder=tmp_path / "run", train=TRAIN, test=TEST)
    assert not (tmp_path / "run").exists()


LATE = {  # found in the student's config, before the teacher is trained
    "no such method": ({"method": "sdd_dk"}, "the closest is 'sdd_dkd'"),
    "no such field": ({"fields": {"loss.temprature": 3.0}}, "no field 'loss.temprature'"),
    "a loss of maps": ({"method": "kd+fitnet"}, "FitNet reads the feature map"),
    "another run's folder": ({}, "run is not empty and holds no run"),
}


@pytest.mark.parametrize("case", LATE)
def test_a_students_mistake_is_named_before_its_teacher_is_trained(tmp_path, case):
    given, message = LATE[case]
    if not given:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=message):
        sdd_jax.distill("resnet8", Map(), train=TRAIN, test=TEST, folder=tmp_path / "run", **given)
    assert not (tmp_path / "run-teacher").exists()


@pytest.mark.parametrize("folder", [".", "/", None, 3])
def test_a_folder_without_a_name_is_no_runs(folder):
    with pytest.raises(ValueError, match="folder must be a new folder's name, or that of .*; got "):
        sdd_jax.train(Map(), train=TRAIN, test=TEST, folder=folder)


def test_variables_of_another_network_write_nothing(tmp_path):
    given, there = {"train": TRAIN, "test": TEST, "folder": tmp_path / "run", **QUICK}, init(jax.random.key(0), TEST[0])
    for wrong in ({"weights": there["weights"][:, :2]}, {"wieghts": there["weights"]}):
        for role in (lambda network: sdd_jax.train(network, **given), partial(sdd_jax.distill, "resnet8", **given)):
            with pytest.raises(ValueError, match="does not fit arrays .*w(ei|ie)ghts.* has shape .*, expected"):
                role(((init, apply), wrong))
    assert not [*tmp_path.glob("run*")]
    sdd_jax.train(((init, apply), there), **given)


def test_a_teacher_sees_images_as_it_learned_them(teacher, tmp_path):
    white = np.full((12, *SHAPE), 255, np.uint8), np.arange(12) % CLASSES
    brighter = data.from_arrays(*map(np.concatenate, zip(TRAIN, white, strict=True)), *TEST)
    given = {"data": brighter, "method": "kd", "epochs": 1}
    live = sdd_jax.distill((init, apply), teacher, folder=tmp_path / "live", fields=QUICK["fields"], **given)
    config = run_dir.read_config(live.folder)
    built, expected = build(config), teacher.predict(TEST[0])
    assert built.dataset.mean[0] > run_dir.read_data(teacher.folder)["mean"][0] + 0.1
    assert built.teacher_accuracy == np.mean(expected.argmax(1) == TEST[1])
    batch = {"image": normalize(TEST[0], built.dataset.mean, built.dataset.std)}
    np.testing.assert_allclose(
        jax.nn.softmax(built.teacher.apply(built.teacher.arrays, batch).logits), expected, atol=1e-5
    )
    cache.fill(check(config), tmp_path / "cache", "float32")
    fields = QUICK["fields"] | {"teacher.cache": str(tmp_path / "cache")}
    cached = sdd_jax.distill((init, apply), teacher, folder=tmp_path / "cached", fields=fields, **given)
    chex.assert_trees_all_close(cached.variables, live.variables, atol=1e-5)


def test_classes_in_another_order_are_refused(teacher, tmp_path):
    turned = data.from_arrays(*TRAIN, *TEST, class_names=["2", "0", "1"])
    message = "class '0' is number 0 of .*teacher and number 1 of arrays"
    with pytest.raises(ValueError, match=message):
        sdd_jax.distill("resnet8", teacher, data=turned, folder=tmp_path / "run", **QUICK)
    path = next(tmp_path.glob("data-*.npz"))
    assert re.search(message, call("evaluate", f"--workdir={teacher.folder}", f"--data_path={path}").refused())


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_place_that_is_no_run_is_no_unknown_network(teacher, tmp_path, role):
    networks = {"student": "resnet8", "teacher": teacher, role: f"{tmp_path}/tecaher"}
    with pytest.raises(ValueError, match="tecaher is not a run's folder: it has no config.json"):
        sdd_jax.distill(**networks, train=TRAIN, test=TEST, folder=tmp_path / "run")


def test_the_fields_choose_which_images_choose(tmp_path):
    fields = {**QUICK["fields"], "data.select_on": "test"}
    run = sdd_jax.train(Map(), train=TRAIN, test=TEST, folder=tmp_path / "run", epochs=1, fields=fields)
    done = json.loads((run.folder / "done.json").read_text())
    assert (done["train_examples"], done["select_on"]) == (24, "test")
    held_out = data.from_arrays(*TRAIN, *TEST)
    with pytest.raises(ValueError, match="the Dataset chooses on 'validation', data.select_on is 'test'"):
        sdd_jax.train(Map(), data=held_out, folder=tmp_path / "run", fields=fields)


@pytest.mark.parametrize(
    ("side", "asked", "expected"),
    [
        (128, None, ("cub200", None, None)),
        (128, 32, ("cifar", 32, True)),
        (128, 16, ("cifar", 16, None)),
        (48, None, ("cub200", 48, True)),
        (48, 64, ("cub200", 64, True)),
        (48, 128, ("cub200", 128, None)),
    ],
)
def test_the_size_that_is_asked_for_chooses_the_stem(tmp_path, monkeypatch, side, asked, expected):
    sets.write_folder(tmp_path / "images", classes=("a", "b"), train=2, test=1)
    for file in (tmp_path / "images").rglob("*.png"):
        Image.new("RGB", (side, side)).save(file)
    begun = mock.Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(from_python, "train_groups", begun)
    fields = {} if asked is None else {"data.image_size": asked}
    with pytest.raises(KeyboardInterrupt):
        sdd_jax.train("resnet8", data=tmp_path / "images", folder=tmp_path / "run", fields=fields)
    config = begun.call_args.args[0][0][0].config
    assert (config["model"]["stem"], config["data"]["image_size"], config["data"]["in_memory"]) == expected


def test_a_folder_that_names_code_runs_none_of_it(tmp_path, monkeypatch):
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "evil.py").write_text("raise SystemError('it ran')")
    config = {"imported": {}, "num_classes": CLASSES}
    config["model"] = {"student": "stranger.evil:net", "stem": "cifar", "dtype": "float32"}
    (stranger / "config.json").write_text(json.dumps(config))
    monkeypatch.syspath_prepend(tmp_path)
    given = {"train": TRAIN, "test": TEST}
    for call_it in (partial(sdd_jax.distill, "resnet8"), sdd_jax.train):
        with pytest.raises(ValueError, match="asks for code, stranger.evil:net: none was run"):
            call_it(str(stranger), folder=tmp_path / "run", **given)
        with pytest.raises(ValueError, match="asks for code in itself"):
            call_it(stranger, folder=tmp_path / "run", allow=["stranger.evil:net"], **given)
        with pytest.raises(ValueError, match="asks for code in itself"):
            call_it(stranger, folder=tmp_path / "run", allow="stranger.evil:net", **given)
        with pytest.raises(ValueError, match="none was run"):  # a text is one name, and no part of another
            call_it(stranger, folder=tmp_path / "run", allow="stranger.evil:network", **given)


def test_a_teacher_of_features_alone_is_refused(tmp_path):
    class Trunk(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 4, (3, 3), strides=4, rngs=rngs)

        def __call__(self, images, *, train):
            return self.conv(images)

    for teacher in (Trunk(nnx.Rngs(0)), (Features(), {"params": {}})):
        with pytest.raises(ValueError, match="gives features and has no head"):
            sdd_jax.distill("resnet8", teacher, train=TRAIN, test=TEST, folder=tmp_path / "run")


def test_data_that_differ_in_their_facts_alone_have_files_of_their_own(tmp_path):
    arrays = (*TRAIN, *TEST)
    given = {"epochs": 1, "fields": {"batch_size": 8}}
    facts = ({"flip": True}, {"flip": False, "pad": 0, "select_on": "test"})
    runs = [
        sdd_jax.train(Map(), data=data.from_arrays(*arrays, **one), folder=tmp_path / f"run{number}", **given)
        for number, one in enumerate(facts)
    ]
    configs = [json.loads((run.folder / "config.json").read_text())["data"] for run in runs]
    assert configs[0]["path"] != configs[1]["path"]
    assert [config["select_on"] for config in configs] == ["validation", "test"]
    read = [data.load("arrays", path=config["path"], select_on=config["select_on"]) for config in configs]
    assert [(one.flip, one.pad) for one in read] == [(True, 4), (False, 0)]


@pytest.mark.slow
def test_a_network_alone_is_trained_before_it_teaches(tmp_path):
    fields = {"batch_size": 8, "loss.options.temperature": 2.0}  # the second is of the student's run alone
    given = {"train": TRAIN, "test": TEST, "method": "kd", "epochs": 1, "fields": fields}
    student = sdd_jax.distill("resnet8", Features(), folder=tmp_path / "student", **given)
    assert sdd_jax.load_run(tmp_path / "student-teacher").results["last"]["accuracy"] == pytest.approx(
        np.mean(sdd_jax.load_run(tmp_path / "student-teacher").predict(TEST[0]).argmax(1) == TEST[1])
    )
    assert call("evaluate", f"--workdir={student.folder}").code == 0
    assert call("export", f"--workdir={student.folder}", f"--output={tmp_path}/a.safetensors").code == 0


def test_importing_the_package_loads_none_of_it_before_it_is_used():
    with pytest.raises(AttributeError, match="module 'sdd_jax' has no attribute 'destill'"):
        sdd_jax.destill  # noqa: B018
    assert {"train", "distill", "load_run", "sdd_loss"} <= {*dir(sdd_jax)}
