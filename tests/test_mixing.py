"""mixup and CutMix: the images by their definition, the draws by their distribution, the losses by soft labels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sdd_jax import losses
from sdd_jax.data import train_data
from sdd_jax.data.mixing import cutmix_box, mix
from sdd_jax.models import Outputs
from sdd_jax.models.classifier import stage
from sdd_jax.regions import Regions
from sdd_jax.training.features import contrast
from sdd_jax.training.hints import attention
from sdd_jax.training.objective import added, distill, plain
from sdd_jax.training.programs import Programs
from sdd_jax.training.step import stream

SHARE = 0.3


def batch(size=6, shape=(9, 14, 3), dtype=np.float32):
    rng = np.random.default_rng(size)
    return {"image": rng.normal(size=(size, *shape)).astype(dtype), "label": np.arange(size, dtype=np.int32) % 5}


def draws(count, **alphas):
    """The shares of many batches, and which pixels stayed the first image's."""
    pair = {"image": jnp.stack([jnp.zeros((9, 14, 1)), jnp.ones((9, 14, 1))]), "label": jnp.array([0, 1])}
    found = jax.jit(jax.vmap(partial(mix, pair, **alphas)))(jax.random.split(jax.random.key(5), count))
    return np.asarray(found["share"])[:, 0], np.asarray(found["image"])[:, 0, :, :, 0]


def test_mixup_blends_each_image_with_the_next_and_the_last_with_the_first():
    given = batch()
    found = mix(given, jax.random.key(1), mixup=1.0)
    (share,) = set(np.asarray(found["share"]).tolist())
    assert 0 < share < 1
    for number in range(6):
        other = (number + 1) % 6
        expected = share * given["image"][number] + (1 - share) * given["image"][other]
        np.testing.assert_allclose(found["image"][number], expected, rtol=1e-5, atol=1e-6)
        assert found["other_label"][number] == given["label"][other]
    np.testing.assert_array_equal(found["label"], given["label"])


def test_cutmix_lays_one_box_of_the_next_image_over_each_and_counts_what_is_left():
    given = batch()
    for seed in range(8):
        found = mix(given, jax.random.key(seed), cutmix=1.0)
        changed = np.asarray(found["image"] != given["image"]).any(-1)
        assert (changed == changed[0]).all()
        rows, columns = changed[0].any(1), changed[0].any(0)
        np.testing.assert_array_equal(changed[0], rows[:, None] & columns[None])
        for line in (rows, columns):  # no hole in it
            assert np.count_nonzero(np.diff(np.concatenate([[0], line, [0]]))) in (0, 2)
        expected = np.where(changed[0][None, ..., None], np.roll(given["image"], -1, 0), given["image"])
        np.testing.assert_array_equal(found["image"], expected)
        np.testing.assert_allclose(found["share"], 1 - changed[0].mean(), rtol=1e-6)


def test_a_box_has_the_sides_of_the_papers_code_and_any_place():
    keys = jax.random.split(jax.random.key(0), 3000)
    boxes = np.asarray(jax.jit(jax.vmap(lambda key: cutmix_box(key, 0.64, (20, 30))))(keys))
    height, width = 2 * (int(20 * 0.6) // 2), 2 * (int(30 * 0.6) // 2)  # sqrt(1 - 0.64) = 0.6
    heights, widths = boxes.any(2).sum(1), boxes.any(1).sum(1)
    assert (heights.max(), widths.max()) == (height, width)
    # Row y is covered by the boxes whose centre is one of y - half + 1 to y + half.
    half = height // 2
    expected = [sum(0 <= centre < 20 for centre in range(y - half + 1, y + half + 1)) / 20 for y in range(20)]
    np.testing.assert_allclose(boxes.any(2).mean(0), expected, atol=0.04)
    whole, nothing = (np.asarray(cutmix_box(jax.random.key(0), share, (20, 30))) for share in (0.0, 1.0))
    assert whole.any() and not nothing.any()


@pytest.mark.parametrize("alpha", [0.2, 8.0])
def test_the_share_of_mixup_is_drawn_from_its_beta(alpha):
    shares, pixels = draws(4000, mixup=alpha)
    np.testing.assert_allclose(pixels[:, 4, 4], 1 - shares, atol=1e-6)
    assert abs(shares.mean() - 0.5) < 0.03
    np.testing.assert_allclose(shares.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.1)


def test_with_both_a_coin_chooses_for_each_batch():
    shares, pixels = draws(2000, mixup=1.0, cutmix=1.0)
    cut = np.isin(pixels, (0, 1)).all((1, 2))
    assert abs(cut.mean() - 0.5) < 0.04
    np.testing.assert_allclose(1 - pixels.mean((1, 2)), shares, atol=1e-5)
    alone, _ = draws(2000, mixup=1.0)
    np.testing.assert_array_equal(shares[~cut], alone[~cut])


def test_the_draw_does_not_depend_on_what_images_are_in(x64):
    key = jax.random.key(3)
    one, other = (mix(batch(dtype=dtype), key, mixup=0.4, cutmix=1.0)["share"] for dtype in (np.float32, np.float64))
    np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------------- losses


def logits():
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 5)), 2 * rng.normal(size=(4, 5))


