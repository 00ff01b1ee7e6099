"""What a step minimises: an objective is three functions over the two networks' outputs.

``init(key, student, teacher, num_examples) -> (params, state)`` makes trainable parameters and memory of the objective
itself, both ``{}`` for logit losses; ``student`` and ``teacher`` are outputs as ``jax.ShapeDtypeStruct``.

``apply(params, state, student, teacher, batch, *, epoch, key) -> (loss [B], metrics, state)`` gives the loss of each
example and metrics, a dictionary of ``[B]``. ``epoch`` counts from 0.

``needs`` names the teacher's outputs that ``apply`` reads, so that a cache which lacks them can be refused.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdd_jax.sdd import reduce_terms, region_terms


class Objective(NamedTuple):
    """See the module's docstring."""

    init: Callable[..., tuple[Any, Any]]
    apply: Callable[..., tuple[jax.Array, dict[str, jax.Array], Any]]
    needs: frozenset[str]


def plain(task_weight: float = 1.0) -> Objective:
    """``task_weight`` times the cross-entropy with the labels: alone it is training without a teacher."""

    def apply(params, state, student, teacher, batch, *, epoch, key):
        del params, teacher, epoch, key
        loss = _task_loss(student.logits, batch["label"])
        return task_weight * loss, {"task_loss": loss}, state

    return Objective(_no_variables, apply, frozenset())


def distill(
    base: Callable[..., jax.Array],
    *,
    sdd: Mapping[str, Any] | None = None,
    scales: Sequence[int] | None = None,
    task_weight: float = 1.0,
    distill_weight: float = 1.0,
    warmup_epochs: int = 0,
) -> Objective:
    """Logit distillation: ``task_weight * cross-entropy + distill_weight * warm-up * distillation``.

    Args:
      base: a base loss ``(student_logits, teacher_logits, labels) -> [...]``.
      sdd: None applies ``base`` to the global logits; a mapping applies it region by region and holds the keyword
        arguments of ``sdd_loss`` (complementary_weight, consistent_weight, consistency, reduction).
      scales: of the regions; with them the metrics of SDD are also given scale by scale, see ``_by_scale``.
      task_weight: weight of the cross-entropy with the labels.
      distill_weight: weight of the distillation term (the paper's alpha).
      warmup_epochs: the distillation term is multiplied by ``min(e / warmup_epochs, 1)``, e = 1 in the first epoch,
        as in the released code; 0 means none.
    """

    def apply(params, state, student, teacher, batch, *, epoch, key):
        del params, key
        labels = batch["label"]
        task = _task_loss(student.logits, labels)
        metrics = {"task_loss": task}
        if sdd is None:
            term = base(student.logits, teacher.logits, labels)
            if term.shape != labels.shape:
                raise ValueError(f"base must return one value per example, {labels.shape}, got {term.shape}")
        else:
            options = dict(sdd)
            reduction = options.pop("reduction", "mean")
            terms, complementary = region_terms(
                student.region_logits, teacher.region_logits, labels, base=base, **options
            )
            term = reduce_terms(terms, terms.shape[1], reduction)
            metrics["complementary_share"] = jnp.mean(complementary, axis=1, dtype=jnp.float32)
            metrics |= _by_scale(terms, complementary, scales or (), reduction)
        metrics["distill_loss"] = term
        scale = jnp.minimum((epoch + 1) / warmup_epochs, 1.0) if warmup_epochs else 1.0
        return task_weight * task + distill_weight * scale * term, metrics, state

    return Objective(_no_variables, apply, frozenset({"logits" if sdd is None else "region_logits"}))


def added(**terms: Objective) -> Objective:
    """The sum of objectives, each with its parameters and memory under its name; their metrics' names differ."""

    def init(key, student, teacher, num_examples):
        keys = jax.random.split(key, len(terms))
        made = {
            name: term.init(own, student, teacher, num_examples)
            for own, (name, term) in zip(keys, terms.items(), strict=True)
        }
        return {name: params for name, (params, _) in made.items()}, {name: state for name, (_, state) in made.items()}

    def apply(params, state, student, teacher, batch, *, epoch, key):
        losses, metrics, states = [], {}, {}
        for own, (name, term) in zip(jax.random.split(key, len(terms)), terms.items(), strict=True):
            loss, measured, states[name] = term.apply(
                params[name], state[name], student, teacher, batch, epoch=epoch, key=own
            )
            losses.append(loss)
            metrics |= measured
        return functools.reduce(jnp.add, losses), metrics, states

    return Objective(init, apply, frozenset().union(*(term.needs for term in terms.values())))


def _by_scale(
    terms: jax.Array, complementary: jax.Array, scales: Sequence[int], reduction: str
) -> dict[str, jax.Array]:
    """Of each scale m, as ``[B]``: which share of its regions is complementary, and what they add to ``distill_loss``.

    ``complementary_share_mxm`` is a share of the scale's m^2 regions; ``complementary_loss_mxm`` and
    ``consistent_loss_mxm`` are the weighted losses of the ones and the others, over all scales their sum is
    ``distill_loss``. Region 0 is never complementary, so scale 1 has the last of the three alone.
    """
    metrics, first = {}, 0
    for scale in scales:
        cells = slice(first, first + scale**2)
        first += scale**2
        apart = complementary[:, cells]
        kinds = {"consistent": ~apart, "complementary": apart} if scale > 1 else {"consistent": ~apart}
        for kind, mask in kinds.items():
            part = reduce_terms(jnp.where(mask, terms[:, cells], 0), terms.shape[1], reduction)
            metrics[f"{kind}_loss_{scale}x{scale}"] = part
        if scale > 1:
            metrics[f"complementary_share_{scale}x{scale}"] = jnp.mean(apart, axis=1, dtype=jnp.float32)
    return metrics


def _no_variables(key, student, teacher, num_examples):
    del key, student, teacher, num_examples
    return {}, {}


def _task_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
