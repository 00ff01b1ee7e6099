"""The picture of docs/sdd.md: its rule, its words, and that a run's folder is enough to draw it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs import picture
from sdd_jax.regions import Regions
from sdd_jax.serving.regions import Region

CLASSES, RIGHT = 4, 0


def region_logits(verdicts, sureness=5.0):
    """An image's regions ``[21, K]``: the whole and the quarters as given, the rest as the whole."""
    verdicts = [*verdicts, *[verdicts[0]] * 16]
    return sureness * np.eye(CLASSES)[verdicts]


def test_the_rule_wants_a_right_answer_two_other_classes_few_in_all_and_sure_words():
    images = [
        region_logits((1, 1, 2, 3, 0), 9.0),  # wrong as a whole
        region_logits((0, 0, 1, 1, 0), 9.0),  # one other class
        region_logits((0, 0, 1, 2, 0), 5.0),
        region_logits((0, 0, 3, 2, 0), 6.0),  # surer
        region_logits((0, 0, 3, 2, 0), 6.0),  # as sure: the first stays
        region_logits((0, 0, 3, 2, 0), 9.0),  # too many classes at its places
    ]
    images[1][7] = 0  # what 4x4 says does not matter
    locations = np.zeros((6, 8, 8), int) + np.arange(8)
    locations[5, 0, 0] = 8
    assert picture.choose(np.stack(images), locations, np.full(6, RIGHT)) == 3
    for some in (slice(2), slice(5, 6)):
        with pytest.raises(ValueError, match="nothing to show"):
            picture.choose(np.stack(images[some]), locations[some], np.full(6, RIGHT)[some])


def test_long_words_take_no_more_than_their_room():
    assert picture._size(12, 60, "dam") == 12 and picture._size(12, 60, "refrigerator") == pytest.approx(60 / 7.2)


def test_abbreviations_tell_names_apart():
    short = picture._abbreviations(["T-shirt/top", "Trouser", "Sandal", "Sandstone", "7"])
    assert short == {"T-shirt/top": "Ts", "Trouser": "Tr", "Sandal": "Sanda", "Sandstone": "Sands", "7": "7"}


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_drawn_with_the_weights_of_the_mask(tmp_path, channels):
    places = Regions((1, 2, 4)).places()
    regions = [Region(*place, label=int(place[2] > 0), probability=0.5, consistent=place[2] == 0) for place in places]
    apart = [region.column > 0 for region in regions]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, channels), np.uint8)
    shown = picture.Shown(7, RIGHT, pixels, regions, apart, np.arange(64).reshape(8, 8) % CLASSES)
    figure = picture.draw(shown, ["Ankle boot", "Bag", "Coat", "Dress"])
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words.count("2") == sum(apart) == 14 and words.count("1") == 7
    assert 'label "Ankle boot"' in words and regions[0][:3] == (1, 0, 0)
    picture.save(figure, tmp_path / "sdd.png")
    with Image.open(tmp_path / "sdd.png") as image:
        assert image.size == (2 * picture.WIDTH, 2 * picture.HEIGHT)


def test_the_committed_picture_is_small_enough():
    assert (Path(picture.__file__).parent / "pictures" / "sdd.png").stat().st_size < 200_000
