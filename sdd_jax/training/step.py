"""One training step and a chunk of them, one evaluation step: pure functions, ready for ``jit``."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sdd_jax import metrics
from sdd_jax.data.mixing import mix
from sdd_jax.mesh import DATA, over_seeds, pick, split_batch, stack
from sdd_jax.models.classifier import first_rngs
from sdd_jax.training.objective import Objective, over_labels, task_loss
from sdd_jax.training.optim import global_norm


@flax.struct.dataclass
class State:
    """Everything that a run carries from step to step; teacher and data are arguments and never part of it."""

    step: jax.Array  # int32 [], steps done
    params: Any  # {"student": ..., "objective": ...}: the optimizer, clip and decay see both
    batch_stats: Any
    objective_state: Any
    opt_state: Any


@flax.struct.dataclass
class AveragedState(State):
    """The state of a run that keeps a moving average of its student."""

    ema: Any  # the student's variables, {"params": ..., "batch_stats": ...}


def stream(key: jax.Array, name: str) -> jax.Array:
    """The run's key for one purpose, apart from its data's: those fold in epochs, which never come near 2^32."""
    return jax.random.fold_in(key, jnp.uint32(2**32 - {"init": 1, "objective": 2, "mixing": 3}[name]))


def init_state(
    key: jax.Array,
    model: Any,
    ask: Callable[..., Any] | None,
    teacher_arrays: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, ...],
    labels: np.ndarray,
    averaged: bool = False,
) -> State:
    """The state before the first step, a function of the run's ``key`` (under ``jit``, with ``out_shardings``).

    ``labels`` are those of the training split, as an objective's ``init`` takes them; with ``averaged`` it holds a
    moving average of the student.
    """
    student_key, objective_key = jax.random.split(stream(key, "init"))
    images = jnp.zeros((1, *image_shape))
    variables = model.init(first_rngs(student_key), images, train=False)
    if others := variables.keys() - {"params", "batch_stats"}:
        raise ValueError(
            f"the network keeps {', '.join(sorted(others))}: params and batch_stats alone are carried from step to step"
        )
    student_outputs = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
    teacher_outputs = None
    if ask is not None:
        numbers = {name: jnp.zeros(1, jnp.int32) for name in ("label", "index", "row", "view", "position")}
        teacher_outputs = jax.eval_shape(ask, teacher_arrays, {"image": images, **numbers})
    objective_params, objective_state = objective.init(objective_key, student_outputs, teacher_outputs, labels)
    params = {"student": variables["params"], "objective": objective_params}
    batch_stats = variables.get("batch_stats", {})
    state = jnp.zeros((), jnp.int32), params, batch_stats, objective_state, optimizer.init(params)
    if not averaged:
        return State(*state)
    return AveragedState(*state, ema=jax.tree.map(jnp.copy, student_variables(params, batch_stats)))


def student_variables(params: Any, batch_stats: Any) -> dict[str, Any]:
    """The student's Flax variables out of the rooms of a state."""
    return {"params": params["student"], "batch_stats": batch_stats}


def moved_average(average: Any, now: Any, steps: jax.Array, decay: float) -> Any:
    """``d * average + (1 - d) * now`` of the update after ``steps`` others, ``d = min(decay, (1 + n) / (10 + n))``.

    Source: "Rethinking the Inception Architecture for Computer Vision" (2016), section 8, a running average of the
    parameters, and its released code (inception_train.py), which averages the statistics too and takes TensorFlow's
    ``ExponentialMovingAverage`` with the step as ``num_updates``, n here: the average follows closely at first, and
    does not remember the initial weights. timm's and DeiT's d is ``decay`` from the first step. Integers are ``now``'s.
    """
    moved = optax.incremental_update(now, average, jnp.maximum(1.0 - decay, 9.0 / (10.0 + steps)))
    # A network of one's own may count in its statistics.
    return jax.tree.map(lambda mean, new: mean if jnp.issubdtype(new.dtype, jnp.floating) else new, moved, now)


