"""``jit`` for programs that run a network, with the compiler options that were measured to be fast."""

from collections.abc import Callable
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
    """``jax.jit(function, **options)`` with the compiler options that are fast for ``model`` on ``platform``.

    ``model`` is the network that takes most of the time; without a platform it is the default backend.
    """
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
