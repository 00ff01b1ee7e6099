"""A run's network with what its pixels and answers mean: from raw uint8 images to logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdd_jax import data, saved
from sdd_jax._version import __version__
from sdd_jax.config import DTYPES
from sdd_jax.data.augment import normalize
from sdd_jax.models import Outputs
from sdd_jax.saved import Saved
from sdd_jax.training import run_dir


class Served(NamedTuple):
    """A network, the variables of one checkpoint, and the data set that says what goes in and what comes out.

    Attributes:
      network: as ``saved.read`` gives it.
      variables: of the checkpoint.
      step: the checkpoint's.
      data_name: the data set's.
      image_shape: ``(H, W, C)`` of the raw images.
      mean: per channel, in units of [0, 1].
      std: per channel, in units of [0, 1].
      augment: how the set's images are brought to that shape, see ``data.Info``.
      class_names: a name per class; None where only the data's folder knows them, and it is not there.
      scales: the run's ``sdd.scales``.
      pooling: the run's ``sdd.pooling``.
    """

    network: Saved
    variables: dict[str, Any]
    step: int
    data_name: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    class_names: tuple[str, ...] | None
    scales: tuple[int, ...]
    pooling: str

    @property
    def names(self) -> tuple[str, ...]:
        """A name per class: its number where no other is known."""
        return self.class_names or tuple(str(label) for label in range(self.network.num_classes))

    def metadata(self) -> dict[str, Any]:
        """What a file of the network says of itself, JSON-ready."""
        return {
            "input": "images uint8 [batch, height, width, channels], raw pixels 0 to 255",
            "image_shape": list(self.image_shape),
            "normalisation": "inside: (images / 255 - mean) / std",
            "mean": list(self.mean),
            "std": list(self.std),
            "output": "logits float32 [batch, classes], before softmax",
            "class_names": None if self.class_names is None else list(self.class_names),
            "model": self.network.name,
            "stem": self.network.stem,
            "data": self.data_name,
            "step": self.step,
            "sdd_jax": __version__,
        }


def open_network(
    folder: Path, *, checkpoint: str = "last", data_name: str | None = None, data_path: str | None = None
) -> Served:
    """The network of the run in ``folder``, for images as its evaluation saw them.

    Args:
      folder: of a run, trained or imported.
      checkpoint: "last" or "best".
      data_name: the data set whose images it takes, needed for an imported network; None: the run's own.
      data_path: where the data set's folder is now, if its class names are to be read there; None: where it was.

    Raises:
      ValueError: if there is no such network, it does not fit the data set, or an imported one is given none.
    """
    network = saved.read(folder)
    own = network.data if network.data and data_name in (None, network.data["name"]) else {}
    name = data_name or own.get("name")
    if name is None:
        raise ValueError(f"{folder} holds an imported network, which names no data: add --data, such as cifar100")
    info = data.describe(name, image_size=own.get("image_size"), num_classes=network.num_classes)
    step = saved.steps(folder)[checkpoint]
    variables = saved.load_variables(folder, step)
    try:
        class_names = data.class_names(name, data_path or own.get("path"))
    except (FileNotFoundError, ImportError):
        if data_path is not None:
            raise
        class_names = None
    if class_names is not None and len(class_names) != network.num_classes:
        raise ValueError(
            f"{name} has {len(class_names)} classes on disk, the network of {folder} {network.num_classes}"
        )
    room = run_dir.read_config(folder).get("sdd", {})
    served = Served(
        network=network,
        variables=variables,
        step=step,
        data_name=name,
        image_shape=info.image_shape,
        mean=info.mean,
        std=info.std,
        augment=own.get("augment") or info.augment,
        class_names=class_names,
        scales=tuple(room.get("scales", (1, 2, 4))),
        pooling=room.get("pooling", "direct"),
    )
    saved.check_fits(network, variables, _Fits(name, info.image_shape, network.num_classes))
    return served


class _Fits(NamedTuple):
    name: str
    image_shape: tuple[int, int, int]
    num_classes: int


def forward(served: Served, **options: Any) -> Callable[[Any, ArrayLike], Outputs]:
    """``outputs(variables, images)`` for raw images, uint8 ``[B, H, W, C]``; to be called inside ``jit``.

    ``options`` are the model's: scales, pooling.
    """
    dtype = jnp.promote_types(DTYPES[served.network.dtype], jnp.float32)

    def outputs(variables, images):
        pixels = normalize(images, served.mean, served.std, dtype)
        return served.network.model.apply(variables, pixels, train=False, **options)

    return outputs


def logits_function(served: Served) -> Callable[[Any, ArrayLike], jax.Array]:
    """``logits(variables, images)``: float32 ``[B, K]`` of raw images, uint8 ``[B, H, W, C]``."""
    outputs = forward(served)
    return lambda variables, images: outputs(variables, images).logits.astype(jnp.float32)


def abstract_images(served: Served) -> jax.ShapeDtypeStruct:
    """Raw images of any number."""
    (batch,) = jax.export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *served.image_shape), jnp.uint8)
