"""The optimizer of the reference and its learning-rate schedules."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import optax


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float, clip_norm: float | None
) -> optax.GradientTransformation:
    """SGD as PyTorch and the released code have it.

    The gradient is clipped to a global L2 norm of ``clip_norm`` first (None: not at all), then decay is added for every
    parameter (batch normalisation and biases included), then comes momentum (not Nesterov), and the learning rate
    multiplies the result, so that a drop of the rate acts at once on what momentum holds.
    """
    return optax.chain(
        optax.identity() if clip_norm is None else clip_by_global_norm(clip_norm),
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def clip_by_global_norm(clip_norm: float) -> optax.GradientTransformation:
    """Scales gradients by ``min(clip_norm / (norm + 1e-6), 1)``, ``norm`` that of all of them together.

    PyTorch's ``clip_grad_norm_`` has that 1e-6, optax's transformation has not: a relative 2.5e-8 at norm 40, which
    five steps of a MobileNetV2 grow to a few percent.
    """

    def clip(updates, params):
        del params
        scale = jnp.minimum(clip_norm / (optax.tree.norm(updates) + 1e-6), 1.0)
        return optax.tree.scale(scale, updates)

    return optax.stateless(clip)


def total_steps(epochs: int, num_examples: int, batch_size: int) -> int:
    """Steps of a run: batches cross epoch ends, so only the run's last one may reach past its examples."""
    return math.ceil(epochs * num_examples / batch_size)


def first_step(epoch: int, num_examples: int, batch_size: int) -> int:
    """The first step of ``epoch`` (from 0), where the epoch of step s is ``s * batch_size // num_examples``."""
    return -(-epoch * num_examples // batch_size)


def step_schedule(
    learning_rate: float, milestones: Sequence[int], *, num_examples: int, batch_size: int
) -> optax.Schedule:
    """A tenth of the rate from each milestone on: milestone 150 means that 150 epochs run at the rate before it."""
    boundaries: dict[int, float] = {}
    for epoch in milestones:  # two may fall on one step where a batch is larger than an epoch
        step = first_step(epoch, num_examples, batch_size)
        boundaries[step] = 0.1 * boundaries.get(step, 1.0)
    return optax.piecewise_constant_schedule(learning_rate, boundaries)


def cosine_schedule(learning_rate: float, steps: int) -> optax.Schedule:
    """Half a cosine from the rate at step 0 to zero after the last step."""
    return optax.cosine_decay_schedule(learning_rate, steps)
