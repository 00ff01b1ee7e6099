"""Plans side by side, as JSON and as a text table.

A step's least time, by "Roofline: An Insightful Visual Performance Model", Williams, Waterman and Patterson, 2009: that
of its operations at the chip's peak or of its memory traffic, and what it sends to other chips on top: it waits for it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdd_jax.planning.compile import Compiled, Largest, TooLarge
from sdd_jax.planning.topology import GIB, Topology


def make_plan(
    topology: Topology,
    batch_size: int,
    epochs: int,
    num_examples: int,
    results: Mapping[str, Compiled | TooLarge],
    largest: Largest | None,
) -> dict[str, Any]:
    """One column, JSON-ready: bytes, operations and seconds per chip and step.

    ``results`` has the config's method first, then the one that it is compared with, if any.
    """
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
        "largest": largest and largest._asdict() | {"batch_size": largest.per_chip * topology.chips},
    }


def _figures(topology: Topology, batch_size: int, steps: int, result: Compiled | TooLarge) -> dict[str, Any]:
    if isinstance(result, TooLarge):
        return {"fits": False, "compiler": result.message}
    chip = topology.chip
    sent = 2 * (topology.chips - 1) / topology.chips * result.reduced_bytes  # in a ring
    compute, memory, network = result.flops / chip.flops, result.bytes / chip.hbm_rate, sent / chip.link_rate
    step = max(compute, memory) + network
    return {
        "fits": True,
        "memory_bytes": result.memory,
        "flops": result.flops,
        "bytes": result.bytes,
        "collectives": {"operand_bytes": result.reduced_bytes, "sent_bytes": sent},
        "seconds": {"compute": compute, "memory": memory, "network": network, "step": step},
        "images_per_second": batch_size / step,
        "hours": steps * step / 3600,
        "compile_seconds": result.seconds,
    }


def as_text(plans: Sequence[dict[str, Any]]) -> str:
    """A table with a column per plan and a figure per row; in brackets, its ratio to that of the compared method."""
    columns = [_column(plan) for plan in plans]
    table = [list(columns[0]), *(list(column.values()) for column in columns)]
    widths = [max(map(len, column)) for column in table]
    lines = []
    for name, *cells in zip(*table, strict=True):
        lines.append("  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *dict.fromkeys(_notes(plans))])


def _column(plan: dict[str, Any]) -> dict[str, str]:
    own, *others = plan["methods"]
    hbm, largest, room = plan["hbm_bytes"], plan["largest"], f"NO: more than {plan['hbm_bytes'] / GIB:.0f} GiB"
    searched = f"{largest['batch_size']} ({largest['per_chip']} a chip)" if largest else "not searched"
    if own["fits"]:
        room = f"fits {hbm / GIB:.0f} GiB, {(hbm - own['memory_bytes']['total']) / GIB:.2f} free"

    def cell(form: str, read: Callable[[dict[str, Any]], float]) -> str:
        if not own["fits"]:
            return "-"
        text = format(read(own), form)
        over = read(others[0]) if others and others[0]["fits"] else 0
        return f"{text} ({read(own) / over:.4f})" if over else text

    def gib(name: str) -> str:
        return cell(".3f", lambda figures: figures["memory_bytes"][name] / GIB)

    def milliseconds(name: str) -> str:
        return cell(".3f", lambda figures: 1000 * figures["seconds"][name])

    return {
        "per chip and step": plan["topology"],
        "chips": str(plan["chips"]),
        "batch size": str(plan["batch_size"]),
        "images a chip": str(plan["images_per_chip"]),
        "method": own["method"] + (f" (over {others[0]['method']})" if others else ""),
        "GiB parameters, statistics": gib("params"),
        "GiB optimizer state": gib("optimizer"),
        "GiB teacher": gib("teacher"),
        "GiB data": gib("data"),
        "GiB activations, temporary": gib("temporary"),
        "GiB in all": gib("total"),
        "the chip's memory": room,
        "largest batch that fits": searched,
        "GFLOP": cell(".1f", lambda figures: figures["flops"] / 1e9),
        "GB to and from memory": cell(".2f", lambda figures: figures["bytes"] / 1e9),
        "MB all-reduced": cell(".2f", lambda figures: figures["collectives"]["operand_bytes"] / 1e6),
        "ms compute at peak": milliseconds("compute"),
        "ms memory": milliseconds("memory"),
        "ms interconnect": milliseconds("network"),
        "ms a step, at least": milliseconds("step"),
        "images a second, at most": cell(".0f", lambda figures: figures["images_per_second"]),
        f"hours for {plan['epochs']} epochs, at least": cell(".2f", lambda figures: figures["hours"]),
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
    notes.append(
        "ms a step = max(compute, memory) + interconnect; of S bytes all-reduced a chip sends 2 (n - 1) / n * S"
    )
    if any(plan["largest"] for plan in plans):
        notes.append("largest batch: searched for on each chip's first topology; a program of that size was compiled")
    return notes + [
        f"{figures['method']} at batch size {plan['batch_size']} does not fit {plan['topology']}: {figures['compiler']}"
        for plan in plans
        for figures in plan["methods"]
        if not figures["fits"]
    ]
