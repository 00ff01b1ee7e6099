"""Anybody's pictures: prepared as evaluation images are, and what is said of them."""

import csv
import json
import os
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import sets
from commands import call
from PIL import Image
from served import live, served, variables
from test_report import write_run

from sdd_jax import data
from sdd_jax.data import arrays, images
from sdd_jax.models import create_model
from sdd_jax.regions import Regions
from sdd_jax.saved import write_imported
from sdd_jax.serving.network import check_names
from sdd_jax.serving.predict import find_pictures, predict, prepare, write
from sdd_jax.serving.regions import COMPLEMENTARY, CONSISTENT, GAP, HEAD, PANEL, Region, draw_overlay, read_regions


def of_set(name, channels=1, size=32, augment="pad_crop"):
    one = served("served:small", channels=channels, size=size)
    return one._replace(data_name=name, info=one.info._replace(augment=augment))


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def grey():
    return np.random.default_rng(3).integers(0, 256, (28, 28), dtype=np.uint8)


@pytest.mark.parametrize("as_rgb", [False, True])
def test_a_picture_of_the_sets_size_gets_its_border_and_nothing_else(tmp_path, grey, as_rgb):
    path = saved(tmp_path / "a.png", np.stack([grey] * 3, -1) if as_rgb else grey)
    for name in ("mnist", "fashion_mnist"):
        np.testing.assert_array_equal(prepare(path, of_set(name))[..., 0], np.pad(grey, 2))


def test_a_set_images_own_pixels_come_back_as_they_are(tmp_path):
    digits = data.load("digits", select_on="test").test.images[7]  # [32, 32, 1]
    one = of_set("digits")
    np.testing.assert_array_equal(prepare(saved(tmp_path / "large.png", digits[..., 0]), one), digits)
    np.testing.assert_array_equal(prepare(saved(tmp_path / "small.png", digits[::4, ::4, 0]), one), digits)


def test_any_other_size_is_its_middle_square_resized(tmp_path):
    pixels = np.zeros((56, 100), np.uint8)
    pixels[:, 22:50] = 200  # the left half of the middle square, 22 to 78
    got = prepare(saved(tmp_path / "wide.png", pixels), of_set("fashion_mnist"))[..., 0]
    assert got.shape == (32, 32) and (got[:2] == 0).all() and (got[:, :2] == 0).all()
    assert (got[2:30, 2:15] == 200).all() and (got[2:30, 17:30] == 0).all()


def test_images_that_are_not_square_keep_their_shape(tmp_path):
    """As wide as the set's own, or cut in the middle to their proportion."""
    pixels = np.random.default_rng(5).integers(0, 256, (24, 48, 3), np.uint8)
    one = of_set("arrays", 3)
    one = one._replace(info=one.info._replace(image_shape=(24, 48, 3)))
    np.testing.assert_array_equal(prepare(saved(tmp_path / "own.png", pixels), one), pixels)
    large = pixels.repeat(2, axis=0).repeat(2, axis=1)  # 48x96, and around it what is to be cut off
    for name, border in (("tall", ((30, 30), (0, 0), (0, 0))), ("wide", ((0, 0), (8, 8), (0, 0)))):
        inside = Image.fromarray(large).resize((48, 24), Image.Resampling.BILINEAR)
        got = prepare(saved(tmp_path / f"{name}.png", np.pad(large, border)), one)
        np.testing.assert_array_equal(got, np.asarray(inside))
    named = one.network._replace(image_size=24)
    assert named.other_size("arrays", (24, 24, 3)) is None
    assert named.other_size("arrays", (24, 48, 3)).endswith("was trained at 24x24 pixels, these images have 24x48")


def test_a_network_of_four_channels_takes_no_picture(tmp_path, grey):
    one = of_set("arrays", 4)
    with pytest.raises(ValueError, match="a picture has 1 or 3 channels, .* takes images of 4"):
        prepare(saved(tmp_path / "a.png", grey), one)


@pytest.mark.parametrize("augment", images.AUGMENTS)
def test_sets_on_disk_are_prepared_as_their_evaluation_images(tmp_path, augment):
    pixels = sets.picture(1, 2)
    path = saved(tmp_path / "a.png", pixels)
    expected = images.eval_image(Image.fromarray(pixels), augment, 24)
    np.testing.assert_array_equal(prepare(path, of_set("image_folder", 3, 24, augment)), expected)


def test_sets_decoded_into_memory_are_prepared_as_they_were_decoded(tmp_path):
    pixels = sets.picture(1, 2)
    got = prepare(saved(tmp_path / "a.png", pixels), of_set("image_folder", 3, 24, images.BOXED))
    np.testing.assert_array_equal(got, images.whole_image(Image.fromarray(pixels), 24))


