"""Networks against the official PyTorch code's outputs, and the parts against formulas of their own."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import weights

from benchmarks.golden import MODELS, NETWORKS, SHAPES, filled, images_of, network_errors, relative_error
from sdd_jax.models import Classifier, create_model, model_names, model_stems
from sdd_jax.models.classifier import HEAD
from sdd_jax.models.layers import BatchNorm, torch_affine_init
from sdd_jax.regions import Regions
from sdd_jax.torch_io import from_state_dict, to_state_dict

# One network of each family, for what need not be shown of all.
FAMILIES = [
    "cifar/resnet20",
    "cifar/wrn_16_2",
    "cifar/vgg8",
    "cifar/MobileNetV2",
    "cifar/ShuffleV1",
    "cifar/ShuffleV2",
    "imagenet/ResNet18",
    "imagenet/MobileNetV2",
]
CLASSES = {"cifar": 100, "imagenet": 1000, "cub200": 200}
LARGE = ("imagenet/ResNet50", "cub200/MobileNetV2", "cub200/ShuffleV1")  # seconds each, for layers that others have


def quick_first(cases, quick):
    """The cases, with a mark on those that are not in `quick`."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def test_every_golden_network_is_here():
    assert NETWORKS.keys() == SHAPES.keys()


@pytest.mark.parametrize(
    "network, dtype",
    [
        pytest.param(network, dtype, marks=[pytest.mark.slow] * (network in LARGE or dtype == "float32"))
        for network in NETWORKS
        for dtype in ("float64", *["float32"] * (network in FAMILIES))
    ],
)
def test_outputs_are_those_of_the_official_code(network, dtype):
    with jax.enable_x64(dtype == "float64"):
        errors = network_errors(network, dtype, jax.jit)
        model = create_model(NETWORKS[network], MODELS[f"{network}/logits"].shape[1], network.split("/")[0], dtype)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(filled(network, model)["params"]))
    assert parameters == SHAPES[network]["parameters"]
    # The large networks' golden values are stored in float32.
    assert max(errors) < (1e-4 if dtype == "float32" else 1e-9 if network.startswith("cifar/") else 1e-5)


@pytest.mark.parametrize("network", quick_first(FAMILIES, ["cifar/vgg8"]))
def test_bfloat16_is_near_float32_and_trains(network):
    stem = network.split("/")[0]
    images = images_of(network, "float32")
    model = create_model(NETWORKS[network], CLASSES[stem], stem, jnp.bfloat16)
    variables = filled(network, model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    expected = MODELS[f"{network}/logits"]
    images = jnp.concatenate([images, jnp.flip(images, 2)])  # two at least: they are normalised together

    def loss(params):
        variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
        outputs, updates = model.apply(variables_, images, train=True, mutable=["batch_stats"])
        return jnp.mean(jax.nn.log_softmax(outputs.region_logits) ** 2), updates

    @jax.jit
    def both(variables):
        outputs = model.apply(variables, images, train=False)
        return outputs, jax.grad(loss, has_aux=True)(variables["params"])

    outputs, (gradients, updates) = both(variables)
    assert outputs.feature_maps[HEAD].dtype == jnp.bfloat16 and outputs.logits.dtype == jnp.float32
    assert 0 < relative_error(outputs.logits[: len(expected)], expected) < 0.02
    for leaf in jax.tree.leaves((gradients, updates)):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
    assert all(np.any(gradient) for gradient in jax.tree.leaves(gradients["head"]))


A_FAMILY_EACH = (
    *("resnet8", "wrn_16_1", "vgg8", "mobilenet_v1", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"),
    *("resnet18", "resnet50"),
)
NEWER = ("vit_", "convnext_", "efficientnet_")  # test_newer_networks.py has them, with few layers


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in model_names() if not name.startswith(NEWER)])
def test_every_stem_traces_at_any_size(name):
    for stem in model_stems(name):
        model = create_model(name, 7, stem)
        for size in (32, 64, 96, 224) if name in A_FAMILY_EACH else (96,):  # strides do not depend on the depth
            images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
            outputs, _ = jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), images)
            height, width = outputs.feature_maps[HEAD].shape[1:3]
            assert height == width and outputs.logits.shape == (2, 7)
            assert outputs.logit_map.shape == (2, height, width, 7) and outputs.region_logits.shape == (2, 21, 7)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize(
    "name, stem",
    [
        ("resnet8", "cifar"),
        ("wrn_16_1", "cub200"),
        ("vgg8", "cifar"),
        ("mobilenet_v1", "imagenet"),
        ("mobilenet_v2", "cub200"),
        ("shufflenet_v1", "cifar"),
        ("shufflenet_v2", "cub200"),
        ("resnet18", "imagenet"),
    ],
)
def test_each_family_runs_at_both_ends(name, stem, size):
    """The global prediction is the mean over all locations, whatever the size: no window is assumed."""
    model = create_model(name, 5, stem)
    blank = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank)
    shapes = {name: array.shape for name, array in to_state_dict(model, blank).items()}
    variables = from_state_dict(model, weights.state_dict(shapes))
    images = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    outputs = jax.jit(partial(model.apply, train=False))(variables, images)
    assert np.isfinite(outputs.logits).all() and np.std(outputs.logits[0] - outputs.logits[1]) > 0
    np.testing.assert_allclose(outputs.logits, outputs.logit_map.mean((1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs.region_logits[:, 0], outputs.logits, rtol=1e-3, atol=1e-4)


def test_vgg_pools_once_more_at_64_rows_alone():
    model = create_model("vgg8", 5)
    sizes = {}
    for height, width in ((56, 64), (64, 64), (64, 56), (65, 64), (128, 128)):
        images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        outputs, _ = jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), images)
        sizes[height, width] = outputs.feature_maps[HEAD].shape[1:3]
    assert sizes == {(56, 64): (7, 8), (64, 64): (4, 4), (64, 56): (4, 3), (65, 64): (8, 8), (128, 128): (16, 16)}


