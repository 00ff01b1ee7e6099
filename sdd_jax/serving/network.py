"""A run's network for raw uint8 images, with what its pixels and answers mean, and the same as a StableHLO file."""

import importlib.util
import json
import unicodedata
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdd_jax import __version__, data, saved
from sdd_jax.data.augment import normalize
from sdd_jax.files import write_new
from sdd_jax.models import Outputs
from sdd_jax.regions import Regions
from sdd_jax.saved import Saved
from sdd_jax.training import run_dir

CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of what does not stand in a line of text


class Served(NamedTuple):
    """A network, the variables of one checkpoint, and the data set that says what goes in and what comes out."""

    network: Saved
    variables: dict[str, Any]
    step: int  # of the checkpoint
    data_name: str
    info: data.Info  # of it: the shape of raw images, how they are brought to it, mean and std
    class_names: tuple[str, ...] | None  # None where only the data's folder has them, and it is not there
    regions: Regions  # of the run

    @property
    def names(self) -> tuple[str, ...]:
        """A name per class: its number where no other is known."""
        return self.class_names or tuple(str(label) for label in range(self.network.num_classes))

    def other_size(self) -> str | None:
        """``Saved.other_size`` for its images."""
        return self.network.other_size(self.data_name, self.info.image_shape)

    def metadata(self) -> dict[str, Any]:
        """What an exported file says of the network, JSON-ready."""
        return {
            "input": "images uint8 [batch, height, width, channels], raw pixels 0 to 255",
            "image_shape": list(self.info.image_shape),
            "normalisation": "inside: (images / 255 - mean) / std",
            "mean": list(self.info.mean),
            "std": list(self.info.std),
            "output": "logits float32 [batch, classes], before softmax",
            "class_names": None if self.class_names is None else list(self.class_names),
            "model": self.network.name,
            "stem": self.network.stem,
            "data": self.data_name,
            "step": self.step,
            "sdd_jax": __version__,
        }

    def apply(self, variables: Any, images: ArrayLike, regions: Regions | None = None) -> Outputs:
        """The outputs for raw images, uint8 ``[B, H, W, C]``."""
        pixels = normalize(images, self.info.mean, self.info.std, self.network.image_dtype)
        return self.network.model.apply(variables, pixels, train=False, regions=regions)

    def logits(self, variables: Any, images: ArrayLike) -> jax.Array:
        """float32 ``[B, K]`` of raw images, uint8 ``[B, H, W, C]``."""
        return self.apply(variables, images).logits.astype(jnp.float32)

    def abstract_images(self) -> jax.ShapeDtypeStruct:
        """Raw images with a batch of any size."""
        (batch,) = jax.export.symbolic_shape("batch")
        return jax.ShapeDtypeStruct((batch, *self.info.image_shape), jnp.uint8)


def check_names(names: Iterable[str]) -> None:
    """``ValueError`` at a name with a line break or of bytes that are no text: it fits in no line of a table."""
    for name in names:
        if any(unicodedata.category(letter) in CONTROLS for letter in name):
            raise ValueError(f"{name!r} has a character that cannot stand in a line of text: rename it")


def open_network(
    folder: Path,
    *,
    checkpoint: str = "last",
    data_name: str | None = None,
    data_path: str | None = None,
    image_size: int | None = None,
    allow: Collection[str] = (),
) -> Served:
    """The network of the run in ``folder``, trained or imported, for images as its evaluation saw them.

    ``data_name`` is needed for an imported network; None: the run's own. ``data_path`` is where the data set's folder
    is now, if its class names are to be read there; None: where it was. ``image_size`` is the side of its images; None:
    that which the network was trained at. ``allow`` as in ``saved.read``.
    """
    network = saved.read(folder, allow)
    fields = network.data_fields(data_name, data_path, image_size)
    name = fields["name"]
    sdd = run_dir.read_network(folder).get("sdd")  # an imported network has none
    try:
        regions = Regions(tuple(sdd["scales"]), sdd["pooling"]) if sdd else Regions()
        sizes = {option: fields.get(option) for option in ("image_size", "in_memory")}
        noted = network.own_data(name)
        if noted and name == data.ARRAYS and sizes["image_size"] is None:  # their file may be another now
            image_shape, mean, std = (tuple(noted[of]) for of in ("image_shape", "mean", "std"))
            info = data.Info(network.num_classes, image_shape, 0, 0, mean, std, 0, False)
        else:
            info = data.describe(name, path=data_path or fields.get("path"), **sizes, num_classes=network.num_classes)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    step, variables = saved.step_of(folder, checkpoint), saved.load_variables(folder, checkpoint)
    try:
        as_trained = noted is not None and data_path is None
        class_names = tuple(noted["class_names"]) if as_trained else data.class_names(name, fields.get("path"))
    except (FileNotFoundError, ImportError):
        if data_path is not None:
            raise
        class_names = None
    if class_names is not None and len(class_names) != network.num_classes:
        raise ValueError(
            f"{name} has {len(class_names)} classes on disk, the network of {folder} {network.num_classes}"
        )
    check_names(class_names or ())
    dataset = SimpleNamespace(name=name, image_shape=info.image_shape, num_classes=network.num_classes)
    saved.check_fits(network, variables, dataset)
    info = info._replace(augment=fields.get("augment") or info.augment)
    return Served(network, variables, step, name, info, class_names, regions)


def write_stablehlo(served: Served, path: Path) -> None:
    """Writes ``path``, which ``jax.export.deserialize`` reads, and ``path``.json, which says what it is.

    The weights and the normalisation are in it: raw uint8 images ``[B, H, W, C]`` to logits ``[B, K]``, B free.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError("StableHLO files need flatbuffers: pip install -e '.[export]'")
    logits, frames = jax.jit(partial(served.logits, served.variables)), "jax_traceback_in_locations_limit"
    before = jax.config.values[frames]
    jax.config.update(frames, 0)  # the file does not say where this package lies: it has the same bytes everywhere
    try:
        exported = jax.export.export(logits, platforms=("cpu", "cuda", "rocm", "tpu"))(served.abstract_images())
    finally:
        jax.config.update(frames, before)
    about = (json.dumps(served.metadata(), indent=1) + "\n").encode()
    write_new({path.with_name(path.name + ".json"): about, path: bytes(exported.serialize())})
