"""Tiny-ImageNet's archive, as a folder and as a zip file: which images are of which class, and what is refused."""

import pickle
import shutil
import zipfile

import numpy as np
import pytest
from sets import tiny_imagenet, write_files, write_zip

from sdd_jax import data
from sdd_jax.data import images
from sdd_jax.data.tiny_imagenet import read_tiny_imagenet


def listing(records):
    return [("/".join(records.name(n).split("/")[-4:]), int(records.labels[n])) for n in range(len(records))]


@pytest.mark.parametrize("place", ["folder", "in a folder", "zip", "in a folder as zip", "zip without a folder in it"])
def test_every_form_of_the_archive_lists_the_same_images(tmp_path, place):
    files = tiny_imagenet(train=3, val=2, grey=(1, 4))
    path = {
        "folder": lambda: write_files(tmp_path / "f", files),
        "in a folder": lambda: write_files(tmp_path / "tiny-imagenet-200", files).parent,
        "zip": lambda: write_zip(tmp_path / "a.zip", files),
        "in a folder as zip": lambda: write_zip(tmp_path / "tiny-imagenet-200.zip", files).parent,
        "zip without a folder in it": lambda: write_zip(tmp_path / "a.zip", files, top=""),
    }[place]()
    listed = read_tiny_imagenet(path)
    assert listed.class_names == ("word of n01", "word of n02")
    inner = [(name.split("/", 1)[1], label) for name, label in listing(listed.train)]
    assert inner == [(f"{w}/images/{w}_{n}.JPEG", label) for label, w in enumerate(("n01", "n02")) for n in range(3)]
    assert [name.split("/")[-1] for name, _ in listing(listed.test)] == [f"val_{n}.JPEG" for n in range(4)]
    assert listed.test.labels.tolist() == [0, 1, 0, 1]
    for records, number, name in (
        (listed.train, 4, "train/n02/images/n02_1.JPEG"),
        (listed.test, 2, "val/images/val_2.JPEG"),
    ):
        content, label = records.read(number)
        assert content == files[name] and label == records.labels[number]
        assert images.decode(content, name).mode == "RGB"  # the file itself is grey


def test_fewer_classes_in_wnids_leave_the_others_out(tmp_path):
    files = tiny_imagenet(train=2, val=1, wnids=("n03", "n02", "n01"))
    files["wnids.txt"] = b"n03\nn01\n"
    for path in (write_files(tmp_path / "f", files), write_zip(tmp_path / "a.zip", files)):
        listed = read_tiny_imagenet(path)
        assert listed.class_names == ("word of n01", "word of n03")
        assert [label for _, label in listing(listed.train)] == [0, 0, 1, 1]
        assert [(name.split("/")[-1], label) for name, label in listing(listed.test)] == [
            ("val_0.JPEG", 0),
            ("val_2.JPEG", 1),
        ]
        info = data.describe("tiny_imagenet", path=path)
        assert info[:4] == (2, (64, 64, 3), 1000, 100)
    assert data.describe("tiny_imagenet", path=tmp_path / "nowhere").num_classes == 200
    write_files(tmp_path / "nowhere", files)  # it comes later
    assert data.describe("tiny_imagenet", path=tmp_path / "nowhere").num_classes == 2
    (tmp_path / "nowhere" / "wnids.txt").write_text("n02\n")  # and is shortened
    assert data.describe("tiny_imagenet", path=tmp_path / "nowhere").num_classes == 1


@pytest.mark.parametrize("wnids, count", [([], 0), (["a/wnids.txt", "b/wnids.txt"], 2)])
def test_a_zip_file_holds_one_set(tmp_path, wnids, count):
    files = {name: text for name, text in tiny_imagenet(train=2, val=1).items() if name != "wnids.txt"}
    path = write_zip(tmp_path / "a.zip", files | {name: b"n01\n" for name in wnids})
    with pytest.raises(ValueError, match=f"a.zip must hold one wnids.txt, .* it has {count}"):
        read_tiny_imagenet(path)


def test_hidden_files_are_no_images(tmp_path):
    files = tiny_imagenet(train=2, val=1)
    files["train/n01/images/._n01_0.JPEG"] = b"of another system"
    for path in (write_files(tmp_path / "f", files), write_zip(tmp_path / "a.zip", files)):
        assert len(read_tiny_imagenet(path).train) == 4


def test_classes_of_one_word_are_told_apart_and_those_without_have_their_number(tmp_path):
    files = tiny_imagenet(train=1, val=1, wnids=("n01", "n02", "n03"))
    files["words.txt"] = b"n01\tcrane, a bird\nn02\tcrane, a machine\n"
    assert read_tiny_imagenet(write_files(tmp_path, files)).class_names == ("crane (n01)", "crane (n02)", "n03")


