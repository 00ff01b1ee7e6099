import numpy as np
import pytest

from sdd_jax.data import from_arrays
from sdd_jax.data.dataset import stratified_draw


def example_set(sizes=(20, 14, 15, 2, 1), seed=0, test=12):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = rng.integers(0, 256, (len(labels), 4, 5, 3), dtype=np.uint8)
    return images, labels, rng.integers(0, 256, (test, 4, 5, 3), dtype=np.uint8), np.arange(test) % len(sizes)


def test_validation_is_a_disjoint_stratified_tenth():
    images, labels, *test = example_set()
    data = from_arrays(images, labels, *test)
    assert np.bincount(data.selection.labels, minlength=5).tolist() == [2, 1, 2, 1, 0]  # round half up, at least one
    assert np.bincount(data.train.labels, minlength=5).tolist() == [18, 13, 13, 1, 1]
    assert sorted([*data.train.index, *data.selection.index]) == list(range(len(labels)))
    for split in (data.train, data.selection):
        np.testing.assert_array_equal(split.images, images[split.index])
        np.testing.assert_array_equal(split.labels, labels[split.index])
    np.testing.assert_array_equal(data.test.images, test[0])


def test_the_splits_never_change():
    """Held out images are part of every published result: these numbers are the contract."""
    labels = np.repeat(np.arange(3), 20)
    images = np.zeros((60, 2, 2, 1), np.uint8)
    options = {"mean": [0.5], "std": [0.5]}
    np.random.seed(1)  # a global seed must not matter
    data = from_arrays(images, labels, images, labels, train_examples=7, **options)
    np.random.seed(2)
    again = from_arrays(images, labels, images, labels, train_examples=7, **options)
    np.testing.assert_array_equal(data.selection.index, again.selection.index)
    assert data.selection.index.tolist() == [8, 9, 37, 39, 40, 54]
    assert data.train.index.tolist() == [0, 15, 16, 27, 38, 47, 55]


def test_selecting_on_the_test_set_trains_on_everything():
    images, labels, *test = example_set()
    data = from_arrays(images, labels, *test, select_on="test")
    assert data.selection is data.test
    np.testing.assert_array_equal(data.train.images, images)
    assert data.train.index.tolist() == list(range(len(labels)))


@pytest.mark.parametrize("examples", [1, 2, 7, 20, 33, 46])
def test_a_subset_keeps_the_shares_of_the_classes(examples):
    images, labels, *test = example_set()
    whole = from_arrays(images, labels, *test)
    part = from_arrays(images, labels, *test, train_examples=examples)
    assert len(part.train.labels) == examples
    exact = np.bincount(whole.train.labels, minlength=5) * examples / len(whole.train.labels)
    assert (np.abs(np.bincount(part.train.labels, minlength=5) - exact) < 1).all()
    assert set(part.train.index) <= set(whole.train.index)
    np.testing.assert_array_equal(part.train.images, images[part.train.index])
    np.testing.assert_array_equal(part.selection.index, whole.selection.index)
    assert (part.mean, part.std) == (whole.mean, whole.std)


def test_a_larger_draw_contains_a_smaller_one():
    labels = np.arange(60) % 3
    small, large = stratified_draw(labels, [2, 3, 4], 5), stratified_draw(labels, [9, 9, 9], 5)
    assert np.bincount(labels[small]).tolist() == [2, 3, 4] and set(small) < set(large)
    assert set(stratified_draw(labels, [9, 9, 9], 6)) != set(large)


