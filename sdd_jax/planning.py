"""What a config takes on TPUs that are not here: slices such as "v5e:16x16", and the program compiled for them."""

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdd_jax.build import described, from_disk, steps_per_call
from sdd_jax.build_shapes import run_shapes, train_examples
from sdd_jax.config import Settings, image_dtype, mixing
from sdd_jax.data import memory, streamed
from sdd_jax.mesh import DATA, SEEDS, by_seed, replicated
from sdd_jax.training.programs import jit_run_chunk

GIB = 2**30
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
FORM = "topologies are written GENERATION:SHAPE, such as v4:2x2x4, v5e:16x16, v5p:2x2x4, v6e:16x16"

ROUND = 8  # images per chip: the TPU pads a batch to a multiple of 8 anyway
COMPILATIONS = 6  # at most, in a search: each takes minutes
CLOSE = 1.02  # a size that is larger by less than this is not worth another compilation
USABLE = 63 / 64  # of v5e's 16 GiB the compiler lets a program have 15.75; other chips are taken to be alike

# When libtpu is loaded it asks machine and cloud for its slice. With these answers it asks nobody.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to wait for
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once: nobody holds a chip
}


class Chip(NamedTuple):
    """One generation of chips. GB a second are 10^9 bytes; the "GB" of a memory are GiB."""

    flops: float  # peak per second in bfloat16 with float32 sums
    hbm_bytes: int
    hbm_rate: float  # bytes per second between chip and memory
    link_rate: float  # bytes per second that it can send over all links: half of what is published for both directions
    largest_cube: int | None  # the most chips of a slice with three sides; None: slices have two sides, as in FLAT
    # libtpu's name for how Cloud TPU uses the cores, where that is not its default; with "megacore" the two of v4 are
    # one device. Source: JAX's own tests of ahead-of-time compilation (tests/aot_test.py).
    config: str | None


# cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. v4's links are 6 of 50 GB/s in each direction: Jouppi et al., "TPU v4: An
# Optically Reconfigurable Supercomputer", ISCA 2023, table 4. The others publish 400, 1200 and 800 GB/s both ways.
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1200e9, 300e9, 4096, "megacore"),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, None, None),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 6144, "megachip_tccontrol"),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 400e9, None, "megachip_tccontrol"),
}


class Topology(NamedTuple):
    """A slice."""

    name: str
    chip: Chip
    chips: int


