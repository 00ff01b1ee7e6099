"""Vision transformers, ConvNeXt and EfficientNet: what their maps mean, their names, and their outputs in PyTorch."""

import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_trunks

from sdd_jax.models import create_model, same_network
from sdd_jax.models.classifier import CLASS_TOKEN, HEAD
from sdd_jax.models.convnext import PooledNorm
from sdd_jax.regions import Regions
from sdd_jax.torch_io import from_state_dict, to_state_dict
from sdd_jax.training.teacher_cache import Layout, outputs_of_rows, teacher_rows

CLASSES = 5


def small(name, dtype=jnp.float32):
    return getattr(small_trunks, name)(num_classes=CLASSES, stem="imagenet", dtype=dtype)


def drawn(model, size=(32, 32), dtype=np.float32, seed=0):
    """Variables of any value, none of which leaves a layer out, and images."""
    images = jnp.zeros((1, *size, 3), dtype)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    rng = np.random.default_rng(seed)
    positive = ("scale", "var", "gamma")

    def draw(path, leaf):
        if path[-1].key in positive:
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 10
        return (rng.standard_normal(leaf.shape) / np.sqrt(fan_in)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes), rng.standard_normal((2, *size, 3)).astype(dtype)


@pytest.mark.parametrize("pooling", ["direct", "nested"])
def test_the_class_token_is_the_prediction_and_region_zero(pooling, x64):
    model = small("vit", jnp.float64)
    variables, images = drawn(model, (64, 96), np.float64)
    regions = Regions((1, 2), pooling)
    outputs = jax.jit(partial(model.apply, train=False, regions=regions))(variables, images)
    head = variables["params"]["head"]
    token, patches = outputs.feature_maps[CLASS_TOKEN], outputs.feature_maps[HEAD]
    assert token.shape == (2, 1, 1, 32) and patches.shape == (2, 4, 6, 32)
    np.testing.assert_allclose(outputs.logits, token[:, 0, 0] @ head["kernel"] + head["bias"], rtol=1e-12)
    np.testing.assert_allclose(outputs.logit_map, patches @ head["kernel"] + head["bias"], rtol=1e-12, atol=1e-12)
    expected = np.asarray(regions.pool(outputs.logit_map)).copy()
    assert np.abs(expected[:, 0] - outputs.logits).max() > 0.01  # another number: the mean of the patches
    expected[:, 0] = outputs.logits
    np.testing.assert_allclose(outputs.region_logits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name, scales, pooling",
    [
        ("vit", (1, 2), "direct"),
        ("vit", (1, 3), "direct"),  # no grid serves: every region is kept
        ("vit", (1, 2, 4), "nested"),
        ("vit_gap", (1, 2), "direct"),
    ],
)
def test_a_cached_teacher_has_the_regions_of_a_live_one(name, scales, pooling, x64):
    model, regions = small(name, jnp.float64), Regions(scales, pooling)
    variables, images = drawn(model, (64, 64), np.float64)
    layout = Layout(regions, regions.grid(4, 4), name == "vit")

    @jax.jit
    def both(variables, images):
        rows = teacher_rows(model, variables, images, layout)
        return model.apply(variables, images, train=False, regions=regions), outputs_of_rows(rows, layout)

    live, cached = both(variables, images)
    np.testing.assert_allclose(cached.region_logits, live.region_logits, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(cached.logits, live.logits, rtol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 7)])
def test_convnexts_map_averages_to_the_normalised_mean(size, x64):
    x = 3 + np.random.default_rng(0).standard_normal((2, *size, 6)) * np.arange(1, 7)
    scale, bias = np.linspace(0.5, 2, 6), np.linspace(-1, 1, 6)
    found = PooledNorm(jnp.float64).apply({"params": {"scale": scale, "bias": bias}}, x)
    mean = x.mean((1, 2))
    expected = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-6) * scale + bias
    np.testing.assert_allclose(found.mean((1, 2)), expected, rtol=1e-12, atol=1e-12)
    if size == (1, 1):
        np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-12, atol=1e-12)
    else:  # and no location depends on another but through the deviation
        assert np.abs(np.diff(np.asarray(found), axis=1)).max() > 0.1


@pytest.mark.parametrize(
    "name, size, message",
    [
        ("vit", (224, 225), "whole patches of 16 pixels, got 224x225"),
        ("vit_gap", (8, 16), "whole patches of 16 pixels, got 8x16"),
        ("convnext", (31, 64), "at least 32 pixels a side, got 31x64"),
    ],
)
def test_images_that_leave_nothing_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: small(name).init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False))


@pytest.mark.parametrize(
    "name, size, channels, expected",
    [
        ("vit", (16, 48), 1, (1, 3, 32)),
        ("convnext", (33, 99), 1, (1, 3, 20)),
        ("efficientnet", (31, 17), 1, (8, 5, 1280)),
    ],
)
def test_any_size_and_number_of_channels(name, size, channels, expected):
    images = jnp.zeros((2, *size, channels))
    outputs, _ = jax.eval_shape(lambda: small(name).init_with_output(jax.random.key(0), images, train=False))
    assert outputs.feature_maps[HEAD].shape == (2, *expected)
    assert outputs.logit_map.shape == (2, *expected[:2], CLASSES) and outputs.region_logits.shape == (2, 21, CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "convnext", "efficientnet"])