def mixed_batch():
    first, second = np.array([0, 1, 2, 3]), np.array([1, 2, 3, 3])
    return {"label": jnp.asarray(first), "other_label": jnp.asarray(second), "share": jnp.full(4, SHARE)}


class Out:
    def __init__(self, logits):
        self.logits = jnp.asarray(logits)


def apply(objective):
    student, teacher = map(Out, logits())
    loss, metrics, _ = objective.apply({}, {}, student, teacher, mixed_batch(), epoch=0, epochs_done=0.0, key=None)
    return np.asarray(loss), metrics


def log_softmax(values):
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def soft_labels(smoothing):
    """What timm's ``mixup_target`` makes of both labels."""
    target = np.full((4, 5), smoothing / 5)
    for labels, share in (((0, 1, 2, 3), SHARE), ((1, 2, 3, 3), 1 - SHARE)):
        target[np.arange(4), labels] += share * (1 - smoothing)
    return target


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_label_term_is_the_cross_entropy_with_the_mixed_soft_labels(x64, smoothing):
    student, _ = logits()
    loss, metrics = apply(plain(label_smoothing=smoothing))
    np.testing.assert_allclose(loss, -(soft_labels(smoothing) * log_softmax(student)).sum(-1), rtol=1e-7)
    np.testing.assert_allclose(metrics["task_loss"], loss, rtol=1e-12)


def dkd(student, teacher, label):
    """DKD of one example by its definition, temperature 4, alpha 1, beta 8."""
    s, t = (np.exp(log_softmax(values / 4)) for values in (student, teacher))
    others = np.arange(5) != label
    target = t[label] * np.log(t[label] / s[label]) + t[others].sum() * np.log(t[others].sum() / s[others].sum())
    s, t = s[others] / s[others].sum(), t[others] / t[others].sum()
    return 16 * (target + 8 * (t * np.log(t / s)).sum())


def test_a_base_loss_that_reads_the_label_is_taken_for_both(x64):
    objective = distill(losses.dkd_loss, task_weight=0.0)
    rows = zip(*logits(), (0, 1, 2, 3), (1, 2, 3, 3), strict=True)
    expected = [SHARE * dkd(s, t, first) + (1 - SHARE) * dkd(s, t, second) for s, t, first, second in rows]
    np.testing.assert_allclose(apply(objective)[0], expected, rtol=1e-7)


def test_a_base_loss_that_reads_none_is_what_it_was(x64):
    objective = distill(losses.kd_loss, task_weight=0.0)
    np.testing.assert_allclose(apply(objective)[0], losses.kd_loss(*logits()), rtol=1e-12)


def outputs(rng):
    logit_map = jnp.asarray(rng.normal(size=(4, 8, 8, 5)))
    maps = {stage(number): jnp.asarray(rng.normal(size=(4, 8, 8, 6))) for number in (1, 2)}
    return Outputs(logit_map.mean((1, 2)), logit_map, Regions().pool(logit_map), maps)


