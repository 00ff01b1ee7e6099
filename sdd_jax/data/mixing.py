"""mixup and CutMix: each image of a batch is mixed with the next one, on the device, inside ``jit``.

What is drawn is a function of (seed, step) alone, one draw for a batch as in both papers' codes; which two images are
mixed, of the step's positions. So it is the same on any number of devices and processes, for a batch in parts, and in a
run that goes on. The order of an epoch is random, so the next image is a random one. timm takes the batch backwards
instead, for which each device would need images from all others; here each needs one, of its neighbour.
"""

import jax
import jax.numpy as jnp

__all__ = ["cutmix_box", "mix"]


def mix(
    batch: dict[str, jax.Array], key: jax.Array, *, mixup: float = 0.0, cutmix: float = 0.0
) -> dict[str, jax.Array]:
    """``batch`` with its images mixed, ``other_label`` int32 ``[B]`` and ``share`` ``[B]``, the first image's part.

    Image i is mixed with image i + 1, the last one with the first. mixup takes ``share * image + (1 - share) * other``,
    of normalised images (which is the same as to normalise the mixture); CutMix lays a box of the other over the image,
    and ``share`` is what is left of it. ``share``, or for CutMix what the box is made of, is drawn from
    ``Beta(alpha, alpha)`` with ``mixup`` or ``cutmix`` as alpha, in float32 whatever the images are in. Where both are
    given a fair coin chooses (timm's ``switch_prob``, which is 0.5 in DeiT's main.py); each batch is mixed.

    Source: "mixup: Beyond Empirical Risk Minimization" (2018), equation 1 and figure 1 (one share for a batch);
    "CutMix" (2019), equations 1 and 2, and its released code, which takes the share that the clipped box left.
    """
    images, labels = batch["image"], batch["label"]
    others = jnp.roll(images, -1, axis=0)
    coin_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    share, mixed = jnp.ones((), jnp.float32), images
    if mixup:
        share = jax.random.beta(mixup_key, mixup, mixup, dtype=jnp.float32)
        mixed = share.astype(images.dtype) * images + (1 - share).astype(images.dtype) * others
    if cutmix:
        drawn = jax.random.beta(cutmix_key, cutmix, cutmix, dtype=jnp.float32)
        inside = cutmix_box(box_key, drawn, images.shape[1:3])
        chosen = jax.random.bernoulli(coin_key) if mixup else True
        share = jnp.where(chosen, 1 - jnp.mean(inside, dtype=jnp.float32), share)
        mixed = jnp.where(chosen, jnp.where(inside[None, :, :, None], others, images), mixed)
    return batch | {
        "image": mixed,
        "other_label": jnp.roll(labels, -1),
        "share": jnp.full(labels.shape, share),
    }


def cutmix_box(key: jax.Array, share: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Where an image of ``shape`` is covered, bool ``[H, W]``: a box of its proportions around a random pixel.

    It has ``sqrt(1 - share)`` of the height and of the width, and ends at the image's edges.
    """
    covered = []
    for axis_key, size in zip(jax.random.split(key), shape, strict=True):
        half = jnp.floor(size * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
        centre = jax.random.randint(axis_key, (), 0, size, dtype=jnp.int32)
        places = jnp.arange(size, dtype=jnp.int32)
        covered.append((places >= centre - half) & (places < centre + half))
    return covered[0][:, None] & covered[1][None, :]
