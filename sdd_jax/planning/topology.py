"""TPU slices such as "v5e:16x16": the published numbers of their chips, and devices to compile for without a TPU."""

import difflib
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

GIB = 2**30
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
FORM = "topologies are written GENERATION:SHAPE, such as v4:2x2x4, v5e:16x16, v5p:2x2x4, v6e:16x16"

# When libtpu is loaded it asks machine and cloud for its slice. With these answers it asks nobody.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to wait for
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once: nobody holds a chip
}


class Chip(NamedTuple):
    """One generation of chips. GB a second are 10^9 bytes; the "GB" of a memory are GiB.

    Attributes:
      flops: peak per second in bfloat16 with float32 sums.
      hbm_bytes: size of the memory.
      hbm_rate: bytes per second between chip and memory.
      link_rate: bytes per second that the chip can send over all links together, in one direction: half of the
        published "bidirectional bandwidth per chip".
      largest_cube: the most chips of a slice with three sides; None: slices have two sides, as in ``FLAT``.
      config: libtpu's name for how Cloud TPU uses the cores, where that is not its default; with "megacore" the two of
        v4 are one device. Source: JAX's own tests of ahead-of-time compilation (tests/aot_test.py).
    """

    flops: float
    hbm_bytes: int
    hbm_rate: float
    link_rate: float
    largest_cube: int | None
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
    generation: str  # of its chips
    chip: Chip
    chips: int


def parse(name: str) -> Topology:
    """The slice that ``name`` stands for; ``ValueError`` says which ones exist."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if found is None:
        raise ValueError(f"no topology is written {name!r}: {FORM}")
    generation, sides = found[1], [int(side) for side in found[2].split("x")]
    if generation not in CHIPS:
        close = difflib.get_close_matches(generation, CHIPS, n=1, cutoff=0.0)[0]
        raise ValueError(f"topology {name!r}: no chip is called {generation!r}; the closest is {close!r}: {FORM}")
    shape, count, most = "x".join(map(str, sides)), math.prod(sides), CHIPS[generation].largest_cube
    if most is None:
        exists, shapes = shape in FLAT, ", ".join(FLAT)
    else:
        multiples = len(sides) == 3 and sides == sorted(sides) and all(side % 4 == 0 for side in sides)
        exists = shape in SMALL_CUBES or (multiples and 0 < count <= most)
        shapes = f"AxBxC: {', '.join(SMALL_CUBES)}, or multiples of 4 in increasing order, up to {most} chips"
    if not exists:
        raise ValueError(f"topology {name!r} does not exist: {generation} slices are {shapes}")
    return Topology(f"{generation}:{shape}", generation, CHIPS[generation], count)


def prepare() -> None:
    """Keeps JAX from looking for the machine's chips; call it before anything asks for devices.

    JAX's cache of compiled programs is off: it cannot read back programs for chips that are not there.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def devices(topology: Topology) -> list[Any]:
    """The chips as JAX devices: programs can be compiled for them, and not run. ``ImportError`` without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "plan compiles with libtpu, which is not installed: pip install -e '.[plan]' in an environment of its own, "
            "since with it every start of JAX looks for a TPU first"
        )
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": topology.chip.config} if topology.chip.config else {}
    if topology.chips == 1:  # a host of its own; of larger slices libtpu knows the hosts
        options["chips_per_host_bounds"] = (1, 1, 1)
    found = list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices)
    if len(found) != topology.chips:
        raise ValueError(f"topology {topology.name!r}: libtpu sees {len(found)} devices in {topology.chips} chips")
    return found
