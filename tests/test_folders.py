"""Which files belong to which class and split, and what is said when they do not fit together."""

import os
import pickle
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from sets import tiny_imagenet, write_cub200, write_files, write_folder

from sdd_jax import data, files
from sdd_jax.data import folders, images

ROOT = Path(__file__).parents[1]


def listing(files):
    return [(os.path.relpath(files.name(n), files._root), int(files.labels[n])) for n in range(len(files))]


def test_cub200_keeps_the_published_split_and_order(tmp_path):
    write_cub200(tmp_path / "CUB_200_2011", train=2, test=1)
    for path in (tmp_path, tmp_path / "CUB_200_2011"):
        listed = folders.read_cub200(path)
        assert listed.class_names[:2] == ("001.Bird_0", "002.Bird_1")
        assert listing(listed.train)[:3] == [
            ("001.Bird_0/bird_0_0.jpg", 0),
            ("001.Bird_0/bird_0_1.jpg", 0),
            ("002.Bird_1/bird_1_0.jpg", 1),
        ]
        assert listing(listed.test)[1] == ("002.Bird_1/bird_1_2.jpg", 1)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("image_class_labels.txt", "99 1\n", "do not number the same images"),
        ("train_test_split.txt", "1 1\n", "a new number"),
        ("images.txt", "nonsense\n", "expected a new number and a value, got the line 'nonsense'"),
    ],
)
def test_cub200_lists_that_do_not_fit_are_refused(tmp_path, file, line, message):
    write_cub200(tmp_path, train=1, test=1)
    with open(tmp_path / file, "a") as lines:
        lines.write(line)
    with pytest.raises(ValueError, match=message):
        folders.read_cub200(tmp_path)


def test_a_class_that_is_not_listed_is_refused(tmp_path):
    write_cub200(tmp_path, train=1, test=1)
    path = tmp_path / "image_class_labels.txt"
    path.write_text(path.read_text().replace("1 1\n", "1 77\n", 1))
    with pytest.raises(ValueError, match="image 1 has class 77, not listed"):
        folders.read_cub200(tmp_path)


def test_missing_sets_say_where_they_were_looked_for_and_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)images.txt.*curl -fL https.*CUB_200_2011.tgz"):
        data.load("cub200", path=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"(?s)train.*CLASS/IMAGE"):
        data.load("imagenet", path=tmp_path)


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_classes_and_images_are_numbered_by_name(tmp_path, test_name):
    write_folder(tmp_path, classes=("dog", "cat"), train=2, test=1, test_name=test_name)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("no image")
    deeper = tmp_path / "train" / "dog" / "puppies"
    deeper.mkdir()
    (tmp_path / "train" / "dog" / "0.png").rename(deeper / "0.PNG")
    listed = folders.read_folder("image_folder", tmp_path)
    assert listed.class_names == ("cat", "dog")
    assert listing(listed.train) == [("cat/0.png", 0), ("cat/1.png", 0), ("dog/1.png", 1), ("dog/puppies/0.PNG", 1)]
    assert listing(listed.test) == [("cat/0.png", 0), ("dog/0.png", 1)]


def test_every_suffix_of_the_formats_that_are_read_counts():
    Image.init()
    known = {suffix for suffix, form in Image.registered_extensions().items() if form in images.FORMATS}
    assert known - set(folders.SUFFIXES) == {".pfm"}  # whose pixels are floating-point numbers
    written = re.search(r"suffix is one of ([^;]*);", (ROOT / "docs" / "data.md").read_text())[1]
    assert re.findall(r"`(.\w+)`", written) == list(folders.SUFFIXES)


def test_hidden_folders_are_no_part_of_a_class_and_other_files_are_counted_once(tmp_path, capsys):
    write_folder(tmp_path, classes=("cat", "dog"), train=1, test=1)
    whole = [part.fingerprint() for part in folders.read_folder("image_folder", tmp_path)[:2]]
    assert not capsys.readouterr().err
    (tmp_path / "train" / "cat" / ".thumbs").mkdir()
    shutil.copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "train" / "cat" / ".thumbs" / "0.png")
    for name in ("cat/a.heic", "dog/b.HEIC", "dog/c.heic", "dog/notes.txt", "dog/README"):
        (tmp_path / "train" / name).write_text("")
    for _ in range(2):
        assert [part.fingerprint() for part in folders.read_folder("image_folder", tmp_path)[:2]] == whole
    kinds = "3 .heic, 1 without a suffix, 1 .txt"
    assert f"{tmp_path}/train: left out by the suffix, 5 in all: {kinds}\n" == capsys.readouterr().err


