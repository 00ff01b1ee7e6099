import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.data.augment import crop_flip, draw_views, identity_view, normalize, num_views


def slow_crop_flip(image, view, pad):
    """Pixel by pixel, from the definition of a view."""
    side, (height, width) = 2 * pad + 1, image.shape[:2]
    flip, corner = divmod(view, side**2)
    dy, dx = divmod(corner, side)
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            row, column = y + dy - pad, x + dx - pad
            if 0 <= row < height and 0 <= column < width:
                out[y, width - 1 - x if flip else x] = image[row, column]
    return out


@pytest.mark.parametrize(("shape", "pad"), [((12, 12, 3), 4), ((7, 11, 1), 4), ((9, 6, 2), 1), ((5, 5, 3), 0)])
def test_every_view_is_what_a_slow_loop_makes(shape, pad):
    rng = np.random.default_rng(0)
    views = np.arange(num_views(pad, True))
    images = rng.integers(0, 256, (len(views), *shape), dtype=np.uint8)
    expected = np.stack([slow_crop_flip(image, view, pad) for image, view in zip(images, views, strict=True)])
    got = jax.jit(crop_flip, static_argnames="pad")(images, views, pad=pad)
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_the_identity_view_changes_nothing_and_is_not_flipped(pad):
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop_flip(images, np.full(3, identity_view(pad)), pad=pad), images)
    assert identity_view(pad) < num_views(pad, False)


def test_number_of_views():
    assert (num_views(4, True), num_views(4, False), num_views(0, False)) == (162, 81, 1)


@pytest.mark.parametrize("flip", [True, False])
def test_views_are_uniform(flip):
    count, draws = num_views(4, flip), 200_000
    epochs, indices = np.divmod(np.arange(draws), 5000)
    views = np.asarray(jax.jit(draw_views, static_argnames="flip")(jax.random.key(3), epochs, indices, flip=flip))
    assert views.dtype == np.int32 and views.min() == 0 and views.max() == count - 1
    expected = draws / count
    statistic = (((np.bincount(views, minlength=count) - expected) ** 2) / expected).sum()
    # Mean count - 1 and variance 2 (count - 1): five deviations would be chance once in a few million keys.
    assert abs(statistic - (count - 1)) < 5 * np.sqrt(2 * (count - 1))


def test_views_of_neighbouring_epochs_and_examples_are_independent():
    epochs, indices = np.divmod(np.arange(40_000), 200)
    views = np.asarray(draw_views(jax.random.key(0), epochs, indices, flip=True)).reshape(200, 200).astype(float)
    for first, second in ((views[1:], views[:-1]), (views[:, 1:], views[:, :-1])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.025  # five deviations


def test_a_view_depends_on_seed_epoch_and_example_only():
    key, rng = jax.random.key(7), np.random.default_rng(2)
    epochs, indices = rng.integers(0, 9, 50), rng.integers(0, 60_000, 50)
    together = np.asarray(draw_views(key, epochs, indices, flip=True))
    order = rng.permutation(50)
    np.testing.assert_array_equal(draw_views(key, epochs[order], indices[order], flip=True), together[order])
    alone = [int(draw_views(key, epochs[i : i + 1], indices[i : i + 1], flip=True)[0]) for i in range(10)]
    assert alone == together[:10].tolist()
    assert (np.asarray(draw_views(key, epochs + 1, indices, flip=True)) != together).sum() > 40
    assert (np.asarray(draw_views(key, epochs, indices + 1, flip=True)) != together).sum() > 40
    assert (np.asarray(draw_views(jax.random.key(8), epochs, indices, flip=True)) != together).sum() > 40


def test_normalisation_by_hand_and_in_bfloat16():
    images = np.random.default_rng(3).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    expected = (images.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(normalize(images, mean, std), expected, rtol=1e-5, atol=1e-6)
    low = normalize(images, mean, std, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    # Rounded once: within half a unit of the last of bfloat16's 8 bits, also near the mean.
    np.testing.assert_allclose(np.asarray(low, np.float64), expected, rtol=2**-8, atol=1e-6)


def test_padding_is_black_before_normalisation():
    white = np.full((1, 6, 6, 1), 255, np.uint8)
    out = normalize(crop_flip(white, np.array([0]), pad=4), (0.5,), (0.25,))
    assert float(out[0, 0, 0, 0]) == -2.0 and float(out[0, 5, 5, 0]) == 2.0


def test_nothing_is_transferred_inside():
    images = jax.device_put(np.zeros((4, 8, 8, 3), np.uint8))
    key, numbers = jax.random.key(0), jax.device_put(np.arange(4, dtype=np.int32))

    def augment(key, images, numbers):
        views = draw_views(key, numbers, numbers, flip=True)
        return normalize(crop_flip(images, views), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))

    compiled = jax.jit(augment).lower(key, images, numbers).compile()
    with jax.transfer_guard("disallow"):
        compiled(key, images, numbers).block_until_ready()
    assert "callback" not in compiled.as_text() and "infeed" not in compiled.as_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda im: crop_flip(im.astype(np.float32), np.zeros(2, int)), r"uint8 \[B, H, W, C\], got float32"),
        (lambda im: crop_flip(im[0], np.zeros(2, int)), r"got uint8 \[4, 4, 3\]"),
        (lambda im: crop_flip(im, np.zeros(3, int)), r"views must be integers \[2\], got int32 \[3\]"),
        (lambda im: crop_flip(im, np.zeros(2)), r"views must be integers \[2\], got float32"),
        (lambda im: normalize(im, (0.5,), (0.5,)), r"one number per channel \(3\), got 1 and 1"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 4, 4, 3), np.uint8))
