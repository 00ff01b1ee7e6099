"""Losses over feature maps, as objectives: SP, whole or region by region, and CRD.

Which map of a network they read is an option, by its name in ``Outputs.feature_maps``.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdd_jax.logits import root
from sdd_jax.models.classifier import HEAD, LAST_STAGE
from sdd_jax.models.layers import torch_affine_init
from sdd_jax.regions import Regions
from sdd_jax.sdd import reduce_terms
from sdd_jax.training.objective import Objective, check_feature_maps, no_variables


def similarity_loss(student_features: ArrayLike, teacher_features: ArrayLike) -> jax.Array:
    """How far the two networks' similarities of an example to the batch are apart: ``mean_j (G_t[i,j] - G_s[i,j])^2``.

    ``G`` is the Gram matrix of the batch's features, each row divided by its norm. The mean over the batch is the
    paper's loss, ``|G_t - G_s|^2 / B^2``, which is ``[B, ...]`` here, at least float32.

    Features are ``[B, ..., C]``, batch first; axes between are regions, each with a Gram matrix. ``ValueError`` if the
    two differ in more than channels. An example whose features are all zero has similarities of zero.
    """
    student, teacher = jnp.asarray(student_features), jnp.asarray(teacher_features)
    if student.ndim < 2 or student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"student and teacher features must be [B, ..., C] of one [B, ...], got {student.shape} and {teacher.shape}"
        )
    return jnp.mean((_similarities(teacher) - _similarities(student)) ** 2, axis=-1)


def similarity(
    weight: float = 3000.0, *, feature_map: str = LAST_STAGE, regions: Regions | None = None, reduction: str = "mean"
) -> Objective:
    """``weight`` times SP, similarity-preserving distillation, of both networks' feature maps of one name.

    Source: "Similarity-Preserving Knowledge Distillation" (Tung and Mori, ICCV 2019), equations 1 to 4, and
    RepDistiller's code of it (distiller_zoo/SP.py). SP on regions is SDD-SP of appendix 6.1 of "Scale Decoupled
    Distillation" (CVPR 2024), which gives no formula and has no released code.

    The last stage's output is what RepDistiller reads (helper/loops.py:145, ``feat[-2]``). It is the head's map but in
    MobileNetV2 and ShuffleNetV2, where a 1x1 convolution comes between, and in wide residual networks, where batch
    normalisation and ReLU do.

    Without ``regions`` whole maps are compared, all locations of an example as one vector, as SP does. Otherwise the
    mean feature of each region is compared with that region of the other examples: SDD-SP. There is no classifier in
    it, so no region is complementary. The metric ``similarity_loss`` is before the weight.
    """

    def init(key, student, teacher, labels):
        check_feature_maps(student, teacher, feature_map, "similarity")
        return no_variables(key, student, teacher, labels)

    def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
        maps = student.feature_maps[feature_map], teacher.feature_maps[feature_map]
        if regions is None:
            loss = similarity_loss(*(features.reshape(features.shape[0], -1) for features in maps))
        else:
            terms = similarity_loss(*(regions.pool(features) for features in maps))
            loss = reduce_terms(terms, regions.count, reduction)
        return weight * loss, {"similarity_loss": loss}, state

    return Objective(init, apply, frozenset({"feature_maps"}))


def _similarities(features: jax.Array) -> jax.Array:
    """Each example's similarities to the batch, ``[B, ..., B]``."""
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    gram = jnp.einsum("i...c,j...c->i...j", features, features, precision=jax.lax.Precision.HIGHEST)
    return gram / jnp.maximum(root(jnp.sum(gram**2, axis=-1, keepdims=True)), 1e-12)  # as the released code has it


OTHER_CLASSES, ALL_EXAMPLES = DRAWS = ("other_classes", "all_examples")


