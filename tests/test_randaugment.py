"""RandAugment: each operation by its definition, how they are drawn, and what an example's view depends on."""

import jax
import numpy as np
import pytest
import sets
from PIL import Image

from sdd_jax import data
from sdd_jax.data import images, randaugment, train_data
from sdd_jax.data.images import NO_VIEW
from sdd_jax.mesh import make_mesh

LEVEL = 0.9
OPERATIONS = randaugment.OPERATIONS


def picture(height=31, width=40):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def done(name, level=LEVEL, pixels=None):
    return np.asarray(OPERATIONS[name](Image.fromarray(picture() if pixels is None else pixels), level)).astype(int)


def luma(pixels):
    return (pixels @ np.array([299, 587, 114]) / 1000)[..., None]


def blend(other, level):
    """Pillow's enhancers: the image beyond or towards ``other``."""
    return np.clip(other + (1 + 0.9 * level) * (picture() - other), 0, 255)


SIGNED = ("rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")


def test_there_are_the_papers_fourteen():
    assert len(OPERATIONS) == 14
    np.testing.assert_array_equal(done("identity"), picture())


@pytest.mark.parametrize("name", [*SIGNED, "solarize", "posterize"])
def test_a_magnitude_of_zero_changes_nothing(name):
    np.testing.assert_array_equal(done(name, 0.0), picture())


@pytest.mark.parametrize("level", [LEVEL, -LEVEL])
def test_colours_are_blended_as_pillow_defines_it(level):
    within = {"atol": 2.0}  # Pillow rounds twice
    np.testing.assert_allclose(done("brightness", level), blend(0.0, level), **within)
    np.testing.assert_allclose(done("color", level), blend(luma(picture()), level), **within)
    np.testing.assert_allclose(done("contrast", level), blend(luma(picture()).mean(), level), **within)
    flat = np.full((9, 9, 3), 77, np.uint8)
    np.testing.assert_array_equal(done("sharpness", level, flat), 77)


def test_sharpness_goes_away_from_and_towards_a_smoothed_image():
    spread = [np.abs(np.diff(done("sharpness", level), axis=0)).mean() for level in (-LEVEL, 0.0, LEVEL)]
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9, 1.0])
def test_solarize_inverts_what_is_bright_and_posterize_keeps_upper_bits(level):
    threshold, bits = 256 - round(256 * level), 8 - round(4 * level)
    pixels = picture().astype(int)
    np.testing.assert_array_equal(done("solarize", level), np.where(pixels < threshold, pixels, 255 - pixels))
    np.testing.assert_array_equal(done("posterize", -level), pixels >> (8 - bits) << (8 - bits))


@pytest.mark.parametrize("sign", [1, -1])
def test_translation_moves_by_whole_pixels_and_fills_with_grey(sign):
    pixels = picture().astype(int)
    for name, axis in (("translate_x", 1), ("translate_y", 0)):
        size = pixels.shape[axis]
        by = sign * round(150 / 331 * size * LEVEL)
        moved = np.moveaxis(done(name, sign * LEVEL), axis, 0)
        source = np.moveaxis(pixels, axis, 0)
        for place in range(size):
            expected = source[place + by] if 0 <= place + by < size else np.full_like(source[0], 128)
            np.testing.assert_array_equal(moved[place], expected)


@pytest.mark.parametrize("level", [LEVEL, -LEVEL])
def test_shear_and_rotation_are_the_affine_maps_they_say(level):
    """A ramp, on which bilinear interpolation is exact: the value tells where a pixel is from."""
    y, x = np.mgrid[0:41, 0:61]
    ramp = np.stack([4 * x, 6 * y, 0 * x], -1).astype(np.uint8)
    angle = np.deg2rad(30 * level)
    cy, cx = y - 20, x - 30
    sources = {
        "shear_x": (y, x + 0.3 * level * (y + 0.5)),
        "shear_y": (y + 0.3 * level * (x + 0.5), x),
        "rotate": (20 + np.sin(angle) * cx + np.cos(angle) * cy, 30 + np.cos(angle) * cx - np.sin(angle) * cy),
    }
    for name, (from_y, from_x) in sources.items():
        inside = (from_y >= 1) & (from_y <= 39) & (from_x >= 1) & (from_x <= 59)
        outside = (from_y < -1) | (from_y > 41) | (from_x < -1) | (from_x > 61)
        found = done(name, level, ramp)
        assert inside.mean() > 0.5 and outside.any()
        np.testing.assert_allclose(found[inside][:, 0], 4 * from_x[inside], atol=1.01)
        np.testing.assert_allclose(found[inside][:, 1], 6 * from_y[inside], atol=1.01)
        np.testing.assert_array_equal(found[outside], 128)


