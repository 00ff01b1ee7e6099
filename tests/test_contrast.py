"""CRD: against its formula, what its memory holds; runs that are killed, spread over devices, or several at once."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.test_util import check_grads
from test_loop import assert_same, interrupt, lines
from test_processes import alone

from sdd_jax.training import loop
from sdd_jax.training.features import contrast, draw_others, noise_contrast, renew
from sdd_jax.training.objective import added

EXAMPLES, BATCH, NEGATIVES, DIMENSIONS, CLASSES = 30, 6, 20, 8, 4
SMALL = {"dimensions": DIMENSIONS, "negatives": NEGATIVES}
ROWS = np.array([3, 17, 0, 29, 8, 11], np.int32)
LABELS = np.random.default_rng(2).permutation(np.arange(EXAMPLES) % CLASSES).astype(np.int32)


def outputs(seed=0):
    """Feature maps of a student and a teacher that differ in everything but the batch."""
    rng = np.random.default_rng(seed)
    shapes = (BATCH, 4, 4, 5), (BATCH, 2, 2, 7)
    return tuple(SimpleNamespace(feature_maps={"head": jnp.asarray(rng.normal(size=shape))}) for shape in shapes)


def start(**options):
    objective = contrast(**SMALL | options)
    return objective, *objective.init(jax.random.key(5), *outputs(), LABELS)


def apply(objective, params, state, pair, key=7, rows=ROWS):
    batch = {"row": jnp.asarray(rows), "label": jnp.asarray(LABELS[rows])}
    return objective.apply(params, state, *pair, batch, epoch=jnp.int32(0), epochs_done=0.1, key=jax.random.key(key))


def embedding(params, feature_map):
    features = np.asarray(feature_map).mean((1, 2)) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    return features / np.sqrt(np.sum(features**2, axis=1, keepdims=True))


def by_formula(params, memory, constants, pair, sampled, temperature=0.07):
    """As the released code has it: scores of drawn entries, constants of the first batch, probabilities."""
    embedded = {
        name: embedding(params[name], out.feature_maps["head"])
        for name, out in zip(("student", "teacher"), pair, strict=True)
    }
    total, noise, found = 0.0, NEGATIVES / EXAMPLES, {}
    for name, other in (("student", "teacher"), ("teacher", "student")):
        entries = np.asarray(memory[other])[sampled]
        scores = np.exp(np.einsum("bkd,bd->bk", entries, embedded[name]) / temperature)
        found[name] = scores.mean() * EXAMPLES if constants is None else constants[name]
        p = scores / found[name]
        total = total - np.log(p[:, 0] / (p[:, 0] + noise + 1e-7))
        total = total - np.sum(np.log(noise / (p[:, 1:] + noise + 1e-7)), axis=1)
    return total, found, embedded


def drawn(draw, key=7, rows=ROWS):
    if draw == "other_classes":
        negatives = draw_others(jax.random.key(key), jnp.asarray(LABELS), jnp.asarray(LABELS[rows]), NEGATIVES)
    else:
        negatives = jax.random.randint(jax.random.key(key), (BATCH, NEGATIVES), 0, EXAMPLES, jnp.int32)
    return np.concatenate([rows[:, None], negatives], axis=1)


@pytest.mark.parametrize("draw", ["other_classes", "all_examples"])
def test_two_steps_are_those_of_the_formula(draw, x64):
    objective, params, state = start(weight=0.8, draw=draw)
    memory = jax.device_get(state["memory"])
    bound = np.sqrt(3 / DIMENSIONS)
    assert all(np.abs(bank).max() <= bound and bank.min() < 0 < bank.max() for bank in memory.values())
    loss, metrics, state = apply(objective, params, state, outputs(), key=7)
    expected, constants, embedded = by_formula(params, memory, None, outputs(), drawn(draw, 7))
    np.testing.assert_allclose(loss, 0.8 * expected, rtol=1e-9)
    np.testing.assert_allclose(metrics["contrast_loss"], expected, rtol=1e-9)
    for name, bank in memory.items():
        bank = bank.copy()
        bank[ROWS] = 0.5 * bank[ROWS] + 0.5 * embedded[name]
        bank[ROWS] /= np.sqrt(np.sum(bank[ROWS] ** 2, axis=1, keepdims=True))
        np.testing.assert_allclose(state["memory"][name], bank, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(np.exp(state["log_constant"][name]), constants[name], rtol=1e-9)
    memory = jax.device_get(state["memory"])
    second, _, later = apply(objective, params, state, outputs(1), key=8)  # the constants are those of the first step
    expected, _, _ = by_formula(params, memory, constants, outputs(1), drawn(draw, 8))
    np.testing.assert_allclose(second, 0.8 * expected, rtol=1e-9)
    assert later["log_constant"] == state["log_constant"] and later["started"]


def test_gradient_is_that_of_finite_differences(x64):
    objective, params, state = start()
    _, _, state = apply(objective, params, state, outputs())

    def loss(params, student, teacher):
        pair = SimpleNamespace(feature_maps={"head": student}), SimpleNamespace(feature_maps={"head": teacher})
        return apply(objective, params, state, pair)[0]

    check_grads(loss, (params, *(one.feature_maps["head"] for one in outputs())), order=1, modes=("rev",), rtol=1e-5)


def test_the_first_steps_constants_are_not_differentiated(x64):
    """As in the released code, where they are plain numbers: the gradient is that with the constants given."""
    objective, params, state = start()
    _, _, known = apply(objective, params, state, outputs())
    given = {**state, "log_constant": known["log_constant"], "started": jnp.ones((), bool)}
    first, second = (
        jax.grad(lambda p, s=s: jnp.sum(apply(objective, p, s, outputs())[0]))(params) for s in (state, given)
    )
    chex.assert_trees_all_close(first, second, rtol=1e-12, atol=1e-14)


def test_an_example_that_stands_twice_is_renewed_by_its_later_place():
    memory = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    new = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
    twice = renew(memory, jnp.array([2, 0, 2, 4]), new, 0.5)
    once = renew(memory, jnp.array([0, 2, 4]), new[1:], 0.5)
    np.testing.assert_array_equal(twice, once)
    np.testing.assert_array_equal(twice[jnp.array([1, 3])], memory[jnp.array([1, 3])])
    np.testing.assert_array_equal(renew(memory, jnp.array([0]), new[:1], 1.0)[1:], memory[1:])


def test_scores_that_say_all_or_nothing_are_finite():
    for scores in ([200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [0.0, 0.0, 0.0]):
        value, gradient = jax.value_and_grad(lambda s: noise_contrast(s, 1000)[0])(jnp.array([scores]))
        assert np.isfinite(value) and value >= 0 and np.isfinite(gradient).all()


def test_negatives_follow_from_the_key_and_cover_every_example(x64):
    objective, params, state = start(negatives=2000, draw="all_examples")
    one, again, other = (apply(objective, params, state, outputs(), key=key)[0] for key in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    # A teacher's entry that is changed changes the loss of every example that drew it: of all of them here.
    memory = state["memory"]
    moved = {**state, "memory": {**memory, "teacher": memory["teacher"].at[EXAMPLES - 1].add(0.5)}}
    assert not np.any(np.asarray(apply(objective, params, moved, outputs(), key=1)[0]) == np.asarray(one))


def test_negatives_of_other_classes_are_none_twice_and_none_of_the_positives_class():
    """10,000 draws of 40 from 90 examples in three classes, one of which is larger; every allowed row equally often."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [20, 30, 50])).astype(np.int32)
    own = np.repeat([0, 1, 2], [4000, 3000, 3000]).astype(np.int32)
    drawn = np.asarray(jax.jit(draw_others, static_argnums=3)(jax.random.key(3), labels, own, 40))
    assert not np.any(labels[drawn] == own[:, None])
    assert all(len(set(row)) == 40 for row in drawn.tolist())
    for one in range(3):
        counts = np.bincount(drawn[own == one].ravel(), minlength=100)[labels != one]
        draws, share = np.sum(own == one), 40 / np.sum(labels != one)
        assert np.all(np.abs(counts - draws * share) < 4.5 * np.sqrt(draws * share * (1 - share)))
        assert np.all(drawn[own == one][:, 0] != drawn[own == one][:, 1])
    again = draw_others(jax.random.key(4), labels, own[:5], 40)
    assert not np.array_equal(again, drawn[:5]) and len({tuple(row) for row in again.tolist()}) == 5


