"""``jit`` for programs that run a network, with the libraries that were measured to be fast."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

# XLA's CPU backend hands convolutions, products, reductions and elementwise passes to YNNPACK where it can. Its
# reductions are many times as fast as XLA's own, its convolutions slower than Eigen's, backward above all. Its
# elementwise passes are faster than XLA's, but not those of a depthwise convolution, which is a long chain of slices
# and products here. What is named stays with it, the rest goes to Eigen and XLA; benchmarks/results/cpu.md has
# steps with and without this.
YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
REDUCTIONS, ELEMENTWISE = "LIBRARY_FUSION_TYPE_REDUCE", "LIBRARY_FUSION_TYPE_ELTWISE"


def jit_network(
    function: Callable[..., Any], network: Callable[[], Any], *, platform: str | None = None, **options: Any
) -> Any:
    """``jax.jit(function, **options)``, compiled with the options that are fast on its platform.

    Args:
      function: the program.
      network: calls the network that takes most of its time, a Linen module; it is traced, not run.
      platform: what it is compiled for; None: the default backend.
      options: as ``jax.jit`` has them.
    """
    if (platform or jax.default_backend()) != "cpu":
        return jax.jit(function, **options)
    kept = [REDUCTIONS] if calls_grouped_convolution(network) else [REDUCTIONS, ELEMENTWISE]
    return jax.jit(function, compiler_options=known_options({YNNPACK: ",".join(kept)}), **options)


def calls_grouped_convolution(network: Callable[[], Any]) -> bool:
    """Whether a convolution in groups, depthwise ones among them, is called."""
    groups = [1]

    def look(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.Conv):
            groups.append(context.module.feature_group_count)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(network)
    return max(groups) > 1


def known_options(options: dict[str, str]) -> dict[str, str] | None:
    """``options``, or None where the installed jaxlib does not know them (any more)."""
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options
