"""TFDS directories read from disk: images decoded or not, the newest version, and what is refused."""

import json
import pickle

import numpy as np
import pytest
from sets import jpeg, picture, write_tfds

from sdd_jax import data
from sdd_jax.data import images
from sdd_jax.data.folders import find_tfds, read_tfds

pytest.importorskip("tensorflow_datasets")


@pytest.mark.parametrize("encoded", [True, False])
def test_records_are_what_was_written(tmp_path, encoded):
    write_tfds(tmp_path, "birds", train=2, test=1, encoded=encoded)
    listed = read_tfds("birds", tmp_path)
    assert listed.class_names == ("class_0", "class_1", "class_2")
    assert (len(listed.train), len(listed.test)) == (6, 3)
    again = pickle.loads(pickle.dumps(listed.train))
    seen = set()
    for number in range(6):
        content, label = again.read(number)
        pixels = [np.asarray(images.decode(jpeg(picture(label, n)[:40]), "")) for n in range(2)]
        pixels = pixels if encoded else [picture(label, n)[:40] for n in range(2)]
        equal = [np.array_equal(images.decode(content, ""), expected) for expected in pixels]
        seen.add((label, equal.index(True)))
        assert isinstance(content, bytes) == encoded
    assert len(seen) == 6
    assert listed.train.fingerprint() == again.fingerprint() != listed.test.fingerprint()


def test_it_is_loaded_by_its_name(tmp_path):
    write_tfds(tmp_path, "birds", train=10, test=1)
    assert data.describe("tfds:birds", path=tmp_path, image_size=24)[:2] == (3, (24, 24, 3))
    loaded = data.load("tfds:birds", path=tmp_path, image_size=24, select_on="validation", in_memory=False)
    assert (len(loaded.train.index), len(loaded.selection.index), len(loaded.test.index)) == (27, 3, 3)
    assert sorted([*loaded.train.index, *loaded.selection.index]) == list(range(30))
    assert loaded.image_shape == (24, 24, 3) and loaded.augment == "random_resized_crop"


def test_imagenet_is_read_from_tfds_and_reported_on_its_validation_set(tmp_path):
    write_tfds(tmp_path, "imagenet2012", train=1, test=2, test_name="validation", version="5.1.0")
    loaded = data.load("imagenet", path=tmp_path, select_on="test")
    assert (len(loaded.train.index), len(loaded.test.index)) == (3, 6)


def test_the_newest_version_is_read(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        write_tfds(tmp_path, "birds", train=1, test=1, version=version)
    assert find_tfds("birds", tmp_path).name == "1.10.0"


def test_what_is_not_there_or_cannot_be_read_at_random_is_refused_with_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)tfds:birds.*tfds.builder\('birds'.*needs TensorFlow"):
        data.load("tfds:birds", path=tmp_path)
    write_tfds(tmp_path, "birds", train=1, test=1)
    file = tmp_path / "birds" / "1.0.0" / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"(?s)no ArrayRecord files.*file_format='array_record'"):
        data.load("tfds:birds", path=tmp_path)


def test_a_set_without_a_test_split_is_refused(tmp_path):
    write_tfds(tmp_path, "birds", train=1, test=1, test_name="extra")
    with pytest.raises(ValueError, match="needs a split train, and test or validation; it has .*extra"):
        data.load("tfds:birds", path=tmp_path)