def test_autocontrast_and_equalize_spread_the_histogram():
    dark = (picture() // 4 + 20).astype(np.uint8)
    stretched = done("autocontrast", pixels=dark)
    assert stretched.min() == 0 and stretched.max() == 255
    expected = (dark.astype(int) - dark.min((0, 1))) * 255 / (dark.max((0, 1)) - dark.min((0, 1)))
    np.testing.assert_allclose(stretched, expected, atol=1)
    large = (picture(160, 200) // 4 + 20).astype(np.uint8)
    shares = np.bincount(done("equalize", pixels=large).ravel() // 64, minlength=4) / large.size
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_operations_are_drawn_alike_with_a_fair_sign(monkeypatch):
    drawn = []
    watched = {name: lambda image, level, name=name: (drawn.append((name, level)), image)[1] for name in OPERATIONS}
    monkeypatch.setattr(randaugment, "OPERATIONS", watched)
    rng = np.random.default_rng(0)
    for _ in range(1400):
        randaugment.randaugment(picture(2, 2), rng, number=2, magnitude=7)
    assert len(drawn) == 2800 and {abs(level) for _, level in drawn} == {0.7}
    counts = np.array([sum(name == one for one, _ in drawn) for name in OPERATIONS])
    assert ((counts - 200) ** 2 / 200).sum() < 40  # chi-squared, 13 degrees of freedom: p below 0.0002
    assert abs(np.mean([level > 0 for _, level in drawn]) - 0.5) < 0.04


def test_the_window_is_the_one_of_before_and_has_no_number():
    image = Image.fromarray(picture())
    plain, _ = images.train_image(image, "resize_crop", 24, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    seen, view = images.train_image(image, "resize_crop", 24, rng, (2, 9))
    again = np.random.default_rng(3)
    images.train_image(image, "resize_crop", 24, again)
    np.testing.assert_array_equal(seen, randaugment.randaugment(plain, again, number=2, magnitude=9))
    assert view == NO_VIEW and seen.shape == (24, 24, 3)
    assert rng.random() == again.random()  # four numbers were drawn, whatever they chose


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    sets.write_folder(root, classes=("a", "b"), train=8, test=2)
    return root


def batches(root, seeds, steps, **options):
    dataset = data.load("image_folder", path=root, image_size=16, select_on="test", **options)
    length = {"epochs": 3, "batch_size": 4, "steps_per_call": 1}
    source = train_data(dataset, seeds=seeds, mesh=make_mesh(jax.devices()[:1]), **length)
    try:
        return [
            {name: np.asarray(array) for name, array in source.own(step).items() if name != "key"} for step in steps
        ]
    finally:
        source.close()


def test_an_examples_view_is_a_function_of_seed_epoch_and_number(root):
    whole = batches(root, (0, 1), range(6), randaugment=(2, 9))
    (later,) = batches(root, (1,), [5], randaugment=(2, 9))  # begun there, alone
    for name in later.keys() - {"key"}:
        np.testing.assert_array_equal(later[name][0], whole[5][name][1])
    plain = batches(root, (0,), [0], in_memory=False)[0]
    np.testing.assert_array_equal(plain["index"][0], whole[0]["index"][0])
    assert (plain["image"][0] != whole[0]["image"][0]).any() and (whole[0]["view"] == NO_VIEW).all()
