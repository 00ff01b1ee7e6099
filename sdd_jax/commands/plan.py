"""What a config's training step takes on TPUs, before any is rented: memory, least time, hours.

python -m sdd_jax plan --config=configs/imagenet.py:teacher=resnet50,student=mobilenet_v1 \\
    --topology=v5e:2x4,v5e:16x16 --batch_size=1024,32768

Compiles the training loop's program on a CPU for chips that are not there; a large pair takes minutes. It needs no data
and no teacher, but libtpu: pip install -e '.[plan]', in an environment of its own.

One batch size goes with every topology, and one topology with every batch size; several of both go in pairs. Each pair
is one compilation. --compare=kd adds another, --search several for each kind of chip.
"""

import json
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from sdd_jax import methods
from sdd_jax.build import check
from sdd_jax.config import Settings
from sdd_jax.mesh import make_mesh
from sdd_jax.planning import topology as topologies
from sdd_jax.planning.compile import Compiled, TooLarge, compile_step, find_largest, train_examples
from sdd_jax.planning.report import as_text, make_plan
from sdd_jax.planning.topology import Topology


def define_flags() -> None:
    """The flags of this command."""
    own = {"lock_config": False, "accept_new_attributes": True}  # `sdd_jax.config` refuses unknown fields
    config_flags.DEFINE_config_file("config", None, "The config of the run that is planned.", **own)
    flags.DEFINE_list("topology", None, "TPU slices, such as v5e:2x4,v5e:16x16.")
    flags.DEFINE_list("batch_size", [], "Batch sizes over all chips; the config's if this is left out.")
    flags.DEFINE_enum("compare", None, ["kd"], "Compile this method as well, and print the ratios to it.")
    flags.DEFINE_bool("search", False, "Search for the largest batch that fits.")
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
    flags.mark_flags_as_required(["config", "topology"])
    flags.DEFINE_string("against", None, "Replaced by --compare.")
    flags.DEFINE_bool("largest", None, "Replaced by --search.")
    for old, new in (("against", "--compare=kd"), ("largest", "--search")):
        flags.register_validator(old, lambda value: value is None, f"replaced by {new}; without it nothing is added")


def main() -> None:
    """Runs the command."""
    topologies.prepare()
    settings = read_settings(flags.FLAGS.config.to_dict())
    wanted = pair_up(flags.FLAGS.topology, flags.FLAGS.batch_size or [str(settings["batch_size"])])
    plans, searched = [], set()
    for topology, batch_size in wanted:
        search = flags.FLAGS.search and topology.generation not in searched
        plans.append(compile_plan(settings, topology, batch_size, flags.FLAGS.compare, search))
        searched.add(topology.generation)
    print(json.dumps(plans, indent=2) if flags.FLAGS.json else as_text(plans))


def read_settings(tree: dict[str, Any]) -> Settings:
    """The checked config of a single run with a live teacher."""
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
    """Each topology with its batch size; ``ValueError`` for an unknown topology or a batch that does not divide."""
    slices = [topologies.parse(name) for name in names or [""]]
    if wrong := [size for size in sizes if not size.isdecimal() or int(size) < 1]:
        raise ValueError(f"batch_size must be whole numbers of at least 1, such as 1024,4096; got {wrong[0]!r}")
    if len(sizes) > 1 and len(slices) > 1 and len(sizes) != len(slices):
        raise ValueError(f"several topologies and batch sizes go in pairs, got {len(slices)} and {len(sizes)}")
    count = max(len(slices), len(sizes))
    pairs = list(zip(slices * (count // len(slices)), map(int, sizes * (count // len(sizes))), strict=True))
    for topology, size in pairs:
        chips, below = topology.chips, size - size % topology.chips
        if size != below:
            near = f"{below} or {below + chips}" if below else str(chips)
            raise ValueError(f"batch_size {size} does not divide by the {chips} chips of {topology.name}: {near} would")
    return pairs


def compile_plan(settings: Settings, topology: Topology, batch_size: int, compare: str | None, search: bool) -> Any:
    """One column: one compilation, unless it is compared or the largest batch is searched for."""
    mesh = make_mesh(topologies.devices(topology))

    def compiled(method: str, size: int) -> Compiled | TooLarge:
        print(f"compiling {method} for {topology.name} at batch size {size} ...", file=sys.stderr, flush=True)
        return compile_step(by_method(settings, method, size), mesh)

    own, per_chip, hbm = settings["method"], batch_size // topology.chips, topology.chip.hbm_bytes
    results, largest = {own: compiled(own, batch_size)}, None
    if compare and own not in ("plain", compare):
        results[compare] = compiled(compare, batch_size)
    if search:
        largest = find_largest(per_chip, results[own], hbm, lambda count: compiled(own, count * topology.chips))
    return make_plan(topology, batch_size, settings["epochs"], train_examples(settings), results, largest)


def by_method(settings: Settings, method: str, batch_size: int) -> Settings:
    """The config with another base loss, at its usual options, and another batch size."""
    if method == settings["method"]:
        return Settings({**settings, "batch_size": batch_size})
    options = methods.base_options(methods.BASES[method])
    kept = {name: value for name, value in settings.items() if ".options." not in name}
    own = {f"loss.options.{name}": option.default for name, option in options.items()}
    return Settings({**kept, **own, "method": method, "loss.base": method, "batch_size": batch_size})
