"""What a config's training step takes on TPUs, before any is rented: memory, least time, hours.

sdd plan --config=imagenet:teacher=resnet50,student=mobilenet_v1 \\
    --topology=v5e:2x4,v5e:16x16 --batch_size=1024,32768

Compiles the training loop's program on a CPU for chips that are not there; a large pair takes minutes. It needs no data
and no teacher, but libtpu: pip install -e '.[plan]', in an environment of its own.

One batch size goes with every topology, and one topology with every batch size; several of both go in pairs. Each pair
is one compilation. --compare=kd adds another, --search several for each kind of chip.
"""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from sdd_jax import methods, planning
from sdd_jax.build import check
from sdd_jax.build_shapes import train_examples
from sdd_jax.config import CACHE, ENSEMBLE, Settings, option_fields
from sdd_jax.files import flatten
from sdd_jax.mesh import make_mesh
from sdd_jax.planning import GIB, Topology


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


def main() -> None:
    """Runs the command."""
    planning.prepare()
    given = flags.FLAGS
    settings = read_settings(given.config.to_dict())
    if (method := settings["method"]) in ("plain", given.compare) and given.compare is not None:
        raise ValueError(f"--compare={given.compare} goes with a distillation by another method; got {method!r}")
    plans, searched, parts = [], set(), settings["optim.accumulate_steps"]
    for topology, batch_size in pair_up(given.topology, given.batch_size or [str(settings["batch_size"])], parts):
        search = given.search and topology.chip not in searched
        plans.append(compile_plan(settings, topology, batch_size, given.compare, search))
        searched.add(topology.chip)
    print(json.dumps(plans, indent=2) if given.json else as_text(plans))


def read_settings(tree: dict[str, Any]) -> Settings:
    """The checked config of a single run with a live teacher."""
    settings = check(tree)
    if settings["teacher.cache"] is not None or settings["model.teacher"] in (CACHE, ENSEMBLE):
        raise ValueError("plan compiles the teacher's network into the step: leave teacher.cache out, name the network")
    if "float64" in (settings["model.dtype"], settings["teacher.dtype"]):
        raise ValueError("a TPU has no float64 units: plan float32 or bfloat16")
    if len(settings["seeds"]) > 1:
        raise ValueError(f"plan takes one run: leave seeds out, got {settings['seeds']}")
    train_examples(settings)
    return settings