def test_pictures_are_found_in_the_order_of_their_names(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("c.JPG", "a.png", "b/z.webp", ".hidden/x.png", "notes.txt", ".d.png"):
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_pictures(tmp_path)] == ["a.png", "c.JPG", "b/z.webp"]
    for name in ("b/z.webp", "a.png"):  # what a start before this one wrote is no picture of the user's
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / f"{name}.regions.png").touch()
    assert len(find_pictures(tmp_path)) == 5 and len(find_pictures(tmp_path, tmp_path / "out")) == 3
    with pytest.raises(ValueError, match="is the folder of the pictures"):
        find_pictures(tmp_path, tmp_path)
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "b")
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    assert [path.name for path in find_pictures(tmp_path, tmp_path / "out")] == ["a.png", "c.JPG", "z.webp"]
    monkeypatch.setattr(os, "scandir", mock.Mock(side_effect=PermissionError(13, "Permission denied", "b")))
    with pytest.raises(PermissionError):
        find_pictures(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="holds no picture"):
        (tmp_path / "empty").mkdir()
        find_pictures(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="is not there"):
        find_pictures(tmp_path / "nothing")


def test_predictions_are_the_live_models(tmp_path):
    one = served("served:small")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    pictures = [saved(tmp_path / f"{number}.png", image) for number, image in enumerate(pixels)]
    got = list(predict(one, pictures))
    expected = live(one, pixels)
    for prediction, logits in zip(got, expected, strict=True):
        shares = np.exp(logits - logits.max())
        np.testing.assert_allclose(prediction.probabilities, shares / shares.sum(), rtol=1e-4, atol=1e-6)
        assert prediction.label == logits.argmax() and len(prediction.regions) == 21
    x = (pixels[:1] / np.float32(255) - np.float32(one.info.mean)) / np.float32(one.info.std)
    regions = one.network.model.apply(one.variables, x, train=False, regions=one.regions).region_logits[0]
    assert [region.label for region in got[0].regions] == jax.numpy.argmax(regions, -1).tolist()


def test_regions_by_hand():
    logits = np.log(np.array([[6, 4], [9, 1], [3, 7], [2, 8], [5, 4]], np.float64))
    assert read_regions(logits, logits[0], Regions((1, 2))) == [
        Region(1, 0, 0, 0, pytest.approx(0.6), True),
        Region(2, 0, 0, 0, pytest.approx(0.9), True),
        Region(2, 0, 1, 1, pytest.approx(0.7), False),
        Region(2, 1, 0, 1, pytest.approx(0.8), False),
        Region(2, 1, 1, 0, pytest.approx(5 / 9), True),
    ]


def test_the_overlay_colours_each_region_by_its_word():
    logits = np.log(np.array([[6, 4], [9, 1], [3, 7], [2, 8], [5, 4]], np.float64))
    sheet = draw_overlay(
        np.zeros((8, 8, 1), np.uint8), read_regions(logits, logits[0], Regions((1, 2))), ("a", "b"), "title"
    )
    pixels, left, top, half = np.asarray(sheet, float), 2 * GAP + PANEL, 2 * HEAD, PANEL // 2
    blue, orange = (np.array(colour) / np.linalg.norm(colour) for colour in (CONSISTENT, COMPLEMENTARY))
    for row, column, nearer, other in (
        (0, 0, blue, orange),
        (0, 1, orange, blue),
        (1, 0, orange, blue),
        (1, 1, blue, orange),
    ):
        y, x = top + row * half + 8, left + column * half + 8
        mean = pixels[y : y + 32, x : x + 32].mean((0, 1))
        assert mean @ nearer > mean @ other


def test_a_pipe_is_no_picture_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png is no regular file"):
        prepare(tmp_path / "a.png", of_set("mnist"))


def test_a_broken_picture_is_named_after_those_before_it_are_done(tmp_path, grey):
    good, bad = saved(tmp_path / "a.png", grey), tmp_path / "b.png"
    bad.write_text("no picture")
    got = predict(of_set("fashion_mnist"), [good, bad])
    assert next(got).picture == good
    with pytest.raises(ValueError, match=f"{bad} cannot be read as an image"):
        next(got)


