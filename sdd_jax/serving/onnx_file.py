"""A network as an ONNX file."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sdd_jax._version import __version__
from sdd_jax.models import create_model
from sdd_jax.models.layers import fold
from sdd_jax.serving.network import Served, abstract_images, logits_function
from sdd_jax.tensor_files import write_new

INSTALL = "pip install -e '.[export]'"


def write_onnx(served: Served, path: Path) -> int:
    """Writes ``path`` and returns the number of its nodes.

    Raw uint8 images ``[batch, H, W, C]`` to logits ``[batch, K]``, batch free; normalisation and weights are in it, and
    so is, under metadata_props, ``Served.metadata``. It computes in float32 whatever the run did: ONNX runtimes do not
    take convolutions in other types everywhere. Batch normalisations are folded into convolutions.

    Raises:
      ImportError: without onnx.
      ValueError: if the file exists or cannot be written, or the network uses an operation that has no translation.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"ONNX files need onnx: {INSTALL}") from error
    from sdd_jax.serving.onnx_graph import make_graph

    network = served.network
    model: Any = create_model(network.name, network.num_classes, network.stem, jnp.float32)
    images = jax.ShapeDtypeStruct((1, *served.image_shape), jnp.float32)
    variables = fold(model, served.variables, images)
    plain = served._replace(network=network._replace(model=model, dtype="float32"))
    graph = make_graph(logits_function(plain), jax.device_get(variables), abstract_images(served))
    made = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,  # as old as opset 18: a newer one would only keep older runtimes from reading it
        producer_name="sdd_jax",
        producer_version=__version__,
    )
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in served.metadata().items()}
    onnx.helper.set_model_props(made, texts)
    onnx.checker.check_model(made, full_check=True)
    write_new(path, made.SerializeToString())
    return len(made.graph.node)
