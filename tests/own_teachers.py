"""Teachers that are plain functions, as a user would bring them: here they are NumPy, and wrong in known ways."""

import numpy as np

from sdd_jax.training.foreign import ForeignTeacher

SIDE = 4  # of the map
ASKED = []  # what the teacher called "patches" was given


def patch_logits(images, num_classes):
    """A logit map [B,4,4,K]: a linear classifier of every patch, of numbers that are the same everywhere."""
    batch, height, width, channels = images.shape
    patches = np.float64(images).reshape(batch, SIDE, height // SIDE, SIDE, width // SIDE, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, SIDE, SIDE, -1)
    weights = np.random.default_rng(5).normal(size=(patches.shape[-1], num_classes)) / 8
    return np.float32(patches @ weights)


def region_means(logit_map, regions):
    """The logits of every region, each the mean of its own locations."""
    step = {scale: SIDE // scale for scale in regions.scales}
    return np.stack(
        [
            logit_map[:, row * step[s] : (row + 1) * step[s], column * step[s] : (column + 1) * step[s]].mean((1, 2))
            for s, row, column in regions.places()
        ],
        1,
    )


def patches(num_classes, regions):
    def ask(images):
        ASKED.append(images)
        return patch_logits(images, num_classes)

    return ForeignTeacher(ask, "patches", "1")


def patches_of_pixels(num_classes, regions):
    return patches(num_classes, regions)._replace(images="uint8")


def patches_of_another_file(num_classes, regions):
    return patches(num_classes, regions)._replace(digest="2")


def turned(num_classes, regions):
    return ForeignTeacher(lambda images: -0.5 * patch_logits(images, num_classes)[:, ::-1], "turned", "1")


def by_region(num_classes, regions):
    return ForeignTeacher(lambda images: region_means(patch_logits(images, num_classes), regions), "by region", "1")


def whole(num_classes, regions):
    return ForeignTeacher(lambda images: patch_logits(images, num_classes).mean((1, 2)), "whole", "1")


def unmade(num_classes, regions):
    return {}["weights"]


def _gives(change):
    def teacher(num_classes, regions):
        return ForeignTeacher(lambda images: change(patch_logits(images, num_classes)), "wrong", "1")

    return teacher


def _raises(logit_map):
    raise RuntimeError("out of luck")


fewer_classes = _gives(lambda logit_map: logit_map[..., 1:])
fewer_images = _gives(lambda logit_map: logit_map[1:])
fewer_regions = _gives(lambda logit_map: logit_map[:, 0])
five_axes = _gives(lambda logit_map: logit_map[None])
integers = _gives(lambda logit_map: logit_map.astype(int))
nothing = _gives(lambda logit_map: None)
not_numbers = _gives(lambda logit_map: logit_map * np.nan)
not_numbers_of_the_fourth = _gives(
    lambda logit_map: np.where(np.arange(len(logit_map))[:, None, None, None] == 3, np.nan, logit_map)
)
raising = _gives(_raises)


def changing(num_classes, regions):
    shapes = iter([slice(None)] * 3 + [slice(0, 2)])  # once to look, twice for the test images
    return ForeignTeacher(lambda images: patch_logits(images, num_classes)[:, next(shapes)], "changing", "1")


def without_a_name(num_classes, regions):
    return whole(num_classes, regions)._replace(name="")


def without_a_digest(num_classes, regions):
    return whole(num_classes, regions)._replace(digest=None)


def of_other_images(num_classes, regions):
    return whole(num_classes, regions)._replace(images="float16")


def no_teacher(num_classes, regions):
    return lambda images: images


def of_nothing():
    return None