def test_where_other_classes_have_too_few_examples_each_place_is_drawn_by_itself():
    labels = np.array([0] * 9 + [1], np.int32)
    drawn = np.asarray(draw_others(jax.random.key(0), labels, np.array([1, 0], np.int32), 300))
    counts = np.bincount(drawn[0], minlength=10)
    assert counts[9] == 0 and counts[:9].min() > 10  # 33 are expected of each
    assert set(drawn[1]) == {9}


@pytest.mark.parametrize("labels", [np.zeros(10, int), np.array([-1] * 10)], ids=["one class", "unknown"])
def test_labels_that_tell_no_classes_apart_are_refused(labels):
    with pytest.raises(ValueError, match="needs labels of two classes.*draw=all_examples needs none"):
        contrast(**SMALL).init(jax.random.key(0), *outputs(), labels)
    contrast(**SMALL, draw="all_examples").init(jax.random.key(0), *outputs(), labels)


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="from other_classes or all_examples, got 'some'"):
        contrast(draw="some")
    for option, value in {"dimensions": 0, "negatives": 0, "temperature": 0.0, "momentum": 1.0}.items():
        with pytest.raises(
            ValueError, match="CRD needs a dimension, a negative, a temperature above 0 and a momentum below 1; got "
        ):
            contrast(**{option: value})
    with pytest.raises(ValueError, match="reads the feature map 'head', but the student gives no feature maps"):
        contrast().init(jax.random.key(0), SimpleNamespace(feature_maps={}), outputs()[1], LABELS)


