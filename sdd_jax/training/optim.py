"""The optimizer of the reference, AdamW, which parameters they decay, and the schedules of their rates."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Arrays that may have several axes, and are no weights of a layer: biases and scales of Flax's attention and norms, and
# positions and tokens of transformers by their names here, in timm, in Flax and in Swin. A name is the path to
# an array, joined: `attention_query_bias_value` of an NNX module, `pos_embed_embedding` of an `Embed` with positions.
UNDECAYED = re.compile(
    r"(.*_)?(bias|scale|positions|pos(ition)?_embed(ding)?|(class|cls|dist)_token|cls|relative_position_bias_table)"
    r"(_embedding)?(_value)?"
)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float,
    weight_decay: float,
    clip_norm: float | None,
    decayed: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """SGD as PyTorch and the released code have it.

    The gradient is clipped to a global L2 norm of ``clip_norm`` first (None: not at all), then decay is added for every
    parameter (batch normalisation and biases included, unless ``decayed(params)``, a tree of bool, says otherwise),
    then comes momentum (not Nesterov), and the learning rate multiplies the result, so that a drop of the rate acts at
    once on what momentum holds.
    """
    return optax.chain(
        optax.identity() if clip_norm is None else clip_by_global_norm(clip_norm),
        optax.add_decayed_weights(weight_decay, decayed),
        optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    clip_norm: float | None,
    decayed: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """AdamW with ``beta_1 = 0.9``, ``beta_2 = 0.999`` and ``epsilon = 1e-8``, after the clip of ``sgd``.

    A step takes ``rate * (m / (sqrt(v) + epsilon) + weight_decay * weights)`` off the weights, ``m`` and ``v`` the
    means of gradients and of their squares, free of their bias. ``decayed`` as in ``sgd``.

    Source: "Decoupled Weight Decay Regularization" (Loshchilov and Hutter, ICLR 2019), algorithm 2, with the numbers of
    "Adam" (2015), algorithm 1. There the decay of a step is the schedule's factor times ``lambda``; in PyTorch, timm
    and here it is the whole rate times ``weight_decay``, so that ``lambda`` is the first rate times ``weight_decay``.
    """
    clip = optax.identity() if clip_norm is None else clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed))


def weights_alone(params: Any) -> Any:
    """Which of ``params`` are weights, as a tree of bool: those of two axes or more, without ``UNDECAYED``.

    Source: "Bag of Tricks for Image Classification with Convolutional Neural Networks" (2019), section 3.1, "no bias
    decay"; by the number of axes and by names, as timm and DeiT have it (timm/optim, ``no_weight_decay``).
    """

    def decays(path, leaf):
        name = re.sub(r"\W+", "_", jax.tree_util.keystr(path)).strip("_")  # such as trunk_attention_query_bias
        return leaf.ndim > 1 and UNDECAYED.fullmatch(name) is None

    return jax.tree_util.tree_map_with_path(decays, params)


def global_norm(tree: Any) -> jax.Array:
    """The L2 norm of all arrays together, as one vector: a sum for each array takes a fifth of the time to compile."""
    return jnp.linalg.norm(jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]))


def clip_by_global_norm(clip_norm: float) -> optax.GradientTransformation:
    """Scales gradients by ``min(clip_norm / (norm + 1e-6), 1)``, ``norm`` that of all of them together.

    PyTorch's ``clip_grad_norm_`` has that 1e-6, optax's transformation has not: a relative 2.5e-8 at norm 40, which
    five steps of a MobileNetV2 grow to a few percent.
    """

    def clip(updates, params):
        del params
        scale = jnp.minimum(clip_norm / (global_norm(updates) + 1e-6), 1.0)
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


def warmed_up(schedule: optax.Schedule, learning_rate: float, steps: int) -> optax.Schedule:
    """``schedule``, but in step s (from 0) of the first ``steps`` the rate is ``learning_rate * (s + 1) / steps``.

    The schedule counts from the run's beginning, so it goes on where it would have been: milestones stay, and a cosine
    is a little below ``learning_rate`` after the warm-up.

    Source: "Accurate, Large Minibatch SGD" (Goyal et al., 2017), section 2.2, gradual warm-up by step. In timm (and
    DeiT) it goes by epoch, from 1e-6.
    """
    if not steps:
        return schedule

    def rate(step):
        return jnp.where(step < steps, learning_rate * (step + 1) / steps, schedule(step))

    return rate
