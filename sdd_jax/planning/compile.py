"""The very program of the training loop, compiled for chips that are not here, from shapes alone."""

import math
import re
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdd_jax.build import make_optimizer, make_parts, state_shapes
from sdd_jax.build_data import described, from_disk, steps_per_call
from sdd_jax.config import Settings, image_dtype
from sdd_jax.data.arrays import epochs_per_chunk
from sdd_jax.data.memory import train_batch_function
from sdd_jax.mesh import DATA, SEEDS, by_seed, replicated
from sdd_jax.models.layers import fold
from sdd_jax.planning import kept
from sdd_jax.planning.collectives import Collectives, read_collectives
from sdd_jax.training.programs import jit_run_chunk
from sdd_jax.training.step import live_teacher


class Program(NamedTuple):
    """The jitted chunk of steps, and what it is called with, as shapes with shardings."""

    run_chunk: Any
    arguments: tuple[Any, ...]  # states, shared, own, count


class Memory(NamedTuple):
    """Bytes per chip.

    Attributes:
      params: the student's parameters and batch statistics, and the objective's.
      optimizer: its state.
      teacher: the teacher's variables.
      data: the batch, or a whole data set where that is kept on the device.
      temporary: activations kept for the backward pass and everything else that a step makes and drops.
      total: what the compiler counts of all that, padded to tiles, with the program itself.
    """

    params: int
    optimizer: int
    teacher: int
    data: int
    temporary: int
    total: int


class Compiled(NamedTuple):
    """What the compiler says of one step, per chip.

    Attributes:
      memory: what it takes.
      flops: floating-point operations.
      bytes: read from and written to memory.
      collectives: what chips tell each other.
      seconds: that compiling took.
    """

    memory: Memory
    flops: float
    bytes: float
    collectives: Collectives
    seconds: float


class TooLarge(Exception):
    """A program that does not fit.

    Attributes:
      used: bytes that it takes, or its temporaries alone, where those are too much already.
      usable: bytes of the chip's memory that a program may take.
    """

    def __init__(self, used: float, usable: float):
        super().__init__(f"{used} of {usable} bytes")
        self.used, self.usable = used, usable


def train_examples(settings: Settings) -> int:
    """How many images an epoch has; ``ValueError`` if nobody knows without the data."""
    total = described(settings).train_examples
    if settings["data.train_examples"] is not None:
        return settings["data.train_examples"]
    if not total:
        raise ValueError(f"to plan {settings['data.name']} without its data, state data.train_examples")
    return total - (total + 5) // 10 if settings["data.select_on"] == "validation" else total