def test_mean_and_std_are_those_of_all_training_images():
    images, labels, *test = example_set()
    data = from_arrays(images, labels, *test)
    np.testing.assert_allclose(data.mean, images.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(data.std, images.std((0, 1, 2)) / 255, rtol=1e-12)
    given = from_arrays(images, labels, *test, mean=(0.1, 0.2, 0.3))
    assert given.mean == (0.1, 0.2, 0.3) and given.std == data.std


def test_grey_images_get_a_channel_and_classes_their_names():
    images, labels, test_images, test_labels = example_set()
    data = from_arrays(images[..., 0], labels, test_images[..., 0], test_labels, pad=2, flip=False, name="mine")
    assert (
        data.image_shape == (4, 5, 1)
        and data.num_classes == 5
        and (data.pad, data.flip, data.name) == (2, False, "mine")
    )
    assert data.class_names == ("0", "1", "2", "3", "4")
    named = from_arrays(images, labels, test_images, test_labels, class_names=list("abcdefg"))
    assert named.num_classes == 7  # a class may have no image here


def test_the_fingerprint_is_that_of_the_arrays():
    images, labels, test_images, test_labels = example_set()
    first = from_arrays(images, labels, test_images, test_labels).fingerprint()
    assert len(first) == 64 and int(first, 16)
    assert from_arrays(images, labels.astype(np.int64), test_images, test_labels, name="b").fingerprint() == first
    one_bit = images.copy()
    one_bit[3, 1, 2, 0] ^= 1
    others = [
        from_arrays(one_bit, labels, test_images, test_labels),
        from_arrays(images, labels, test_images, (test_labels + 1) % 5),
        from_arrays(images, labels, test_images, test_labels, select_on="test"),
        from_arrays(images, labels, test_images, test_labels, train_examples=40),
        from_arrays(images.transpose(0, 2, 1, 3), labels, test_images.transpose(0, 2, 1, 3), test_labels),
        from_arrays(images.reshape(-1, 5, 4, 3), labels, test_images.reshape(-1, 5, 4, 3), test_labels),
    ]
    assert len({first, *(other.fingerprint() for other in others)}) == 7


def with_label(position, value):
    def change(arrays):
        arrays[1] = arrays[1].copy()
        arrays[1][position] = value

    return change


def replace(place, make):
    def change(arrays):
        arrays[place] = make(arrays[place])

    return change


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (replace(0, lambda a: a / 255.0), {}, r"train_images must be uint8 \(0 to 255\), .*got float64"),
        (replace(2, lambda a: a.astype(np.int32)), {}, "test_images must be uint8"),
        (
            replace(0, lambda a: a.reshape(len(a), -1)),
            {},
            r"train_images must be .*\[N, H, W, C\] or .*, got uint8 \[52, 60\]",
        ),
        (replace(0, lambda a: a[:0]), {}, r"train_images must be .*not empty, got uint8 \[0, 4, 5, 3\]"),
        (replace(2, lambda a: a[:, :3]), {}, r"one shape, got \(4, 5, 3\) and \(3, 5, 3\)"),
        (replace(1, lambda a: a.astype(np.float32)), {}, "train_labels must be integers, .*got float32"),
        (replace(1, lambda a: a[:-1]), {}, r"one label per image, \[52\], got int64 \[51\]"),
        (replace(3, lambda a: np.eye(12)[a].astype(int)), {}, r"\[12\], got int64 \[12, 12\]"),
        (with_label(17, -2), {}, r"train_labels must be in 0 .. 4 \(5 classes\), got -2 at position 17"),
        (
            with_label(17, 10**12),
            {},
            "train_labels has 1000000000000 at position 17, and none is 5: labels count from 0",
        ),
        (replace(1, lambda a: a + 1), {}, "train_labels has 5 at position .*, and none is 0: labels count from 0"),
        (replace(1, lambda a: a * 2), {}, "train_labels has 8 at position .*, and none is 1: .* give class_names"),
        (
            replace(0, lambda a: np.repeat(a, 2, 1).transpose(0, 3, 1, 2)),
            {},
            r"train_images look like \[N, C, H, W\], got uint8 \[52, 3, 8, 5\]: they must be \[N, H, W, C\]",
        ),
        (
            replace(2, lambda a: a.transpose(0, 3, 2, 1)[:, :1].repeat(2, -1)),
            {},
            r"test_images look like \[N, C, H, W\], got uint8 \[12, 1, 5, 8\]",
        ),
        (replace(3, lambda a: a + 1), {}, "test_labels must be in 0 .. 4 .*, got 5 at position 4"),
        (None, {"class_names": ["a", "b"]}, "train_labels must be in 0 .. 1"),
        (None, {"class_names": ["a", "b", "a", "c", "d"]}, r"class_names must be .* differ, .*got \['a', 'b', 'a'"),
        (None, {"class_names": "abcde"}, "class_names must be a sequence"),
        (None, {"mean": (0.5,)}, r"mean needs 3 finite number\(s\) in units of \[0, 1\]"),
        (None, {"mean": (0.5, np.nan, 0.5)}, "mean needs 3 finite"),
        (None, {"mean": (125.3, 123.0, 113.9)}, r"units of \[0, 1\], got \(125.3"),
        (None, {"std": (0.5, 0.5, 0.0)}, "std needs 3 finite .* above zero"),
        (None, {"std": (0.5, 0.5, np.inf)}, "std needs 3 finite"),
        (replace(0, np.zeros_like), {}, "std needs 3 finite .* above zero"),
        (None, {"mean": 0.5}, "mean needs 3 numbers, one for each channel, got 0.5"),
        (None, {"class_names": 5}, "class_names must be a sequence"),
        (None, {"flip": "no"}, "flip must be True or False, got 'no'"),
        (None, {"pad": -1}, "pad must be a whole number"),
        (None, {"select_on": "tset"}, "select_on must be .* got 'tset'"),
        (None, {"train_examples": 0}, "from 1 to 46, got 0"),
        (None, {"train_examples": 47}, "from 1 to 46, got 47"),
        (None, {"train_examples": 2.0}, "whole number from 1 to 46, got 2.0"),
    ],
)
def test_mistakes_are_named(change, options, message):
    arrays = list(example_set())
    if change is not None:
        change(arrays)
    with pytest.raises(ValueError, match=message):
        from_arrays(*arrays, **options)


def test_whole_numbers_of_numpy_are_whole_numbers():
    taken = from_arrays(*example_set(), pad=np.int64(2), train_examples=np.int32(20))
    assert (taken.pad, type(taken.pad), len(taken.train.labels)) == (2, int, 20)


def test_no_validation_split_of_single_examples():
    images, labels, *test = example_set(sizes=(1, 1, 1))
    with pytest.raises(ValueError, match='use select_on="test"'):
        from_arrays(images, labels, *test)
    assert len(from_arrays(images, labels, *test, select_on="test").train.labels) == 3
