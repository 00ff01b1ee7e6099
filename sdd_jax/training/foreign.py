"""A teacher that is any Python function, whatever stands behind it: PyTorch, timm, ONNX Runtime.

It is asked when a cache is filled, and at no other time: a run reads the cache, and needs neither the function nor what
stands behind it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import AnyDataset, read_test_examples
from sdd_jax.data.augment import normalize
from sdd_jax.own import failure, own_function
from sdd_jax.regions import Regions, check_name
from sdd_jax.training.teacher_cache import Layout, join_rows

IMAGES = ("normalized", "uint8")


class ForeignTeacher(NamedTuple):
    """What the function that ``--teacher=MODULE:FUNCTION`` names returns; it is called with num_classes and regions.

    Attributes:
      ask: images [B,H,W,C], NumPy, to floating logits, NumPy or what ``numpy.asarray`` takes: a logit map [B,h,w,K],
        whose mean is the logits of the image; or the logits of every region [B,R,K], in the order of
        ``Regions.places``, the first those of the image; or the logits of the image [B,K] alone. An image's logits must
        not depend on the others in the batch.
      name: what it is called, in the cache's key and in what is printed.
      digest: stands for all that decides its answers, such as the SHA-256 of its file of weights: where it differs, a
        cache is another's.
      images: what it is given. "normalized": float32, ``(pixels / 255 - mean) / std`` by the data set's mean and std,
        as networks here see them. "uint8": the pixels, 0 to 255.
    """

    ask: Callable[[np.ndarray], Any]
    name: str
    digest: str
    images: str = "normalized"


def read_foreign(name: str, num_classes: int, regions: Regions) -> ForeignTeacher:
    """The teacher that the function called ``name`` makes; ``ValueError`` says what is wrong with it."""
    make = own_function(name, "teacher", keywords=("num_classes", "regions"))
    try:
        teacher = make(num_classes=num_classes, regions=regions)
    except Exception as error:  # whatever it does
        raise ValueError(f"teacher {name!r}: calling it failed with {failure(error)}") from error
    if not isinstance(teacher, ForeignTeacher):
        raise ValueError(f"teacher {name!r} gives a {type(teacher).__name__}, expected a ForeignTeacher")
    for field in ("name", "digest"):
        if not isinstance(value := getattr(teacher, field), str) or not value:
            raise ValueError(f"teacher {name!r} must state its {field}, a text that is not empty; got {value!r}")
    check_name(f"images of teacher {name!r}", teacher.images, IMAGES)
    return teacher


def answer(teacher: ForeignTeacher, pixels: Any, dataset: AnyDataset, regions: Regions) -> np.ndarray:
    """What the teacher says of ``pixels`` uint8 [B,H,W,C], at least float32.

    ``ValueError`` if asking it fails, with the place, or if the answer has none of the shapes.
    """
    images = pixels if teacher.images == "uint8" else normalize(pixels, dataset.mean, dataset.std)
    try:
        given = np.asarray(teacher.ask(np.array(images)))  # a copy, which is the function's own
    except Exception as error:  # whatever it does
        raise ValueError(f"asking {teacher.name} for images {images.shape} failed with {failure(error)}") from error
    batch, classes, count = len(images), dataset.num_classes, regions.count
    wanted = {2: (batch, classes), 3: (batch, count, classes), 4: (batch, *given.shape[1:3], classes)}
    if given.shape != wanted.get(given.ndim) or given.size == 0 or not jnp.issubdtype(given.dtype, jnp.floating):
        raise ValueError(
            f"{teacher.name} must give floating logits: a map [{batch},h,w,{classes}], regions "
            f"[{batch},{count},{classes}] or [{batch},{classes}]; got {given.dtype} {list(given.shape)}"
        )
    return given.astype(np.promote_types(given.dtype, np.float32))


def layout_of(shape: tuple[int, ...], regions: Regions, store: str) -> Layout:
    """Which rows a cache's ``store`` keeps of answers that have this ``shape`` for an image: [h,w,K], [R,K] or [K]."""
    if len(shape) == 3:
        return Layout.of_map(regions, shape[:2], store)
    return Layout(regions, None if len(shape) == 2 else 0)


def image_logits(given: np.ndarray) -> np.ndarray:
    """The logits [B,K] of the images, of whatever an ``answer`` has."""
    if given.ndim == 4:
        return given.mean((1, 2))
    return given[:, 0] if given.ndim == 3 else given


def answer_rows(given: np.ndarray, layout: Layout) -> np.ndarray:
    """The rows [B,layout.rows,K] of an ``answer``."""
    if given.ndim == 4:
        region_logits = layout.kept.pool(given)
    else:
        region_logits = given if given.ndim == 3 else given[:, None]
    return jax.device_get(join_rows(image_logits(given), region_logits, layout))


def measure_accuracy(teacher: ForeignTeacher, dataset: AnyDataset, regions: Regions, batch: int) -> float:
    """The share of the test images whose class it names, 0 to 1; every call is of ``batch`` images.

    ``FloatingPointError`` if its logits are not finite.
    """
    total, right = len(dataset.test.index), 0
    for start in range(0, total, batch):
        rows = np.arange(start, start + batch)
        pixels, labels = read_test_examples(dataset, np.minimum(rows, total - 1))
        given = image_logits(answer(teacher, pixels, dataset, regions))
        if not np.isfinite(given).all():
            first = start + int(np.flatnonzero(~np.isfinite(given).all(-1))[0])
            raise FloatingPointError(f"{teacher.name}: its logits are not finite, of test image {first} first")
        right += int(((given.argmax(-1) == labels) & (rows < total)).sum())
    return right / total
