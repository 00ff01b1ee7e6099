"""In-memory data on the device: ordered, gathered and augmented inside ``jit``, so that the host does nothing per step.

The order is a contract: with B examples a step and N in the split, step s takes positions ``s*B .. s*B + B - 1``, and
position p is entry ``p % N`` of a permutation that is a function of (seed, ``p // N``). Batches cross the ends of
epochs, so none is partial, none is dropped, and every example comes exactly once an epoch.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from sdd_jax.data import augment
from sdd_jax.data.dataset import Dataset, Split, from_arrays

__all__ = [
    "Dataset",
    "Split",
    "check_positions",
    "epoch_order",
    "epochs_per_chunk",
    "eval_batch",
    "eval_batches",
    "from_arrays",
    "locate",
    "train_batch",
]

# Views are drawn from fold_in(key, epoch); epochs stay below this number, so the two streams never meet.
_ORDER_STREAM = 0x7FFF_FFFF

_INT32_MAX = 2**31 - 1


def check_positions(epochs: int, num_examples: int, batch_size: int) -> None:
    """Refuses a run whose positions would not fit in int32.

    Raises:
      ValueError: if the last step's last position, ``ceil(epochs * N / B) * B - 1``, would pass 2**31 - 1.
    """
    positions = -(-epochs * num_examples // batch_size) * batch_size
    if positions - 1 > _INT32_MAX:
        raise ValueError(
            f"{epochs} epochs of {num_examples} examples need {positions} positions: at most {_INT32_MAX + 1} fit int32"
        )


def epochs_per_chunk(steps: int, batch_size: int, num_examples: int) -> int:
    """The most epochs that ``steps`` consecutive steps can touch, wherever they start (a static number for shapes)."""
    latest_start = num_examples - math.gcd(batch_size, num_examples)
    return -(-(latest_start + steps * batch_size) // num_examples)


@functools.partial(jax.jit, static_argnames="num_examples")
def epoch_order(key: jax.Array, epochs: ArrayLike, num_examples: int) -> jax.Array:
    """The order of the examples in each of the given epochs.

    Args:
      key: ``jax.random.key(seed)``.
      epochs: int ``[E]``.
      num_examples: N.

    Returns:
      int32 ``[E, N]``: a permutation of ``0 .. N-1`` in every row, a function of (seed, epoch). 50,000 examples take
      about 15 ms an epoch on a CPU: worth keeping for as many steps as the epochs cover.
    """
    stream = jax.random.fold_in(key, _ORDER_STREAM)
    rows = jnp.arange(num_examples, dtype=jnp.int32)

    def order(epoch: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(stream, epoch), rows)

    return jax.vmap(order)(jnp.asarray(epochs, jnp.int32))


def locate(
    step: ArrayLike, batch_size: int, num_examples: int, first_epoch: ArrayLike, order: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Which examples a step takes, and in which epoch it sees each of them.

    Args:
      step: int scalar, counted from 0.
      batch_size: B; may be larger than N, and then a batch covers several epochs.
      num_examples: N.
      first_epoch: int scalar, the epoch of ``order[0]``.
      order: int32 ``[E, N]``, the permutations of ``first_epoch``, ``first_epoch + 1``, ...; it must hold every epoch
        that the step touches (:func:`epochs_per_chunk`).

    Returns:
      ``(epochs, rows)``, int32 ``[B]`` each. A row of an epoch that the order does not hold is N, out of range.
    """
    positions = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    epochs = positions // num_examples
    held = epochs - first_epoch
    order = jnp.asarray(order)
    rows = jnp.where((held >= 0) & (held < order.shape[0]), order[held, positions % num_examples], num_examples)
    return epochs, rows


def train_batch(
    arrays: dict[str, jax.Array],
    step: ArrayLike,
    key: jax.Array,
    *,
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pad: int,
    flip: bool,
    dtype: DTypeLike = jnp.float32,
) -> dict[str, jax.Array]:
    """The augmented batch of a step; to be called inside ``jit``.

    Args:
      arrays: the split's images, labels and index, and order and first_epoch as :func:`locate` wants them.
      step: int scalar, counted from 0 over the whole run.
      key: ``jax.random.key(seed)``, the same at every step.
      batch_size: B.
      mean: per channel in units of [0, 1].
      std: per channel in units of [0, 1].
      pad: pixels of zero padding before the crop.
      flip: whether images are flipped at random.
      dtype: of the images.

    Returns:
      image ``dtype [B, H, W, C]``; label, index, row (of the split, 0 to N - 1), view and position (in the whole run)
      int32 ``[B]``; valid bool ``[B]``, all True.
    """
    examples = arrays["labels"].shape[0]
    epochs, rows = locate(step, batch_size, examples, arrays["first_epoch"], arrays["order"])
    index = arrays["index"][rows]
    view = augment.draw_views(key, epochs, index, pad=pad, flip=flip)
    image = augment.normalize(augment.crop_flip(arrays["images"][rows], view, pad=pad), mean, std, dtype)
    # A stale order must not train on wrong examples in silence: the label -1 makes the loss NaN, which stops the run.
    label = jnp.take(arrays["labels"], rows, mode="fill", fill_value=-1)
    position = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    valid = jnp.ones(batch_size, bool)
    numbers = {"label": label, "index": index, "row": rows, "view": view, "position": position}
    return {"image": image, **numbers, "valid": valid}


def eval_batches(num_examples: int, batch_size: int) -> int:
    """How many evaluation batches cover every example once."""
    return -(-num_examples // batch_size)


def eval_batch(
    arrays: dict[str, jax.Array],
    number: ArrayLike,
    *,
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pad: int,
    dtype: DTypeLike = jnp.float32,
) -> dict[str, jax.Array]:
    """Evaluation batch ``number`` of :func:`eval_batches`, in the order of the split; to be called inside ``jit``.

    Rows past the end repeat the last example, a real image that no network can choke on, with ``valid`` False.

    Args:
      arrays: the split's images, labels and index.
      number: int scalar, counted from 0.
      batch_size: B.
      mean: per channel in units of [0, 1].
      std: per channel in units of [0, 1].
      pad: the training split's pad, so that ``view`` names the identity as training would.
      dtype: of the images.

    Returns:
      As :func:`train_batch`, but with the identity as view, no row and position, and ``valid`` False for padding.
    """
    examples = arrays["labels"].shape[0]
    positions = jnp.asarray(number, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    rows = jnp.minimum(positions, examples - 1)
    return {
        "image": augment.normalize(arrays["images"][rows], mean, std, dtype),
        "label": arrays["labels"][rows],
        "index": arrays["index"][rows],
        "view": jnp.full(batch_size, augment.identity_view(pad), jnp.int32),
        "valid": positions < examples,
    }
