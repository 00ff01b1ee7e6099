"""What tests share: the CPU, a switch for float64, and strict ranks for the functions of arrays."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Programs are compiled once for all workers and for the commands that they start, in a folder of this run's own.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sdd_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    # Most of the time goes into compiling small programs. The quickstart (test_pages) is compiled as a user's is.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    # As the program does for itself (sdd_jax.training.host_memory), before the workers start.
    os.environ |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    # A worker for each core: PyTorch's threads would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"])

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def strict_ranks(request):
    """In the tests of losses, regions and metrics a missing axis is an error, not a broadcast."""
    of_arrays = ("losses", "correlation", "standardize", "sdd", "metrics", "properties")
    if request.path.stem.removeprefix("test_") in of_arrays:
        with jax.numpy_rank_promotion("raise"):
            yield
    else:
        yield
