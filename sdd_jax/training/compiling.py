"""``jit`` for programs that run a network, with the libraries that were measured to be fast."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# XLA's CPU backend hands convolutions, products, reductions and elementwise passes to YNNPACK where it can. Its
# reductions are many times as fast as XLA's own, its convolutions slower than Eigen's, backward above all: what is
# named here stays with it, the rest goes to Eigen. benchmarks/results/cpu.md has times with and without this.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_ELTWISE"}


def jit_network(function: Callable[..., Any], **options: Any) -> Any:
    """``jax.jit(function, **options)``, compiled for the default backend with the options that are fast there."""
    return jax.jit(function, compiler_options=_known_options(), **options)


@functools.cache
def _known_options() -> dict[str, Any] | None:
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # a jaxlib to which the option means nothing (any more)
        return None
    return CPU_OPTIONS
