"""Networks against the official PyTorch code's outputs, and the parts against formulas of their own."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import weights

from sdd_jax.models import Classifier, create_model, model_names
from sdd_jax.models.layers import BatchNorm, torch_affine_init
from sdd_jax.sdd import pool_regions
from sdd_jax.torch_io import from_state_dict

GOLDEN = Path(__file__).parent / "golden"
SHAPES = json.loads((GOLDEN / "models.json").read_text())

# The official registry's name -> ours; the stem is the part before the slash.
NETWORKS = {
    "cifar/resnet8": "resnet8",
    "cifar/resnet20": "resnet20",
    "cifar/resnet8x4": "resnet8x4",
    "cifar/resnet32x4": "resnet32x4",
    "cifar/wrn_16_2": "wrn_16_2",
    "cifar/wrn_40_2": "wrn_40_2",
    "cifar/MobileNetV2": "mobilenet_v2",
    "imagenet/ResNet18": "resnet18",
}

PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "mobilenet_v2": 812_836,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
}


def relative_error(got, expected):
    return np.max(np.abs(np.asarray(got) - expected)) / np.max(np.abs(expected))


def filled(network, model):
    """The variables that the golden file's rule gives the model."""
    return from_state_dict(model, weights.state_dict(SHAPES[network]["state_dict"]))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_are_those_of_the_official_code(network, dtype):
    stem = network.split("/")[0]
    with np.load(GOLDEN / "models.npz") as golden:
        logits, cells = golden[f"{network}/logits"], golden[f"{network}/cells"]
    with jax.enable_x64(dtype == "float64"):
        model = create_model(NETWORKS[network], logits.shape[1], stem, dtype)
        variables = filled(network, model)
        images = jnp.asarray(weights.images(tuple(SHAPES[network]["input"])).transpose(0, 2, 3, 1), dtype)
        outputs = jax.jit(lambda v, x: model.apply(v, x, train=False, pooling="nested"))(variables, images)
        got_logits, got_cells = jax.device_get((outputs.logits, outputs.region_logits))
    assert got_logits.dtype == got_cells.dtype == dtype
    # The large networks' golden values are stored in float32.
    tolerance = 1e-4 if dtype == "float32" else 1e-9 if stem == "cifar" else 1e-5
    assert relative_error(got_logits, logits) < tolerance
    assert relative_error(got_cells, cells.transpose(0, 2, 1)) < tolerance


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    large = name in ("resnet18", "resnet34")
    model = create_model(name, 1000 if large else 100, "imagenet" if large else "cifar")
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    assert set(variables) == {"params", "batch_stats"}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


def test_every_network_has_its_count():
    assert set(model_names()) == set(PARAMETERS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "resnet8x5"}, "did you mean 'resnet8x4'.*wrn_16_1"),
        ({"name": None}, "unknown model None"),
        ({"name": "resnet8", "stem": "imagenet"}, "no stem 'imagenet'; it has: cifar"),
        ({"name": "resnet18", "stem": "cifra"}, "no stem 'cifra'; it has: imagenet"),
        ({"name": "resnet8", "num_classes": 0}, "at least 1, got 0"),
        ({"name": "resnet8", "dtype": jnp.int32}, "got int32"),
        ({"name": "resnet8", "dtype": "float64"}, "jax_enable_x64"),
    ],
)
def test_create_model_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


@pytest.mark.parametrize("images", [jnp.zeros((32, 32, 3)), jnp.zeros((1, 32, 32, 3), jnp.uint8)])
def test_images_of_the_wrong_rank_or_dtype_are_refused(images):
    with pytest.raises(ValueError, match="images must be"):
        create_model("resnet8").init(jax.random.key(0), images, train=False)