def make_train_step(
    model: Any,
    ask: Callable[..., Any] | None,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    num_examples: int,
    accumulate: int = 1,
    rolled: bool = False,
    ema_decay: float | None = None,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """``train_step(state, teacher_arrays, batch, key) -> state, metrics`` (scalars, means over the global batch).

    ``model`` is the student, ``ask`` a teacher's ``apply``, ``num_examples`` those of the training split. ``key`` is
    the step's own, for objectives that draw and for a student's dropout. ``grad_norm`` is the global L2 norm before
    clipping. Accuracy and agreement are those of the student in training mode. ``ema_decay`` is for a state that is
    averaged.

    The batch is taken in ``accumulate`` parts, one after the other, for batches that do not fit. The update is that of
    the mean of their gradients: the whole batch's, but for what relates examples (batch normalisation, DIST, SP), which
    sees a part. ``rolled`` parts are a loop of the program, so that each reuses the memory of the one before. On CPU
    they are not: XLA's convolutions are many times slower inside one.
    """

    def train_step(state: State, teacher_arrays: Any, batch: dict[str, jax.Array], key: jax.Array):
        batch_size = batch["label"].shape[0]
        now = {
            "epoch": state.step * batch_size // num_examples,
            "epochs_done": (state.step + 1) * batch_size / num_examples,
        }

        def loss_fn(params, batch_stats, objective_state, teacher_outputs, batch, key):
            # Each key is split or folded once: fold_in(key, 0) can be the key that a split of the same key begins with.
            dropout_key, objective_key = jax.random.split(key)
            student, updates = model.apply(
                {"params": params["student"], "batch_stats": batch_stats},
                batch["image"],
                train=True,
                regions=objective.regions,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            loss, terms, objective_state = objective.apply(
                params["objective"], objective_state, student, teacher_outputs, batch, **now, key=objective_key
            )
            return jnp.mean(loss), (student, terms, updates.get("batch_stats", {}), objective_state)

        def take(batch_stats, objective_state, batch, key):
            teacher_outputs = None if ask is None else ask(teacher_arrays, batch)
            (loss, (student, terms, batch_stats, objective_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params, batch_stats, objective_state, teacher_outputs, batch, key
            )
            measured = {name: jnp.mean(values) for name, values in terms.items()}
            measured["accuracy"] = over_labels(
                batch, lambda labels: metrics.compute(metrics.top_k(student.logits, labels))
            )
            if teacher_outputs is not None:
                measured["agreement"] = metrics.compute(metrics.agreement(student.logits, teacher_outputs.logits))
            return grads, batch_stats, objective_state, measured | {"loss": loss}

        def in_parts(rows):  # row i in part i % accumulate, so that no row leaves its device
            return jnp.moveaxis(rows.reshape(-1, accumulate, *rows.shape[1:]), 1, 0)

        def take_part(carry, part):
            total, batch_stats, objective_state = carry
            grads, batch_stats, objective_state, measured = take(batch_stats, objective_state, *part)
            return (optax.tree.add(total, grads), batch_stats, objective_state), measured

        if accumulate == 1:
            grads, batch_stats, objective_state, measured = take(state.batch_stats, state.objective_state, batch, key)
        else:
            begin = (optax.tree.zeros_like(state.params), state.batch_stats, state.objective_state)
            parts = (jax.tree.map(in_parts, batch), jax.random.split(key, accumulate))
            (total, batch_stats, objective_state), measured = jax.lax.scan(take_part, begin, parts, unroll=not rolled)
            grads = optax.tree.scale(1 / accumulate, total)
            measured = jax.tree.map(jnp.mean, measured)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        measured["grad_norm"] = global_norm(grads)
        params = optax.apply_updates(state.params, updates)
        after = state.step + 1, params, batch_stats, objective_state, opt_state
        if ema_decay is None:
            return State(*after), measured
        assert isinstance(state, AveragedState)
        now = student_variables(params, batch_stats)
        return AveragedState(*after, ema=moved_average(state.ema, now, state.step, ema_decay)), measured

    return train_step


def make_run_chunk(
    train_step: Callable[..., tuple[State, dict[str, jax.Array]]],
    make_batch: Callable[[Any, jax.Array], dict[str, jax.Array]],
    mesh: Mesh,
    steps_per_call: int,
    mixing: Mapping[str, float] | None = None,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """``run_chunk(states, shared, own, count) -> states, metrics``: ``count`` steps of every run.

    ``states`` and ``own`` have a leading axis of runs, also of a single one. ``shared`` and ``own`` are each a pair,
    ``(teacher arrays, data arrays)``, whose entries a run sees put together; its ``key`` and order are in ``own``. The
    runs of one device are unrolled: ``vmap`` would turn their convolutions into grouped ones, which are slow on CPU.
    ``mixing`` are the arguments of ``sdd_jax.data.mixing.mix``, which mixes the images of each batch, if it is given.

    ``count`` (int32, at most ``steps_per_call``) is an argument, so that a chunk may end wherever an evaluation or a
    checkpoint is due without a second compilation. Metrics are ``[runs, steps_per_call]``, the first ``count`` of them
    filled. With one step a call there is no loop: XLA's CPU convolutions are many times slower inside one.
    """

    def one_step(states, shared, own):
        results = []
        for number in range(jax.tree.leaves(states)[0].shape[0]):
            state, (teacher, data) = pick((states, own), number)
            teacher, data = {**shared[0], **teacher}, {**shared[1], **data}
            batch = make_batch(data, state.step)
            if mixing is not None:
                batch = mix(batch, jax.random.fold_in(stream(data["key"], "mixing"), state.step), **mixing)
            batch = split_batch(batch, mesh, (DATA,))
            key = jax.random.fold_in(stream(data["key"], "objective"), state.step)
            results.append(train_step(state, teacher, batch, key))
        return stack(results)

    def run(states, shared, own, count):
        if steps_per_call == 1:
            states, measured = one_step(states, shared, own)
            return states, jax.tree.map(lambda value: value[:, None], measured)
        shapes = jax.eval_shape(one_step, states, shared, own)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape, steps_per_call), leaf.dtype), shapes)

        def body(i, carry):
            states, history = carry
            states, measured = one_step(states, shared, own)
            return states, jax.tree.map(lambda rows, value: rows.at[:, i].set(value), history, measured)

        return jax.lax.fori_loop(0, count, body, (states, empty))

    return over_seeds(run, mesh)


def make_eval_step(
    model: Any, make_batch: Callable[[Any], dict[str, jax.Array]], mesh: Mesh, num_classes: int
) -> Callable[..., dict[str, metrics.State]]:
    """``eval_step(variables, data_arrays) -> states`` of one batch: accuracy, top-5 and cross-entropy.

    Top-5 is left out for fewer than six classes, where it would count every example as correct.
    """

    def eval_step(variables, data_arrays):
        batch = split_batch(make_batch(data_arrays), mesh)
        logits = model.apply(variables, batch["image"], train=False).logits
        labels, valid = batch["label"], batch["valid"]
        states = {
            "accuracy": metrics.top_k(logits, labels, 1, valid),
            "loss": metrics.mean(task_loss(logits, labels), valid),
        }
        if num_classes > 5:
            states["top5"] = metrics.top_k(logits, labels, 5, valid)
        return states

    return eval_step
