"""Base losses as a user might write them, right and wrong, for ``loss.base=own_losses:NAME``."""

import jax.numpy as jnp

CONSTANT = 3


def logit_matching(student_logits, teacher_logits, labels=None, *, alpha=1.0, power=2.0):
    difference = student_logits - teacher_logits
    difference = difference - jnp.mean(difference, axis=-1, keepdims=True)
    return alpha * jnp.mean(jnp.abs(difference) ** power, axis=-1)


def mean_over_the_batch(student_logits, teacher_logits, labels):
    return jnp.mean((student_logits - teacher_logits) ** 2)


def signs(student_logits, teacher_logits, labels):
    return (student_logits > teacher_logits).sum(-1)


def without_labels(student_logits, teacher_logits):
    return logit_matching(student_logits, teacher_logits)


def with_a_needed_power(student_logits, teacher_logits, labels, *, power: float):
    return logit_matching(student_logits, teacher_logits, power=power)


def with_kinds(
    student_logits, teacher_logits, labels, *, cutoff: float | None = None, floor: "float|None" = 2.0, steps=(1, 2)
):
    return jnp.zeros(labels.shape)


def with_a_list(student_logits, teacher_logits, labels, *, temperatures=[1.0, 2.0]):  # noqa: B006
    return jnp.zeros(labels.shape)


def with_fractions(student_logits, teacher_logits, labels, *, temperatures=(1.0, 2.0)):
    return jnp.zeros(labels.shape)


def with_none(student_logits, teacher_logits, labels, *, cutoff=None):
    return jnp.zeros(labels.shape)