@pytest.mark.parametrize(
    "name, stem, size, feature_map",
    [
        ("resnet8", "cifar", (28, 28, 1), (7, 7, 64)),
        ("resnet8", "cifar", (33, 30, 3), (9, 8, 64)),
        ("resnet8", "cifar", (1, 1, 3), (1, 1, 64)),
        ("wrn_16_1", "cifar", (31, 29, 1), (8, 8, 64)),
        ("mobilenet_v2", "cifar", (35, 17, 1), (3, 2, 1280)),
        ("resnet18", "imagenet", (65, 225, 1), (3, 8, 512)),
    ],
)
def test_any_size_and_number_of_channels(name, stem, size, feature_map):
    model = create_model(name, 7, stem)
    outputs, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, *size)), train=False))
    assert outputs.feature_map.shape == (2, *feature_map)
    assert outputs.logit_map.shape == (2, *feature_map[:2], 7)
    assert outputs.region_logits.shape == (2, 21, 7)
    assert outputs.logits.shape == (2, 7)


class Identity(nn.Module):
    """A trunk whose feature map is the image, so that the head stands alone."""

    def __call__(self, images, *, train):
        del train
        return images


@pytest.mark.parametrize("pooling", ["direct", "nested"])
@pytest.mark.parametrize("size", [(2, 2), (4, 4), (8, 8), (7, 7), (3, 9)])
@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 2, 4), (1, 3, 4)])
def test_head_and_pooling_commute(size, scales, pooling):
    with jax.enable_x64(True):
        model = Classifier(Identity(), 5, torch_affine_init, jnp.float64)
        images = jax.random.normal(jax.random.key(0), (2, *size, 6))
        variables = model.init(jax.random.key(1), images, train=False)
        outputs = model.apply(variables, images, train=False, scales=scales, pooling=pooling)
        head = variables["params"]["head"]
        logit_map = np.asarray(images) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        regions = pool_regions(logit_map, scales, pooling=pooling)
        np.testing.assert_allclose(outputs.logit_map, logit_map, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(outputs.region_logits, regions, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(outputs.logits, logit_map.mean((1, 2)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "size, scales, pooling, places",
    [
        (8, (1, 2, 4), "nested", 16),  # the grid is smaller than the map
        (8, (1, 2), "direct", 4),
        (7, (1, 2), "direct", 5),  # 2 does not tile 7: every region apart
        (2, (1, 2, 4), "nested", 4),  # the map is smaller than the grid
        (4, (1, 2, 4), "direct", 16),
    ],
)
def test_head_runs_on_the_fewer_places(size, scales, pooling, places):
    channels, classes = 64, 400
    model = Classifier(Identity(), classes, torch_affine_init)
    images = jnp.zeros((1, size, size, channels))
    variables = model.init(jax.random.key(0), images, train=False)

    def regions(images):
        return model.apply(variables, images, train=False, scales=scales, pooling=pooling).region_logits

    flops = jax.jit(regions).lower(images).compile().cost_analysis()["flops"]
    assert places <= flops / (2 * channels * classes) < places + 2  # the rest is pooling


def test_batch_norm_is_pytorchs():
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 3, 5, 2))
    scale, bias = np.array([0.5, 2.0]), np.array([-1.0, 1.0])
    old_mean, old_var = np.array([0.2, -0.4]), np.array([0.7, 1.3])
    count = 4 * 3 * 5
    mean = x.sum((0, 1, 2)) / count
    biased = ((x - mean) ** 2).sum((0, 1, 2)) / count
    with jax.enable_x64(True):
        layer = BatchNorm(jnp.float64)
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": old_mean, "var": old_var}}
        trained, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        evaluated = layer.apply(variables, x, train=False)
        stats = jax.device_get(updated["batch_stats"])
    np.testing.assert_allclose(trained, (x - mean) / np.sqrt(biased + 1e-5) * scale + bias, rtol=1e-10)
    np.testing.assert_allclose(evaluated, (x - old_mean) / np.sqrt(old_var + 1e-5) * scale + bias, rtol=1e-10)
    np.testing.assert_allclose(stats["mean"], 0.9 * old_mean + 0.1 * mean, rtol=1e-12)
    np.testing.assert_allclose(stats["var"], 0.9 * old_var + 0.1 * biased * count / (count - 1), rtol=1e-12)


def test_batch_norm_variance_survives_a_large_mean():
    x = 1e4 + np.random.default_rng(0).normal(size=(64, 4, 4, 1))
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), jnp.zeros((2, 1, 1, 1)), train=False)
    y, _ = layer.apply(variables, jnp.asarray(x, jnp.float32), train=True, mutable=["batch_stats"])
    assert abs(float(jnp.std(y)) - 1) < 1e-3  # a difference of mean squares gives 0 or NaN here


