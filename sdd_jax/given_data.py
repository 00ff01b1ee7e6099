"""Images as ``train`` and ``distill`` are given them: put where a run's config finds them, and described."""

from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sdd_jax import data as data_sets
from sdd_jax import sealed
from sdd_jax.configs import small_images as small_config
from sdd_jax.data import Dataset, Info, arrays

Place = str | PathLike[str]
Pair = tuple[ArrayLike, ArrayLike]  # images and labels
SELECT_ON, SIZE = "data.select_on", "data.image_size"


class Arguments(NamedTuple):
    """What ``train`` and ``distill`` take besides networks and folder."""

    train: Pair | None
    test: Pair | None
    data: Dataset | Place | None
    epochs: int | None
    seed: int
    stem: str | None
    fields: Mapping[str, Any]
    allow: Collection[str]


class Images(NamedTuple):
    """Images where a run's config finds them."""

    name: str  # of the data set
    path: Path
    size: int | None  # the side that ``configs/small_images.py`` has for them; None where it is not for them
    info: Info


def place(folder: Path, given: Arguments) -> tuple[Images, Arguments]:
    """The images of ``given``, and ``given`` with the fields that follow from them.

    Arrays are written to a file beside the run's ``folder``. ``ValueError`` if what is given is no data, or if a
    ``Dataset`` chooses the best epoch on other images than the fields say.
    """
    train, test, data, fields = given.train, given.test, given.data, dict(given.fields)
    if (data is None) == (train is None) or (train is None) != (test is None):
        raise ValueError("give train=(images, labels) and test=(images, labels), or data= and neither of them")
    if data is None:
        select_on = fields.get(SELECT_ON, "validation")
        data = data_sets.from_arrays(*_pair(train, "train"), *_pair(test, "test"), select_on=select_on)
    if isinstance(data, Dataset):
        if fields.setdefault(SELECT_ON, data.select_on) != data.select_on:
            told = f"the Dataset chooses on {data.select_on!r}, {SELECT_ON} is {fields[SELECT_ON]!r}"
            raise ValueError(f"{told}: give select_on to from_arrays, and not among the fields")
        about = [data.fingerprint(), data.class_names, data.mean, data.std, data.pad, data.flip, data.select_on]
        path = folder.absolute().parent / f"data-{sealed.digest(about)[:16]}.npz"
        if not path.is_file():
            arrays.write(path, data)
    elif isinstance(data, str | PathLike):
        path = Path(data).expanduser().absolute()
        if not path.exists():
            raise FileNotFoundError(f"data: there is no folder and no .npz file {path}")
    else:
        raise ValueError(f"data must be a Dataset in memory, an .npz file or a folder, got {type(data).__name__}")
    asked: Any = fields.get(SIZE)
    usable = isinstance(asked, int | np.integer) and asked > 0  # any other is refused with the config
    asked = int(asked) if usable else None
    name, size = (data_sets.FOLDER if path.is_dir() else data_sets.ARRAYS), None
    if name == data_sets.FOLDER and asked is None and data_sets.usual_side(name, str(path)) <= small_config.MOST:
        size = small_config.find_size(str(path), "")
    elif name == data_sets.FOLDER and asked is not None and small_config.LEAST <= asked <= small_config.MOST:
        size = asked
    info = data_sets.describe(name, path=path, image_size=asked or size)
    return Images(name, path, size, info), given._replace(fields=fields)


def _pair(given: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"{what} must be a pair (images, labels), got {type(given).__name__}")
    return np.asarray(given[0]), np.asarray(given[1])
