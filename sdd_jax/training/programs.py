"""What runs are made of, and the jitted programs that take their steps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from sdd_jax.data import AnyDataset, train_data
from sdd_jax.mesh import by_seed, make_mesh, pick, put, replicated, stack
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.objective import Objective
from sdd_jax.training.step import AveragedState, State, init_state, make_run_chunk, make_train_step, student_variables
from sdd_jax.training.teacher import Teacher


class Initial(NamedTuple):
    """What a student begins with instead of drawn values."""

    arrays: Mapping[tuple[str, ...], Any]  # by their paths in its variables, such as ("params", "trunk", ...)
    told: str  # a line that says what is taken and what is new


class Built(NamedTuple):
    """What a run is made of; ``sdd_jax.build`` makes it from a config, a program may make it itself."""

    config: dict[str, Any]  # JSON-ready, written beside the results
    model: Any
    teacher: Teacher
    teacher_accuracy: float | None  # on the test set, 0 to 1, as measured before the run
    teacher_stated: float | None  # in percent: what that was held against, if anything
    objective: Objective
    optimizer: optax.GradientTransformation
    dataset: AnyDataset
    mesh: Mesh
    seed: int
    epochs: int
    batch_size: int
    steps_per_call: int
    eval_every_epochs: int
    save_every_epochs: int
    dtype: Any  # of the images; what the networks compute in is their own
    accumulate: int = 1  # parts of a batch, taken one after the other
    profile_steps: tuple[int, ...] = ()  # first and last step of a trace, or none
    initial: Initial | None = None  # None: all is drawn
    ema_decay: float | None = None  # of a moving average of the student, which is measured too; None: none is kept
    mixing: Mapping[str, float] | None = None  # arguments of `sdd_jax.data.mixing.mix`; None: images are not mixed


def jit_run_chunk(
    model: Any,
    ask: Callable[..., Any] | None,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    make_batch: Callable[[Any, jax.Array], dict[str, jax.Array]],
    mesh: Mesh,
    *,
    num_examples: int,
    steps_per_call: int,
    accumulate: int,
    ema_decay: float | None = None,
    mixing: Mapping[str, float] | None = None,
) -> Any:
    """``run_chunk``, jitted for the devices of ``mesh``, which need not be there; ``states`` are donated."""
    platform = mesh.devices.flat[0].platform
    options = {"num_examples": num_examples, "accumulate": accumulate, "rolled": platform != "cpu"}
    train_step = make_train_step(model, ask, objective, optimizer, ema_decay=ema_decay, **options)
    run_chunk = make_run_chunk(train_step, make_batch, mesh, steps_per_call, mixing)
    out_shardings = by_seed(mesh), replicated(mesh)
    return jit_network(run_chunk, platform=platform, donate_argnums=0, out_shardings=out_shardings)


def replaced(state: State, given: Mapping[tuple[str, ...], jax.Array]) -> State:
    """``state`` with the ``given`` arrays in the student's variables, and in their moving average if it keeps one."""
    variables = flatten_dict(student_variables(state.params, state.batch_stats), keep_empty_nodes=True)
    variables = unflatten_dict({**variables, **given})
    params = {**state.params, "student": variables["params"]}
    changed: dict[str, Any] = {"params": params, "batch_stats": variables["batch_stats"]}
    if isinstance(state, AveragedState):
        changed["ema"] = jax.tree.map(jnp.copy, variables)  # as states are donated, no two of its arrays may be one
    return dataclasses.replace(state, **changed)


class Programs:
    """The programs of ``runs``, which differ in their seed alone, and what they read.

    ``begin(key)`` is a run's first ``State``, ``draw(key)`` one of the same shapes; ``stack`` joins the states of runs,
    ``pick(states, number)`` takes one.
    ``run_chunk(states, *arrays(step), count) -> states, metrics`` takes steps.
    """

    def __init__(self, runs: Sequence[Built]):
        built = self._built = runs[0]
        self._seeds = [run.seed for run in runs]
        self.mesh = mesh = make_mesh(list(built.mesh.devices.flat), seeds=len(runs))
        self.on_all, self._each = replicated(mesh), by_seed(mesh)
        length = {"epochs": built.epochs, "batch_size": built.batch_size, "steps_per_call": built.steps_per_call}
        self.data = train_data(built.dataset, seeds=self._seeds, mesh=mesh, **length)
        self._shared = put(built.teacher.arrays, self.on_all), self.data.shared
        num_examples = len(built.dataset.train.index)
        self.run_chunk = jit_run_chunk(
            built.model,
            built.teacher.apply,
            built.objective,
            built.optimizer,
            self.data.batch_function(built.dtype),
            mesh,
            num_examples=num_examples,
            steps_per_call=built.steps_per_call,
            accumulate=built.accumulate,
            ema_decay=built.ema_decay,
            mixing=built.mixing,
        )
        self.stack = jax.jit(stack, out_shardings=self._each)
        self.pick = jax.jit(pick, out_shardings=self.on_all)

        teacher_arrays = jax.eval_shape(
            lambda shared, own: {**shared, **pick(own, 0)}, self._shared[0], self._teacher_chunk(0)
        )
        shape = {"image_shape": built.dataset.image_shape, "labels": built.dataset.train.labels}
        averaged = built.ema_decay is not None

        def begin(key: jax.Array) -> State:
            parts = built.model, built.teacher.apply, teacher_arrays, built.objective, built.optimizer
            return init_state(key, *parts, **shape, averaged=averaged)

        platform = mesh.devices.flat[0].platform
        self.draw = jit_network(begin, platform=platform, once=True, out_shardings=self.on_all)
        key = jax.eval_shape(jax.random.key, 0)  # before a folder is begun: what a loss cannot do with the networks
        self.draw.eval_shape(jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self.on_all))

    def begin(self, key: jax.Array) -> State:
        """A run's first state: drawn, but for what it begins with."""
        state, initial = self.draw(key), self._built.initial
        return state if initial is None else replaced(state, put(dict(initial.arrays), self.on_all))

    def arrays(self, step: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """What the chunk that starts at ``step`` reads: ``shared`` by all runs, and each run's ``own``."""
        return self._shared, (self._teacher_chunk(step), self.data.own(step))

    def _teacher_chunk(self, step: int) -> Any:
        chunk = self._built.teacher.chunk
        if chunk is None:
            return {}
        chunks = [chunk(seed, step) for seed in self._seeds]
        return put(jax.tree.map(lambda *leaves: np.stack(leaves), *chunks), self._each)
