"""The program of the training loop, compiled for chips that are not there, from shapes alone."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdd_jax.build import described, from_disk, make_optimizer, make_parts, state_shapes, steps_per_call
from sdd_jax.config import Settings, image_dtype
from sdd_jax.data import memory, streamed
from sdd_jax.mesh import DATA, SEEDS, by_seed, replicated
from sdd_jax.models.layers import fold
from sdd_jax.training.programs import jit_run_chunk
from sdd_jax.training.teacher import Teacher, live_teacher

ROUND = 8  # images per chip: the TPU pads a batch to a multiple of 8 anyway
COMPILATIONS = 6  # at most, in a search: each takes minutes
CLOSE = 1.02  # a size that is larger by less than this is not worth another compilation
USABLE = 63 / 64  # of v5e's 16 GiB the compiler lets a program have 15.75; other chips are taken to be alike


class Compiled(NamedTuple):
    """Figures of one compiled step, per chip."""

    memory: dict[str, int]  # bytes of params, optimizer, teacher, data, temporary; total
    flops: float
    bytes: float  # read from and written to memory
    reduced_bytes: int  # all-reduced over the chips: gradients, and the sums of batch normalisation
    seconds: float  # of compilation


class TooLarge(NamedTuple):
    """A program that does not fit into the chip's memory, with the compiler's own message."""

    message: str


class Largest(NamedTuple):
    """The largest batch found: images per chip, 0 if none fitted; and how many compilations the search took."""

    per_chip: int
    compilations: int


def train_examples(settings: Settings) -> int:
    """How many images an epoch has; ``ValueError`` if nobody knows without the data."""
    total = described(settings).train_examples
    if settings["data.train_examples"] is not None:
        return settings["data.train_examples"]
    if not total:
        raise ValueError(f"to plan {settings['data.name']} without its data, state data.train_examples")
    return total - (total + 5) // 10 if settings["data.select_on"] == "validation" else total


def make_program(settings: Settings, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    """The training loop's program for the devices of ``mesh``, one run with a live teacher.

    Returns:
      The jitted chunk of steps, and its arguments as shapes with shardings: states, shared, own, count.
    """
    info, num_examples, batch_size = described(settings), train_examples(settings), settings["batch_size"]
    parts, dtype = make_parts(settings, info.num_classes), image_dtype(settings)
    optimizer = make_optimizer(settings, num_examples)
    steps = steps_per_call(settings, mesh.devices.flat[0].platform)
    teacher = Teacher()
    if parts.teacher is not None:
        variables = _folded(parts.teacher, jax.ShapeDtypeStruct((1, *info.image_shape), dtype))
        teacher = live_teacher(parts.teacher, variables, parts.objective.regions)
    state = state_shapes(parts, teacher, optimizer, info.image_shape, num_examples)
    on_all, each = replicated(mesh), by_seed(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    int32 = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    if from_disk(settings):
        make_batch, data = partial(streamed.train_batch, source=info, dtype=dtype), {}
        batch = {name: int32((batch_size,)) for name in ("label", "index", "row", "view", "position")}
        batch["image"] = jax.ShapeDtypeStruct((batch_size, *info.image_shape), jnp.uint8)
        own = {"key": _placed(key, each), **_placed(batch, NamedSharding(mesh, PartitionSpec(SEEDS, DATA)))}
    else:
        make_batch = partial(memory.train_batch, source=info, batch_size=batch_size, dtype=dtype)
        data = {"images": jax.ShapeDtypeStruct((num_examples, *info.image_shape), jnp.uint8)}
        data |= {name: int32((num_examples,)) for name in ("labels", "index")}
        order = int32((memory.epochs_per_chunk(steps, batch_size, num_examples), num_examples))
        own = _placed({"key": key, "order": order, "first_epoch": int32(())}, each)
    run_chunk = jit_run_chunk(
        parts.model,
        teacher.apply,
        parts.objective,
        optimizer,
        make_batch,
        mesh,
        num_examples=num_examples,
        steps_per_call=steps,
        accumulate=settings["optim.accumulate_steps"],
    )
    shared, count = _placed(((teacher.arrays, data), int32(())), on_all)
    return run_chunk, (_placed(state, each), shared, ({}, own), count)


def compile_step(settings: Settings, mesh: Mesh) -> Compiled | TooLarge:
    """Compiles the training program for the chips of ``mesh``."""
    run_chunk, arguments = make_program(settings, mesh)
    lowered, start = run_chunk.lower(*arguments), time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return TooLarge(str(error).splitlines()[0])
    states, (teacher, data), (_, own), _ = arguments
    analysis, costs = compiled.memory_analysis(), compiled.cost_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory = {
        "params": _bytes((states.params, states.batch_stats, states.objective_state, states.step)),
        "optimizer": _bytes(states.opt_state),
        "teacher": _bytes(teacher),
        "data": _bytes((data, own)),  # the batch, or the whole data set where that is kept on the device
        "temporary": analysis.temp_size_in_bytes,  # mostly activations kept for the backward pass
        "total": held + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes,  # with padding
    }
    parts = settings["optim.accumulate_steps"]  # a loop, whose body the compiler counts once
    # Batch normalisation sums two numbers per channel forward and two backward; its statistics are two per channel.
    reduced = _bytes(states.params) + 2 * parts * _bytes(states.batch_stats) if mesh.size > 1 else 0
    flops, traffic = parts * costs["flops"], parts * costs["bytes accessed"]
    return Compiled(memory, flops, traffic, reduced, time.monotonic() - start)


def find_largest(
    per_chip: int, result: Compiled | TooLarge, hbm_bytes: int, measure: Callable[[int], Compiled | TooLarge]
) -> Largest:
    """Searches for the largest batch that fits: where the line through the two largest that do meets the limit.

    A size that was refused is not tried again: the next one is halfway to it. ``result`` is that of ``per_chip`` images
    per chip, ``measure`` compiles for another number of them.
    """
    fits: dict[int, int] = {}  # images per chip: bytes
    refused, count, compilations = None, per_chip, 0
    while True:
        if isinstance(result, TooLarge):
            refused = count
        else:
            fits[count] = result.memory["total"]
        best, count = max(fits, default=0), _next_size(fits, refused, hbm_bytes * USABLE)
        if count <= best * CLOSE or compilations == COMPILATIONS:
            return Largest(best, compilations)
        result, compilations = measure(count), compilations + 1


def _next_size(fits: dict[int, int], refused: int | None, limit: float) -> int:
    best, count = 0, math.inf
    if fits:
        (low, low_size), (best, size) = [(0, 0), *sorted(fits.items())][-2:]
        if low_size >= size:  # the compiler saves memory where it gets scarce
            low, low_size = 0, 0
        count = int(best + (limit - size) * (best - low) / (size - low_size))
    if refused is not None and count >= refused:
        count = (best + refused) // 2
    return int(count) // ROUND * ROUND or int(count)


def _folded(model: Any, images: Any) -> Any:
    """The shapes of the teacher's folded variables."""
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    return jax.eval_shape(partial(fold, model, images=images), variables)


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes with a sharding, and with a leading axis of one run where it has an axis of runs."""
    axis = (1,) if SEEDS in sharding.spec else ()
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(axis + leaf.shape, leaf.dtype, sharding=sharding), tree)


def _bytes(tree: Any) -> int:
    """Bytes on one chip, without the padding of tiles."""
    shards = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)
