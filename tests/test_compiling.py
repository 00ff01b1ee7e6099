"""How programs of networks are compiled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from sdd_jax.models import Classifier, create_model
from sdd_jax.models.layers import torch_affine_init
from sdd_jax.training import compiling

ONE_OF_EACH_FAMILY = {
    "resnet8": "cifar",
    "wrn_16_1": "cifar",
    "vgg8": "cifar",
    "vgg11_without_bn": "imagenet",
    "resnet18": "imagenet",
    "mobilenet_v1": "imagenet",
    "mobilenet_v2": "cifar",
    "shufflenet_v1": "cifar",
    "shufflenet_v2": "cifar",
}


def calls_grouped_convolution(model):
    """Whether a convolution in groups, depthwise ones among them, is called; the network is traced, not run."""
    groups = [1]

    def look(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.Conv):
            groups.append(context.module.feature_group_count)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    return max(groups) > 1


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_a_network_says_whether_it_calls_convolutions_in_groups(name):
    model = create_model(name, stem=ONE_OF_EACH_FAMILY[name])
    assert compiling.has_grouped_convolutions(model) == calls_grouped_convolution(model)


class Depthwise(nn.Module):
    grouped_convolutions = True

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Conv(3, (3, 3), feature_group_count=3)(x)


def test_a_network_of_ones_own_may_say_so():
    assert compiling.has_grouped_convolutions(Classifier(Depthwise(), 10, torch_affine_init))


def test_the_installed_jaxlib_knows_the_options():
    for kept in (compiling.REDUCTIONS, f"{compiling.REDUCTIONS},{compiling.ELEMENTWISE}"):
        assert compiling.known_options({compiling.YNNPACK: kept})


def test_a_jaxlib_that_does_not_know_them_compiles_without(monkeypatch):
    monkeypatch.setattr(compiling, "YNNPACK", "xla_cpu_option_of_another_year")
    assert compiling.known_options({compiling.YNNPACK: "1"}) is None
    double = compiling.jit_network(lambda x: 2 * x, create_model("resnet8"), donate_argnums=0)
    assert double(jnp.float32(2)) == 4


def test_the_program_can_be_compiled_without_the_options():
    """`benchmarks.jax_step` does so."""

    def function(x):
        return 2 * x

    assert compiling.jit_network(function, create_model("resnet8")).__wrapped__ is function
