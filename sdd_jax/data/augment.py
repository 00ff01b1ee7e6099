"""Crop, flip and normalisation of image batches: ``uint8`` in, ``float`` out, inside ``jit``, one key per example.

A *view* is the outcome of augmenting one example, as one number: ``flip * side**2 + dy * side + dx`` with
``side = 2 * pad + 1``, where ``(dy, dx)`` is the corner of the crop in the zero-padded image.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

__all__ = ["crop_flip", "draw_views", "identity_view", "normalize", "num_views"]


def num_views(pad: int, flip: bool) -> int:
    """How many views an example has: 162 for a pad of 4 pixels with flips, 81 without."""
    return (2 * pad + 1) ** 2 * (2 if flip else 1)


def identity_view(pad: int) -> int:
    """The view that leaves an image as it is: the crop at ``dy = dx = pad``, not flipped."""
    return pad * (2 * pad + 1) + pad


def draw_views(key: jax.Array, epochs: ArrayLike, indices: ArrayLike, *, pad: int = 4, flip: bool) -> jax.Array:
    """Views, int32 ``[B]``, for the epoch that each example is seen in and its number in the original set.

    Each is drawn uniformly, as a function of (seed, epoch, example) and nothing else: batch size, order, device and
    process change no outcome, and a run resumes without saved random state.
    """

    def draw(epoch: jax.Array, index: jax.Array) -> jax.Array:
        example_key = jax.random.fold_in(jax.random.fold_in(key, epoch), index)
        return jax.random.randint(example_key, (), 0, num_views(pad, flip), dtype=jnp.int32)

    return jax.vmap(draw)(jnp.asarray(epochs, jnp.int32), jnp.asarray(indices, jnp.int32))


def crop_flip(images: ArrayLike, views: ArrayLike, *, pad: int = 4) -> jax.Array:
    """``RandomCrop(size, padding=pad)`` and ``RandomHorizontalFlip`` of uint8 ``[B, H, W, C]``, as the views say."""
    images, views = _check_images(images), jnp.asarray(views)
    if views.shape != images.shape[:1] or not jnp.issubdtype(views.dtype, jnp.integer):
        raise ValueError(f"views must be integers [{images.shape[0]}], got {views.dtype} {list(views.shape)}")
    side = 2 * pad + 1
    flipped = views >= side**2
    dy = views % side**2 // side
    dx = views % side
    # Flipping first, with the mirrored corner, leaves the crop as the last operation, which XLA compiles to a gather of
    # whole windows; a flip after the crop costs a second pass over the batch.
    dx = jnp.where(flipped, 2 * pad - dx, dx)
    images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    window = images.shape[1:]
    return jax.vmap(lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, jnp.zeros_like(y)), window))(padded, dy, dx)


def normalize(
    images: ArrayLike, mean: tuple[float, ...], std: tuple[float, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """``(images / 255 - mean) / std`` per channel, of uint8 ``[B, H, W, C]``; mean and std in units of [0, 1].

    Computed in float32 (float64 if that is asked for) and rounded to ``dtype`` once: bfloat16 throughout would keep the
    pixel values 0 to 255, but most digits of their differences from the mean would be lost.
    """
    images = _check_images(images)
    channels = images.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"mean and std need one number per channel ({channels}), got {len(mean)} and {len(std)}")
    compute = jnp.promote_types(dtype, jnp.float32)
    scaled = images.astype(compute) / 255
    return ((scaled - jnp.asarray(mean, compute)) / jnp.asarray(std, compute)).astype(dtype)


def _check_images(images: ArrayLike) -> jax.Array:
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [B, H, W, C], got {images.dtype} {list(images.shape)}")
    return images
