"""Small images of one's own: what their size chooses, and that it can be chosen otherwise."""

import numpy as np
import pytest
from commands import call
from PIL import Image

from sdd_jax.build import check
from sdd_jax.configs import small_images


def write(root, *sides):
    """Class folders whose images have these sides, in turn, wider than they are high."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number, side in enumerate(sides):
                Image.fromarray(np.zeros((side, side + 9, 3), np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("sides", "size", "stem", "teacher"),
    [
        ((20,), 24, "cifar", "resnet8x4"),
        ((32,), 32, "cifar", "resnet8x4"),
        ((43, 44, 90), 48, "cub200", "resnet8x4"),
        ((64,), 64, "cub200", "resnet8x4"),
        ((96,), 96, "cub200", "resnet56"),
    ],
)
def test_the_size_of_the_images_chooses_stem_and_networks(tmp_path, sides, size, stem, teacher):
    path = write(tmp_path / "images", *sides)
    settings = check(small_images.get_config(f"path={path},teacher=none"))
    assert (settings["data.image_size"], settings["model.stem"]) == (size, stem)
    assert settings["data.path"] == str(path) and settings["data.in_memory"] is True
    assert settings["model.student"] == teacher  # which the next one learns from
    settings = check(small_images.get_config(f"path={path}"))
    assert (settings["model.teacher"], settings["model.student"]) == (teacher, "resnet20")


def test_the_argument_chooses_otherwise(tmp_path):
    path = write(tmp_path, 64)
    given = f"path={path},size=32,stem=cub200,teacher=resnet14,student=mobilenet_v2,method=kd"
    settings = check(small_images.get_config(given))
    assert [settings[f"model.{name}"] for name in ("stem", "teacher", "student")] == [
        "cub200",
        "resnet14",
        "mobilenet_v2",
    ]
    assert settings["data.image_size"] == 32 and settings["optim.learning_rate"] == 0.01
    assert small_images.get_config("size=64").data.path is None  # of --config.data.path


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", r"must say where the images are, path=DIR, or how large they are, size=64"),
        ("size=97", r"size=97: expected 24 to 96 pixels"),
        ("size=x", r"size=x: expected 24 to 96 pixels"),
        ("path=none", 'no data set "image_folder" found; looked in'),
        ("path={large}", r"have about 300 pixels a side: configs/image_folder.py is for such images; size=96 .* makes"),
        ("path={empty}", r"train has no folders of classes: expected"),
    ],
)
def test_what_leaves_the_size_open_is_one_line(tmp_path, argument, message):
    write(tmp_path / "large", 300)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "test").mkdir()
    argument = argument.format(large=tmp_path / "large", empty=tmp_path / "empty")
    with pytest.raises(ValueError, match=message):
        small_images.get_config(argument)
    if argument.startswith("path=none"):
        config = f"--config=configs/small_images.py:{argument}"
        assert 'no data set "image_folder"' in call("train", config, f"--workdir={tmp_path}/run").refused()
