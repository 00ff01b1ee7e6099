"""Decoding of images, and their crops for training and evaluation: Pillow and NumPy, on the host, no JAX.

Pillow decodes (JPEGs by libjpeg-turbo) and resizes (bilinear, antialiased), as torchvision's transforms of PIL images
do, so that networks trained there see the same pixels here, except of images that EXIF says are turned.
"""

import functools
import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdd_jax.data.randaugment import randaugment

AUGMENTS = ("resize_crop", "random_resized_crop")
# How images are brought to their shape that are decoded once and held in memory: by `whole_image`.
BOXED = "box_pad_crop"
# Of one image: 256 MiB of RGB. Pillow warns above this number, which it has from the header, and refuses twice as many.
MOST_PIXELS = 2**28 // 3
# Pillow reads many more, and starts another program (Ghostscript) for some of them.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
NO_VIEW = -1  # of crops of random size, and of RandAugment: too many to number

# torchvision's RandomResizedCrop: shares of the image's area, widths over heights, and how often it tries.
_AREA, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


def decode(data: bytes | np.ndarray, name: str) -> Image.Image:
    """An upright RGB image of the bytes of a file, or of uint8 pixels ``[H, W]`` or ``[H, W, C]`` with C 1, 3 or 4.

    Of 16 bits the upper 8 count, a transparent image is laid over white, of an animation the first frame counts. A bad
    image is a ``ValueError``, too little memory a ``MemoryError``; both call it ``name``.
    """
    try:
        if isinstance(data, np.ndarray):
            if data.dtype != np.uint8 or data.ndim not in (2, 3) or data.shape[2:] not in ((), (1,), (3,), (4,)):
                raise ValueError(f"expected uint8 [H, W] or [H, W, C], C 1, 3 or 4; got {data.dtype} {data.shape}")
            image = Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data)
        else:
            image = Image.open(io.BytesIO(data), formats=_formats())
            tags = getattr(image, "tag_v2", {})  # of a TIFF, whose tiles are decoded whole, however large
            for what, width, height in (("", *image.size), ("tiles of ", tags.get(322, 0), tags.get(323, 0))):
                if width * height > MOST_PIXELS:
                    raise ValueError(f"its {what}{width} x {height} pixels exceed the limit of {MOST_PIXELS} pixels")
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except MemoryError:
            raise
        except Exception:  # damaged metadata do not make the pixels bad
            pass
        return _to_rgb(image)
    except UnidentifiedImageError:
        known = ", ".join(_formats())
        raise ValueError(f"{name} cannot be read as an image: it is in none of the formats {known}") from None
    except MemoryError as error:
        raise MemoryError(f"too little memory to decode {name}") from error
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if getattr(image, "tag_v2", {}).get(258) == (32,) and image.mode == "I":
        raise ValueError("its pixels are integers of 32 bits, whose range is not known")
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip them at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"its values go from {values.min()} to {values.max()}, expected 0 to {0xFFFF}")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def resized_side(size: int) -> int:
    """The side that an image is resized to before a window of ``size`` is taken: 256 for 224, in that proportion."""
    return round(size * 256 / 224)


def train_image(
    image: Image.Image, augment: str, size: int, rng: np.random.Generator, operations: tuple[int, ...] = ()
) -> tuple[np.ndarray, int]:
    """A random window for training, uint8 ``[size, size, 3]``, mirrored in half of the cases, and its view.

    "resize_crop" is CUB-200's in the official code, whatever the proportions; "random_resized_crop" is ImageNet's.
    ``operations`` are RandAugment's number and magnitude, which change the window; empty: none.
    """
    if augment == "resize_crop":
        large = resized_side(size)
        side = large - size + 1
        dy, dx, flip = (math.floor(rng.random() * n) for n in (side, side, 2))
        pixels, view = _window(image, (large, large), (dx, dy), size), flip * side**2 + dy * side + dx
    else:
        box = random_box(image.width, image.height, rng)
        flip, view = math.floor(rng.random() * 2), NO_VIEW
        pixels = np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
    pixels = pixels[:, ::-1] if flip else pixels
    if not operations:
        return pixels, view
    number, magnitude = operations
    return randaugment(pixels, rng, number=number, magnitude=magnitude), NO_VIEW


def eval_image(image: Image.Image, augment: str, size: int) -> np.ndarray:
    """The middle of an image for evaluation, resized to a square or, with "random_resized_crop", in proportion."""
    large = resized_side(size)
    width, height = large, large
    if augment == "random_resized_crop" and image.width != image.height:
        longer = int(large * max(image.size) / min(image.size))
        width, height = (longer, large) if image.width > image.height else (large, longer)
    return _window(image, (width, height), (round((width - size) / 2), round((height - size) / 2)), size)


def whole_image(image: Image.Image, size: int) -> np.ndarray:
    """All of an image as a square, uint8 ``[size, size, 3]``, by a box filter: the mean of the pixels that one covers.

    As "A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets" (2017) has it, and its code's
    image_resizer_imagent.py.
    """
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def _window(image: Image.Image, resized: tuple[int, int], corner: tuple[int, int], size: int) -> np.ndarray:
    """The window of ``size`` at ``corner`` (x, y) of the image resized to ``resized`` (width, height).

    Only the window is computed: an image of 1 x 10,000 pixels, resized as a whole, would take gigabytes.
    """
    across, down = image.width / resized[0], image.height / resized[1]
    left, top = corner[0] * across, corner[1] * down
    right, bottom = min(left + size * across, image.width), min(top + size * down, image.height)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random window, as torchvision's RandomResizedCrop chooses it."""
    low, high = (math.log(ratio) for ratio in _RATIO)
    for _ in range(_TRIES):
        area = width * height * (_AREA[0] + rng.random() * (_AREA[1] - _AREA[0]))
        ratio = math.exp(low + rng.random() * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = math.floor(rng.random() * (width - w + 1)), math.floor(rng.random() * (height - h + 1))
            return left, top, left + w, top + h
    # The middle, as large as the proportions allow.
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    w, h = min(width, max(round(height * ratio), 1)), min(height, max(round(width / ratio), 1))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