def test_imagenets_unlabelled_test_folder_is_left_alone(tmp_path):
    write_folder(tmp_path, classes=("n01", "n02"), train=2, test=1, test_name="val")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    assert len(data.load("imagenet", path=tmp_path, select_on="test").test.index) == 2
    with pytest.raises(ValueError, match="same classes"):
        data.load("image_folder", path=tmp_path)


def test_a_link_that_leads_back_counts_no_image_twice(tmp_path):
    write_folder(tmp_path, classes=("cat",), train=3, test=1)
    (tmp_path / "train" / "cat" / "self").symlink_to(tmp_path / "train" / "cat")
    assert len(folders.read_folder("image_folder", tmp_path).train) == 3


def test_folders_that_do_not_fit_are_refused(tmp_path):
    write_folder(tmp_path, classes=("cat", "dog"), train=1, test=1)
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(ValueError, match="same classes: only one of them has bird"):
        folders.read_folder("image_folder", tmp_path)
    (tmp_path / "train" / "bird").mkdir()
    with pytest.raises(ValueError, match="train/bird holds no image"):
        folders.read_folder("image_folder", tmp_path)
    for part in ("train", "test"):
        shutil.rmtree(tmp_path / part)
        (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match="train has no folders of classes: expected"):
        data.load("image_folder", path=tmp_path)


def test_a_broken_link_is_named_when_it_is_read(tmp_path):
    write_folder(tmp_path, classes=("cat",), train=2, test=1)
    path = tmp_path / "train" / "cat" / "0.png"
    path.unlink()
    path.symlink_to("nowhere.png")
    files = folders.read_folder("image_folder", tmp_path).train
    with pytest.raises(FileNotFoundError, match="cat/0.png"):
        files.read(0)
    broken = [files.fingerprint(), files.fingerprint(times=True)]
    path.unlink()
    path.symlink_to(path.name)
    assert broken == [files.fingerprint(), files.fingerprint(times=True)]
    path.unlink()
    path.write_bytes(b"")
    assert files.fingerprint() != broken[0]


def test_the_fingerprint_knows_names_labels_and_sizes(tmp_path):
    write_folder(tmp_path, classes=("cat", "dog"), train=2, test=1)
    before = folders.read_folder("image_folder", tmp_path).train
    assert pickle.loads(pickle.dumps(before)).fingerprint() == before.fingerprint()
    seen = {before.fingerprint()}
    with open(tmp_path / "train" / "cat" / "0.png", "ab") as file:
        file.write(b"x")
    seen.add(folders.read_folder("image_folder", tmp_path).train.fingerprint())
    (tmp_path / "train" / "cat" / "0.png").rename(tmp_path / "train" / "cat" / "2.png")
    seen.add(folders.read_folder("image_folder", tmp_path).train.fingerprint())
    (tmp_path / "train" / "cat" / "2.png").rename(tmp_path / "train" / "dog" / "2.png")
    seen.add(folders.read_folder("image_folder", tmp_path).train.fingerprint())
    assert len(seen) == 4


def test_names_that_are_no_text_are_read_all_the_same(tmp_path):
    write_folder(tmp_path, classes=("cat",), train=1, test=1)
    odd = os.path.join(os.fsencode(tmp_path), b"train", b"cat", b"\xff\xfe.png")
    os.rename(tmp_path / "train" / "cat" / "0.png", odd)
    files = folders.read_folder("image_folder", tmp_path).train
    assert files.read(0)[0][:4] == b"\x89PNG"


def test_a_validation_split_of_files_is_a_tenth_of_each_class(tmp_path):
    write_folder(tmp_path, classes=("a", "b", "c"), train=20, test=1)
    first, second = (data.load("image_folder", path=tmp_path, select_on="validation") for _ in range(2))
    labels = first.train.records.labels
    assert np.bincount(labels[first.selection.index]).tolist() == [2, 2, 2]
    assert sorted([*first.selection.index, *first.train.index]) == list(range(60))
    np.testing.assert_array_equal(first.selection.index, second.selection.index)
    few = data.load("image_folder", path=tmp_path, train_examples=9)
    assert np.bincount(labels[few.train.index]).tolist() == [3, 3, 3]
    assert not set(few.train.index) & set(few.selection.index)


