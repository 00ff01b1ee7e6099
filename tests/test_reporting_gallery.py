"""One image of the gallery, worked out by hand: its regions, their colours and words, on the page itself."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="Jinja2 is not installed: pip install -e '.[report]'")

from sdd_jax.regions import Regions  # noqa: E402
from sdd_jax.reporting import cells, png, template  # noqa: E402
from sdd_jax.reporting.measures import mean_prediction  # noqa: E402

NAMES = ("Trouser", "Bag & belt", "Coat")
LABEL = 0
# Logits as logarithms of whole numbers, so that a softmax is a division that anyone can do: [ln 8, ln 1, ln 1] is
# 8 / 10. The order is the whole image, then the 2x2 cells: top left, top right, bottom left, bottom right.
TEACHER = np.log(np.array([[8, 1, 1], [6, 3, 1], [1, 7, 2], [1, 1, 2], [5, 4, 1]], np.float64))
STUDENT = np.log(np.array([[5, 4, 1], [2, 3, 5], [1, 9, 10], [97, 2, 1], [1, 2, 1]], np.float64))
# By hand. The teacher is right about the whole (8 > 1), so a region where it is wrong is complementary:
# top left 6 > 3: Trouser, right. Top right 7: Bag. Bottom left 2: Coat, 2 / 4. Bottom right 5 > 4: Trouser.
REGIONS = {
    (0, 0): ("consistent", "Trouser · 60 %", True, "Coat · 50 %", False),
    (0, 1): ("complementary", "Bag & belt · 70 %", False, "Coat · 50 %", False),
    (1, 0): ("complementary", "Coat · 50 %", False, "Trouser · 97 %", True),
    (1, 1): ("consistent", "Trouser · 50 %", True, "Bag & belt · 50 %", False),
}


class Cells(HTMLParser):
    """Collects ``{(row, column): (kind, teacher's word, whether right, student's word, whether right)}``."""

    def __init__(self):
        super().__init__()
        self.found, self.words, self.pictures = {}, {}, []
        self._cell, self._who = None, None

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        kinds = (given.get("class") or "").split()
        if "cell" in kinds:
            self._cell = int(given["data-row"]), int(given["data-column"])
            self.found[self._cell] = [kinds[1]]
        elif tag == "b" and self._cell:
            self._who = kinds
        if tag == "div" and "background-image" in (given.get("style") or ""):
            self.pictures.append(re.search(r"url\(([^)]*)\)", given["style"])[1])

    def handle_data(self, data):
        if self._who and data.strip() not in ("T", "S", ""):
            words = " ".join(data.split())  # the page keeps a number and its unit together
            self.found[self._cell] += [words, "right" in self._who]

    def handle_endtag(self, tag):
        if tag == "b":
            self._who = None
        elif tag == "div":
            self._cell = None


def render(made):
    macro = template("card.html").module.gallery_card  # the page's own markup
    return str(macro(made, {"before": "KD", "after": "SDD-KD"}))


# Of three runs before and after: the mean over runs says Coat with 1.5 / 3, then Trouser with 1.5 / 3.
BEFORE = np.log(np.array([[6, 1, 3], [1, 3, 6], [2, 2, 6]], np.float64))
AFTER = np.log(np.array([[7, 2, 1], [6, 1, 3], [2, 3, 5]], np.float64))
REGIONS_OF_TWO = Regions((1, 2))


@pytest.fixture
def made():
    return {
        "picture": png(np.arange(4 * 4, dtype=np.uint8).reshape(4, 4, 1)),
        "pixelated": True,
        "number": 41,
        "file": "test/coat/7 & 8.png",
        "label": LABEL,
        "names": NAMES,
        "teacher": mean_prediction([TEACHER[0]], LABEL),
        "before": mean_prediction(BEFORE, LABEL),
        "after": mean_prediction(AFTER, LABEL),
        "seed": 5,
        "regions": REGIONS_OF_TWO,
        "cells": cells(TEACHER, STUDENT, LABEL, regions=REGIONS_OF_TWO, consistency="label"),
    }


def test_regions_colours_and_words_are_those_worked_out_by_hand(made):
    parser = Cells()
    parser.feed(render(made))
    assert {place: tuple(found) for place, found in parser.found.items()} == REGIONS


def test_the_words_for_the_whole_image(made):
    text = html.unescape(re.sub(r"<[^>]+>", " ", render(made)))
    text = re.sub(r"\s+", " ", text)
    assert "file test/coat/7 & 8.png test image 41, labelled Trouser" in text
    assert "teacher Trouser · 80 %" in text  # 8 of 10
    assert (
        "KD, right in 1 of 3, their mean Coat · 50 %" in text and "SDD-KD, right in 2 of 3, their mean Trouser" in text
    )
    assert "regions: student of seed 5 2 of 5 complementary" in text


def test_by_class_two_different_mistakes_are_complementary_too():
    # Wrong about the whole (Bag); wrong otherwise (Coat) top left; right top right; Bag again bottom left and right.
    teacher = np.log(np.array([[1, 8, 1], [1, 1, 8], [8, 1, 1], [1, 5, 4], [2, 3, 1]], np.float64))
    by = {
        consistency: [
            complementary
            for complementary, _, _ in cells(teacher, STUDENT, LABEL, regions=REGIONS_OF_TWO, consistency=consistency)
        ]
        for consistency in ("label", "class")
    }
    assert by == {"label": [False, False, True, False, False], "class": [False, True, True, False, False]}


def test_the_picture_on_the_page_is_the_image_pixel_by_pixel(made):
    import base64
    import io

    from PIL import Image

    parser = Cells()
    parser.feed(render(made))
    [address] = parser.pictures
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
    np.testing.assert_array_equal(pixels, np.arange(16, dtype=np.uint8).reshape(4, 4))


@pytest.mark.parametrize("channels, shown", [(1, [0]), (2, [0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (7, [0, 1, 2])])
def test_of_images_with_other_channels_the_first_are_shown(channels, shown):
    import io

    from PIL import Image

    pixels = np.arange(6 * channels, dtype=np.uint8).reshape(3, 2, channels)
    found = np.asarray(Image.open(io.BytesIO(png(pixels))))
    np.testing.assert_array_equal(found.reshape(3, 2, -1), pixels[..., shown])


def test_a_file_is_named_within_the_folder_of_its_set():
    from types import SimpleNamespace

    from sdd_jax.reporting.study import Study

    test = SimpleNamespace(index=np.array([4, 7]))
    dataset = SimpleNamespace(test=test, test_place=lambda number: f"/my/images/test/cat/{number}.png")
    study = SimpleNamespace(dataset=dataset, _root="/my/images/")
    assert Study.place(study, 1) == "test/cat/7.png"
    dataset.test_place = None  # of arrays
    assert Study.place(study, 1) is None
