"""Compiler options that are right, and the C library's memory, for programs that run a network on CPU."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

# XLA's CPU backend hands to YNNPACK what this option names. A fusion that starts at a reduction or at an elementwise
# pass takes in what feeds it, products too, and products of a fusion are wrong with broadcast constants: `PROBES` has
# what jaxlib 0.10.2, 0.11.2 and 0.12.0.1 return garbage for, the first of them under the library's own set as well. So
# no set with REDUCE, ELTWISE or DOT is safe. INDIVIDUAL_DOT and INDIVIDUAL_CONVOLUTION, which take single operations,
# added no fault in 2,000 drawn programs, and brought 1 to 5 % of a step, which is what two runs differ by. What is
# given up: docs/speed.md. How sets are tried: tests/drawn_programs.py.
YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
OFF = ""
# By jaxlib's series, such as "0.13": sets to take instead of OFF, fastest first, each unless a probe is wrong under it.
# None so far. A line here needs thousands of drawn programs without a fault.
FASTER: dict[str, tuple[str, ...]] = {}
ONCE = {"xla_backend_optimization_level": 1}  # of LLVM; XLA's own is 3


class Probe(NamedTuple):
    """A program that some jaxlib computes wrong under some set: `program(x)`, and what is right, of NumPy's `x`."""

    shape: tuple[int, int]
    program: Callable[[Any], Any]
    right: Callable[[np.ndarray], np.ndarray]


PROBES = {  # none shares a product with another, or that would not be fused
    "sum(x @ ones)": Probe(
        (1344, 64), lambda x: jnp.sum(x @ jnp.ones((64, 7), x.dtype), 0), lambda x: np.full(7, x.sum())
    ),
    "logsumexp((x @ ones) * 0.1)": Probe(
        (1344, 65),
        lambda x: jax.nn.logsumexp((x @ jnp.ones((65, 7), x.dtype)) * 0.1, 1),
        lambda x: x.sum(1) * 0.1 + np.log(7),
    ),
    "logsumexp(x @ (ones * 0.1))": Probe(
        (1344, 66),
        lambda x: jax.nn.logsumexp(x @ (jnp.ones((66, 7), x.dtype) * 0.1), 1),
        lambda x: x.sum(1) * 0.1 + np.log(7),
    ),
    "sum((eye @ row) ** 2)": Probe(  # jax issue 39103: one row, of 0.10.2
        (32_769, 3), jax.vmap(lambda row: jnp.sum((jnp.eye(3, dtype=row.dtype) @ row) ** 2)), lambda x: (x**2).sum(1)
    ),
}


def jit_network(
    function: Callable[..., Any], *, platform: str | None = None, once: bool = False, **options: Any
) -> Any:
    """``jax.jit`` with the options that are right and fast on ``platform``, the default backend if it is None.

    A program that runs ``once`` is compiled in half the time on CPU, returns the same bits, and takes longer itself.
    """
    if (platform or jax.default_backend()) != "cpu":
        return jax.jit(function, **options)
    return jax.jit(function, compiler_options=(cpu_options() or {}) | (ONCE if once else {}), **options)


@cache
def cpu_options() -> dict[str, str] | None:
    """The options of networks' programs on CPU, after the probes were right under them; None: jaxlib has no YNNPACK.

    ``ValueError`` if a probe is wrong without YNNPACK too.
    """
    version, message = jaxlib.__version__, ""
    for fusions in (*FASTER.get(".".join(version.split(".")[:2]), ()), OFF):
        options = known_options({YNNPACK: fusions})
        if not (wrong := wrong_probes(options)):
            return options
        message = f"jaxlib {version} computes {', '.join(wrong)} wrong on this CPU with {YNNPACK}={fusions!r}"
        if fusions != OFF and jax.process_index() == 0:
            print(f"{message}: networks do without that set", file=sys.stderr, flush=True)
    raise ValueError(f"{message}: install another jaxlib")


def wrong_probes(options: dict[str, str] | None) -> list[str]:
    """The names of the probes that return something else than they have to under ``options``, in one program."""
    arrays = [np.arange(np.prod(probe.shape)).reshape(probe.shape) % 7 - 2.0 for probe in PROBES.values()]
    run = jax.jit(
        lambda arrays: [probe.program(x) for probe, x in zip(PROBES.values(), arrays, strict=True)],
        compiler_options=options,
    )
    device = jax.local_devices(backend="cpu")[0]
    results = jax.device_get(run(jax.device_put([x.astype(np.float32) for x in arrays], device)))
    return [
        name
        for (name, probe), x, result in zip(PROBES.items(), arrays, results, strict=True)
        if not np.allclose(result, probe.right(x), rtol=1e-4)
    ]


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
