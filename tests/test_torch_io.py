"""PyTorch state dicts to Flax variables and back. The values are checked in test_models.py."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import weights

from sdd_jax.models import Classifier, create_model, model_names
from sdd_jax.models.layers import BatchNorm, torch_affine_init
from sdd_jax.torch_io import from_state_dict, to_state_dict

SHAPES = json.loads((Path(__file__).parent / "golden" / "models.json").read_text())
RESNET8 = SHAPES["cifar/resnet8"]["state_dict"]


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize(
    "network, name",
    [
        ("cifar/resnet8x4", "resnet8x4"),
        ("cifar/wrn_16_2", "wrn_16_2"),
        ("cifar/MobileNetV2", "mobilenet_v2"),
        ("imagenet/ResNet18", "resnet18"),
    ],
)
def test_round_trip_is_exact(network, name):
    shapes = SHAPES[network]["state_dict"]
    stem = network.split("/")[0]
    expected = weights.state_dict(shapes)
    with jax.enable_x64(True):
        model = create_model(name, 1000 if stem == "imagenet" else 100, stem, jnp.float64)
        variables = from_state_dict(model, expected)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float64")}
        assert_same(to_state_dict(model, variables), expected)


@pytest.mark.parametrize("name", [name for name in model_names() if name not in ("resnet110", "resnet34")])
def test_variables_survive_the_other_way(name):
    stem = "imagenet" if name == "resnet18" else "cifar"
    model = create_model(name, 10, stem)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)
    state_dict = to_state_dict(model, variables)
    again = from_state_dict(model, state_dict)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert all(array.flags.c_contiguous for array in state_dict.values())


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
    assert len(message.splitlines()) == 6


@pytest.mark.parametrize("stem", [None, np.zeros(16), np.zeros((16, 3, 5, 5))])
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


def test_a_trunk_without_a_table_is_refused():
    with pytest.raises(ValueError, match="BatchNorm; known: .*WideResNet"):
        from_state_dict(Classifier(BatchNorm(), 3, torch_affine_init), {})
