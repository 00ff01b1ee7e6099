"""Sets that tensorflow-datasets prepared, in the ArrayRecord format, read without TensorFlow."""

import hashlib
import json
import os
import threading
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from sdd_jax.data.dataset import not_found

__all__ = ["PREFIX", "TfdsRecords", "TfdsSet", "find_tfds", "import_tfds", "prepare_command", "read_tfds_set"]

PREFIX = "tfds:"
# Where a set has more than one, which split is reported: ImageNet's test set has no labels.
_TESTS = ("test", "validation")
_TESTS_OF = {"imagenet2012": ("validation",)}
_INSTALL = "pip install tensorflow-datasets importlib_resources"  # which it imports and does not require

_OPENING = threading.Lock()  # threads that decode would each open the directory


class TfdsRecords:
    """One split; small, can be pickled for worker processes, and opens nothing before the first read.

    Labels stand in the records, and are not known before those are read: ``labels`` is None.
    """

    labels = None

    def __init__(self, directory: Path, split: str, keys: tuple[str, str], length: int):
        self._directory, self._split, self._keys, self._length = os.fspath(directory), split, keys, length
        self._source: Any = None

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}

    def name(self, number: int) -> str:
        """Which record it is: what errors call it."""
        return f"record {number} of {self._split} in {self._directory}"

    def read(self, number: int) -> tuple[Any, int]:
        """The encoded image (or its pixels, if the set holds those), and its label."""
        if self._source is None:
            with _OPENING:
                self._source = self._source or self._open()
        example = self._source[number]
        return example[self._keys[0]], int(example[self._keys[1]])

    def fingerprint(self) -> str:
        """SHA-256, in hex, of what the directory says of itself, and of the split's name."""
        described = Path(self._directory, "dataset_info.json").read_bytes()
        return hashlib.sha256(described + self._split.encode()).hexdigest()

    def _open(self) -> Any:
        tfds = import_tfds()
        builder = tfds.builder_from_directory(self._directory)
        images = (key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image))
        decoders = {key: tfds.decode.SkipDecoding() for key in images}  # masks and the like as well: nobody reads them
        return builder.as_data_source(split=self._split, decoders=decoders)


class TfdsSet(NamedTuple):
    """A set's splits and classes."""

    train: TfdsRecords
    test: TfdsRecords
    class_names: tuple[str, ...]


def read_tfds_set(name: str, data_dir: str | PathLike[str] | None) -> TfdsSet:
    """The set ``name`` (with a config, as ``NAME/CONFIG``) of a TFDS data directory.

    Raises:
      FileNotFoundError: if it is not there; it says how to prepare it.
      ValueError: if it is in another format, or is not one of labelled images.
      ImportError: if tensorflow-datasets is not installed.
    """
    directory = find_tfds(name, data_dir)
    # From the directory, not by name (tfds.data_source): the version on disk need not be the installed package's.
    info = import_tfds().builder_from_directory(str(directory)).info
    image_key, label_key = keys = (info.supervised_keys or ("image", "label"))[:2]
    for key in keys:
        if key not in info.features:
            raise ValueError(f"{directory} has no {key!r}: its features are {', '.join(info.features)}")
    class_names = getattr(info.features[label_key], "names", None)
    if not class_names:
        raise ValueError(f"{directory}: {label_key!r} is not a class label, which this package needs")
    tests = [split for split in _TESTS_OF.get(name.partition("/")[0], _TESTS) if split in info.splits]
    if "train" not in info.splits or not tests:
        raise ValueError(f"{directory} needs a split train, and test or validation; it has {', '.join(info.splits)}")

    def records(split):
        return TfdsRecords(directory, split, (image_key, label_key), info.splits[split].num_examples)

    labelled = [split for split in tests if 0 <= records(split).read(0)[1] < len(class_names)]
    if not labelled:
        raise ValueError(f"{directory}: the images of {' and '.join(tests)} have no labels")
    return TfdsSet(records("train"), records(labelled[0]), tuple(class_names))


def find_tfds(name: str, data_dir: str | PathLike[str] | None) -> Path:
    """The directory of the newest version of ``name``; errors as :func:`read_tfds_set`."""
    root = Path("data" if data_dir is None else data_dir).expanduser()
    versions = [file.parent for file in (root / name).glob("*/dataset_info.json")]
    if not versions:
        raise not_found(
            f"{PREFIX}{name}",
            [root / name / "VERSION" / "dataset_info.json"],
            [f"{prepare_command(name, root)}  (needs TensorFlow: {_INSTALL} tensorflow)"],
        )
    directory = max(versions, key=lambda version: [int(part) for part in version.name.split(".") if part.isdigit()])
    if json.loads((directory / "dataset_info.json").read_text()).get("fileFormat") != "array_record":
        raise ValueError(
            f"{directory} holds no ArrayRecord files, the only format that can be read at random. Prepare the set as "
            f"such (this needs TensorFlow):\n  {prepare_command(name, root)}"
        )
    return directory


def import_tfds() -> Any:
    """tensorflow_datasets, or ``ImportError`` with the command that installs it."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(f"reading a TFDS directory needs: {_INSTALL}") from error
    return tensorflow_datasets


def prepare_command(name: str, data_dir: str | PathLike[str] = "data") -> str:
    """The command that downloads a set and prepares it as this package reads it."""
    builder = f"tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
    return f'python -c "import tensorflow_datasets as tfds; {builder}.download_and_prepare()"'
