"""Pixels out of files of every kind, and the windows that are taken of them, beside what Pillow and the formats say."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdd_jax.data import images

RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
BILINEAR = Image.Resampling.BILINEAR


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    image = images.decode(data, "the image")
    assert image.mode == "RGB"
    return np.asarray(image)


def thrice(grey):
    return np.stack([grey] * 3, axis=-1)


# ---- what files hold


def test_colour_comes_as_it_is():
    np.testing.assert_array_equal(pixels(encoded(COLOUR)), COLOUR)
    np.testing.assert_array_equal(pixels(COLOUR), COLOUR)


def test_a_jpeg_is_what_pillow_reads():
    data = encoded(COLOUR, "JPEG", quality=90)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("grey", [GREY, GREY[..., None]], ids=["HW", "HW1"])
def test_grey_is_three_equal_channels(grey):
    np.testing.assert_array_equal(pixels(grey), thrice(GREY))
    np.testing.assert_array_equal(pixels(encoded(GREY)), thrice(GREY))


def test_black_and_white():
    bits = GREY > 127
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(bits))), thrice(np.where(bits, 255, 0)))


def test_a_palette_is_looked_up():
    image = Image.fromarray(GREY % 4, mode="L")
    image.putpalette(colours := [10, 20, 30, 250, 0, 5, 1, 2, 3, 90, 80, 70])
    table = np.array(colours, np.uint8).reshape(4, 3)
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(pixels(encoded(image, kind)), table[GREY % 4])


def test_what_is_transparent_lies_over_white():
    alpha = np.array([[0, 255], [128, 64]], np.uint8)
    image = np.dstack([np.full((2, 2), 100, np.uint8)] * 3 + [alpha])
    share = alpha[..., None] / 255
    expected = 100 * share + 255 * (1 - share)
    for data in (encoded(image), image):
        assert np.abs(pixels(data) - expected).max() <= 1
    grey = Image.fromarray(image[..., 0]).convert("LA")
    grey.putalpha(Image.fromarray(alpha))
    assert np.abs(pixels(encoded(grey)) - expected).max() <= 1


def test_a_transparent_palette_entry_lies_over_white():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="L")
    image.putpalette([10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(pixels(encoded(image, transparency=1)), [[[10, 20, 30], [255, 255, 255]]])


def test_cmyk_has_the_colours_of_its_picture():
    image = Image.fromarray(np.full((8, 8, 3), [200, 40, 90], np.uint8))
    assert np.abs(pixels(encoded(image.convert("CMYK"), "JPEG", quality=100)).astype(int) - [200, 40, 90]).max() <= 3


def test_the_upper_half_of_16_bits_counts():
    values = np.array([[0, 255, 256], [0x1234, 0xFF00, 0xFFFF]], np.uint16)
    np.testing.assert_array_equal(pixels(encoded(values)), thrice(values >> 8))
    np.testing.assert_array_equal(pixels(encoded(values, "TIFF")), thrice(values >> 8))
    colour = np.stack([values, values[::-1], values], axis=-1)
    np.testing.assert_array_equal(pixels(png_of_16_bits(colour)), colour >> 8)


def png_of_16_bits(colour):
    """A PNG of 16 bits and three channels, which Pillow reads and does not write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = colour.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