WRONG = {
    "no list of classes": ({"wnids.txt": None}, "wnids.txt"),
    "no list of test images": ({"val/val_annotations.txt": None}, "val_annotations.txt is missing, though others"),
    "no class at all": ({"wnids.txt": b"\n"}, "wnids.txt names no class"),
    "a class twice": ({"wnids.txt": b"n01\nn02\nn01\n"}, "names a class twice"),
    "a class without images": ({"wnids.txt": b"n01\nn02\nn09\n"}, "train holds no image of n09"),
    "a class without test images": ({"val/val_annotations.txt": b"val_0.JPEG\tn01\n"}, "val holds no image of n02"),
    "a test image that is not there": ({"val/images/val_1.JPEG": None}, "val/images/val_1.JPEG is missing, though"),
    "a line without a class": ({"val/val_annotations.txt": b"val_0.JPEG\n"}, "an image and its class in a line"),
    "a list that is no text": ({"words.txt": b"n01\t\xff\xfe\n"}, "words.txt is no text"),
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_together_is_named(tmp_path, form, case):
    changes, message = WRONG[case]
    files = {n: c for n, c in (tiny_imagenet(train=1, val=1) | changes).items() if c is not None}
    path = write_files(tmp_path / "f", files) if form == "folder" else write_zip(tmp_path / "a.zip", files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_tiny_imagenet(path)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    files = tiny_imagenet(train=1, val=1)
    marked = files | {name: b"\xef\xbb\xbf" + files[name] for name in ("wnids.txt", "val/val_annotations.txt")}
    assert read_tiny_imagenet(write_files(tmp_path / "f", marked)).class_names == ("word of n01", "word of n02")


def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"(?s)wnids.txt.*tiny-imagenet-200.zip.*curl -fL .*tiny-imagenet-200.zip"
    ):
        data.load("tiny_imagenet", path=tmp_path)


def test_damaged_zip_files_are_named(tmp_path):
    path = write_zip(tmp_path / "a.zip", tiny_imagenet(train=2, val=1))
    content = path.read_bytes()
    name = b"tiny-imagenet-200/train/n01/images/n01_1.JPEG"
    at = content.index(name) + len(name) + 40  # of its first copy, in front of the image
    path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    listed = read_tiny_imagenet(path)
    listed.train.read(0)
    with pytest.raises(ValueError, match=r"n01_1.JPEG does not read: Bad CRC-32"):
        listed.train.read(1)
    skipping = data.load("tiny_imagenet", path=path, select_on="test", on_bad_image="skip")
    assert list(skipping.skipped.images) == [1] and "Bad CRC-32" in skipping.skipped.images[1]
    for broken in (content[: len(content) // 2], b"no zip", b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="a.zip does not read as a zip file"):
            read_tiny_imagenet(path)


def test_the_fingerprint_of_a_zip_file_knows_names_labels_and_contents(tmp_path):
    files = tiny_imagenet(train=2, val=1)

    def of(changes, **options):
        path = write_zip(tmp_path / f"{len(list(tmp_path.iterdir()))}.zip", files | changes)
        return read_tiny_imagenet(path).train.fingerprint(**options)

    first, others = "train/n01/images/n01_0.JPEG", [n for n in files if n.startswith("train/n02/images")]
    swapped = {others[0]: files[others[1]], others[1]: files[others[0]]}
    assert of({}) == of({}) and len({of({}), of({first: files[first] + b"x"}), of(swapped)}) == 3
    path = write_zip(tmp_path / "a.zip", files)
    records = read_tiny_imagenet(path).train
    again = pickle.loads(pickle.dumps(records))
    assert again.read(0) == records.read(0) and pickle.loads(pickle.dumps(again)).fingerprint() == records.fingerprint()
    before = records.fingerprint(times=True)
    shutil.copy(path, tmp_path / "b.zip")
    (tmp_path / "b.zip").replace(path)
    assert (
        read_tiny_imagenet(path).train.fingerprint() == records.fingerprint()
        and records.fingerprint(times=True) != before
    )


def test_it_is_a_data_set_by_name_from_disk_as_well(tmp_path):
    path = write_zip(tmp_path / "a.zip", tiny_imagenet(train=10, val=2))
    loaded = data.load("tiny_imagenet", path=path, in_memory=False)
    assert loaded.image_shape == (64, 64, 3) and loaded.augment == "random_resized_crop"
    assert np.bincount(loaded.selection.labels).tolist() == [1, 1] and len(loaded.train.index) == 18
    assert zipfile.is_zipfile(path)
