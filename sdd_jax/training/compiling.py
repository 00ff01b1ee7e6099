"""What was measured to be fast: compiler options of programs that run a network, and on CPU the C library's memory."""

import ctypes
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax

# XLA's CPU backend hands convolutions, products, reductions and elementwise passes to YNNPACK where it can. Its
# reductions are many times as fast as XLA's own; its convolutions are slower than Eigen's, above all backward. Its
# elementwise passes are faster than XLA's, but not those of a depthwise convolution, which is a long chain of slices
# and products here. YNNPACK gets what is named, Eigen and XLA the rest; benchmarks/results/cpu.md has steps with and
# without this.
YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
REDUCTIONS, ELEMENTWISE = "LIBRARY_FUSION_TYPE_REDUCE", "LIBRARY_FUSION_TYPE_ELTWISE"


def jit_network(function: Callable[..., Any], model: Any, *, platform: str | None = None, **options: Any) -> Any:
    """``jax.jit`` with the options that are fast for ``model`` on ``platform``, the default backend if it is None."""
    if (platform or jax.default_backend()) != "cpu":
        return jax.jit(function, **options)
    fusions = REDUCTIONS if has_grouped_convolutions(model) else f"{REDUCTIONS},{ELEMENTWISE}"
    return jax.jit(function, compiler_options=known_options({YNNPACK: fusions}), **options)


def has_grouped_convolutions(model: Any) -> bool:
    """Whether the class of the classifier's trunk or network says so: ``grouped_convolutions = True``."""
    network = getattr(model, "trunk", None) or getattr(model, "network", None)
    return getattr(network, "grouped_convolutions", False)


def known_options(options: dict[str, str]) -> dict[str, str] | None:
    """``options``, or None if the installed jaxlib does not know them."""
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


MALLOC = (  # parameters of glibc's malloc.h, and their values
    (-1, -1),  # M_TRIM_THRESHOLD: nothing is given back
    (-4, 0),  # M_MMAP_MAX: nothing is mapped by itself
    (-8, 1),  # M_ARENA_MAX: one heap for all threads, which is the only one without a limit
)
ACCELERATORS = ("jax_plugins", "libtpu")  # what JAX looks for devices with, where it is not told which to take


def keep_freed_memory() -> bool:
    """On CPU: tells glibc to keep freed memory, before JAX starts the threads that use it; whether it was told.

    XLA's CPU client takes every array from malloc. glibc gives one of megabytes back to the kernel as soon as it is
    freed, and the kernel fills its pages with zeros when the next step takes them again: a fifth to a half of the
    processor's seconds of a step of a small network. ``python -m benchmarks.run --only=allocator`` measures it.

    Nothing happens where another device computes: threads that decode images there would wait for the one heap.
    """
    chosen = jax.config.values.get("jax_platforms")
    cpu_alone = chosen == "cpu" if chosen else not any(map(find_spec, ACCELERATORS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return cpu_alone and mallopt is not None and all(mallopt(*setting) for setting in MALLOC)