# ---------------------------------------------------------------------- in a run


def built(**changes):
    """The tiny run with CRD added: 44 of 50 examples are trained on, so that numbers go past the memory."""
    run = tiny.built(**changes)
    return run._replace(objective=added(logits=run.objective, features=contrast(0.1, **SMALL)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return loop.train(built(), workdir), workdir


def test_memory_is_by_row_of_the_split_and_every_row_is_renewed(uninterrupted):
    state, workdir = uninterrupted
    split = tiny.dataset().train
    assert split.index.max() >= len(split.index) == 44
    memory = jax.device_get(state.objective_state["features"]["memory"])
    for bank in memory.values():
        assert bank.shape == (44, DIMENSIONS)
        np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1.0, rtol=1e-5)  # at the start no length is 1
    embedded = jax.device_get(state.params["objective"]["features"])
    begun = loop.train(built(epochs=1), workdir.parent / "one").params["objective"]["features"]
    assert not np.array_equal(embedded["teacher"]["kernel"], begun["teacher"]["kernel"])  # it goes on learning
    assert {"contrast_loss", "distill_loss", "task_loss"} <= lines(workdir)[0].keys()


def test_a_killed_run_has_the_memory_of_one_that_was_not(uninterrupted, tmp_path, monkeypatch):
    state, workdir = uninterrupted
    with monkeypatch.context() as patched:
        interrupt(patched, "evaluation", 4)
        with pytest.raises(KeyboardInterrupt):
            loop.train(built(), tmp_path)
    assert_same(loop.train(built(), tmp_path), state)
    assert lines(tmp_path) == lines(workdir)


@pytest.mark.slow
def test_seeds_together_and_several_steps_a_call_have_each_its_own_memory(x64, tmp_path):
    runs = [built(seed=seed, dtype=jnp.float64, steps_per_call=4) for seed in (0, 3)]
    together = loop.train_together(runs, [tmp_path / f"seed_{run.seed}" for run in runs])
    for run, state in zip(runs, together, strict=True):
        alone = loop.train(run._replace(steps_per_call=1), tmp_path / "alone" / str(run.seed))
        chex.assert_trees_all_close(jax.device_get(state), jax.device_get(alone), rtol=1e-9, atol=1e-12)
    banks = [state.objective_state["features"]["memory"]["student"] for state in together]
    assert not np.allclose(*banks)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(tmp_path):
    one = alone(1, tmp_path / "one", "--features=contrast")["float64"]
    for seeds in (1, 4):  # of four, each run has two devices
        eight = alone(8, tmp_path / f"eight_{seeds}", f"--seeds={seeds}", "--features=contrast")["float64"]
        np.testing.assert_allclose(eight["losses"][:20], one["losses"][:20], rtol=1e-9)
