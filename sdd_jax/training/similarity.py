"""SP: similarity-preserving distillation of feature maps, whole or region by region, as an objective.

Source: "Similarity-Preserving Knowledge Distillation" (Tung and Mori, ICCV 2019), equations 1 to 4, and RepDistiller's
code of it (distiller_zoo/SP.py). SP on regions is SDD-SP of appendix 6.1 of "Scale Decoupled Distillation" (CVPR 2024),
which gives no formula and has no released code.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdd_jax.regions import Regions
from sdd_jax.sdd import reduce_terms
from sdd_jax.training.objective import Objective, check_feature_maps, no_variables

EPSILON = 1e-12  # the least norm of a row, as the released code's normalisation has it


def similarity_loss(student_features: ArrayLike, teacher_features: ArrayLike) -> jax.Array:
    """How far the two networks' similarities of an example to the batch are apart: ``mean_j (G_t[i,j] - G_s[i,j])^2``.

    ``G`` is the Gram matrix of the batch's features, each row divided by its norm. The mean over the batch is the
    paper's loss, ``|G_t - G_s|^2 / B^2``. It depends on which examples are in a batch.

    Args:
      student_features: ``[B, ..., C]``, batch first; any leading axes between are regions, each with a Gram matrix.
      teacher_features: ``[B, ..., C']``; the two may differ in channels alone.

    Returns:
      ``[B, ...]``, at least float32. An example whose features are all zero has similarities of zero.

    Raises:
      ValueError: if the shapes differ before the last axis, or lack batch or channels.
    """
    student, teacher = jnp.asarray(student_features), jnp.asarray(teacher_features)
    if student.ndim < 2 or student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"student and teacher features must be [B, ..., C] of one [B, ...], got {student.shape} and {teacher.shape}"
        )
    return jnp.mean((_similarities(teacher) - _similarities(student)) ** 2, axis=-1)


def similarity(weight: float = 3000.0, *, regions: Regions | None = None, reduction: str = "mean") -> Objective:
    """``weight`` times SP of the last feature maps, the ones that the head is applied to.

    Args:
      weight: 3000 in RepDistiller and mdistiller.
      regions: None compares whole maps, all locations of an example as one vector, as SP does. Otherwise the mean
        feature of each region is compared with that region of the other examples: SDD-SP. There is no classifier in
        it, so no region is complementary.
      reduction: over the regions, "mean" or "sum".

    Returns:
      An objective without parameters or memory; its metric ``similarity_loss`` is before the weight.
    """

    def init(key, student, teacher, num_examples):
        check_feature_maps(student, teacher, "similarity")
        return no_variables(key, student, teacher, num_examples)

    def apply(params, state, student, teacher, batch, *, epoch, key):
        del params, batch, epoch, key
        maps = student.feature_map, teacher.feature_map
        if regions is None:
            loss = similarity_loss(*(features.reshape(features.shape[0], -1) for features in maps))
        else:
            terms = similarity_loss(*(regions.pool(features) for features in maps))
            loss = reduce_terms(terms, regions.count, reduction)
        return weight * loss, {"similarity_loss": loss}, state

    return Objective(init, apply, frozenset({"feature_map"}))


def _similarities(features: jax.Array) -> jax.Array:
    """Each example's similarities to the batch, ``[B, ..., B]``."""
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    gram = jnp.einsum("i...c,j...c->i...j", features, features, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(gram**2, axis=-1, keepdims=True)
    zero = squares == 0.0  # the root has no derivative there
    norm = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
    return gram / jnp.maximum(norm, EPSILON)