def pair_up(names: list[str], sizes: list[str], parts: int = 1) -> list[tuple[Topology, int]]:
    """Each topology with its batch size; ``ValueError`` for an unknown topology or a batch that does not divide.

    ``parts`` are those of a batch that are taken one after the other, each by all chips.
    """
    slices = [planning.parse_topology(name) for name in names or [""]]
    if wrong := [size for size in sizes if not size.isdecimal() or int(size) < 1]:
        raise ValueError(f"batch_size must be whole numbers of at least 1, such as 1024,4096; got {wrong[0]!r}")
    if len(sizes) > 1 and len(slices) > 1 and len(sizes) != len(slices):
        raise ValueError(f"several topologies and batch sizes go in pairs, got {len(slices)} and {len(sizes)}")
    count = max(len(slices), len(sizes))
    pairs = list(zip(slices * (count // len(slices)), map(int, sizes * (count // len(sizes))), strict=True))
    for topology, size in pairs:
        unit = topology.chips * parts
        if size != (below := size - size % unit):
            near = f"{below} or {below + unit}" if below else str(unit)
            taken = f" in {parts} parts" if parts > 1 else ""
            wanted = f"does not divide by the {topology.chips} chips of {topology.name}{taken}"
            raise ValueError(f"batch_size {size} {wanted}: {near} would")
    return pairs


def compile_plan(settings: Settings, topology: Topology, batch_size: int, compare: str | None, search: bool) -> Any:
    """One column: one compilation, unless it is compared or the largest batch is searched for."""
    mesh = make_mesh(planning.topology_devices(topology))

    def compiled(method: str, size: int) -> dict[str, Any]:
        print(f"compiling {method} for {topology.name} at batch size {size} ...", file=sys.stderr, flush=True)
        return planning.compile_step(by_method(settings, method, size), mesh)

    own, chips, hbm = settings["method"], topology.chips, topology.chip.hbm_bytes
    results, largest = {own: compiled(own, batch_size)}, None
    if compare:
        results[compare] = compiled(compare, batch_size)
    if search:
        per_chip, measure = batch_size // chips, lambda count: compiled(own, count * chips)
        parts = settings["optim.accumulate_steps"]
        largest = planning.find_largest(per_chip, results[own], hbm, measure, parts)
    return make_plan(topology, batch_size, settings["epochs"], train_examples(settings), results, largest)


def by_method(settings: Settings, method: str, batch_size: int) -> Settings:
    """The config with another base loss, at its usual options, and another batch size."""
    if method == settings["method"]:
        return Settings({**settings, "batch_size": batch_size})
    changed = {name: value for name, value in settings.items() if ".options." not in name}
    changed |= {"method": method, "loss.base": method, "batch_size": batch_size}
    options = option_fields(changed, methods.parse(method))
    return Settings(changed | {name: option.default for name, option in options.items()})


def make_plan(
    topology: Topology, batch_size: int, epochs: int, num_examples: int, results: dict[str, Any], largest: dict | None
) -> dict[str, Any]:
    """One column, JSON-ready; ``results`` has the config's method first, then the one that it is compared with."""
    steps = math.ceil(epochs * num_examples / batch_size)
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "batch_size": batch_size,
        "images_per_chip": batch_size // topology.chips,
        "epochs": epochs,
        "hbm_bytes": topology.chip.hbm_bytes,
        "peak_flops": topology.chip.flops,
        "hbm_bytes_per_second": topology.chip.hbm_rate,
        "link_bytes_per_second": topology.chip.link_rate,
        "methods": [{"method": name, **_figures(topology, batch_size, steps, of)} for name, of in results.items()],
        "largest": largest and largest | {"batch_size": largest["per_chip"] * topology.chips},
    }


def _figures(topology: Topology, batch_size: int, steps: int, result: dict[str, Any]) -> dict[str, Any]:
    """A step's least time: "Roofline: An Insightful Visual Performance Model", Williams, Waterman, Patterson, 2009."""
    if not result["fits"]:
        return result
    chip, reduced = topology.chip, result["collectives"]["operand_bytes"]
    sent = 2 * (topology.chips - 1) / topology.chips * reduced  # in a ring
    compute, memory, network = result["flops"] / chip.flops, result["bytes"] / chip.hbm_rate, sent / chip.link_rate
    step = max(compute, memory) + network  # which comes on top, since the step waits for it
    return result | {
        "collectives": {"operand_bytes": reduced, "sent_bytes": sent},
        "seconds": {"compute": compute, "memory": memory, "network": network, "step": step},
        "images_per_second": batch_size / step,
        "hours": steps * step / 3600,
    }


def as_text(plans: Sequence[dict[str, Any]]) -> str:
    """A table with a column per plan and a figure per row; in brackets, its ratio to that of the compared method."""
    columns = [_column(plan) for plan in plans]
    table = [list(columns[0]), *(list(column.values()) for column in columns)]
    widths = [max(map(len, column)) for column in table]
    rows = zip(*table, strict=True)
    lines = ["  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *dict.fromkeys(_notes(plans))])


def _column(plan: dict[str, Any]) -> dict[str, str]:
    own, *others = plan["methods"]
    hbm, largest, room = plan["hbm_bytes"], plan["largest"], f"NO: more than {plan['hbm_bytes'] / GIB:.0f} GiB"
    searched = f"{largest['batch_size']} ({largest['per_chip']} a chip)" if largest else "not searched"
    if own["fits"]:
        room = f"fits {hbm / GIB:.0f} GiB, {(hbm - own['memory_bytes']['total']) / GIB:.2f} free"
    figures, compared = flatten(own), flatten(others[0]) if others else {}

    def cell(name: str, unit: float, form: str) -> str:
        if not own["fits"]:
            return "-"
        ratio = f" ({figures[name] / compared[name]:.4f})" if compared.get(name) else ""
        return f"{figures[name] / unit:{form}}{ratio}"

    return {
        "per chip and step": plan["topology"],
        "chips": str(plan["chips"]),
        "batch size": str(plan["batch_size"]),
        "images a chip": str(plan["images_per_chip"]),
        "method": own["method"] + (f" (over {others[0]['method']})" if others else ""),
        "GiB parameters, statistics": cell("memory_bytes.params", GIB, ".3f"),
        "GiB optimizer state": cell("memory_bytes.optimizer", GIB, ".3f"),
        "GiB teacher": cell("memory_bytes.teacher", GIB, ".3f"),
        "GiB data": cell("memory_bytes.data", GIB, ".3f"),
        "GiB activations, temporary": cell("memory_bytes.temporary", GIB, ".3f"),
        "GiB in all": cell("memory_bytes.total", GIB, ".3f"),
        "the chip's memory": room,
        "largest batch that fits": searched,
        "GFLOP": cell("flops", 1e9, ".1f"),
        "GB to and from memory": cell("bytes", 1e9, ".2f"),
        "MB all-reduced": cell("collectives.operand_bytes", 1e6, ".2f"),
        "ms compute at peak": cell("seconds.compute", 1e-3, ".3f"),
        "ms memory": cell("seconds.memory", 1e-3, ".3f"),
        "ms interconnect": cell("seconds.network", 1e-3, ".3f"),
        "ms a step, at least": cell("seconds.step", 1e-3, ".3f"),
        "images a second, at most": cell("images_per_second", 1, ".0f"),
        f"hours for {plan['epochs']} epochs, at least": cell("hours", 1, ".2f"),
        "seconds to compile": f"{own['compile_seconds']:.0f}" if own["fits"] else "-",
    }


def _notes(plans: Sequence[dict[str, Any]]) -> list[str]:
    notes = [
        f"{plan['topology'].partition(':')[0]}: {plan['peak_flops'] / 1e12:.0f} TFLOP/s in bfloat16 (of a float32 "
        "network as well: by default its products are taken in bfloat16), "
        f"{plan['hbm_bytes'] / GIB:.0f} GiB at {plan['hbm_bytes_per_second'] / 1e9:.0f} GB/s, links "
        f"{plan['link_bytes_per_second'] / 1e9:.0f} GB/s each way"
        for plan in plans
    ]
    notes += ["ms a step = max(compute, memory) + interconnect; of S bytes all-reduced a chip sends 2 (n - 1) / n * S"]
    if any(plan["largest"] for plan in plans):
        notes.append("largest batch: searched for on each chip's first topology; a program of that size was compiled")
    return notes + [
        f"{figures['method']} at batch size {plan['batch_size']} does not fit {plan['topology']}: {figures['compiler']}"
        for plan in plans
        for figures in plan["methods"]
        if not figures["fits"]
    ]