def test_images_too_small_for_a_vgg_are_refused():
    with pytest.raises(ValueError, match="at least 8 pixels"):
        jax.eval_shape(lambda: create_model("vgg8").init(jax.random.key(0), jnp.zeros((1, 7, 32, 3)), train=False))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "resnet8x5"}, "did you mean 'resnet8x4'.*wrn_16_1"),
        ({"name": None}, "unknown model None"),
        ({"name": "resnet8", "stem": "imagenet"}, "no stem 'imagenet'; it has: cifar, cub200"),
        ({"name": "mobilenet_v1", "stem": "cifra"}, "no stem 'cifra'; it has: imagenet"),
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
        ("mobilenet_v2", "cub200", (225, 223, 3), (7, 7, 1280)),
        ("vgg8", "cifar", (39, 47, 1), (4, 5, 512)),
        ("shufflenet_v1", "cifar", (33, 29, 1), (5, 4, 960)),
        ("shufflenet_v2", "cub200", (225, 224, 3), (15, 14, 1024)),
        ("resnet18", "imagenet", (65, 225, 1), (3, 8, 512)),
        ("resnet50", "cifar", (33, 30, 1), (5, 4, 2048)),
        ("mobilenet_v1", "imagenet", (65, 225, 1), (3, 8, 1024)),
    ],
)
def test_any_size_and_number_of_channels(name, stem, size, feature_map):
    model = create_model(name, 7, stem)
    outputs, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, *size)), train=False))
    assert outputs.feature_maps[HEAD].shape == (2, *feature_map)
    assert outputs.logit_map.shape == (2, *feature_map[:2], 7)
    assert outputs.region_logits.shape == (2, 21, 7)
    assert outputs.logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mobilenet_v2", (2, 2, 160)), ("shufflenet_v2", (4, 4, 464)), ("wrn_16_1", (8, 8, 64)), ("vgg8", (4, 4, 512))],
)
def test_the_last_stage_is_the_heads_map_before_what_comes_between(name, shape):
    model = create_model(name, 3)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    outputs, _ = jax.jit(partial(model.init_with_output, train=False))(jax.random.key(1), images)
    last, head = outputs.feature_maps["last_stage"], outputs.feature_maps[HEAD]
    assert last.shape == (2, *shape)
    if name == "wrn_16_1":  # at the start batch normalisation in evaluation does next to nothing
        assert np.min(last) < 0
        np.testing.assert_allclose(head, np.maximum(last, 0), rtol=1e-4)
    if name == "vgg8":
        np.testing.assert_array_equal(last, head)


