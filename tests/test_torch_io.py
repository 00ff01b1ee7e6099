"""PyTorch state dicts to Flax variables and back. The values are checked in test_models.py."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from golden import weights
from safetensors.numpy import load, save
from test_models import CLASSES, NETWORKS, NEWER, quick_first

from sdd_jax.models import Classifier, create_model, model_names, model_stems
from sdd_jax.models.layers import BatchNorm, torch_affine_init
from sdd_jax.torch_io import from_state_dict, to_state_dict

SHAPES = json.loads((Path(__file__).parent / "golden" / "models.json").read_text())
RESNET8 = SHAPES["cifar/resnet8"]["state_dict"]


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def abstract_variables(model, channels=3):
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    return jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)


# Import finds every name of the golden state dicts in test_models.py; this is export.
@pytest.mark.parametrize("network", quick_first(NETWORKS, ["cifar/ResNet50", "imagenet/ResNet18"]))
def test_names_and_shapes_are_those_of_the_official_code(network):
    stem = network.split("/")[0]
    model = create_model(NETWORKS[network], CLASSES[stem], stem)
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_variables(model))
    shapes = {name: list(array.shape) for name, array in to_state_dict(model, blank).items()}
    assert shapes == SHAPES[network]["state_dict"]


CARRIED = [name for name in model_names() if not name.startswith(NEWER)]


@pytest.mark.parametrize("name", quick_first(CARRIED, ["resnet8", "wrn_16_1", "vgg8"]))
def test_there_and_back_every_byte_is_the_same(name):
    """Export, import, export with every stem, of a large network with one; by way of a safetensors file too."""
    rng = np.random.default_rng(0)
    for stem in model_stems(name)[: 1 if name in ("resnet101", "resnet152", "vgg16", "vgg19") else None]:
        model = create_model(name, 3, stem)
        shapes = abstract_variables(model)
        variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
        state_dict = to_state_dict(model, variables)
        assert all(array.flags.c_contiguous for array in state_dict.values())
        counters = {name: array for name, array in state_dict.items() if name.endswith("num_batches_tracked")}
        assert all(array.dtype == np.int64 and array == 0 for array in counters.values())
        assert len(counters) == len(jax.tree.leaves(shapes.get("batch_stats", {}))) // 2
        again = from_state_dict(model, state_dict)
        assert jax.tree.structure(again) == jax.tree.structure(variables)
        # The values as they came, as integers: no two floats are called equal that are not the same.
        for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(variables), strict=True):
            assert np.array_equal(np.asarray(ours).view("i4"), theirs.view("i4"))
        if sum(array.nbytes for array in state_dict.values()) < 2**28:
            back = load(save(state_dict))
            assert back.keys() == state_dict.keys()
            for key, array in state_dict.items():
                assert back[key].dtype == array.dtype, key
                as_integers = f"i{array.itemsize}"
                assert np.array_equal(back[key].view(as_integers), array.view(as_integers)), key


@pytest.mark.parametrize(
    "name, convolutions",
    [
        ("vgg11", [0, 4, 8, 11, 15, 18, 22, 25]),
        ("vgg11_without_bn", [0, 3, 6, 8, 11, 13, 16, 18]),
    ],
)
def test_a_large_vgg_has_torchvisions_names(name, convolutions):
    model = create_model(name, 3, "imagenet")
    nothing = jax.tree.map(lambda leaf: np.broadcast_to(np.float16(0), leaf.shape), abstract_variables(model))
    kernels = [key for key, array in to_state_dict(model, nothing).items() if array.ndim in (2, 4)]
    expected = [f"features.{number}" for number in convolutions] + [f"classifier.{number}" for number in (0, 3, 6)]
    assert sorted(kernels) == sorted(f"{layer}.weight" for layer in expected)


def test_round_trip_in_float64():
    expected = weights.state_dict(RESNET8)
    with jax.enable_x64(True):
        model = create_model("resnet8", dtype=jnp.float64)
        variables = from_state_dict(model, expected)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float64")}
        assert_same(to_state_dict(model, variables), expected)


def test_layouts():
    state_dict = weights.state_dict(RESNET8)
    variables = from_state_dict(create_model("resnet8"), state_dict)
    trunk = variables["params"]["trunk"]
    kernel = trunk["stage2_block0"]["conv1"]["kernel"]
    weight = state_dict["layer2.0.conv1.weight"]
    assert kernel.dtype == jnp.float32 and kernel.shape == (3, 3, 16, 32)
    assert kernel[0, 2, 5, 7] == np.float32(weight[7, 5, 0, 2])
    assert variables["params"]["head"]["kernel"][3, 9] == np.float32(state_dict["fc.weight"][9, 3])


def test_channels_are_read_from_the_stem():
    shapes = RESNET8 | {"conv1.weight": [16, 1, 3, 3]}
    expected = {name: array.astype("float32") for name, array in weights.state_dict(shapes).items()}
    expected |= {name: np.zeros((), np.int64) for name in shapes if name.endswith("num_batches_tracked")}
    model = create_model("resnet8")
    variables = from_state_dict(model, expected)
    assert variables["params"]["trunk"]["stem_conv"]["kernel"].shape == (3, 3, 1, 16)
    assert_same(to_state_dict(model, variables), expected)


def test_batch_counters_may_be_absent_or_counted():
    model = create_model("resnet8")
    state_dict = weights.state_dict(RESNET8)
    counters = [name for name in state_dict if name.endswith("num_batches_tracked")]
    without = {name: array for name, array in state_dict.items() if name not in counters}
    counted = without | {name: np.int64(3) for name in counters}
    expected = from_state_dict(model, state_dict)
    for other in (without, counted):
        jax.tree.map(np.testing.assert_array_equal, from_state_dict(model, other), expected)


def test_imported_arrays_are_copies():
    state_dict = {name: array.astype("float32") for name, array in weights.state_dict(RESNET8).items()}
    variables = from_state_dict(create_model("resnet8"), state_dict)
    before = np.array(variables["params"]["trunk"]["stem_bn"]["scale"])
    state_dict["bn1.weight"][:] = 0
    np.testing.assert_array_equal(variables["params"]["trunk"]["stem_bn"]["scale"], before)


def test_import_names_everything_that_does_not_fit():
    state_dict = weights.state_dict(RESNET8)
    state_dict["fc.weight"] = np.zeros((10, 64))
    state_dict["bn1.bias"] = np.zeros(16, np.int64)
    del state_dict["layer3.0.bn2.running_var"]
    state_dict |= {"conv9.weight": np.zeros((1, 1)), "fc.num_batches_tracked": np.int64(0)}
    with pytest.raises(ValueError) as caught:
        from_state_dict(create_model("resnet8"), state_dict)
    message = str(caught.value)
    for part in (
        "wrong shape: fc.weight (10, 64), expected (100, 64)",
        "wrong dtype: bn1.bias int64",
        "missing: layer3.0.bn2.running_var (64,)",
        "left over: conv9.weight",
        "left over: fc.num_batches_tracked",
    ):
        assert part in message
    assert len(message.splitlines()) == 6, message


@pytest.mark.parametrize("stem", [None, np.zeros(16), np.zeros((16, 3, 5, 5)), np.zeros((16, 0, 3, 3))])
def test_import_names_a_stem_that_does_not_fit(stem):
    state_dict = weights.state_dict(RESNET8)
    del state_dict["conv1.weight"]
    if stem is not None:
        state_dict["conv1.weight"] = stem
    with pytest.raises(ValueError, match=r"(missing|wrong shape): conv1.weight"):
        from_state_dict(create_model("resnet8"), state_dict)


def test_export_names_everything_that_does_not_fit():
    variables = from_state_dict(create_model("resnet8"), weights.state_dict(RESNET8))
    params = dict(variables["params"])
    params["neck"] = {"kernel": params["head"]["kernel"]}
    params["head"] = {"bias": np.zeros(7, np.float32)}
    with pytest.raises(ValueError) as caught:
        to_state_dict(create_model("resnet8"), {"params": params, "batch_stats": variables["batch_stats"]})
    message = str(caught.value)
    for part in ("missing: params/head/kernel", "left over: params/neck/kernel", "wrong shape: params/head/bias (7,)"):
        assert part in message


# ---------------------------------------------------------------------- prefixes and wrappers


def prefixed(prefix):
    return {prefix + name: array for name, array in weights.state_dict(RESNET8).items()}


OPTIMIZER = {"state": {0: {"momentum_buffer": np.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
WRAPPED = {
    "bare": prefixed(""),
    "of several devices": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "prefix upon prefix": prefixed("module.student."),
    "in an entry": {"model": prefixed(""), "epoch": 240, "accuracy": np.float32(79.4)},
    "in an entry with a prefix": {"state_dict": prefixed("module."), "optimizer": OPTIMIZER, "best_acc1": 0.7},
    "in an entry of another name": {"net": prefixed("")},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_prefixes_and_wrappers_are_seen_through(case):
    model = create_model("resnet8")
    expected = from_state_dict(model, weights.state_dict(RESNET8))
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(model, WRAPPED[case]), expected)


def test_of_several_networks_one_is_chosen():
    model = create_model("resnet8")
    student, teacher = (weights.state_dict(RESNET8, seed) for seed in (1, 2))
    both = {f"module.student.{name}": array for name, array in student.items()}
    both |= {f"module.teacher.{name}": array for name, array in teacher.items()}
    expected = from_state_dict(model, student)
    chosen = from_state_dict(model, {"model": both}, prefix="module.student.")
    jax.tree.map(np.testing.assert_array_equal, chosen, expected)
    with pytest.raises(ValueError, match="stand under module.student., module.teacher.: say which .* with prefix"):
        from_state_dict(model, both)

    entries = {"model": student, "model_ema": teacher}
    chosen = from_state_dict(model, entries, entry="model")
    jax.tree.map(np.testing.assert_array_equal, chosen, expected)
    with pytest.raises(ValueError, match="are model, model_ema: say which one is meant with entry"):
        from_state_dict(model, entries)
    with pytest.raises(ValueError, match="'ema' is none of them"):
        from_state_dict(model, entries, entry="ema")


def test_a_checkpoint_without_weights_is_refused():
    with pytest.raises(ValueError, match="no state dict .* epoch, optimizer"):
        from_state_dict(create_model("resnet8"), {"epoch": 3, "optimizer": OPTIMIZER})
    with pytest.raises(
        ValueError, match="no name starts with the prefix 'student.'; the first is 'module.conv1.weight'"
    ):
        from_state_dict(create_model("resnet8"), prefixed("module."), prefix="student.")
    with pytest.raises(ValueError, match="is a state dict itself: it has no entry 'model'"):
        from_state_dict(create_model("resnet8"), prefixed(""), entry="model")
    with pytest.raises(ValueError, match="no state dict"):
        from_state_dict(create_model("resnet8"), {0: np.zeros(3)})


def test_torchvisions_names_fit_a_resnet_of_either_stem():
    """Its ResNets are often given a stem for CIFAR; the names stay."""
    model = create_model("resnet18", 10)
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_variables(model))
    ours = {name: weights.fill(name, array.shape) for name, array in to_state_dict(model, blank).items()}
    theirs = {
        name.replace("shortcut", "downsample").replace("linear", "fc"): array.astype(np.float32)
        for name, array in ours.items()
    }
    assert "layer2.0.downsample.1.running_var" in theirs and "fc.bias" in theirs
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(model, theirs), from_state_dict(model, ours))


# ---------------------------------------------------------------------- other networks


class Attention(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return self.param("tokens", nn.initializers.ones, (2, 3, 4, 1, 1)) * images[..., :1].sum()


def test_a_table_of_ones_own_serves_another_network():
    model = Classifier(tiny.Trunk(), 3, torch_affine_init)
    table = [("trunk/conv#", "features.#"), ("trunk/bn#", "norms.#"), ("head", "last")]
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), abstract_variables(model, channels=1))
    state_dict = to_state_dict(model, variables, table=table)
    assert state_dict["features.0.weight"].shape == (8, 1, 3, 3) and "norms.1.running_mean" in state_dict
    again = from_state_dict(model, {"net": state_dict}, table=table)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    with pytest.raises(ValueError, match="no PyTorch name is known for params/head/"):
        to_state_dict(model, variables, table=table[:2])
    with pytest.raises(
        ValueError, match="conv0/kernel and params/trunk/conv1/kernel one PyTorch name, features.weight"
    ):
        to_state_dict(model, variables, table=[("trunk/conv#", "features"), *table[1:]])
    with pytest.raises(ValueError, match="table of PyTorch names is empty"):
        to_state_dict(model, variables, table=[])


class Patches(nn.Module):
    """With a position embedding, whose shape follows from the size of the images."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(6, (16, 16), strides=16, name="patches")(images)
        tokens = x.reshape(len(x), -1, 6)
        return (tokens + self.param("positions", nn.initializers.normal(1.0), (1, *tokens.shape[1:]))).reshape(x.shape)


