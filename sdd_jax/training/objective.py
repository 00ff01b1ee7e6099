"""What a step minimises: an objective is a value with two functions over the outputs of both networks.

``init(key, student, teacher, labels) -> (params, state)`` makes trainable parameters and memory of the objective
itself, both ``{}`` for logit losses. ``student`` and ``teacher`` are outputs as ``jax.ShapeDtypeStruct``; ``labels``
are those of the training split, a NumPy array ``[N]``, -1 where a label is not known before its image is read.

``apply(params, state, student, teacher, batch, *, epoch, epochs_done, key) -> (loss [B], metrics, state)`` gives the
loss of each example and metrics, a dictionary of ``[B]``. ``epoch`` counts from 0; ``epochs_done`` is a fraction too,
and has this step in it. What reads ``batch["label"]`` does so through ``over_labels``: an image may be a mixture, which
has another label besides.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import softmax_cross_entropy_with_integer_labels

from sdd_jax.regions import Regions
from sdd_jax.sdd import reduce_terms, region_terms


class Objective(NamedTuple):
    """See the module's docstring."""

    init: Callable[..., tuple[Any, Any]]
    apply: Callable[..., tuple[jax.Array, dict[str, jax.Array], Any]]
    needs: frozenset[str] = frozenset()  # the teacher's outputs that `apply` reads: a cache which lacks them is refused
    regions: Regions | None = None  # those that the networks have to show; None if `apply` reads none


