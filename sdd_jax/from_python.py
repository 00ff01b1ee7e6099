"""Training and distillation from Python in one call, and what a run has learned.

A call writes a run's folder, as the train command does, with the config of ``configs/arrays.py``, for class folders of
``configs/small_images.py`` or ``configs/image_folder.py``. Called again, it goes on where the run was.
"""

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from scipy.special import softmax

from sdd_jax import build_shapes, saved
from sdd_jax import data as data_sets
from sdd_jax.commands.train import Run as Planned
from sdd_jax.commands.train import check_folders, list_seeds, summary, train_groups
from sdd_jax.configs import arrays as arrays_config
from sdd_jax.configs import image_folder as folder_config
from sdd_jax.configs import small_images as small_config
from sdd_jax.configs.common import put
from sdd_jax.data import Dataset, Info
from sdd_jax.fields import SAVED
from sdd_jax.given_data import Arguments, Images, Pair, Place, place
from sdd_jax.models import create_model, model_names, model_stems
from sdd_jax.models.given import Given, given_network, given_variables, has_variables
from sdd_jax.own import check_allowed
from sdd_jax.processes import end_second_script, preemption_requested
from sdd_jax.serving.network import Served, open_network
from sdd_jax.training import run_dir
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.teacher import variables_hash

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
    _served: Served = dataclasses.field(repr=False)  # a notebook would print every weight

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
        given, shape = np.asarray(images), self._served.info.image_shape
        pixels = given[..., None] if given.ndim == 3 and shape[-1] == 1 else given
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
            raise ValueError(f"images must be uint8 {('N', *shape)}, got {given.dtype} {given.shape}")
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
      train: images, uint8 [N, H, W, C] or [N, H, W], and labels, integers [N] from 0, kept as ``distill`` says.
      test: the same for the test set.
      data: in place of these two: a ``Dataset``, an ``.npz`` file, or a folder with ``train/CLASS/``, ``test/CLASS/``.
      epochs: the length of the run; unset: 60.
      seed: of initial values, order and augmentation.
      stem: of the network; unset: as the config has it, or by the size of the images.
      fields: any other field of a config (docs/fields.md) by its dotted name.
      allow: networks by MODULE:FUNCTION that may be imported because the folder of a run names them.

    Returns:
      The run; its ``predict`` takes images [N, H, W, C].

    Raises:
      ValueError: for a wrong argument, or a folder that holds another run.
      FileNotFoundError: if there is nothing at ``data``.
    """
    return _train(model, None, "plain", folder, Arguments(train, test, data, epochs, seed, stem, fields, allow))


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
        the folder, which the commands read too. In training they are shifted by up to 4 pixels and mirrored; a
        ``Dataset`` of ``data.from_arrays`` says otherwise.
      test: the same for the test set.
      data: in place of these two: a ``Dataset``, an ``.npz`` file, or a folder with ``train/CLASS/``, ``test/CLASS/``.
      epochs: the length of the run; unset: 60.
      seed: of initial values, order and augmentation.
      stem: of both networks; unset: the teacher's, else as the config has it, or by the size of the images.
      fields: any other field of a config (docs/fields.md) by its dotted name. A teacher that is trained first has those
        that are not about distillation, and neither ``data.mixup`` nor ``data.cutmix``.
      allow: networks by MODULE:FUNCTION that may be imported because the folder of a run names them.

    Returns:
      The student's run; its ``predict`` takes images [N, H, W, C].

    Raises:
      ValueError: for a wrong argument, or a folder that holds another run.
      FileNotFoundError: if there is nothing at ``data``.
    """
    if teacher is None:
        raise ValueError("distill needs a teacher, got None: sdd_jax.train trains a network on labels alone")
    return _train(student, teacher, method, folder, Arguments(train, test, data, epochs, seed, stem, fields, allow))


class _Teacher(NamedTuple):
    folder: Path  # of its run, which may be one that is trained first
    model: Mapping[str, Any]  # the fields of the same name, of its run
    weights: str


def _train(student: Any, teacher: Any, method: str, place_of_run: Place, given: Arguments) -> Run:
    end_second_script()
    if not isinstance(place_of_run, str | PathLike) or not (folder := Path(place_of_run)).name:
        raise ValueError(
            f"folder must be a new folder's name, or that of the run that is to go on; got {place_of_run!r}"
        )
    if "seeds" in given.fields:
        raise ValueError("fields may not have seeds: give seed=..., one call for each")
    if given.stem and given.fields.get("model.stem", given.stem) != given.stem:
        raise ValueError("fields may not have model.stem: arguments of the call say it")
    images, given = place(folder, given)
    first, taught = ([], None) if teacher is None else _teacher_of(teacher, folder, images, given)
    runs = [*first, _planned(student, taught, method, folder, images, given)]  # all is checked before any is trained
    if first:  # what does not fit is found before hours of a teacher's training
        build_shapes.trace(runs[-1].config, images.info.train_examples or BATCH)  # nobody has counted a folder's
    check_folders(runs[:-1])
    check_folders(runs[-1:], given.fields)
    stopping = partial(nullcontext, preemption_requested)  # the signals of this process are the caller's
    train_groups([[run] for run in runs], partial(print, flush=True), summary, stopping=stopping)
    return load_run(folder, allow=[runs[-1].config["model"]["student"]])


