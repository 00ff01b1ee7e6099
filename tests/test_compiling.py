"""How programs of networks are compiled."""

import jax.numpy as jnp

from sdd_jax.training import compiling


def test_the_installed_jaxlib_knows_the_options():
    compiling._known_options.cache_clear()
    assert compiling._known_options() == compiling.CPU_OPTIONS


def test_a_jaxlib_that_does_not_know_them_compiles_without(monkeypatch):
    monkeypatch.setattr(compiling, "CPU_OPTIONS", {"xla_cpu_of_another_year": "1"})
    compiling._known_options.cache_clear()
    try:
        double = compiling.jit_network(lambda x: 2 * x, donate_argnums=0)
        assert compiling._known_options() is None and double(jnp.float32(2)) == 4
    finally:
        compiling._known_options.cache_clear()
