"""Names of TPU slices, "v5e:16x16", and the devices of slices that are not here."""

import difflib
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

from sdd_jax.planning.chips import CHIPS, Chip

# libtpu asks the machine that it runs on, and the cloud, what it is part of; these answer, so that it asks nobody. They
# are read when libtpu is loaded.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to wait for
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once: nobody holds a chip
}


class Topology(NamedTuple):
    """A slice by name.

    Attributes:
      name: as libtpu knows it.
      chip: its chips.
      sides: chips along each axis.
    """

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many chips it has."""
        return math.prod(self.sides)


def parse(name: str) -> Topology:
    """The slice that ``name`` stands for; ``ValueError`` says which ones there are."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    form = f"topologies are written GENERATION:SHAPE, such as {', '.join(chip.example for chip in CHIPS.values())}"
    if found is None:
        raise ValueError(f"no topology is written {name!r}: {form}")
    if found[1] not in CHIPS:
        close = difflib.get_close_matches(found[1], CHIPS, n=1, cutoff=0.0)[0]
        raise ValueError(f"topology {name!r}: no chip is called {found[1]!r}; the closest is {close!r}: {form}")
    chip, sides = CHIPS[found[1]], tuple(int(side) for side in found[2].split("x"))
    if not chip.has(sides):
        raise ValueError(f"topology {name!r} does not exist: {chip.name} slices are {chip.shapes}")
    return Topology(f"{chip.name}:{'x'.join(map(str, sides))}", chip, sides)


def stay_on_cpu() -> None:
    """Keeps JAX from looking for the machine's chips; call it before anything asks for devices.

    Nothing goes into the cache of compiled programs: those for chips that are not here cannot be read from it.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def load_libtpu(topology: Topology) -> None:
    """Makes libtpu ready to compile; ``topology`` is any of those that it will compile for.

    Raises:
      ImportError: without libtpu; it says how to get it.
    """
    chip = topology.chip
    accelerator = f"{chip.accelerator}-{chip.cores * topology.chips}"
    for name, value in {**ENVIRONMENT, "TPU_ACCELERATOR_TYPE": accelerator}.items():
        os.environ.setdefault(name, value)
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "plan compiles with libtpu, which is not installed: pip install -e '.[plan]' in an environment of its own, "
            "since with it every start of JAX looks for a TPU first"
        )


def devices(topology: Topology) -> list[Any]:
    """The chips as JAX devices that programs can be compiled for, and not run on."""
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.chip.config is not None:
        options["chip_config_name"] = topology.chip.config
    if topology.chips == 1:  # a host of its own; of larger slices libtpu knows the hosts
        options["chips_per_host_bounds"] = (1, 1, 1)
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    if len(description.devices) != topology.chips:
        raise ValueError(
            f"topology {topology.name!r}: libtpu sees {len(description.devices)} devices in {topology.chips} chips"
        )
    return list(description.devices)