def task_loss(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """The cross-entropy ``[B]`` with labels of which a share, ``smoothing``, is spread over all K classes.

    NaN for a label out of range. Source: "Rethinking the Inception Architecture for Computer Vision" (2016), section 7.
    """
    hard = softmax_cross_entropy_with_integer_labels(logits, labels)  # NaN beyond the last class; below 0 from the end
    hard = jnp.where(labels < 0, jnp.nan, hard)
    if not smoothing:
        return hard
    return (1 - smoothing) * hard - smoothing * jnp.mean(jax.nn.log_softmax(logits), axis=-1)


def plain(task_weight: float = 1.0, label_smoothing: float = 0.0) -> Objective:
    """``task_weight`` times the cross-entropy with the labels: alone it is training without a teacher."""

    def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
        loss = over_labels(batch, lambda labels: task_loss(student.logits, labels, label_smoothing))
        return task_weight * loss, {"task_loss": loss}, state

    return Objective(no_variables, apply)


def distill(
    base: Callable[..., jax.Array],
    *,
    regions: Regions | None = None,
    sdd: Mapping[str, Any] | None = None,
    task_weight: float = 1.0,
    distill_weight: float = 1.0,
    warmup_epochs: float = 0,
    warmup_by_step: bool = False,
    label_smoothing: float = 0.0,
) -> Objective:
    """Logit distillation: ``task_weight * cross-entropy + distill_weight * warm-up * distillation``.

    The base loss ``base(student_logits, teacher_logits, labels) -> [...]`` is applied to the global logits, or to each
    of ``regions``; ``sdd`` are keyword arguments of ``sdd_loss``: complementary_weight, consistent_weight, consistency,
    reduction. ``distill_weight`` is the paper's alpha. The warm-up is ``min(e / warmup_epochs, 1)``, none for 0 epochs:
    e is 1 in the whole first epoch, as in the released code, or, by step, the epochs done so far. In a run of few
    epochs the former is coarse, and over one epoch it is none. ``label_smoothing`` is of the cross-entropy alone: base
    losses see the labels as they are.

    ``ValueError`` for ``sdd`` without regions and for a negative warm-up; ``apply`` raises what ``sdd_loss`` does.
    """
    if regions is None and sdd:
        raise ValueError(f"sdd weighs regions, and there are none: give regions=Regions() too, got {dict(sdd)}")
    if warmup_epochs < 0:
        raise ValueError(f"distillation needs warm-up epochs of at least 0, got {warmup_epochs}")
    weighting = dict(sdd or {})
    reduction = weighting.pop("reduction", "mean")

    def measure(student, teacher, labels):
        metrics = {"task_loss": task_loss(student.logits, labels, label_smoothing)}
        if regions is None:
            term = base(student.logits, teacher.logits, labels)
            if term.shape != labels.shape:
                raise ValueError(f"base must return one value per example, {labels.shape}, got {term.shape}")
        else:
            terms, complementary = region_terms(student.region_logits, teacher.region_logits, labels, base, **weighting)
            term = reduce_terms(terms, regions.count, reduction)
            metrics["complementary_share"] = jnp.mean(complementary, axis=1, dtype=jnp.float32)
            metrics |= _by_scale(terms, complementary, regions, reduction)
        return metrics | {"distill_loss": term}

    def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
        metrics = over_labels(batch, lambda labels: measure(student, teacher, labels))
        done = epochs_done if warmup_by_step else epoch + 1
        scale = jnp.minimum(done / warmup_epochs, 1.0) if warmup_epochs else 1.0
        loss = task_weight * metrics["task_loss"] + distill_weight * scale * metrics["distill_loss"]
        return loss, metrics, state

    return Objective(no_variables, apply, frozenset({"logits" if regions is None else "region_logits"}), regions)


def added(**terms: Objective) -> Objective:
    """The sum of objectives, each with its parameters and memory under its name; their metrics' names differ."""
    regions = {term.regions for term in terms.values() if term.regions is not None}
    if len(regions) > 1:
        raise ValueError(f"objectives that are added must read the same regions, got {regions}")

    def init(key, student, teacher, labels):
        params, states = {}, {}
        for own, (name, term) in zip(jax.random.split(key, len(terms)), terms.items(), strict=True):
            params[name], states[name] = term.init(own, student, teacher, labels)
        return params, states

    def apply(params, state, student, teacher, batch, *, epoch, epochs_done, key):
        losses, metrics, states = [], {}, {}
        for own, (name, term) in zip(jax.random.split(key, len(terms)), terms.items(), strict=True):
            loss, measured, states[name] = term.apply(
                params[name], state[name], student, teacher, batch, epoch=epoch, epochs_done=epochs_done, key=own
            )
            losses.append(loss)
            metrics |= measured
        return functools.reduce(jnp.add, losses), metrics, states

    needs = frozenset().union(*(term.needs for term in terms.values()))
    return Objective(init, apply, needs, next(iter(regions), None))


def over_labels(batch: Mapping[str, jax.Array], function: Callable[[jax.Array], Any]) -> Any:
    """``function(labels)``, a tree of arrays; of a batch of mixed images its mixture over both labels.

    Images are mixed by ``sdd_jax.data.mixing``; the mixture is ``share`` of the first label's and the rest of the
    other's. ``function`` should hold what reads a label and no more: its gradient is computed for either label, also
    where it does not differ.
    """
    first = function(batch["label"])
    if "share" not in batch:
        return first
    share = batch["share"][0]  # of every image
    return jax.tree.map(
        lambda one, other: share.astype(one.dtype) * one + (1 - share).astype(one.dtype) * other,
        first,
        function(batch["other_label"]),
    )


def no_variables(key: Any, student: Any, teacher: Any, labels: Any) -> tuple[Any, Any]:
    """The ``init`` of an objective without parameters and memory."""
    return {}, {}


def check_feature_maps(student: Any, teacher: Any, name: str, what: str) -> None:
    """``ValueError`` unless both networks give the feature map called ``name``, which ``what`` reads."""
    check_feature_map("student", student, name, what)
    check_feature_map("teacher", teacher, name, what)


def check_feature_map(role: str, outputs: Any, name: str, what: str) -> None:
    """``ValueError`` unless the network of this role gives the feature map."""
    given = {} if outputs is None else outputs.feature_maps
    if name not in given:
        known = f"has {', '.join(given)}" if given else "gives no feature maps"
        raise ValueError(f"{what} reads the feature map {name!r}, but the {role} {known}")


def _by_scale(terms: jax.Array, complementary: jax.Array, regions: Regions, reduction: str) -> dict[str, jax.Array]:
    """Metrics ``[B]`` of each scale m: the complementary share of its m^2 regions, and its weighted losses.

    These losses add up to ``distill_loss``; region 0, which is never complementary, has ``consistent_loss_1x1`` alone.
    """
    metrics, first = {}, 0
    for scale in regions.scales:
        cells = slice(first, first + scale**2)
        first += scale**2
        apart = complementary[:, cells]
        kinds = {"consistent": ~apart, "complementary": apart} if scale > 1 else {"consistent": ~apart}
        for kind, mask in kinds.items():
            part = reduce_terms(jnp.where(mask, terms[:, cells], 0), regions.count, reduction)
            metrics[f"{kind}_loss_{scale}x{scale}"] = part
        if scale > 1:
            metrics[f"complementary_share_{scale}x{scale}"] = jnp.mean(apart, axis=1, dtype=jnp.float32)
    return metrics
