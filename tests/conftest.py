"""What every test shares: the CPU, strict rank promotion, and a switch for float64."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")  # a missing axis is an error, not a broadcast


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
