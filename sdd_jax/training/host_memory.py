"""On CPU: what a step frees stays with the process and serves the next step.

XLA's CPU client takes every array from malloc. glibc gives one of megabytes back to the kernel as soon as it is freed,
and the kernel fills its pages with zeros when the next step takes them again: a fifth to a half of the processor's
seconds of a step of a small network. ``python -m benchmarks.run --only=allocator`` measures it.
"""

import ctypes
import sys
from importlib.util import find_spec

import jax

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# Nothing is given back; nothing is mapped by itself; one heap for all threads, which is the only one without a limit.
SETTINGS = {M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0, M_ARENA_MAX: 1}
ACCELERATORS = ("jax_plugins", "libtpu")  # what JAX looks for devices with, where it is not told which to take


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory, before JAX starts the threads that use it.

    Nothing happens where another device computes, since threads that decode images there would wait for the one heap,
    nor with another C library.

    Returns:
      Whether glibc was told.
    """
    chosen = jax.config.values.get("jax_platforms")
    cpu_alone = chosen == "cpu" if chosen else not any(map(find_spec, ACCELERATORS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return cpu_alone and mallopt is not None and all(mallopt(*setting) for setting in SETTINGS.items())
