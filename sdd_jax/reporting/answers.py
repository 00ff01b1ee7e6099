"""What networks answer on the test set: logits of every image, features and regions of some."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import data, saved
from sdd_jax.config import DTYPES
from sdd_jax.data import AnyDataset, Dataset, eval_data
from sdd_jax.data.augment import normalize
from sdd_jax.data.streamed import EvalExample
from sdd_jax.mesh import make_mesh

BATCH = 250


class Answers(NamedTuple):
    """One network on all test images, in the order of the split.

    Attributes:
      logits: float32 ``[N, K]``.
      features: float32 ``[n, C]`` of the rows asked for: the mean over its map; the logits of a network without one.
    """

    logits: np.ndarray
    features: np.ndarray


class Regions(NamedTuple):
    """One network on a few images: region logits ``[n, R, K]`` and global logits ``[n, K]``."""

    region_logits: np.ndarray
    logits: np.ndarray


def load_test(config: dict[str, Any], data_path: str | None) -> AnyDataset:
    """The data set of a run's flat config, in its place now if that is another."""
    return data.load(
        config["data.name"],
        path=data_path or config.get("data.path"),
        select_on="test",
        image_size=config.get("data.image_size"),
        augment=config.get("data.augment"),
        workers=config.get("data.workers", 0),
    )


class Asker:
    """Asks networks; those of one kind share their compiled programs."""

    def __init__(self, dataset: AnyDataset, rows: np.ndarray):
        """``rows``: of the test split, in increasing order; their features are kept."""
        self.dataset, self.rows = dataset, rows
        count, self._mesh = len(dataset.test.index), make_mesh()
        devices = self._mesh.size
        self._batch = -(-min(BATCH, count) // devices) * devices
        self._data = eval_data(dataset, dataset.test, batch_size=self._batch, mesh=self._mesh)
        self._programs: dict[Any, Any] = {}
        self.labels = np.full(count, -1)

    def ask(self, folder: Path, step: int) -> Answers:
        """The network of a run's checkpoint on every test image."""
        network = saved.read(folder)
        variables = saved.load_variables(folder, step)
        saved.check_fits(network, variables, self.dataset)
        program = self._program(network)
        logits, features = [], []
        for number, arrays in enumerate(self._data.batches()):
            label, valid, got_logits, got_features = jax.device_get(program(variables, arrays))
            first = number * self._batch
            keep = int(valid.sum())
            self.labels[first : first + keep] = label[:keep]
            logits.append(got_logits[:keep])
            wanted = self.rows[(self.rows >= first) & (self.rows < first + keep)] - first
            features.append(got_features[wanted])
        answers = Answers(np.concatenate(logits), np.concatenate(features))
        if not np.isfinite(answers.logits).all():
            raise FloatingPointError(f"{folder}: the network's logits on {self.dataset.name} are not finite")
        return answers

    def regions(self, folder: Path, step: int, pixels: np.ndarray, scales: Sequence[int], pooling: str) -> Regions:
        """The same network's regions of images uint8 ``[n, H, W, C]``."""
        network = saved.read(folder)
        model: Any = network.model
        images = normalize(pixels, self.dataset.mean, self.dataset.std, _image_dtype(network))
        outputs = jax.jit(
            lambda variables, images: model.apply(
                variables, images, train=False, scales=tuple(scales), pooling=pooling
            )._replace(logit_map=None, feature_map=None)
        )(saved.load_variables(folder, step), images)
        return Regions(np.asarray(outputs.region_logits), np.asarray(outputs.logits))

    def _program(self, network: saved.Saved) -> Any:
        kind = network.name, network.stem, network.dtype
        if kind not in self._programs:
            make_batch, model = self._data.batch_function(_image_dtype(network)), network.model

            @jax.jit
            def program(variables, arrays):
                batch = make_batch(arrays)
                outputs = model.apply(variables, batch["image"], train=False)
                has_features = outputs.feature_map is not None
                features = jnp.mean(outputs.feature_map, (1, 2)) if has_features else outputs.logits
                logits, features = (values.astype(jnp.float32) for values in (outputs.logits, features))
                return batch["label"], batch["valid"], logits, features

            self._programs[kind] = program
        return self._programs[kind]


def test_pixels(dataset: AnyDataset, rows: Sequence[int]) -> np.ndarray:
    """The test images of some rows as networks see them, before normalisation: uint8 ``[n, H, W, C]``."""
    if isinstance(dataset, Dataset):
        return dataset.test.images[np.asarray(rows, int)]
    example = EvalExample(dataset.test, dataset.augment, dataset.image_size, dataset.num_classes, seed=0)
    return np.stack([example(int(row))["image"] for row in rows])


def _image_dtype(network: saved.Saved) -> Any:
    return jnp.promote_types(DTYPES[network.dtype], jnp.float32)