def contrast(
    weight: float = 0.8,
    *,
    dimensions: int = 128,
    negatives: int = 16_384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    draw: str = OTHER_CLASSES,
    feature_map: str = HEAD,
) -> Objective:
    """``weight`` times CRD, contrastive distillation against a memory, of the mean features.

    Source: "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020), section 3 and equation 18, and
    its released code (RepDistiller, crd/), whose defaults are those here.

    Each network's feature is embedded by an affine map of its own, which is trained, and scaled to length 1. A memory
    holds such an embedding of every training example for each network. A student's embedding is to tell its example's
    entry in the teacher's memory from entries drawn at random, a teacher's embedding its example's entry in the
    student's memory. After that the examples of the batch are renewed in both memories, half old, half new.

    - Memories have a row for each training example and are addressed by ``batch["row"]``: ``batch["index"]`` counts
      the images of the whole set, those that are held out among them.
    - Negatives are drawn anew from the step's key. ``draw`` says from where: "other_classes" are the examples of other
      classes, none of them twice, as the released data set class draws them (dataset/cifar100.py), which repeats some
      where there are fewer than it needs; "all_examples", the positive's class among them, with repetition, is what
      the released memory does by itself.
    - The normalising constants are set in the first step, from the scores of its batch, and kept.
    - An example that stands twice in a batch, which crosses the end of an epoch, is renewed by its later place.
    - Of a batch in parts (``optim.accumulate_steps``) the first part sets the constants, and each part renews its own.

    All scores of a batch are one matrix product with the memory, [B,N], of which the drawn ones are taken: entries
    themselves, [B,negatives,dimensions], would be forty times as many numbers on CIFAR-100.

    ``momentum`` is the share of an entry that stays when it is renewed; the metric ``contrast_loss`` is before the
    weight. ``ValueError`` for an option that is not known or out of range, and for labels of fewer than two classes.
    """
    if draw not in DRAWS:
        raise ValueError(f"CRD draws its negatives from {' or '.join(DRAWS)}, got {draw!r}")
    if min(dimensions, negatives) < 1 or not temperature > 0 or not 0 <= momentum < 1:
        got = f"{dimensions} dimensions, {negatives} negatives, temperature {temperature}, momentum {momentum}"
        raise ValueError(f"CRD needs a dimension, a negative, a temperature above 0 and a momentum below 1; got {got}")

    def init(key, student, teacher, labels):
        check_feature_maps(student, teacher, feature_map, "contrast")
        if draw == OTHER_CLASSES and (len(np.unique(labels)) < 2 or np.min(labels) < 0):
            raise ValueError(
                f"CRD draws its negatives from other classes: it needs labels of two classes, all known before the "
                f"images are read, got {len(np.unique(labels))}; features.options.draw={ALL_EXAMPLES} needs none"
            )
        params, memories = {}, {}
        networks = {"student": student, "teacher": teacher}
        for of_network, (name, outputs) in zip(jax.random.split(key), networks.items(), strict=True):
            features = outputs.feature_maps[feature_map]
            channels, dtype = features.shape[-1], jnp.promote_types(features.dtype, jnp.float32)
            of_kernel, of_bias, of_memory = jax.random.split(of_network, 3)
            make_kernel, make_bias = torch_affine_init(channels)
            params[name] = {
                "kernel": make_kernel(of_kernel, (channels, dimensions), dtype),
                "bias": make_bias(of_bias, (dimensions,), dtype),
            }
            bound = math.sqrt(3 / dimensions)
            memories[name] = jax.random.uniform(of_memory, (len(labels), dimensions), dtype, -bound, bound)
        constants = {name: jnp.zeros((), memories[name].dtype) for name in memories}
        state = {"memory": memories, "log_constant": constants, "started": jnp.zeros((), bool)}
        return params, state | ({"labels": jnp.asarray(labels, jnp.int32)} if draw == OTHER_CLASSES else {})

    def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
        if "share" in batch:
            raise ValueError("CRD remembers every example, and cannot learn from mixed images, which are of none")
        rows, memories = batch["row"], state["memory"]
        num_examples = memories["student"].shape[0]
        if draw == OTHER_CLASSES:
            drawn = draw_others(key, state["labels"], batch["label"], negatives)
        else:
            drawn = jax.random.randint(key, (rows.shape[0], negatives), 0, num_examples, rows.dtype)
        sampled = jnp.concatenate([rows[:, None], drawn], axis=1)
        embedded, losses, constants = {}, {}, {}
        for name, outputs in (("student", student), ("teacher", teacher)):
            features = outputs.feature_maps[feature_map]
            features = jnp.mean(features, axis=(1, 2), dtype=jnp.promote_types(features.dtype, jnp.float32))
            products = jnp.matmul(features, params[name]["kernel"], precision=jax.lax.Precision.HIGHEST)
            affine = products + params[name]["bias"]
            embedded[name] = affine / jnp.linalg.norm(affine, axis=-1, keepdims=True)
        for name, other in (("student", "teacher"), ("teacher", "student")):
            every = jnp.matmul(embedded[name], memories[other].T, precision=jax.lax.Precision.HIGHEST) / temperature
            scores = jnp.take_along_axis(every, sampled, axis=1)
            now = jax.nn.logsumexp(scores) + math.log(num_examples / scores.size)  # N times the mean score
            constants[name] = jax.lax.stop_gradient(jnp.where(state["started"], state["log_constant"][name], now))
            losses[name] = noise_contrast(scores - constants[name], num_examples)
        loss = losses["student"] + losses["teacher"]
        renewed = {name: renew(memories[name], rows, embedded[name], momentum) for name in memories}
        state = {**state, "memory": renewed, "log_constant": constants, "started": jnp.ones((), bool)}
        return weight * loss, {"contrast_loss": loss}, state

    return Objective(init, apply, frozenset({"feature_maps"}))


