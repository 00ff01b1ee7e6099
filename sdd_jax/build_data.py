"""From a config to its data set, and to what can be said of it before anything is read."""

import sys

import jax

from sdd_jax import data, processes
from sdd_jax.config import Settings
from sdd_jax.data import AnyDataset

STEPS_PER_CALL = 50  # on accelerators; 1 on CPU, where XLA's convolutions are slow inside a loop


def described(settings: Settings) -> data.Info:
    """What is known of the config's data set without reading it."""
    return data.describe(
        settings["data.name"],
        path=settings["data.path"],
        image_size=settings["data.image_size"],
        num_classes=settings["data.num_classes"],
    )


def from_disk(settings: Settings) -> bool:
    """Whether the config's images are read from disk as they are needed."""
    return described(settings).augment != "pad_crop"


def load_data(settings: Settings, skipped: data.Skipped | None = None) -> AnyDataset:
    """The data set of the config; which images it lacks is said on stderr, and taken from ``skipped`` if given."""
    looks = settings["data.on_bad_image"] == "skip" and skipped is None
    if looks and processes.is_first():
        print("every training image is decoded once (data.on_bad_image is 'skip')", file=sys.stderr, flush=True)
    dataset = data.load(
        settings["data.name"],
        path=settings["data.path"],
        select_on=settings["data.select_on"],
        train_examples=settings["data.train_examples"],
        image_size=settings["data.image_size"],
        augment=settings["data.augment"],
        workers=settings["data.workers"],
        on_bad_image=settings["data.on_bad_image"],
        skipped=skipped,
    )
    if isinstance(dataset, data.StreamedDataset) and dataset.skipped is not None and processes.is_first():
        print(dataset.skipped.report(), file=sys.stderr, flush=True)
    if dataset.num_classes != settings["data.num_classes"]:
        got = settings["data.num_classes"]
        raise ValueError(f"data.num_classes: {dataset.name} has {dataset.num_classes} on disk, the config says {got}")
    return dataset


def refuse_cache(settings: Settings) -> None:
    """``ValueError`` if the config's images have no views that a cache could be made of."""
    name, rule = settings["data.name"], settings["data.augment"] or described(settings).augment
    if rule == "random_resized_crop":
        raise ValueError(f"{name}'s training crops are random in size and place: they have no finite number of views")
    if rule != "pad_crop":
        raise ValueError(f"{name} is read from disk, and a cache needs its images in memory: no cache holds its views")


def steps_per_call(settings: Settings, platform: str | None = None) -> int:
    """How many steps one call of the jitted program takes; one, if each needs new images from disk.

    ``platform`` is what the program runs on; None: the default backend.
    """
    single = (platform or jax.default_backend()) == "cpu" or from_disk(settings)
    return settings["steps_per_call"] or (1 if single else STEPS_PER_CALL)