class Identity(nn.Module):
    """A trunk whose feature map is the image, so that the head stands alone."""

    def __call__(self, images, *, train):
        del train
        return images


@pytest.mark.parametrize("pooling", ["direct", "nested"])
@pytest.mark.parametrize("size", [(2, 2), (4, 4), (8, 8), (7, 7), (3, 9)])
def test_head_and_pooling_commute(size, pooling, x64):
    model = Classifier(Identity(), 5, torch_affine_init, jnp.float64)
    images = jax.random.normal(jax.random.key(0), (2, *size, 6))
    variables = model.init(jax.random.key(1), images, train=False, regions=None)
    head = variables["params"]["head"]
    logit_map = np.asarray(images) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    for scales in ((1,), (1, 2, 4), (1, 3, 4)):
        regions = Regions(scales, pooling)
        outputs = jax.jit(partial(model.apply, train=False, regions=regions))(variables, images)
        expected = regions.pool(logit_map)
        np.testing.assert_allclose(outputs.logit_map, logit_map, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(outputs.region_logits, expected, rtol=1e-12, atol=1e-12)
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
        return model.apply(variables, images, train=False, regions=Regions(scales, pooling)).region_logits

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


def test_the_gradient_of_batch_norm_is_that_of_its_formula(x64):
    """Of what comes out and of both statistics, against what JAX derives from the plain formula."""
    key = jax.random.key(0)
    x = 3 + 2 * jax.random.normal(key, (4, 3, 5, 2))
    variables = {"params": {"scale": jnp.array([0.5, -2.0]), "bias": jnp.array([-1.0, 1.0])}}
    stats = {"mean": jnp.array([0.2, -0.4]), "var": jnp.array([0.7, 1.3])}
    layer, weights = BatchNorm(jnp.float64), jnp.cos(jnp.arange(x.size)).reshape(x.shape)

    def ours(x, params):
        y, updated = layer.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        return y, updated["batch_stats"]["mean"], updated["batch_stats"]["var"]

    def plain(x, params):
        mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        y = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
        return y, 0.9 * stats["mean"] + 0.1 * mean, 0.9 * stats["var"] + 0.1 * var * 60 / 59

    def weighted(function):
        def value(x, params):
            y, mean, var = function(x, params)
            return jnp.sum(y * weights) + mean @ jnp.array([7.0, -5.0]) + var @ jnp.array([3.0, 11.0])

        return jax.jit(jax.value_and_grad(value, (0, 1)))(x, variables["params"])

    chex.assert_trees_all_close(weighted(ours), weighted(plain), rtol=1e-11, atol=1e-13)


def test_batch_norm_adds_up_many_values_without_losing_digits():
    x = (3 + np.random.default_rng(0).normal(size=(64, 32, 32, 2))).astype(np.float32)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x[:2], train=False)
    _, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2), np.float64), x.var((0, 1, 2), np.float64)
    count = x.size // 2
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * var * count / (count - 1), rtol=1e-6)


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
    model = create_model("resnet8")
    variables = filled("cifar/resnet8", model)
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


@pytest.mark.parametrize("network", quick_first(["cifar/resnet8", "imagenet/ResNet18"], ["cifar/resnet8"]))
def test_nan_is_not_hidden(network):
    stem = network.split("/")[0]
    model = create_model(NETWORKS[network], CLASSES[stem], stem)
    images = jnp.zeros((2, 32, 32, 3)).at[0, 0, 0, 0].set(jnp.nan)
    outputs = jax.jit(lambda v, x: model.apply(v, x, train=False))(filled(network, model), images)
    assert np.isnan(outputs.logits[0]).all() and np.isfinite(outputs.logits[1]).all()


