"""Tiny data sets on disk in the forms of the real ones, written by the tests."""

import io
import zipfile

import numpy as np
from PIL import Image


def picture(label, number, size=(40, 48)):
    """A noisy image whose brightness tells its class."""
    rng = np.random.default_rng((label, number))
    return rng.integers(60 * label % 200, 60 * label % 200 + 56, (size[0] + number % 5, size[1], 3), dtype=np.uint8)


def write_folder(root, *, classes, train, test, test_name="test", suffix="png"):
    """ROOT/train/CLASS/N.png and ROOT/test/CLASS/N.png; so many of each class."""
    for part, count, first in (("train", train, 0), (test_name, test, 1000)):
        for label, name in enumerate(sorted(classes)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(label, first + number)).save(folder / f"{number}.{suffix}", quality=95)


def write_cub200(root, *, train, test, classes=3):
    """CUB-200-2011's folder: lists of numbered images, their classes, and which are trained on."""
    lists = {name: [] for name in ("images", "classes", "image_class_labels", "train_test_split")}
    number = 0
    for label in range(classes):
        folder = f"{label + 1:03d}.Bird_{label}"
        (root / "images" / folder).mkdir(parents=True)
        lists["classes"].append(f"{label + 1} {folder}")
        for n in range(train + test):
            number += 1
            name = f"{folder}/bird_{label}_{n}.jpg"
            Image.fromarray(picture(label, n)).save(root / "images" / name, quality=95)
            lists["images"].append(f"{number} {name}")
            lists["image_class_labels"].append(f"{number} {label + 1}")
            lists["train_test_split"].append(f"{number} {int(n < train)}")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")


def write_tfds(root, name, *, train, test, classes=3, encoded=True, test_name="test", version="1.0.0"):
    """A TFDS directory in the ArrayRecord format, without TensorFlow: JPEG images, or pixels as a tensor.

    TensorFlow would be needed to write an Image feature; it is written as text and declared an image afterwards.
    """
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=[f"class_{number}" for number in range(classes)])
    pixels = tfds.features.Tensor(shape=(40, 48, 3), dtype=np.uint8)
    written = tfds.features.FeaturesDict({"image": tfds.features.Text() if encoded else pixels, "label": label})
    parts = {"train": range(train), test_name: range(1000, 1000 + test)}

    def examples(self, part):
        for number in parts[part]:
            for kind in range(classes):
                image = picture(kind, number)[:40]
                yield f"{kind}_{number}", {"image": jpeg(image) if encoded else image, "label": kind}

    members = {
        "VERSION": tfds.core.Version(version),
        "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=written, supervised_keys=("image", "label")),
        "_split_generators": lambda self, _: {part: self._generate_examples(part) for part in parts},
        "_generate_examples": examples,
    }
    with tfds.core.registered.skip_registration():
        builder = type(name.title().replace("_", ""), (tfds.core.GeneratorBasedBuilder,), members)
    builder(data_dir=str(root), file_format="array_record").download_and_prepare()
    if encoded:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3)), "label": label})
        features.save_config(str(root / name / version))


def jpeg(image):
    """The bytes of a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def tiny_imagenet(*, train, val, wnids=("n02", "n01"), grey=()):
    """The files of Tiny-ImageNet's archive by name: images of 64x64, those of the numbers ``grey`` without colours."""
    files = {"wnids.txt": "".join(f"{wnid}\n" for wnid in wnids).encode()}
    files["words.txt"] = b"n00\tentity\n" + "".join(f"{wnid}\tword of {wnid}, {wnid}\n" for wnid in wnids).encode()
    lines = []
    for label, wnid in enumerate(sorted(wnids)):
        for number in range(train + val):
            image = Image.fromarray(picture(label, number, (64, 64))[:64])
            content = jpeg(np.asarray(image.convert("L") if number in grey else image))
            if number < train:
                files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = content
            else:
                name = f"val_{(number - train) * len(wnids) + label}.JPEG"  # classes in turn
                files[f"val/images/{name}"] = content
                lines.append((number, f"{name}\t{wnid}\t0\t0\t62\t62\n"))
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t62\t62\n".encode()
    files["val/val_annotations.txt"] = "".join(line for _, line in sorted(lines)).encode()
    files["test/images/test_0.JPEG"] = jpeg(picture(0, 9)[:40])
    return files


def write_files(root, files):
    """Each of the named files below a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path, files, top="tiny-imagenet-200/"):
    """A zip file of the named files, below a folder as the real archive has one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path
