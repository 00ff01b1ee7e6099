"""What tests share: the CPU, kept programs, drawn examples, a count of memory, a quick tier without PyTorch."""

import atexit
import ctypes
import gc
import os
import resource
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if not IS_WORKER:
    # Most of the time goes into compiling small programs: these flags make it a quarter. The quickstart (test_pages) is
    # compiled as a user's is (tests/commands.py).
    quick_to_compile = "--xla_backend_optimization_level=0"
    if version("jaxlib").startswith("0.10."):  # later ones do not know it, and end the process
        quick_to_compile += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_to_compile}"
    # The commands that tests start share their programs, in a folder of this run's own: some of them are killed, and
    # a killed process may leave half a program.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sdd_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"])
    # A worker for each core: PyTorch's threads would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["MALLOC_ARENA_MAX"] = "2"  # less memory, and no slower

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# Programs of the tests' own processes are kept for the next run.
KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdd_jax" / "tests"
KEPT_BYTES = 2**30
MEMORY = 1.2e9  # bytes of a worker, after which its programs are let go
LINUX = sys.platform == "linux"
jax.config.update("jax_compilation_cache_dir", str(KEPT))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# python -m pytest --hypothesis-profile=ci
drawn = {"derandomize": True, "deadline": None, "database": None, "print_blob": True}
drawn["suppress_health_check"] = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("quick", max_examples=10, **drawn)
hypothesis.settings.register_profile("ci", max_examples=50, **drawn)
hypothesis.settings.register_profile("long", max_examples=2000, **{**drawn, "derandomize": False})
hypothesis.settings.load_profile("quick")


class WithoutTorch:
    """The quick tier needs no PyTorch: where it is installed, it is not found."""

    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("the quick tier has no torch: mark the test slow", name="torch")


def pytest_configure(config):
    if config.option.markexpr == "not slow":
        sys.meta_path.insert(0, WithoutTorch())
    if not IS_WORKER:
        config.peak_memory = {}
        if sum(file.stat().st_size for file in KEPT.glob("*")) > KEPT_BYTES:
            shutil.rmtree(KEPT)


@pytest.fixture(autouse=True)
def bounded_memory():
    """Compiled programs, of about 1 MB each even if they add two numbers, are let go before they fill the memory."""
    yield
    if LINUX and int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() > MEMORY:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def pytest_sessionfinish(session):
    if IS_WORKER:
        session.config.workeroutput["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.peak_memory[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_memory", 0)


def pytest_terminal_summary(terminalreporter, config):
    peaks = config.peak_memory or {"this process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    told = (f"{name} {kilobytes / 2**20:.1f} GB" for name, kilobytes in sorted(peaks.items()))
    terminalreporter.write_line(f"peak memory: {', '.join(told)}")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def strict_ranks(request):
    """In the tests of losses, regions and metrics a missing axis is an error, not a broadcast."""
    of_arrays = ("losses", "newer_losses", "correlation", "standardize", "sdd", "metrics", "properties")
    if request.path.stem.removeprefix("test_") in of_arrays:
        with jax.numpy_rank_promotion("raise"):
            yield
    else:
        yield