def make_program(settings: Settings, mesh: Mesh) -> Program:
    """The training loop's program of one run for the devices of ``mesh``, with a live teacher."""
    info, num_examples, batch_size = described(settings), train_examples(settings), settings["batch_size"]
    parts, dtype = make_parts(settings, info.num_classes), image_dtype(settings)
    optimizer = make_optimizer(settings, num_examples)
    platform = mesh.devices.flat[0].platform
    steps = steps_per_call(settings, platform)
    options = {"scales": settings["sdd.scales"], "pooling": settings["sdd.pooling"]}
    teacher, teacher_arrays = None, {}
    if parts.teacher is not None:
        teacher_arrays = _folded(parts.teacher, jax.ShapeDtypeStruct((1, *info.image_shape), dtype))
        teacher = live_teacher(parts.teacher, **options)
    state = state_shapes(parts, teacher, teacher_arrays, optimizer, info.image_shape, num_examples)
    on_all, each = replicated(mesh), by_seed(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    int32 = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    if from_disk(settings):
        from sdd_jax.data.grain_source import train_batch_function as streamed

        make_batch, data = streamed(info, dtype), {}
        batch = {name: int32((batch_size,)) for name in ("label", "index", "row", "view", "position")}
        batch["image"] = jax.ShapeDtypeStruct((batch_size, *info.image_shape), jnp.uint8)
        own = {"key": _placed(key, each), **_placed(batch, NamedSharding(mesh, PartitionSpec(SEEDS, DATA)))}
    else:
        make_batch = train_batch_function(info, batch_size, dtype)
        data = {"images": jax.ShapeDtypeStruct((num_examples, *info.image_shape), jnp.uint8)}
        data |= {name: int32((num_examples,)) for name in ("labels", "index")}
        order = int32((epochs_per_chunk(steps, batch_size, num_examples), num_examples))
        own = _placed({"key": key, "order": order, "first_epoch": int32(())}, each)
    run_chunk = jit_run_chunk(
        parts.model,
        teacher,
        parts.objective,
        optimizer,
        make_batch,
        mesh,
        **options,
        image_shape=info.image_shape,
        num_examples=num_examples,
        steps_per_call=steps,
        accumulate=settings["optim.accumulate_steps"],
    )
    shared = _placed((teacher_arrays, data), on_all, runs=False)
    return Program(run_chunk, (_placed(state, each), shared, ({}, own), _placed(int32(()), on_all, runs=False)))


def compile_step(settings: Settings, mesh: Mesh, topology: str) -> Compiled:
    """Compiles the program for the chips of ``mesh``, unless what comes of it is kept from an earlier start.

    Raises:
      TooLarge: if it does not fit the chips' memory.
    """
    program = make_program(settings, mesh)
    lowered = program.run_chunk.lower(*program.arguments)
    path = kept.place(lowered.as_text(), topology)
    figures: dict[str, Any] | None = kept.read(path)
    if figures is None:
        try:
            figures = _measure(program, lowered, mesh)._asdict()
        except TooLarge as error:
            figures = {"used": error.used, "usable": error.usable}
        kept.write(path, figures)
    if "used" in figures:
        raise TooLarge(figures["used"], figures["usable"])
    memory, collectives = Memory(*figures.pop("memory")), Collectives(*figures.pop("collectives"))
    parts = settings["optim.accumulate_steps"]  # a loop, whose body the compiler counts once
    figures |= {"flops": parts * figures["flops"], "bytes": parts * figures["bytes"]}
    return Compiled(memory=memory, collectives=collectives, **figures)


def _measure(program: Program, lowered: Any, mesh: Mesh) -> Compiled:
    states, (teacher, data), (_, own), _ = program.arguments
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise read_refusal(str(error)) from error
    seconds = time.monotonic() - start
    analysis, costs = compiled.memory_analysis(), compiled.cost_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory = Memory(
        params=_bytes((states.params, states.batch_stats, states.objective_state, states.step)),
        optimizer=_bytes(states.opt_state),
        teacher=_bytes(teacher),
        data=_bytes((data, own)),
        temporary=analysis.temp_size_in_bytes,
        total=held + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes,
    )
    return Compiled(
        memory, costs["flops"], costs["bytes accessed"], read_collectives(compiled.as_text(), mesh.size), seconds
    )


# What libtpu 0.0.42 says: before it places anything, of the temporaries alone, or after it has placed everything.
_REFUSALS = (
    r"HLO temporaries \((?P<used>[\d.]+[KMGT]?)\) exceeds available HBM \((?P<usable>[\d.]+[KMGT]?)\)",
    r"Used (?P<used>[\d.]+[KMGT]?) of (?P<usable>[\d.]+[KMGT]?) hbm",
)


def read_refusal(message: str) -> Exception:
    """``TooLarge``, from what the compiler says of a program that does not fit; else an error with all of it."""
    for refusal in _REFUSALS:
        found = re.search(refusal, message)
        if found is not None:
            return TooLarge(_size(found["used"]), _size(found["usable"]))
    return RuntimeError(message)


def _size(text: str) -> float:
    """Bytes of "15.75G"."""
    if text[-1].isdigit():
        return float(text)
    return float(text[:-1]) * 1024 ** (1 + "KMGT".index(text[-1]))


def _folded(model: Any, images: Any) -> Any:
    """The shapes of the teacher's folded variables."""
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    return jax.eval_shape(partial(fold, model, images=images), variables)


def _placed(tree: Any, sharding: NamedSharding, *, runs: bool = True) -> Any:
    """Shapes with a sharding, and with a leading axis of one run if ``runs``."""
    axis = (1,) if runs else ()
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(axis + leaf.shape, leaf.dtype, sharding=sharding), tree)


def _bytes(tree: Any) -> int:
    """Bytes on one chip, without the padding of tiles."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