def parse_topology(name: str) -> Topology:
    """The slice that ``name`` stands for; ``ValueError`` says which ones exist."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if found is None or found[1] not in CHIPS:
        raise ValueError(f"there is no topology {name!r}: {FORM}")
    chip, sides = CHIPS[found[1]], [int(side) for side in found[2].split("x")]
    if chip.largest_cube is None:
        exists, shapes = found[2] in FLAT, ", ".join(FLAT)
    else:
        multiples = len(sides) == 3 and sides == sorted(sides) and all(side % 4 == 0 for side in sides)
        exists = found[2] in SMALL_CUBES or (multiples and 0 < math.prod(sides) <= chip.largest_cube)
        shapes = f"{', '.join(SMALL_CUBES)}, or increasing multiples of 4, up to {chip.largest_cube} chips"
    if not exists:
        raise ValueError(f"topology {name!r} does not exist: {found[1]} slices are {shapes}")
    return Topology(name, chip, math.prod(sides))


def prepare() -> None:
    """Keeps JAX from looking for the machine's chips; call it before anything asks for devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot read back programs for absent chips
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def topology_devices(topology: Topology) -> list[Any]:
    """The chips as JAX devices: programs can be compiled for them, and not run. ``ImportError`` without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "plan compiles with libtpu, which is not installed: pip install -e '.[plan]' in an environment of its own, "
            "since with it every start of JAX looks for a TPU first"
        )
    options: dict[str, Any] = {"chip_config_name": topology.chip.config} if topology.chip.config else {}
    if topology.chips == 1:  # a host of its own; of larger slices libtpu knows the hosts
        options["chips_per_host_bounds"] = (1, 1, 1)
    found = list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices)
    if len(found) != topology.chips:
        raise ValueError(f"topology {topology.name!r}: libtpu sees {len(found)} devices in {topology.chips} chips")
    return found


def make_program(settings: Settings, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    """The loop's jitted chunk of steps of one run with a live teacher on ``mesh``, and its arguments' shapes."""
    info, num_examples, batch_size = described(settings), train_examples(settings), settings["batch_size"]
    parts, teacher, optimizer, state = run_shapes(settings, num_examples)
    dtype, steps = image_dtype(settings), steps_per_call(settings, mesh.devices.flat[0].platform)
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
    options = {"num_examples": num_examples, "steps_per_call": steps, "accumulate": settings["optim.accumulate_steps"]}
    given = parts.model, teacher.apply, parts.objective, optimizer, make_batch, mesh
    recipe = {"ema_decay": settings["optim.ema_decay"], "mixing": mixing(settings)}
    run_chunk = jit_run_chunk(*given, **options, **recipe)
    shared, count = _placed(((teacher.arrays, data), int32(())), on_all)
    return run_chunk, (_placed(state, each), shared, ({}, own), count)


def compile_step(settings: Settings, mesh: Mesh) -> dict[str, Any]:
    """Compiles the training program for the chips of ``mesh``: figures of a step, per chip, or why it does not fit."""
    run_chunk, arguments = make_program(settings, mesh)
    lowered, start = run_chunk.lower(*arguments), time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"fits": False, "compiler": str(error).splitlines()[0]}
    states, (teacher, data), (_, own), _ = arguments
    analysis, costs = compiled.memory_analysis(), compiled.cost_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory = {
        "params": _bytes((states.params, states.batch_stats, states.objective_state, states.step)),
        "optimizer": _bytes((states.opt_state, getattr(states, "ema", {}))),
        "teacher": _bytes(teacher),
        "data": _bytes((data, own)),  # the batch, or the whole data set where that is kept on the device
        "temporary": analysis.temp_size_in_bytes,  # mostly activations kept for the backward pass
        "total": held + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes,  # with padding
    }
    parts = settings["optim.accumulate_steps"]  # a loop, whose body the compiler counts once
    # All-reduced are gradients and the sums of batch normalisation: two numbers per channel forward and two backward.
    reduced = _bytes(states.params) + 2 * parts * _bytes(states.batch_stats) if mesh.size > 1 else 0
    return {
        "fits": True,
        "memory_bytes": memory,
        "flops": parts * costs["flops"],
        "bytes": parts * costs["bytes accessed"],  # read from and written to memory
        "collectives": {"operand_bytes": reduced},
        "compile_seconds": time.monotonic() - start,
    }


def find_largest(
    per_chip: int, result: Any, hbm_bytes: int, measure: Callable[[int], Any], parts: int = 1
) -> dict[str, int]:
    """Searches for the largest batch of so many ``parts`` that fits, in images per chip: 0 if none does.

    The next size is where the line through the two largest that fit meets the limit, or halfway to one that was
    refused. ``result`` is that of ``per_chip`` images per chip, ``measure`` compiles for another number of them.
    """
    fits, refused = {0: 0}, math.inf  # images per chip: bytes; the smallest number that did not fit
    count, compilations = per_chip, 0
    while True:
        if result["fits"]:
            fits[count] = result["memory_bytes"]["total"]
        else:
            refused = count
        best, largest = max(fits), math.inf
        if best:
            (low, low_size), (_, size) = sorted(fits.items())[-2:]
            if low_size >= size:  # the compiler saves memory where it gets scarce
                low, low_size = 0, 0
            largest = int(best + (hbm_bytes * USABLE - size) * (best - low) / (size - low_size))
        count = int(largest if largest < refused else (best + refused) // 2)
        unit = math.lcm(ROUND, parts)
        count = count // unit * unit or count // parts * parts
        if count <= best * CLOSE or compilations == COMPILATIONS:
            return {"per_chip": best, "compilations": compilations}
        result, compilations = measure(count), compilations + 1


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes with a sharding, and with a leading axis of one run where it has an axis of runs."""
    axis = (1,) if SEEDS in sharding.spec else ()
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(axis + leaf.shape, leaf.dtype, sharding=sharding), tree)


def _bytes(tree: Any) -> int:
    """Bytes on one chip, without the padding of tiles."""
    shards = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)