def test_shapes_that_follow_from_the_size_of_the_images_need_it():
    model, table = Classifier(Patches(), 3, torch_affine_init), [("trunk/patches", "proj"), ("trunk/positions", "pos")]
    table.append(("head", "last"))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    state_dict = to_state_dict(model, variables, table=table, image_size=64)
    assert state_dict["pos"].shape == (1, 16, 6)
    again = from_state_dict(model, state_dict, table=table, image_size=64)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    here = r"wrong shape: {} .*, expected .*\n  at images of 32x32 pixels \(image_size says otherwise\)$"
    with pytest.raises(ValueError, match=here.format("pos")):
        from_state_dict(model, state_dict, table=table)
    with pytest.raises(ValueError, match=here.format("params/trunk/positions")):
        to_state_dict(model, variables, table=table)
    with pytest.raises(ValueError, match="missing: pos .*6\\)$"):
        from_state_dict(
            model, {name: state_dict[name] for name in state_dict if name != "pos"}, table=table, image_size=64
        )
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        to_state_dict(model, variables, table=table, image_size=0)


def test_a_network_without_a_table_is_refused():
    state_dict = weights.state_dict(RESNET8)
    with pytest.raises(ValueError, match="BatchNorm: give one as table=; known: .*WideResNet"):
        from_state_dict(Classifier(BatchNorm(), 3, torch_affine_init), state_dict)
    with pytest.raises(ValueError, match=r"tokens .*\(2, 3, 4, 1, 1\)"):
        from_state_dict(Attention(), state_dict, table=[("#", "conv1")])