def test_in_bfloat16_weights_stay_float32_and_every_one_is_trained(name):
    model, exact = small(name, jnp.bfloat16), small(name)
    variables, images = drawn(model)

    def loss(params):
        given = {**variables, "params": params}
        outputs, _ = model.apply(given, images, train=True, mutable=["batch_stats"])
        return jnp.mean(jax.nn.log_softmax(outputs.region_logits) ** 2)

    logits = jax.jit(partial(model.apply, train=False))(variables, images).logits
    expected = jax.jit(partial(exact.apply, train=False))(variables, images).logits
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())
    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(variables["params"])):
        keys = "/".join(key.key for key in path)
        assert gradient.dtype == jnp.float32 and np.isfinite(gradient).all(), keys
        assert np.any(gradient), keys


# SHA-256 of the sorted lines "name shape" of timm 1.0.31 and torchvision 0.28.0, and how many there are.
NAMES = {
    ("vit_tiny", "timm"): (152, "e1821155d0eba217"),
    ("vit_base", "torchvision"): (152, "2c2360f6707280a8"),
    ("convnext_tiny", "timm"): (182, "b07384a3160b01d8"),
    ("convnext_tiny", "torchvision"): (182, "ddd0f74f783edf2b"),
    ("efficientnet_b0", "timm"): (360, "9311fe3ac4384e5f"),
    ("efficientnet_b0", "torchvision"): (360, "98a6d92c040c4bca"),
    ("resnet50", "timm"): (320, "a87e91cd6bd1f939"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name, names", NAMES)
def test_names_and_shapes_are_those_of_timm_and_torchvision(name, names):
    model = create_model(name, 1000, "imagenet")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    found = to_state_dict(model, blank, names=names)
    lines = "\n".join(sorted(f"{key} {array.shape}" for key, array in found.items()))
    assert (len(found), hashlib.sha256(lines.encode()).hexdigest()[:16]) == NAMES[name, names]


@pytest.mark.parametrize("name", small_trunks.NAMES)
def test_both_libraries_names_there_and_back(name):
    model = small(name)
    variables, _ = drawn(model)
    first, second = (to_state_dict(model, variables, names=names) for names in ("timm", "torchvision"))
    assert len(first) == len(second) and not first.keys() & second.keys()
    for state_dict in (first, second):
        again = from_state_dict(model, {f"module.{key}": array for key, array in state_dict.items()})
        jax.tree.map(np.testing.assert_array_equal, again, variables)
    with pytest.raises(ValueError, match="names of timm, torchvision; got 'mdistiller'"):
        to_state_dict(model, variables, names="mdistiller")


def test_layer_scales_have_the_axes_of_torchvision():
    model = small("convnext")
    variables, _ = drawn(model)
    state_dict = to_state_dict(model, variables, names="torchvision")
    assert state_dict["features.1.0.layer_scale"].shape == (8, 1, 1)
    with pytest.raises(ValueError, match=r"wrong shape: features.1.0.layer_scale \(8,\), expected \(8, 1, 1\)"):
        from_state_dict(model, state_dict | {"features.1.0.layer_scale": np.zeros(8, np.float32)})


def test_deits_are_the_vision_transformers_of_their_size():
    assert create_model("deit_small", 7, "imagenet") == create_model("vit_small", 7, "imagenet")
    assert same_network("deit_small", "vit_small") and not same_network("deit_small", "vit_tiny")
    with pytest.raises(ValueError, match="no stem 'cifar'; it has: imagenet"):
        create_model("deit_tiny", 7)


@pytest.mark.slow
def test_initial_values():
    model = small("convnext")
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)["params"]
    block = params["trunk"]["stage3_block0"]
    assert np.all(block["gamma"] == np.float32(1e-6)) and np.all(block["dense1"]["bias"] == 0)
    assert abs(np.std(block["dense1"]["kernel"]) / 0.02 - 1) < 0.1
    head = create_model("efficientnet_b0", 10, "imagenet").head_init(1280)[0](jax.random.key(0), (1280, 10))
    assert 0.99 * 10**-0.5 < np.abs(head).max() <= 10**-0.5


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (96, 64)])
@pytest.mark.parametrize("name", small_trunks.NAMES)
def test_pytorchs_logits_and_those_here(name, size):
    """Plain modules under timm's names; 224 pixels leave the position embeddings as they are, 96x64 do not."""
    torch = pytest.importorskip("torch")
    import torch_trunks

    modules = {
        "vit": partial(torch_trunks.ViT, 32, 2, 2, CLASSES, True),
        "vit_gap": partial(torch_trunks.ViT, 32, 2, 2, CLASSES, False),
        "convnext": partial(torch_trunks.ConvNeXt, (1, 2, 1, 1), (8, 12, 16, 20), CLASSES),
        "efficientnet": partial(torch_trunks.EfficientNet, small_trunks.STAGES, CLASSES),
    }
    module, model = modules[name]().eval(), small(name)
    variables, images = drawn(model, size)
    tensors = {key: torch.from_numpy(array) for key, array in to_state_dict(model, variables).items()}
    module.load_state_dict(tensors)  # every name, no other
    with torch.no_grad():
        expected = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    outputs = jax.jit(partial(model.apply, train=False))(variables, images)
    np.testing.assert_allclose(outputs.logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if name == "vit":
        with torch.no_grad():
            patches = module.head(module.tokens(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[:, 1:])
        found = np.asarray(outputs.logit_map).reshape(patches.shape)
        np.testing.assert_allclose(found, patches.numpy(), rtol=0, atol=1e-5 * np.abs(expected).max())
    else:
        np.testing.assert_allclose(outputs.logit_map.mean((1, 2)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