TURNED = {  # what a viewer shows of the stored pixels, by the EXIF standard's numbers
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_what_a_camera_turned_stands_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encoded(COLOUR, exif=exif)), TURNED[orientation](COLOUR))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_metadata_that_cannot_be_read_say_nothing_of_the_pixels():
    """A photograph whose EXIF is damaged: a tag of numbers is said to be text, and the block is cut."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0111] = 6, 7
    data = encoded(COLOUR, "JPEG", quality=95, exif=exif)
    block = exif.tobytes()
    mistyped = block.replace(struct.pack(">HH", 0x0111, 4), struct.pack(">HH", 0x0111, 2))
    assert mistyped != block and block in data
    for damaged in (mistyped, block[:12] + b"\xff" * (len(block) - 12)):
        assert pixels(data.replace(block, damaged)).shape in ((5, 7, 3), (7, 5, 3))


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (30, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(data), np.asarray(frames[0]))


BAD = {
    "empty": (b"", "in none of the formats"),
    "text": (b"<html>404</html>", "in none of the formats"),
    # Pillow would start Ghostscript for it
    "a program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "in none of the formats",
    ),
    "truncated": (encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")[:-900], "truncated"),
    "floating-point": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "range is not known"),
    "huge": (encoded(COLOUR, "BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + encoded(COLOUR, "BMP")[26:], "exceeds"),
    # 339: signed numbers
    "negative": (encoded(np.array([[0xFFFF, 7]], np.uint16), "TIFF", tiffinfo={339: 2}), "from -1 to 7"),
    "32 bits": (encoded(Image.fromarray(np.array([[200]], np.int32)), "TIFF"), "32 bits, whose range is not known"),
    "five channels": (np.zeros((2, 2, 5), np.uint8), r"expected uint8 .* got uint8 \(2, 2, 5\)"),
    "16-bit pixels": (np.zeros((2, 2, 3), np.uint16), r"expected uint8 .* got uint16"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named(case):
    data, reason = BAD[case]
    with pytest.raises(ValueError, match=f"^folder/x.png cannot be read as an image: .*{reason}"):
        images.decode(data, "folder/x.png")


# ---- windows of them

SIZES = [(300, 400), (400, 300), (224, 224), (1, 1), (37, 1), (90, 1000), (500, 20), (255, 257)]


def picture(height, width):
    noise = np.random.default_rng(height * 1000 + width).integers(
        0, 256, (-(-height // 3), -(-width // 3), 3), np.uint8
    )
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def close(ours, theirs):
    assert ours.dtype == np.uint8 and ours.shape == np.asarray(theirs).shape
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("side", [224, 32, 7])
def test_evaluation_sees_the_middle_of_what_pillow_resizes(size, side):
    image, large = picture(*size), round(side * 256 / 224)

    def middle(resized):
        left, top = round((resized.width - side) / 2), round((resized.height - side) / 2)
        return resized.crop((left, top, left + side, top + side))

    close(images.eval_image(image, "resize_crop", side), middle(image.resize((large, large), BILINEAR)))
    short = min(image.size)
    longer = [large if length == short else int(large * length / short) for length in image.size]
    close(images.eval_image(image, "random_resized_crop", side), middle(image.resize(longer, BILINEAR)))


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from(SIZES), side=st.sampled_from([224, 32, 5]), seed=st.integers(0, 2**32 - 1))
def test_a_view_of_resize_crop_says_which_window_it_was(size, side, seed):
    image, large = picture(*size), round(side * 256 / 224)
    seen, view = images.train_image(image, "resize_crop", side, np.random.default_rng(seed))
    places = large - side + 1
    flip, dy, dx = view // places**2, view // places % places, view % places
    assert flip in (0, 1)
    window = np.asarray(image.resize((large, large), BILINEAR).crop((dx, dy, dx + side, dy + side)))
    close(seen, window[:, ::-1] if flip else window)


def test_every_view_of_resize_crop_comes_equally_often():
    draws = 4000
    rng = np.random.default_rng(1)
    image = picture(9, 9)
    counts = np.bincount([images.train_image(image, "resize_crop", 14, rng)[1] for _ in range(draws)], minlength=18)
    assert len(counts) == 18  # 16 - 14 + 1 places each way, flipped or not
    expected = draws / 18
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-squared, 17 degrees of freedom: p below 0.0003


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1))
def test_a_random_window_lies_inside_and_has_the_stated_area_and_proportion(width, height, seed):
    left, top, right, bottom = images.random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    if min(w, h) > 30:  # where rounding to whole pixels does not matter
        assert 0.7 < w / h < 1.42
        assert w * h > 0.07 * width * height or not 0.5 < width / height < 2


def test_random_windows_are_spread_as_they_should_be():
    rng = np.random.default_rng(3)
    boxes = np.array([images.random_box(500, 400, rng) for _ in range(4000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shares, ratios = w * h / (500 * 400), np.log(w / h)
    # Of each proportion the areas that fit are equally likely; what does not fit is drawn again.
    most = np.exp(np.linspace(np.log(3 / 4), np.log(4 / 3), 1001))
    most = np.minimum(1, most / (500 / 400))
    expected = ((most**2 - 0.08**2) / 2).sum() / (most - 0.08).sum()
    assert 0.079 < shares.min() < 0.09 and abs(shares.mean() - expected) < 0.015
    assert np.abs(ratios).max() < np.log(4 / 3) + 0.02
    room = (500 - w) > 50
    assert abs((boxes[room, 0] / (500 - w[room])).mean() - 0.5) < 0.02


@pytest.mark.parametrize(("width", "height"), [(1, 1000), (1000, 1), (3, 100)])
def test_of_a_strip_the_middle_is_taken_as_torchvision_does(width, height):
    left, top, right, bottom = images.random_box(width, height, np.random.default_rng(0))
    w, h = right - left, bottom - top
    assert (w, h) == ((width, round(width / 0.75)) if width < height else (round(height * 4 / 3), height))
    assert left == (width - w) // 2 and top == (height - h) // 2


@pytest.mark.parametrize("seed", range(6))
def test_a_random_resized_crop_is_what_pillow_makes_of_its_window(seed):
    image = picture(300, 400)
    rng = np.random.default_rng(seed)
    box = images.random_box(400, 300, rng)
    flipped = rng.random() >= 0.5
    expected = np.asarray(image.crop(box).resize((96, 96), BILINEAR))
    seen, view = images.train_image(image, "random_resized_crop", 96, np.random.default_rng(seed))
    assert view == images.NO_VIEW
    close(seen, expected[:, ::-1] if flipped else expected)
