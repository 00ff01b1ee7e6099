"""Training and distillation from Python in one call, and what a run has learned.

A call writes a run's folder, as the train command does, with the config of ``configs/arrays.py``, for class folders of
``configs/small_images.py`` or ``configs/image_folder.py``. Called again, it goes on where the run was.
"""

import dataclasses
from collections.abc import Collection, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from scipy.special import softmax

from sdd_jax import data as data_sets
from sdd_jax import saved, sealed
from sdd_jax.commands.train import check_folders, list_seeds, summary, train_groups
from sdd_jax.configs import arrays as arrays_config
from sdd_jax.configs import image_folder as folder_config
from sdd_jax.configs import small_images as small_config
from sdd_jax.configs.common import put
from sdd_jax.data import Dataset, Info, arrays
from sdd_jax.fields import SAVED
from sdd_jax.models import model_names, model_stems
from sdd_jax.models.given import Given, given_network, given_variables, has_variables
from sdd_jax.own import check_allowed
from sdd_jax.processes import end_second_script, preemption_requested
from sdd_jax.serving.network import Served, open_network
from sdd_jax.training import run_dir
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.teacher import variables_hash

Place = str | PathLike[str]
Pair = tuple[ArrayLike, ArrayLike]  # images and labels
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})
SMALL = 64  # pixels a side up to which a network has the stem of small images
BATCH = 64  # images that are predicted at once
OF_DISTILLATION = ("loss.", "sdd.", "features.", "teacher.", "model.init", "data.mixup", "data.cutmix")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's network.

    Attributes:
      folder: what every command takes as ``--workdir``, and ``distill`` as ``teacher``.
      model: a Linen module, called as ``model.apply(variables, pixels, train=False)`` with normalised pixels.
      variables: ``{"params": ..., "batch_stats": ...}`` of the checkpoint.
      class_names: a name for each class; its number where no other is known.
      weights: which of the run they are: "last", "best" or "average".
      results: ``last`` and ``best``: ``accuracy`` on the test set (0 to 1; not of imported ones), ``epoch``, ``step``.
    """

    folder: Path
    weights: str
    results: Mapping[str, Any]
    _served: Served

    @property
    def model(self) -> Any:
        return self._served.network.model

    @property
    def variables(self) -> dict[str, Any]:
        return self._served.variables

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._served.names

    @cached_property
    def _logits(self) -> Any:
        return jit_network(self._served.logits)

    def predict(self, images: ArrayLike) -> np.ndarray:
        """Probabilities [N, K] of images, uint8 [N, H, W, C], or [N, H, W] of grey ones, of the size it was trained on.

        ``ValueError`` for other images, ``FloatingPointError`` if the network's logits are not finite.
        """
        pixels, shape = np.asarray(images), self._served.image_shape
        pixels = pixels[..., None] if pixels.ndim == 3 and shape[-1] == 1 else pixels
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
            raise ValueError(f"images must be uint8 {('N', *shape)}, got {pixels.dtype} {pixels.shape}")
        found = [np.zeros((0, len(self.class_names)))]
        for first in range(0, len(pixels), BATCH):
            part = pixels[first : first + BATCH]
            padded = np.concatenate([part, np.zeros((BATCH - len(part), *shape), np.uint8)])  # compiled once
            logits = jax.device_get(self._logits(self.variables, padded))[: len(part)]
            if not np.isfinite(logits).all():
                raise FloatingPointError(f"{self.folder}: the network's logits are not finite")
            found.append(softmax(logits.astype(np.float64), axis=-1))
        return np.concatenate(found)


def load_run(
    folder: Place,
    *,
    checkpoint: str = "last",
    data: str | None = None,
    data_path: Place | None = None,
    allow: Collection[str] = (),
) -> Run:
    """The network in a run's folder, trained or imported. Source: this project.

    Args:
      folder: the run's.
      checkpoint: "last", "best", which held-out images chose, or "average", of the weights (``optim.ema_decay``).
      data: of an imported network: the data set by name, which says how images are normalised.
      data_path: where the run's data are now, if its class names are to be read there.
      allow: networks by MODULE:FUNCTION that may be imported because the folder names them.

    Returns:
      The run; its ``predict`` takes images [N, H, W, C].

    Raises:
      ValueError: if there is no such run or checkpoint, or one of its files was changed.
    """
    place = Path(folder)
    if checkpoint not in SAVED:
        raise ValueError(f"checkpoint must be one of {', '.join(SAVED)}, got {checkpoint!r}")
    path = None if data_path is None else str(data_path)
    served = open_network(place, checkpoint=checkpoint, data_name=data, data_path=path, allow=allow)
    return Run(place, checkpoint, saved.read_results(place), served)


def train(
    model: Any,
    *,
    folder: Place,
    train: Pair | None = None,
    test: Pair | None = None,
    data: Dataset | Place | None = None,
    epochs: int | None = None,
    seed: int = 0,
    stem: str | None = None,
    fields: Mapping[str, Any] = NO_FIELDS,
    allow: Collection[str] = (),
) -> Run:
    """Trains a network on labels alone. Source: this project.

    Args:
      model: a network, as ``distill`` takes its student.
      folder: the run's folder; called again with the same arguments, the run goes on where it was.
      train: as in ``distill``, like the rest.
      test: see there.
      data: see there.
      epochs: see there.
      seed: see there.
      stem: see there.
      fields: see there.
      allow: see there.

    Returns:
      The run; its ``predict`` takes images [N, H, W, C].

    Raises:
      ValueError: for a wrong argument, or a folder that holds another run.
    """
    return _train(model, None, "plain", Path(folder), _Given(train, test, data, epochs, seed, stem, fields, allow))


def distill(
    student: Any,
    teacher: Any,
    *,
    folder: Place,
    method: str = "sdd_kd",
    train: Pair | None = None,
    test: Pair | None = None,
    data: Dataset | Place | None = None,
    epochs: int | None = None,
    seed: int = 0,
    stem: str | None = None,
    fields: Mapping[str, Any] = NO_FIELDS,
    allow: Collection[str] = (),
) -> Run:
    """Trains a student to do as its teacher does. Source: "Scale Decoupled Distillation" (2024) for ``sdd_`` methods.

    Args:
      student: a network: a name of ``sdd_jax.models.model_names()``, MODULE:FUNCTION, a Linen or NNX module that is
        called as ``module(images, train=...)``, or a pair of functions (init, apply) as in ``FunctionNetwork``. These
        give a logit map [B, h, w, K], or features [B, h, w, C], under which a head is put. A run, its folder or
        (network, variables) begins with its weights.
      teacher: the folder of its run, a ``Run``, or (network, variables). An NNX module has its weights in itself. Any
        other network alone is trained first, with the same data and epochs, in ``FOLDER-teacher``.
      folder: the run's folder; called again with the same arguments, the run goes on where it was.
      method: a name of ``docs/methods.md``.
      train: images, uint8 [N, H, W, C] or [N, H, W], and labels, integers [N] from 0. They are kept in a file beside
        the folder, which the commands read too.
      test: the same for the test set.
      data: in place of these two: a ``Dataset``, an ``.npz`` file, or a folder with ``train/CLASS/``, ``test/CLASS/``.
      epochs: the length of the run; unset: 60.
      seed: of initial values, order and augmentation.
      stem: of both networks; unset: the teacher's, else as the config has it, or by the size of the images.
      fields: any other field of a config (docs/fields.md) by its dotted name. A teacher that is trained first has those
        that are not about distillation.
      allow: networks by MODULE:FUNCTION that may be imported because the folder of a run names them.

    Returns:
      The student's run; its ``predict`` takes images [N, H, W, C].

    Raises:
      ValueError: for a wrong argument, or a folder that holds another run.
    """
    return _train(student, teacher, method, Path(folder), _Given(train, test, data, epochs, seed, stem, fields, allow))


class _Given(NamedTuple):
    """What ``train`` and ``distill`` take besides networks and folder."""

    train: Pair | None
    test: Pair | None
    data: Dataset | Place | None
    epochs: int | None
    seed: int
    stem: str | None
    fields: Mapping[str, Any]
    allow: Collection[str]


def _train(student: Any, teacher: Any, method: str, folder: Path, given: _Given) -> Run:
    end_second_script()
    if "seeds" in given.fields:
        raise ValueError("fields may not have seeds: give seed=..., one call for each")
    given = _place_data(folder, given)
    path = Path(str(given.data))
    name = data_sets.FOLDER if path.is_dir() else data_sets.ARRAYS
    size = _small_side(name, path)
    info = data_sets.describe(name, path=path, image_size=size)
    found = None if teacher is None else _teacher_run(teacher, folder, info, given)
    if isinstance(student, Run) and student.weights != "last":
        raise ValueError(f"a run begins with another's last weights, got the {student.weights} of {student.folder}")
    start = _run_folder(student, given.allow)
    if start is None and has_variables(student):
        start = _write_run(student, folder.with_name(f"{folder.name}-start"), info, given)
    if start is None:
        network = given_network(student, info.image_shape, info.num_classes)
    else:
        network = Given(run_dir.read_network(start)["model"]["student"], None)
    recorded = [run_dir.read_network(place)["model"] for place in (found, start) if place is not None]
    stems = {one["stem"] for one in recorded} | {stem for stem in (given.stem, given.fields.get("model.stem")) if stem}
    if len(stems) > 1:
        raise ValueError(f"teacher and student have one stem: got {', '.join(sorted(stems))}")
    settings: dict[str, Any] = {"data.path": str(path), "seed": given.seed}
    if size is None and not stems:
        stems = {_stem(network, info)}
    settings |= {} if not stems else {"model.stem": stems.pop()}
    settings |= {} if given.epochs is None else {"epochs": given.epochs}
    settings |= {} if found is None else {"teacher.run": str(found)}
    if isinstance(teacher, Run) and teacher.weights != "last":
        settings["teacher.checkpoint"] = teacher.weights
    settings |= {} if start is None else {"model.init": str(start)}
    teaches = "none" if found is None else run_dir.read_network(found)["model"]["student"]
    chosen = {"teacher": teaches, "student": network.name, "method": method}
    make = arrays_config if name == data_sets.ARRAYS else folder_config
    if size is not None:
        make, chosen = small_config, {**chosen, "size": str(size)}
    config = make.get_config(",".join(f"{key}={value}" for key, value in chosen.items()))
    for field, value in (settings | dict(given.fields)).items():
        put(config, field, value)
    runs = list_seeds(config.to_dict(), folder)
    check_folders(runs)
    train_groups([runs], preemption_requested, lambda text: print(text, flush=True), summary)
    return load_run(folder, allow=[network.name])


def _place_data(folder: Path, given: _Given) -> _Given:
    """``given`` with a path in the place of its data; arrays are written to a file beside the run's folder."""
    train, test, data = given.train, given.test, given.data
    if (data is None) == (train is None) or (train is None) != (test is None):
        raise ValueError("give train=(images, labels) and test=(images, labels), or data= and neither of them")
    fields = dict(given.fields)
    if data is None:
        data = data_sets.from_arrays(*_pair(train, "train"), *_pair(test, "test"))
    if isinstance(data, Dataset):
        about = [data.fingerprint(), data.class_names, data.mean, data.std, data.pad, data.flip, data.select_on]
        path = folder.absolute().parent / f"data-{sealed.digest(about)[:16]}.npz"
        if not path.is_file():
            arrays.write(path, data)
        fields.setdefault("data.select_on", data.select_on)
    elif isinstance(data, str | PathLike):
        path = Path(data).expanduser().absolute()
    else:
        raise ValueError(f"data must be a Dataset in memory, an .npz file or a folder, got {type(data).__name__}")
    return given._replace(train=None, test=None, data=path, fields=fields)