def test_batch_norm_keeps_float32_statistics_of_bfloat16():
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3)).astype(jnp.bfloat16)
    layer = BatchNorm(jnp.bfloat16)
    variables = layer.init(jax.random.key(1), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)  # initialising is not a step
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    mean = updated["batch_stats"]["mean"]
    assert y.dtype == jnp.bfloat16 and mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, 0.1 * np.mean(np.asarray(x, np.float64), (0, 1, 2)), rtol=1e-5, atol=1e-8)


def test_batch_norm_refuses_one_value_per_channel():
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 1, 1, 3)), train=False)
    with pytest.raises(ValueError, match="more than one value per channel"):
        jax.eval_shape(
            lambda x: layer.apply(variables, x, train=True, mutable=["batch_stats"]), jnp.zeros((1, 1, 1, 3))
        )


def test_training_updates_statistics_and_gradients_reach_every_parameter():
    model = create_model("wrn_16_2")
    variables = filled("cifar/wrn_16_2", model)
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))

    def loss(params, batch_stats):
        outputs, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(outputs.region_logits**2), updated["batch_stats"]

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], variables["batch_stats"])
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all() and np.any(gradient)
    for new, old in zip(jax.tree.leaves(stats), jax.tree.leaves(variables["batch_stats"]), strict=True):
        assert np.all(new != old)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    model = create_model("resnet8", dtype=jnp.bfloat16)
    variables = filled("cifar/resnet8", model)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    outputs = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    exact = jax.jit(lambda v, x: create_model("resnet8").apply(v, x, train=False))(variables, images)
    assert outputs.feature_map.dtype == jnp.bfloat16
    for name in ("logits", "logit_map", "region_logits"):
        got, expected = getattr(outputs, name), np.asarray(getattr(exact, name))
        assert got.dtype == jnp.float32
        assert 0 < relative_error(got, expected) < 0.05
    gradients = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, images, train=False).logit_map)))(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_nan_is_not_hidden():
    model = create_model("resnet18", 1000, "imagenet")
    images = jnp.zeros((2, 32, 32, 3)).at[0, 0, 0, 0].set(jnp.nan)
    outputs = jax.jit(lambda v, x: model.apply(v, x, train=False))(filled("imagenet/ResNet18", model), images)
    assert np.isnan(outputs.logits[0]).all() and np.isfinite(outputs.logits[1]).all()


@pytest.mark.parametrize(
    "name, stem, conv, fan_out",
    [
        ("resnet8x4", "cifar", ("stage3_block0", "conv2"), 256 * 9),
        ("wrn_16_2", "cifar", ("stage3_block1", "conv1"), 128 * 9),
        ("mobilenet_v2", "cifar", ("stage5_block1", "depthwise_conv"), 480 * 9),
        ("resnet18", "imagenet", ("stage4_block0", "shortcut_conv"), 512),
    ],
)
def test_initialisers(name, stem, conv, fan_out):
    model = create_model(name, 200, stem)
    images = jnp.zeros((1, 16, 16, 3))
    # Compiled: eager initialisation runs the network once, operation by operation.
    params = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(1))["params"]
    kernel = np.asarray(params["trunk"][conv[0]][conv[1]]["kernel"])
    assert abs(kernel.std() / np.sqrt(2 / fan_out) - 1) < 4 / np.sqrt(kernel.size)
    assert np.abs(kernel).max() > 2.5 * kernel.std()  # normal, not truncated at two deviations
    norm = params["trunk"]["final_bn" if name.startswith("wrn") else "stem_bn"]
    assert np.all(norm["scale"] == 1) and np.all(norm["bias"] == 0)

    kernel, bias = np.asarray(params["head"]["kernel"]), np.asarray(params["head"]["bias"])
    if name == "mobilenet_v2":
        assert abs(kernel.std() / 0.01 - 1) < 0.02
    else:
        bound = kernel.shape[0] ** -0.5
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        assert abs(kernel.std() / (bound / np.sqrt(3)) - 1) < 0.02
    if name.startswith("resnet"):
        assert 0.9 * bound < np.abs(bias).max() <= bound
    else:
        assert np.all(bias == 0)