BAD_NAMES = ("a\nb.png", "a\rb.png", "a\x1b[2Jb.png", "a\u2028b.png", os.fsdecode(b"a\xffb.png"))


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_does_not_fit_in_a_line_is_refused_before_anything_is_written(tmp_path, grey, name):
    (tmp_path / "in").mkdir()
    for file in (name, "z.png"):
        saved(tmp_path / "in" / file, grey)
    given = (f"--workdir={tmp_path}/run", f"--output={tmp_path}/out")
    assert (
        f"{tmp_path}/in/{ascii(name)[1:-1]}' has a character that" in call("predict", tmp_path / "in", *given).refused()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    with pytest.raises(ValueError, match="has a character that cannot stand in a line of text: rename it"):
        check_names(["cat", name])
    check_names(["Bildschirmfoto 2026 um\u202f10.png", "Füße", "猫", "a b"])


def test_cells_that_a_spreadsheet_would_compute_are_guarded(tmp_path, grey, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("=cmd|x.png", "+1.png", "-1.png", "@a.png", "1=2.png")
    pictures = [saved(Path(name), grey) for name in names]
    one = of_set("fashion_mnist")._replace(class_names=("=HYPERLINK(1)",) * 7)
    assert len(list(write(predict(one, pictures), tmp_path / "out", Path(), one.names))) == 5
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    assert [row["picture"] for row in rows] == [*(f"'{name}" for name in names[:4]), "1=2.png"]
    assert {row["class"] for row in rows} == {"'=HYPERLINK(1)"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["picture"] for line in lines] == list(names)  # no spreadsheet reads these


def test_what_is_written(tmp_path):
    one = served("served:small", classes=3)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in ("a.png", "sub/a.png"):
        saved(tmp_path / "in" / name, rng.integers(0, 256, (40, 32, 3), dtype=np.uint8))
    pictures = find_pictures(tmp_path / "in")
    passed_on = list(write(predict(one, pictures), tmp_path / "out", tmp_path / "in", one.names))
    assert [prediction.picture for prediction in passed_on] == pictures
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.png.regions.png", "predictions.csv", "predictions.jsonl", "sub/a.png.regions.png"]
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["picture"] for row in rows] == [line["picture"] for line in lines] == list(map(str, pictures))
    for row, line in zip(rows, lines, strict=True):
        assert row["class"] == line["class"] == line["top"][0]["class"] == f"class {row['label']}"
        assert float(row["probability"]) == pytest.approx(line["probability"], abs=1e-6)
        assert len(line["top"]) == 3 and len(line["regions"]) == 21
    with pytest.raises(ValueError, match="holds predictions already"):
        list(write([], tmp_path / "out", tmp_path / "in", one.names))


@pytest.mark.parametrize("ended", [ValueError("a picture that cannot be read"), KeyboardInterrupt()])
def test_a_table_that_is_not_whole_has_another_name_and_is_written_again(tmp_path, grey, ended):
    one, picture = of_set("fashion_mnist"), saved(tmp_path / "a.png", grey)

    def cut_short():
        yield from predict(one, [picture])
        raise ended

    out, names = tmp_path / "out", ["a.png.regions.png", "predictions.csv", "predictions.jsonl"]
    with pytest.raises(type(ended)):
        list(write(cut_short(), out, tmp_path, one.names))
    assert sorted(path.name for path in out.iterdir()) == [names[0], *(f"{name}.part" for name in names[1:])]
    assert len((out / "predictions.csv.part").read_text().splitlines()) == 2
    list(write(predict(one, [picture]), out, tmp_path, one.names))
    assert sorted(path.name for path in out.iterdir()) == names


def test_the_command_from_a_run_to_its_lines_and_files(tmp_path):
    write_run(
        tmp_path,
        "plain/seed_0",
        {"plain/seed_0": served("served:small", channels=1, classes=10).variables},
        {"plain/seed_0": 0.5},
    )
    digit = data.load("digits", select_on="test").test.images[0][..., 0]
    saved(tmp_path / "digit.png", digit)
    folder = tmp_path / "plain" / "seed_0"
    given = (f"--workdir={folder}", "--allow=served:small")
    arguments = ("predict", tmp_path / "digit.png", *given)
    result = call(*arguments, f"--output={tmp_path / 'out'}")
    assert result.code == 0, result
    assert result.out.startswith(f"{tmp_path / 'digit.png'}: ") and "of 21 regions say otherwise" in result.out
    assert (tmp_path / "out" / "digit.png.regions.png").exists()
    for kind in ("onnx", "stablehlo"):
        result = call("export", *given, f"--format={kind}", f"--output={tmp_path / kind}")
        assert result.code == 0, result
        assert "uint8 [batch, 32, 32, 1] in, normalised inside, 10 logits out" in result.out
    (tmp_path / "digit.png").write_text("torn")
    assert f"{tmp_path / 'digit.png'} cannot be read as an image" in call(*arguments).refused()


def test_an_imported_network_takes_its_normalisation_from_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    labels = np.arange(6) % 3
    arrays.write(tmp_path / "own.npz", data.from_arrays(pixels, labels, pixels, labels))
    values = variables(create_model("resnet8", 3), (8, 8, 3))
    write_imported(tmp_path / "a", name="resnet8", stem="cifar", num_classes=3, variables=values, source={})
    given = ("export", f"--workdir={tmp_path / 'a'}", "--format=stablehlo", f"--output={tmp_path / 'b'}")
    refused = call(*given, "--data=arrays")
    assert refused.code == 2 and "data.path=own.npz" in refused.err
    result = call(*given, "--data=arrays", f"--data_path={tmp_path / 'own.npz'}")
    assert "uint8 [batch, 8, 8, 3] in, normalised inside, 3 logits out" in result.out, result
