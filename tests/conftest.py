"""What tests share: the CPU, a switch for float64, and strict ranks for the functions of arrays."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def strict_ranks(request):
    """In the tests of losses, regions and metrics a missing axis is an error, not a broadcast."""
    if request.path.stem in ("test_losses", "test_sdd", "test_metrics"):
        with jax.numpy_rank_promotion("raise"):
            yield
    else:
        yield