def initial_params(name, stem, conv):
    """Initial values of the network's convolution `conv`, its first (or only) normalisation and its head."""
    model = create_model(name, 200, stem)
    images = jnp.zeros((1, 16, 16, 3))

    def draw(key):
        params = model.init(key, images, train=False, regions=None)["params"]
        layer = trunk = params["trunk"]
        for part in conv.split("/"):
            layer = layer[part]
        norm = trunk.get("stem_bn") or trunk.get("final_bn") or trunk["block0_bn0"]
        return layer, norm, params["head"]

    # Compiled, what is not asked for is neither drawn nor computed. Keys of this kind compile fast.
    drawn = jax.jit(draw)(jax.random.key(1, impl="rbg"))
    return jax.tree.map(np.asarray, drawn)


def assert_uniform(array, bound):
    assert 0.97 * bound < np.abs(array).max() <= bound
    assert abs(array.std() / (bound / np.sqrt(3)) - 1) < 4 / np.sqrt(array.size)


@pytest.mark.parametrize(
    "name, stem, conv, deviation",
    [
        ("resnet8x4", "cifar", "stage3_block0/conv2", np.sqrt(2 / (256 * 9))),
        ("wrn_16_2", "cifar", "stage3_block1/conv1", np.sqrt(2 / (128 * 9))),
        ("vgg8", "cifar", "block2_conv0", np.sqrt(2 / (256 * 9))),
        ("mobilenet_v2", "cifar", "stage5_block1/depthwise_conv", np.sqrt(2 / (480 * 9))),
        ("resnet18", "imagenet", "stage4_block0/shortcut_conv", np.sqrt(2 / 512)),
        ("resnet50", "cifar", "stage1_block1/conv3", np.sqrt(2 / 256)),
        # PyTorch's own: uniform within 1 / sqrt(fan_in), the channels of one group
        ("shufflenet_v1", "cifar", "stage2_block3/conv1", np.sqrt(1 / 160 / 3)),
        ("shufflenet_v2", "cifar", "stage2_block3/conv2", np.sqrt(1 / 9 / 3)),
        ("mobilenet_v1", "imagenet", "block5_pointwise_conv", np.sqrt(1 / 256 / 3)),
        ("resnet8x4", "cub200", "stem_conv", np.sqrt(1 / 147 / 3)),
    ],
)
def test_initialisers(name, stem, conv, deviation):
    layer, norm, head = initial_params(name, stem, conv)
    kernel = layer["kernel"]
    uniform = name.startswith("shufflenet") or name == "mobilenet_v1" or stem == "cub200"
    if uniform:
        assert_uniform(kernel, np.sqrt(3) * deviation)
    else:
        assert abs(kernel.std() / deviation - 1) < 4 / np.sqrt(kernel.size)
        assert np.abs(kernel).max() > 2.5 * kernel.std()  # normal, not truncated at two deviations
    assert np.all(layer.get("bias", 0) == 0)
    assert np.all(norm["scale"] == 1) and np.all(norm["bias"] == 0)

    kernel, bias = head["kernel"], head["bias"]
    bound = kernel.shape[0] ** -0.5
    if name in ("mobilenet_v2", "vgg8"):
        assert abs(kernel.std() / 0.01 - 1) < 0.02
    else:
        assert_uniform(kernel, bound)
    if name in ("mobilenet_v2", "vgg8", "wrn_16_2"):
        assert np.all(bias == 0)
    else:
        assert 0.9 * bound < np.abs(bias).max() <= bound


def test_the_head_for_cub200_is_pytorchs_own_but_for_mobilenet_v2():
    """The official code replaces it after the network is initialised, except MobileNetV2's."""
    _, _, head = initial_params("vgg8", "cub200", "block0_conv0")
    assert_uniform(head["kernel"], 512**-0.5)
    assert np.any(head["bias"])
    _, _, head = initial_params("mobilenet_v2", "cub200", "stage5_block1/depthwise_conv")
    assert abs(head["kernel"].std() / 0.01 - 1) < 0.02 and np.abs(head["kernel"]).max() > 1280**-0.5
    assert np.all(head["bias"] == 0)
