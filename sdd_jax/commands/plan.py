"""What a config's training step takes on TPUs, before any is rented: memory, least time, hours.

python -m sdd_jax plan --config=configs/imagenet.py:teacher=resnet50,student=mobilenet_v1 \\
    --topology=v5e:2x4,v5e:16x16 --batch_size=1024,32768

Compiles the program of the training loop for chips that are not here, with libtpu, on a CPU; a large pair takes minutes
for each method and topology. It reads no data and asks no teacher. libtpu comes with pip install -e '.[plan]', in an
environment of its own. The largest batch is searched for once for each chip (--nolargest saves the compilations).

One batch size goes with every topology, and one topology with every batch size; several of both go in pairs.
"""

import json
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from sdd_jax.build import check
from sdd_jax.config import METHODS, Settings
from sdd_jax.mesh import make_mesh
from sdd_jax.planning import topology as topologies
from sdd_jax.planning.compile import Compiled, TooLarge, compile_step, train_examples
from sdd_jax.planning.largest import Largest, find_largest
from sdd_jax.planning.report import Figures, Plan, as_json, as_text
from sdd_jax.planning.roofline import bound, hours
from sdd_jax.planning.topology import Topology


def define_flags() -> None:
    """The flags of this command."""
    config_flags.DEFINE_config_file("config", None, "The config of the run that is planned.", lock_config=True)
    flags.DEFINE_list("topology", None, "TPU slices, such as v5e:2x4,v5e:16x16.")
    flags.DEFINE_list("batch_size", [], "Batch sizes over all chips; the config's if this is left out.")
    flags.DEFINE_enum("against", "kd", ["", "kd"], "The method that the figures are held against; empty: none.")
    flags.DEFINE_bool("largest", True, "Search for the largest batch that fits.")
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
    flags.mark_flags_as_required(["config", "topology"])


def main() -> None:
    """Runs the command."""
    topologies.stay_on_cpu()
    settings = read_settings(flags.FLAGS.config.to_dict())
    wanted = pair_up(flags.FLAGS.topology, flags.FLAGS.batch_size or [str(settings["batch_size"])])
    topologies.load_libtpu(wanted[0][0])
    found: dict[str, Largest] = {}
    plans = []
    for topology, batch_size in wanted:
        plans.append(make_plan(settings, topology, batch_size, found))
    print(json.dumps(as_json(plans), indent=2) if flags.FLAGS.json else as_text(plans))


def read_settings(tree: dict[str, Any]) -> Settings:
    """The checked config of a single run whose teacher is asked live."""
    if "sequence" in tree:
        raise ValueError(f"plan takes one run, this config is a sequence of them: choose from {list(tree['sequence'])}")
    settings = check(tree)
    if settings["teacher.cache"] is not None:
        raise ValueError("plan compiles the teacher's network into the step: leave teacher.cache out")
    if "float64" in (settings["model.dtype"], settings["teacher.dtype"]):
        raise ValueError("a TPU has no float64 units: plan float32 or bfloat16")
    if len(settings["seeds"]) > 1:
        raise ValueError(f"plan takes one run: leave seeds out, got {settings['seeds']}")
    train_examples(settings)
    return settings


def pair_up(names: list[str], sizes: list[str]) -> list[tuple[Topology, int]]:
    """Each topology with its batch size; ``ValueError`` if there is no such one, or the batch does not divide."""
    slices = [topologies.parse(name) for name in names or [""]]
    for size in sizes:
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"batch_size must be whole numbers of at least 1, such as 1024,4096; got {size!r}")
    if len(sizes) > 1 and len(slices) > 1 and len(sizes) != len(slices):
        raise ValueError(f"several topologies and batch sizes go in pairs, got {len(slices)} and {len(sizes)}")
    count = max(len(slices), len(sizes))
    slices, sizes = slices * (count // len(slices)), sizes * (count // len(sizes))
    pairs = list(zip(slices, sizes, strict=True))
    for topology, size in pairs:
        if int(size) % topology.chips:
            below = int(size) // topology.chips * topology.chips
            near = f"{below} or {below + topology.chips}" if below else str(topology.chips)
            raise ValueError(
                f"batch_size {size} does not divide by the {topology.chips} chips of {topology.name}: {near} would"
            )
    return [(topology, int(size)) for topology, size in pairs]


def make_plan(settings: Settings, topology: Topology, batch_size: int, found: dict[str, Largest]) -> Plan:
    """Compiles what one column needs; ``found`` holds, and gets, the largest batch a chip of every generation."""
    mesh = make_mesh(topologies.devices(topology))

    def compiled(method: str, size: int) -> Compiled:
        _say(f"compiling {method} for {topology.name} at batch size {size} ...")
        result = compile_step(by_method(settings, method, size), mesh, topology.name)
        _say(f"  {result.seconds:.0f} s to compile")
        return result

    def figures(method: str) -> Figures:
        try:
            result = compiled(method, batch_size)
        except TooLarge as error:
            return Figures(method, None, error, None, None)
        least = bound(topology.chip, flops=result.flops, bytes=result.bytes, sent_bytes=result.collectives.sent_bytes)
        examples = train_examples(settings)
        run = hours(least.step, epochs=settings["epochs"], num_examples=examples, batch_size=batch_size)
        return Figures(method, result, None, least, run)

    method, against = settings["method"], flags.FLAGS.against
    own = figures(method)
    other = figures(against) if against and method not in ("plain", against) else None
    if flags.FLAGS.largest and topology.chip.name not in found:
        used = own.compiled.memory.total if own.compiled else own.refused.used if own.refused else 0
        found[topology.chip.name] = find_largest(
            batch_size // topology.chips,
            used,
            topology.chip.hbm_bytes,
            lambda per_chip: compiled(method, per_chip * topology.chips).memory.total,
        )
    return Plan(topology, batch_size, settings["epochs"], own, other, found.get(topology.chip.name))


def by_method(settings: Settings, method: str, batch_size: int) -> Settings:
    """The config with another method and batch size, and nothing else changed."""
    assert method in METHODS
    changes: dict[str, Any] = {"batch_size": batch_size}
    if method != settings["method"]:
        changes |= {"method": method, "loss.base": method}
    return Settings({**settings, **changes})


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