def draw_others(key: jax.Array, labels: jax.Array, own: jax.Array, number: int) -> jax.Array:
    """``[B, number]`` rows of ``labels [N]`` whose label is not ``own [B]``: uniform, and none twice in a draw.

    Where there are fewer such rows than ``number``, each place is drawn by itself.
    """
    of_order, of_places = jax.random.split(key)
    others = labels[None] != own[:, None]
    order = jnp.where(others, jax.random.uniform(of_order, others.shape, jnp.float32), -1.0)
    _, shuffled = jax.lax.top_k(order, min(number, len(labels)))  # the other classes, in random order, come first
    count = jnp.sum(others, axis=1, keepdims=True)
    places = jax.random.randint(of_places, (len(own), number), 0, count)
    return jnp.take_along_axis(shuffled, jnp.where(count < number, places, jnp.arange(number)), axis=1)


def noise_contrast(log_scores: jax.Array, num_examples: int) -> jax.Array:
    """The loss ``[B]`` of telling column 0 of ``[B, 1 + K]`` from K columns that uniform noise over N examples drew.

    ``-log(p_0 / (p_0 + K/N)) - sum_k log((K/N) / (p_k + K/N))``, in log space.
    """
    noise = (log_scores.shape[1] - 1) / num_examples
    log_total = jnp.logaddexp(log_scores, math.log(noise + 1e-7))  # 1e-7: as the released code has it
    positive = log_scores[:, 0] - log_total[:, 0]
    return -positive - jnp.sum(math.log(noise) - log_total[:, 1:], axis=1)


def renew(memory: jax.Array, rows: jax.Array, embedded: jax.Array, momentum: float) -> jax.Array:
    """``memory [N, D]`` with ``rows [B]`` moved towards ``embedded [B, D]``, of length 1; a later place counts."""
    new = momentum * memory[rows] + (1.0 - momentum) * jax.lax.stop_gradient(embedded)
    new = new / jnp.linalg.norm(new, axis=-1, keepdims=True)
    place = jnp.arange(rows.shape[0])
    again = jnp.any((rows[:, None] == rows[None]) & (place[:, None] < place[None]), axis=1)
    # Rows past the end are dropped: no row is written twice, in whatever order a device would do so.
    return memory.at[jnp.where(again, memory.shape[0], rows)].set(new, mode="drop")