def _small_side(name: str, path: Path) -> int | None:
    """The side that ``configs/small_images.py`` has for the images in class folders; None where it is not for them."""
    if name != data_sets.FOLDER or data_sets.usual_side(name, str(path)) > small_config.MOST:
        return None
    return small_config.find_size(str(path), "")


def _pair(given: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"{what} must be a pair (images, labels), got {type(given).__name__}")
    return np.asarray(given[0]), np.asarray(given[1])


def _stem(network: Given, info: Info) -> str:
    wanted = "cifar" if max(info.image_shape[:2]) <= SMALL else "imagenet"
    stems = (wanted,) if ":" in network.name else model_stems(network.name)
    return wanted if wanted in stems else stems[-1]


def _run_folder(given: Any, allow: Collection[str]) -> Path | None:
    """The folder of the run that ``given`` is, or None; a text is the name of a network first.

    ``ValueError`` if the folder names a network by MODULE:FUNCTION that is not in ``allow``.
    """
    if isinstance(given, Run):
        return given.folder
    named = isinstance(given, str) and (":" in given or given in model_names())
    if named or not isinstance(given, str | PathLike) or not (Path(given) / run_dir.CONFIG).is_file():
        if isinstance(given, PathLike):
            raise ValueError(f"{given} is not a run's folder: it has no {run_dir.CONFIG}")
        return None
    check_allowed(run_dir.read_network(Path(given))["model"]["student"], Path(given), allow)
    return Path(given)


def _teacher_run(teacher: Any, folder: Path, info: Info, given: _Given) -> Path:
    """The folder of the teacher's run, which is made if it has none yet."""
    if (found := _run_folder(teacher, given.allow)) is not None:
        return found
    own = folder.with_name(f"{folder.name}-teacher")
    if given_variables(teacher, info.image_shape, info.num_classes) is None:
        fields = {name: value for name, value in given.fields.items() if not name.startswith(OF_DISTILLATION)}
        return _train(teacher, None, "plain", own, given._replace(fields=fields)).folder
    return _write_run(teacher, own, info, given)


def _write_run(network: Any, folder: Path, info: Info, given: _Given) -> Path:
    """Makes ``folder`` the run of (network, variables)."""
    variables = given_variables(network, info.image_shape, info.num_classes)
    named = given_network(network, info.image_shape, info.num_classes)
    about = {"name": named.name, "stem": given.stem or _stem(named, info), "num_classes": info.num_classes}
    saved.write_imported(folder, variables=variables, source={"given": variables_hash(variables)}, **about)
    return folder
