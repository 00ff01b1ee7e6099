"""Networks of a user's own, by "module:function": each trains as a student and then serves as a teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import own_networks
import pytest
from test_build import digits

from sdd_jax.build import build
from sdd_jax.models import Classifier, FunctionNetwork, LogitMapClassifier, create_model
from sdd_jax.models.layers import torch_affine_init
from sdd_jax.saved import load_variables
from sdd_jax.sdd import pool_regions
from sdd_jax.training.loop import train

CHAIN = ["own_networks:vit", "own_networks:nnx_convnet", "own_networks:plain_function"]


def test_each_kind_trains_and_teaches_the_next(tmp_path):
    """Linen vision transformer -> NNX module -> plain function, each taught by SDD-KD by the one before."""
    teacher = None
    for number, name in enumerate(CHAIN):
        folder = tmp_path / str(number)
        config = digits(model__student=name, epochs=2)
        if teacher is not None:
            config = digits(
                method="sdd_kd", model__teacher=CHAIN[number - 1], model__student=name, teacher__run=teacher, epochs=2
            )
        built = build(config)
        state = train(built, folder)
        start = built.model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False)
        assert jax.tree.structure(state.params["student"]) == jax.tree.structure(start["params"])
        kept = load_variables(folder, int(state.step))  # what the next one is taught by
        jax.tree.map(np.testing.assert_array_equal, kept["params"], jax.device_get(state.params["student"]))
        if name == "own_networks:nnx_convnet":
            mean = state.batch_stats["network"]["norm"]["mean"]
            assert np.any(mean != 0), "running statistics of an NNX module are updated"
        teacher = str(folder)


def test_the_patch_grid_of_a_vision_transformer_is_its_map():
    model = own_networks.vit(num_classes=5, stem="cifar", dtype=jnp.float32)
    images = jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    outputs, variables = model.init_with_output(jax.random.key(1), images, train=False)
    assert outputs.feature_map.shape == (2, 4, 6, 32)
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
    same = LogitMapClassifier(whole)
    got = same.apply(same.init(jax.random.key(2), images, train=False), images, train=False, pooling=pooling)
    expected = model.apply(variables, images, train=False, pooling=pooling)
    for name in ("logits", "logit_map", "region_logits"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert got.feature_map is None


def test_a_network_without_locations_serves_as_one_region():
    model = LogitMapClassifier(FunctionNetwork(lambda key, x: {}, lambda _, x: x.mean((1, 2))[:, None, None, :]))
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    outputs, _ = model.init_with_output(jax.random.key(1), images, train=False)
    np.testing.assert_allclose(outputs.region_logits, np.repeat(images.mean((1, 2))[:, None], 21, 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: Classifier(f, 3, torch_affine_init), r"trunk must give a feature map \[B,h,w,C\].*got \(2, 3\)"),
        (lambda f: LogitMapClassifier(f), r"network must give a logit map \[B,h,w,K\].*got \(2, 3\)"),
    ],
)
def test_what_gives_no_map_is_refused(make, message):
    network = make(FunctionNetwork(lambda key, x: {}, lambda _, x: x.mean((1, 2))))
    with pytest.raises(ValueError, match=message):
        network.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_network:vit", "No module named 'own_network'.*MODULE:FUNCTION"),
        ("own_networks:vitt", "no attribute 'vitt'"),
        (":vit", "MODULE:FUNCTION"),
        ("own_networks:", "MODULE:FUNCTION"),
        ("own_networks:not_a_network", "gives a function, expected a Classifier or LogitMapClassifier"),
    ],
)
def test_a_name_that_gives_no_network_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 10)
