"""How programs of networks are compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from sdd_jax.models import create_model
from sdd_jax.training import compiling


def network(name):
    images = jnp.zeros((1, 32, 32, 3))
    return partial(create_model(name).init, jax.random.key(0), images, train=False)


@pytest.mark.parametrize(
    ("name", "grouped"), [("resnet8", False), ("vgg8", False), ("mobilenet_v2", True), ("shufflenet_v1", True)]
)
def test_networks_with_convolutions_in_groups_are_known(name, grouped):
    assert compiling.calls_grouped_convolution(network(name)) == grouped


def test_the_installed_jaxlib_knows_the_options():
    for kept in (compiling.REDUCTIONS, f"{compiling.REDUCTIONS},{compiling.ELEMENTWISE}"):
        assert compiling.known_options({compiling.YNNPACK: kept})


def test_a_jaxlib_that_does_not_know_them_compiles_without(monkeypatch):
    monkeypatch.setattr(compiling, "YNNPACK", "xla_cpu_option_of_another_year")
    assert compiling.known_options({compiling.YNNPACK: "1"}) is None
    double = compiling.jit_network(lambda x: 2 * x, network("resnet8"), donate_argnums=0)
    assert double(jnp.float32(2)) == 4