def test_a_pipe_with_the_name_of_an_image_is_refused_and_not_waited_for(tmp_path):
    write_folder(tmp_path, classes=("a", "b"), train=2, test=1)
    (tmp_path / "train" / "a" / "0.png").unlink()
    os.mkfifo(tmp_path / "train" / "a" / "0.png")
    files = folders.read_folder("image_folder", tmp_path).train
    with pytest.raises(ValueError, match="train/a/0.png is no regular file"):
        files.read(0)


def test_a_list_says_what_class_folders_are_called(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path, classes=("n01", "n02", "n03", "big cat"), train=1, test=1)
    words = tmp_path / "words.txt"
    words.write_text("n00\tentity\nn01\ttench, Tinca tinca\nn03\ttench, again\n")
    expected = ("big cat", "tench (n01)", "n02", "tench (n03)")  # in the order of the folders, whatever they are called
    assert folders.read_folder("image_folder", tmp_path).class_names == expected
    assert data.class_names("image_folder", tmp_path) == expected
    for in_memory in (True, False):
        dataset = data.load("image_folder", path=tmp_path, image_size=16, select_on="test", in_memory=in_memory)
        assert dataset.class_names == expected
        assert dataset.test_place(2) == str(tmp_path / "test" / "n02" / "0.png")
    classes = tmp_path / "classes.txt"  # which goes before the other
    classes.write_text("n01 a fish, small\nbig cat\tTiger\n")
    assert data.class_names("image_folder", tmp_path) == ("Tiger", "a fish, small", "n02", "n03")
    classes.write_text("big cat\tTiger\n", "utf-8-sig")
    assert data.class_names("image_folder", tmp_path) == ("Tiger", "n01", "n02", "n03")
    classes.write_text("n01\nn02\n")  # names alone say nothing more
    assert data.class_names("image_folder", tmp_path) == ("big cat", "n01", "n02", "n03")
    classes.write_text("1 n01\n2 n02\n")
    with pytest.raises(ValueError, match=r"classes.txt names none of the class folders, such as big cat: each line"):
        data.load("image_folder", path=tmp_path)
    classes.write_bytes(b"n01 \xff\n")
    with pytest.raises(ValueError, match="classes.txt is no text"):
        data.class_names("image_folder", tmp_path)


def test_the_layout_of_tiny_imagenet_is_read_as_an_image_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = tiny_imagenet(train=2, val=1)
    write_files(tmp_path, files)
    dataset = data.load("image_folder", path=tmp_path, select_on="test", image_size=32)
    assert dataset.class_names == ("word of n01", "word of n02") == data.class_names("image_folder", tmp_path)
    assert data.describe("image_folder", path=tmp_path).num_classes == 2
    np.testing.assert_array_equal(dataset.test.labels, data.load("tiny_imagenet", path=tmp_path).test.labels)
    (tmp_path / "wnids.txt").unlink()
    with pytest.raises(ValueError, match="test has no folders of classes. .*wnids.txt"):
        data.load("image_folder", path=tmp_path)


def test_training_images_side_by_side_are_told_where_they_belong(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.png").touch()
    with pytest.raises(ValueError, match="train has no folders of classes: expected .*/train/CLASS/IMAGE"):
        data.describe("image_folder", path=tmp_path)


def test_a_home_that_is_nobodys_is_named(tmp_path, monkeypatch):
    for name in ("image_folder", "mnist", "cifar10"):
        with pytest.raises(ValueError, match="~nobody-of-this-name"):
            data.load(name, path="~nobody-of-this-name/set")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(files.Path, "home", mock.Mock(side_effect=RuntimeError("Could not determine home directory.")))
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME"):
        files.cache_folder("decoded")


def test_test_images_without_folders_of_classes_are_named(tmp_path):
    write_folder(tmp_path, classes=("n01", "n02"), train=2, test=1, test_name="val")
    for path in [*(tmp_path / "val").glob("*/*")]:
        path.rename(tmp_path / "val" / f"ILSVRC2012_val_{path.parent.name}.JPEG")
        path.parent.rmdir()
    with pytest.raises(ValueError, match="val has no folders of classes. .*valprep.sh"):
        data.load("image_folder", path=tmp_path)
