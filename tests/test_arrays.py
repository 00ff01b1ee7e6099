import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.data import INFO, augment
from sdd_jax.data.memory import (
    check_positions,
    epoch_order,
    epochs_per_chunk,
    eval_batch,
    locate,
    train_batch,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def source(pad=4, flip=True):
    return INFO["cifar10"]._replace(mean=MEAN, std=STD, pad=pad, flip=flip)


def example_arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8),
        "labels": rng.integers(0, 5, count).astype(np.int32),
        "index": (np.arange(count) * 7 + 3).astype(np.int32),  # not the rows: a subset keeps its original numbers
    }


def with_order(arrays, key, first_epoch, epochs):
    order = epoch_order(key, first_epoch + np.arange(epochs), len(arrays["labels"]))
    return {**arrays, "key": key, "order": order, "first_epoch": np.int32(first_epoch)}


SIZES = [(10, 4), (12, 4), (7, 7), (5, 12), (9, 1)]  # examples, batch


@pytest.mark.parametrize(("examples", "batch"), SIZES)
def test_every_example_once_an_epoch_across_batch_ends(examples, batch):
    key, epochs = jax.random.key(1), 5
    steps = math.ceil(epochs * examples / batch)
    touched = epochs_per_chunk(1, batch, examples)
    compiled = jax.jit(locate, static_argnames="num_examples")
    seen = []
    for step in range(steps):
        first = step * batch // examples
        order = epoch_order(key, first + np.arange(touched), examples)
        positions = step * batch + np.arange(batch, dtype=np.int32)
        step_epochs, rows = compiled(positions, num_examples=examples, first_epoch=first, order=order)
        seen += list(zip(np.asarray(step_epochs).tolist(), np.asarray(rows).tolist(), strict=True))
    assert len(seen) == steps * batch
    assert [epoch for epoch, _ in seen] == [position // examples for position in range(len(seen))]
    for epoch in range(epochs):
        rows = [row for e, row in seen if e == epoch]
        assert sorted(rows) == list(range(examples))
        assert rows == np.asarray(epoch_order(key, np.array([epoch]), examples))[0].tolist()


@pytest.mark.parametrize(("examples", "batch"), SIZES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_epochs_per_chunk_is_enough_and_not_more(examples, batch, steps):
    def touched(start):
        first, last = start * batch, (start + steps) * batch - 1
        return last // examples - first // examples + 1

    assert epochs_per_chunk(steps, batch, examples) == max(touched(start) for start in range(2 * examples))


def test_the_order_is_a_function_of_seed_and_epoch():
    order = np.asarray(epoch_order(jax.random.key(0), np.arange(4), 100))
    assert order.dtype == np.int32
    assert len({tuple(row) for row in order}) == 4
    np.testing.assert_array_equal(epoch_order(jax.random.key(0), np.array([2, 7]), 100)[0], order[2])
    assert (np.asarray(epoch_order(jax.random.key(1), np.arange(4), 100)) != order).mean() > 0.9


def test_the_order_does_not_use_the_stream_of_the_views():
    key = jax.random.key(0)
    same = jax.random.permutation(jax.random.fold_in(key, 0), jnp.arange(50, dtype=jnp.int32))
    assert (np.asarray(epoch_order(key, np.array([0]), 50))[0] != np.asarray(same)).any()


def test_order_and_views_are_the_same_in_float64_runs():
    key, epochs = jax.random.key(5), np.arange(3)
    order, views = epoch_order(key, epochs, 20), augment.draw_views(key, epochs, epochs, flip=True)
    with jax.enable_x64(True):
        wide_order = epoch_order(key, epochs, 20)
        wide_views = augment.draw_views(key, epochs, epochs, flip=True)
        assert wide_order.dtype == jnp.int32 and wide_views.dtype == jnp.int32
    np.testing.assert_array_equal(order, wide_order)
    np.testing.assert_array_equal(views, wide_views)


@pytest.mark.parametrize(("examples", "batch"), [(10, 4), (5, 12)])
def test_a_training_batch_holds_the_examples_their_views_and_their_pixels(examples, batch):
    arrays, key = example_arrays(examples), jax.random.key(2)
    compiled = jax.jit(functools.partial(train_batch, source=source(pad=2), batch_size=batch))
    touched = epochs_per_chunk(1, batch, examples)
    row_of = {number: row for row, number in enumerate(arrays["index"].tolist())}
    for step in (0, 2, 3):
        first = step * batch // examples
        got = jax.device_get(compiled(with_order(arrays, key, first, touched), step))
        assert set(got) == {"image", "label", "index", "row", "view", "position", "valid"} and got["valid"].all()
        np.testing.assert_array_equal(got["position"], step * batch + np.arange(batch))
        order = np.asarray(epoch_order(key, np.arange(first + touched), examples))
        for place in range(batch):
            epoch, entry = divmod(step * batch + place, examples)
            row = order[epoch, entry]
            assert (
                row_of[int(got["index"][place])] == row == got["row"][place]
                and got["label"][place] == arrays["labels"][row]
            )
            numbers = np.array([epoch]), arrays["index"][row : row + 1]
            view = np.asarray(augment.draw_views(key, *numbers, pad=2, flip=True))
            assert got["view"][place] == view[0]
            crop = augment.crop_flip(arrays["images"][row : row + 1], view, pad=2)
            expected = (np.asarray(crop[0], np.float64) / 255 - MEAN) / STD
            np.testing.assert_allclose(got["image"][place], expected, rtol=1e-5, atol=1e-6)


def test_a_longer_chunk_gives_the_same_batches():
    arrays, key = example_arrays(10), jax.random.key(2)
    batch = jax.jit(functools.partial(train_batch, source=source(flip=False), batch_size=4))
    ahead = with_order(arrays, key, 0, epochs_per_chunk(7, 4, 10))
    for step in range(7):
        one = with_order(arrays, key, step * 4 // 10, epochs_per_chunk(1, 4, 10))
        jax.tree.map(np.testing.assert_array_equal, batch(one, step), batch(ahead, step))


@pytest.mark.parametrize("first_epoch", [0, 3])
def test_a_stale_order_cannot_train_on_the_wrong_examples(first_epoch):
    arrays, key = jax.device_put(example_arrays(10)), jax.random.key(0)
    stale = with_order(arrays, key, first_epoch, 2)
    got = jax.jit(functools.partial(train_batch, source=source(), batch_size=4))(stale, 5)  # epoch 2
    assert (np.asarray(got["label"]) == -1).all()


@pytest.mark.parametrize(("examples", "batch"), [(10, 4), (12, 4), (3, 8), (1, 1)])
def test_evaluation_covers_every_example_once(examples, batch):
    arrays = example_arrays(examples)
    compiled = jax.jit(functools.partial(eval_batch, source=source(), batch_size=batch))
    numbers = range(math.ceil(examples / batch))
    batches = [jax.device_get(compiled({**arrays, "number": number})) for number in numbers]
    together = {name: np.concatenate([each[name] for each in batches]) for name in batches[0]}
    valid = together["valid"]
    assert valid.sum() == examples
    np.testing.assert_array_equal(together["index"][valid], arrays["index"])
    np.testing.assert_array_equal(together["label"][valid], arrays["labels"])
    plain = (arrays["images"].astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(together["image"][valid], plain, rtol=1e-5, atol=1e-6)
    assert (together["view"] == augment.identity_view(4)).all()
    # Padding is a real image, not zeros: the last one.
    assert (together["index"][~valid] == arrays["index"][-1]).all()


def test_batches_come_in_the_dtype_asked_for():
    arrays, key = example_arrays(6), jax.random.key(0)
    options = {"source": source(), "batch_size": 2, "dtype": jnp.bfloat16}
    made = jax.eval_shape(functools.partial(train_batch, **options), with_order(arrays, key, 0, 1), 0)
    assert made["image"].dtype == jnp.bfloat16
    made = jax.eval_shape(functools.partial(eval_batch, **options), {**arrays, "number": 0})
    assert made["image"].dtype == jnp.bfloat16


def test_positions_stay_within_int32():
    check_positions(240, 50_000, 64)
    check_positions(1, 2**31 - 1, 1)
    with pytest.raises(ValueError, match="100000 epochs of 50000 examples"):
        check_positions(100_000, 50_000, 64)
    with pytest.raises(ValueError, match=f"need {2**31 + 1024} positions"):
        check_positions(1, 2**31, 1536)  # the last batch crosses the end
