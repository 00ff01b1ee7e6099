"""What a step is given and what it measures: the epoch, a key of its own, labels, and both networks' answers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from optax import softmax_cross_entropy_with_integer_labels
from served import variables

from sdd_jax import data
from sdd_jax.mesh import make_mesh
from sdd_jax.models import create_model
from sdd_jax.training.loop import make_evaluator
from sdd_jax.training.objective import Objective, no_variables, task_loss
from sdd_jax.training.programs import Programs
from sdd_jax.training.step import make_train_step
from sdd_jax.training.teacher import Teacher


def _told(params, state, student, teacher, batch, *, epoch, epochs_done, key):
    """The cross-entropy; its metrics are what the objective was given."""
    given = {"epoch": epoch, "epochs_done": epochs_done, "drawn": jax.random.uniform(key)}
    loss = task_loss(student.logits, batch["label"])
    return loss, {name: jnp.full(loss.shape, value, jnp.float32) for name, value in given.items()}, state


TELLING = Objective(no_variables, _told)


def test_each_step_has_its_own_key_and_says_how_many_epochs_are_done():
    built = tiny.built(epochs=3, steps_per_call=8, objective=TELLING, teacher=Teacher())
    programs = Programs([built])
    states = programs.stack([programs.begin(jax.random.key(0))])
    _, measured = programs.run_chunk(states, *programs.arrays(0), np.int32(8))
    measured = {name: np.asarray(values)[0] for name, values in measured.items()}
    examples, steps = len(built.dataset.train.index), np.arange(8)
    np.testing.assert_array_equal(measured["epoch"], steps * tiny.BATCH // examples)
    assert measured["epoch"][-1] == 1  # the steps go past an epoch's end
    np.testing.assert_allclose(measured["epochs_done"], (steps + 1) * tiny.BATCH / examples, rtol=1e-6)
    assert len({*measured["drawn"].tolist()}) == 8


def test_a_seed_has_its_own_initial_weights():
    begin = Programs([tiny.built()]).begin
    one, again, other = (
        jax.device_get(begin(jax.random.key(seed)).params["student"]["head"]["kernel"]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).min() > 0


def test_agreement_is_the_share_of_images_that_both_networks_call_alike():
    built = tiny.built()
    images = jax.random.normal(jax.random.key(3), (16, 16, 16, 3))
    batch = {"image": images, "label": jnp.arange(16) % tiny.CLASSES}
    state = Programs([built]).begin(jax.random.key(0))
    step = make_train_step(built.model, built.teacher.apply, TELLING, built.optimizer, num_examples=50)
    measured = jax.jit(step)(state, built.teacher.arrays, batch, jax.random.key(1))[1]
    student = {"params": state.params["student"], "batch_stats": state.batch_stats}
    logits, _ = built.model.apply(student, images, train=True, mutable=["batch_stats"])
    said = logits.logits.argmax(-1), built.teacher.apply(built.teacher.arrays, batch).logits.argmax(-1)
    share = float(np.mean(said[0] == said[1]))
    assert 0 < share < 1
    np.testing.assert_allclose(measured["agreement"], share, rtol=1e-6)
    np.testing.assert_allclose(measured["accuracy"], np.mean(said[0] == batch["label"]), rtol=1e-6)


def test_an_evaluation_is_of_every_image_once_by_hard_labels():
    digits, model = data.load("digits", select_on="test"), create_model("resnet8", 10)
    values = variables(model, (32, 32, 1))
    found = make_evaluator(model, digits.test, digits, make_mesh(), jnp.float32)(values)
    pixels = (digits.test.images.astype(np.float32) / 255 - digits.mean[0]) / digits.std[0]
    logits = np.asarray(jax.jit(partial(model.apply, train=False))(values, pixels).logits, np.float64)
    labels = digits.test.labels
    ranks = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(1)
    expected = {"accuracy": np.mean(ranks < 1), "top5": np.mean(ranks < 5), "examples": len(labels)}
    assert 0 < expected["accuracy"] < expected["top5"] < 1
    expected["loss"] = np.mean(softmax_cross_entropy_with_integer_labels(logits, labels))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
