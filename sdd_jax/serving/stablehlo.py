"""A network as StableHLO: one file that JAX on CPU, GPU and TPU runs, without this package."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import jax

from sdd_jax.files import write_new
from sdd_jax.serving.network import Served

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write_stablehlo(served: Served, path: Path) -> None:
    """Writes ``path``, which ``jax.export.deserialize`` reads, and ``path``.json, which says what it is.

    The weights and the normalisation are in it: raw uint8 images ``[B, H, W, C]`` to logits ``[B, K]``, B free.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError("StableHLO files need flatbuffers: pip install -e '.[export]'")
    logits = jax.jit(partial(served.logits, served.variables))
    exported = jax.export.export(logits, platforms=PLATFORMS)(served.abstract_images())
    about = path.with_name(path.name + ".json")
    write_new(about, (json.dumps(served.metadata(), indent=1) + "\n").encode())
    try:
        write_new(path, bytes(exported.serialize()))
    except ValueError:
        about.unlink()
        raise
