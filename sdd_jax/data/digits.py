"""scikit-learn's handwritten digits: 1,797 real images that come with a package, for a first run without a download."""

from typing import Any

import numpy as np

from sdd_jax.data.dataset import Raw, stratified_draw

__all__ = ["read_digits"]

# Changing it changes which digits every published result was tested on.
_TEST_KEY = 20_240_619


def read_digits() -> Raw:
    """The UCI test set of handwritten digits as ``sklearn.datasets.load_digits`` ships it.

    The 8x8 values 0 to 16 become 0 to 255, and each pixel a block of 4x4, so that networks for 32x32 take them. A fifth
    of each class, drawn by a fixed key, is the test set; the source has no split of its own.

    Returns:
      Images uint8 ``[1438, 32, 32, 1]`` and ``[359, 32, 32, 1]`` with their labels.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the data set "digits" comes with scikit-learn: pip install scikit-learn') from error

    data: Any = load_digits()
    scaled = np.floor(data.images * (255 / 16) + 0.5).astype(np.uint8)
    images = scaled.repeat(4, axis=1).repeat(4, axis=2)[..., None]
    labels = data.target.astype(np.int32)
    sizes = np.bincount(labels)
    test = np.zeros(len(labels), bool)
    test[stratified_draw(labels, (2 * sizes + 5) // 10, _TEST_KEY)] = True
    return Raw(images[~test], labels[~test], images[test], labels[test])