def _planned(
    student: Any, teacher: _Teacher | None, method: str, folder: Path, images: Images, given: Arguments
) -> Planned:
    """The run of a call with its config, checked; nothing is trained."""
    if isinstance(student, Run) and student.weights != "last":
        raise ValueError(f"a run begins with another's last weights, got the {student.weights} of {student.folder}")
    info, start = images.info, _run_folder(student, given.allow)
    if start is None and has_variables(student):
        start = _write_run(student, folder.with_name(f"{folder.name}-start"), images, given)
    if start is None:
        network = given_network(student, info.image_shape, info.num_classes)
    else:
        network = Given(run_dir.read_network(start)["model"]["student"], None)
    recorded = [] if teacher is None else [teacher.model]
    recorded += [] if start is None else [run_dir.read_network(start)["model"]]
    stems = {one["stem"] for one in recorded} | {stem for stem in (given.stem, given.fields.get("model.stem")) if stem}
    if len(stems) > 1:
        raise ValueError(f"teacher and student have one stem: got {', '.join(sorted(stems))}")
    settings: dict[str, Any] = {"data.path": str(images.path), "seed": given.seed}
    if images.size is None and not stems:
        stems = {_stem(network, info)}
    settings |= {} if not stems else {"model.stem": stems.pop()}
    settings |= {} if given.epochs is None else {"epochs": given.epochs}
    settings |= {} if teacher is None else {"teacher.run": str(teacher.folder)}
    if teacher is not None and teacher.weights != "last":
        settings["teacher.checkpoint"] = teacher.weights
    settings |= {} if start is None else {"model.init": str(start)}
    teaches = "none" if teacher is None else teacher.model["student"]
    chosen = {"teacher": teaches, "student": network.name, "method": method}
    make = arrays_config if images.name == data_sets.ARRAYS else folder_config
    if images.size is not None:
        make, chosen = small_config, {**chosen, "size": str(images.size)}
    config = make.get_config(",".join(f"{key}={value}" for key, value in chosen.items()))
    if clash := [name for name, value in settings.items() if given.fields.get(name, value) != value]:
        raise ValueError(f"fields may not have {', '.join(clash)}: arguments of the call say it")
    for field, value in (settings | dict(given.fields)).items():
        put(config, field, value)
    return list_seeds(config.to_dict(), folder)[0]


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
        if isinstance(given, PathLike) or (isinstance(given, str) and "/" in given and not named):
            raise ValueError(f"{given} is not a run's folder: it has no {run_dir.CONFIG}")
        return None
    check_allowed(run_dir.read_network(Path(given))["model"]["student"], Path(given), allow)
    return Path(given)


def _teacher_of(teacher: Any, folder: Path, images: Images, given: Arguments) -> tuple[list[Planned], _Teacher]:
    """The teacher, and the run that is to train it first, if it has none."""
    own, info = folder.with_name(f"{folder.name}-teacher"), images.info
    if (found := _run_folder(teacher, given.allow)) is None:
        if given_variables(teacher, info.image_shape, info.num_classes) is None:
            fields = {name: value for name, value in given.fields.items() if not name.startswith(OF_DISTILLATION)}
            run = _planned(teacher, None, "plain", own, images, given._replace(fields=fields))
            return [run], _Teacher(own, run.config["model"], "last")
        found = _write_run(teacher, own, images, given)
    weights = teacher.weights if isinstance(teacher, Run) else "last"
    return [], _Teacher(found, run_dir.read_network(found)["model"], weights)


def _write_run(network: Any, folder: Path, images: Images, given: Arguments) -> Path:
    """Makes ``folder`` the run of (network, variables)."""
    info = images.info
    variables = given_variables(network, info.image_shape, info.num_classes)
    named = given_network(network, info.image_shape, info.num_classes)
    stem = given.stem or given.fields.get("model.stem")
    if stem is None and images.size is not None:
        wanted = small_config.get_config(
            f"teacher=none,student={named.name},method=plain,size={images.size}"
        ).model.stem
        stem = wanted if ":" in named.name or wanted in model_stems(named.name) else None
    about = {"name": named.name, "stem": stem or _stem(named, info), "num_classes": info.num_classes}
    model = create_model(named.name, info.num_classes, about["stem"])
    shown = SimpleNamespace(name=images.name, image_shape=info.image_shape, num_classes=info.num_classes)
    saved.check_fits(saved.Saved(folder, **about, dtype="float32", data=None, model=model), variables, shown)
    saved.write_imported(folder, variables=variables, source={"given": variables_hash(variables)}, **about)
    return folder
