"""Base losses that relate classes: by their order (RLD, LDRLD) or their distances (WKD-L).

The conventions are those of ``sdd_jax.losses``; each example, and each region, is by itself. What orders classes jumps
where two of them change places, and there is no gradient through the order.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdd_jax.logits import (
    kl_divergence,
    log_binary,
    log_softmax_within,
    prepare,
    select,
    target_mask,
)

__all__ = ["rld_loss"]

FLOOR = 1e-8  # of the released code of WKD-L: added to distances and to what is divided by
HIGHEST = jax.lax.Precision.HIGHEST  # accelerators would round what they multiply


def rld_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: float = 4.0,
    target_temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> jax.Array:
    """Refined logit distillation: ``alpha T_a^2 SCD + beta T^2 MCD``; nothing is learned of a teacher's wrong order.

    SCD is the KL divergence of two pairs: (the teacher's largest probability, the rest) and (the student's probability
    of the label, the rest), at ``T_a``. MCD is that of both networks over the classes that the teacher ranks strictly
    below the label, at ``T``; it is zero where there are fewer than two.

    Args:
      student_logits: ``[..., K]``, ``K >= 2``.
      teacher_logits: ``[..., K]``.
      labels: integers ``[...]``.
      temperature: ``T > 0``, of MCD.
      target_temperature: ``T_a > 0``, of SCD.
      alpha: weight of SCD.
      beta: weight of MCD.

    Returns:
      ``[...]``. A class that the student alone leaves out (``-inf``) costs ``inf`` if it is the label, or ranked below
      it by the teacher; no other is compared.

    Raises:
      ValueError: as ``kd_loss``, and for fewer than two classes or a concrete label out of range.

    Source: "Knowledge Distillation with Refined Logits" (Sun et al., ICCV 2025; arXiv 2408.07703), and its released
    code (mdistiller/engine/cfg.py:180-185) for the numbers on CIFAR-100; the command of its README has ``T_a = 4``.
    """
    temperatures = {"temperature": temperature, "target_temperature": target_temperature}
    student, teacher = prepare(student_logits, teacher_logits, **temperatures)
    target, valid = target_mask(labels, student.shape, "rld_loss")
    first = jax.nn.one_hot(jnp.argmax(teacher, axis=-1), teacher.shape[-1], dtype=bool)
    below = (teacher < select(teacher, target)[..., None]) & ~jnp.isneginf(teacher)
    scd = kl_divergence(
        log_binary(teacher / target_temperature, first), log_binary(student / target_temperature, target)
    )
    mcd = kl_divergence(*(log_softmax_within(logits / temperature, below) for logits in (teacher, student)))
    return jnp.where(valid, alpha * target_temperature**2 * scd + beta * temperature**2 * mcd, jnp.nan)
