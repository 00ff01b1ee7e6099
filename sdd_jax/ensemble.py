"""Several teachers as one: the mean of what they say, region by region."""

from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.regions import check_name

__all__ = ["mean_of_teachers"]

MEANS = ("probabilities", "logits")


def mean_of_teachers(logits: Sequence[jax.Array], weights: Sequence[float], mean: str = "probabilities") -> jax.Array:
    """Logits of several teachers for the same regions as those of one.

    "Distilling the Knowledge in a Neural Network" (Hinton, Vinyals, Dean; 2015), section 1: "an arithmetic or geometric
    mean of their individual predictive distributions". A base loss softens what it is given by its temperature, so the
    two differ there as well: logits are averaged as they are at any temperature, probabilities at temperature 1.

    Args:
      logits: ``[..., K]`` of each teacher.
      weights: one of each, above 0; their sum does not matter.
      mean: "probabilities", the arithmetic mean, whose logarithm is returned; "logits", the mean of the logits, which
        is the geometric mean of the distributions at every temperature.

    Returns:
      ``[..., K]``.

    Raises:
      ValueError: for shapes or numbers that do not fit, or an unknown name.
    """
    check_name("mean", mean, MEANS)
    shapes, shares = {one.shape for one in logits}, np.asarray(weights, np.float64)
    if len(shapes) != 1 or shares.shape != (len(logits),) or not (np.isfinite(shares) & (shares > 0)).all():
        raise ValueError(f"expected one shape and a weight above 0 for each teacher, got {shapes} and {weights}")
    shares = shares / shares.sum()
    if mean == "logits":
        return reduce(jnp.add, (share * one for share, one in zip(shares.tolist(), logits, strict=True)))
    terms = [jax.nn.log_softmax(one, -1) + share for share, one in zip(np.log(shares).tolist(), logits, strict=True)]
    return reduce(jnp.logaddexp, terms)