@pytest.mark.parametrize("regions", [None, Regions()])
def test_loss_and_metrics_are_the_mixture_of_those_of_either_label(x64, regions):
    rng, now = np.random.default_rng(3), {"epoch": 0, "epochs_done": 0.3, "key": jax.random.key(0)}
    networks, batch = (outputs(rng), outputs(rng)), mixed_batch()
    terms = {"task_weight": 0.7, "distill_weight": 2.0, "label_smoothing": 0.1, "warmup_epochs": 2}
    objective = added(logits=distill(losses.dkd_loss, regions=regions, **terms), features=attention(3.0))
    empty = {"logits": {}, "features": {}}
    apply = jax.jit(lambda batch: objective.apply(empty, empty, *networks, batch, **now)[:2])
    loss, metrics = apply(batch)
    first, other = (apply({"label": batch[name]}) for name in ("label", "other_label"))
    np.testing.assert_allclose(loss, SHARE * first[0] + (1 - SHARE) * other[0], rtol=1e-12)
    for name, value in metrics.items():  # shares of regions are counted in float32
        expected = SHARE * first[1][name] + (1 - SHARE) * other[1][name]
        np.testing.assert_allclose(value, expected, rtol=1e-12 if value.dtype == jnp.float64 else 1e-6, atol=1e-12)


def test_a_loss_over_feature_maps_is_computed_once():
    objective = added(logits=plain(), features=attention())
    student, teacher = (outputs(np.random.default_rng(seed)) for seed in (0, 1))

    def operations(batch):
        def loss(maps):
            empty = {"logits": {}, "features": {}}
            now = {"epoch": 0, "epochs_done": 0.0, "key": jax.random.key(0)}
            ours = student._replace(feature_maps=maps)
            return jnp.mean(objective.apply(empty, empty, ours, teacher, batch, **now)[0])

        return jax.jit(jax.grad(loss)).lower(student.feature_maps).cost_analysis()["flops"]

    assert operations(mixed_batch()) < 1.01 * operations({"label": mixed_batch()["label"]})


def test_an_objective_with_a_memory_of_examples_is_refused():
    with pytest.raises(ValueError, match="CRD remembers every example, and cannot learn from mixed images"):
        contrast().apply({}, {}, None, None, mixed_batch(), epoch=0, epochs_done=0.0, key=None)


@pytest.mark.slow
def test_both_networks_of_a_run_see_the_same_mixed_images():
    step, alphas = 2, {"mixup": 0.8, "cutmix": 1.0}
    seen = []

    def watch(params, state, student, teacher, batch, **now):
        jax.debug.callback(lambda *arrays: seen.append(arrays), student.logits, teacher.logits, batch["image"])
        return jnp.mean(student.logits, -1), {}, state

    built = tiny.built(mixing=alphas)
    built = built._replace(objective=built.objective._replace(apply=watch))
    programs = Programs([built])
    state = programs.begin(jax.random.key(0)).replace(step=jnp.int32(step))
    states = programs.stack([state])
    programs.run_chunk(jax.tree.map(jnp.copy, states), *programs.arrays(step), jnp.int32(1))
    jax.effects_barrier()
    student, teacher, images = seen[0]

    arguments = {"seeds": [0], "epochs": 3, "batch_size": tiny.BATCH, "steps_per_call": 1, "mesh": built.mesh}
    source = train_data(built.dataset, **arguments)
    arrays = {**source.shared, **jax.tree.map(lambda leaf: leaf[0], source.own(step))}
    single = source.batch_function(jnp.float32)(arrays, step)
    key = jax.random.fold_in(stream(jax.random.key(0), "mixing"), step)
    expected = mix(single, key, **alphas)["image"]
    assert float(jnp.abs(expected - single["image"]).max()) > 0.1
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)
    variables = {"params": state.params["student"], "batch_stats": state.batch_stats}
    outputs, _ = built.model.apply(variables, expected, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(student, outputs.logits, rtol=1e-4, atol=1e-5)
    asked = built.teacher.apply(built.teacher.arrays, {"image": expected})
    np.testing.assert_allclose(teacher, asked.logits, rtol=1e-4, atol=1e-5)
