"""Plans side by side, as text and as JSON."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sdd_jax.planning.chips import GIB
from sdd_jax.planning.compile import Compiled, TooLarge
from sdd_jax.planning.largest import Largest
from sdd_jax.planning.roofline import Bound
from sdd_jax.planning.topology import Topology


class Figures(NamedTuple):
    """One method on one topology: what the compiler says, or why it refuses, and what follows."""

    method: str
    compiled: Compiled | None
    refused: TooLarge | None
    bound: Bound | None
    hours: float | None


class Plan(NamedTuple):
    """One column: a topology and a batch size."""

    topology: Topology
    batch_size: int
    epochs: int
    own: Figures
    against: Figures | None
    largest: Largest | None

    @property
    def per_chip(self) -> int:
        """Images a chip and step."""
        return self.batch_size // self.topology.chips


def as_json(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Everything, in bytes, operations and seconds per chip and step."""
    return [
        {
            "topology": plan.topology.name,
            "chips": plan.topology.chips,
            "batch_size": plan.batch_size,
            "images_per_chip": plan.per_chip,
            "epochs": plan.epochs,
            "hbm_bytes": plan.topology.chip.hbm_bytes,
            "peak_flops": plan.topology.chip.flops,
            "hbm_bytes_per_second": plan.topology.chip.hbm_rate,
            "link_bytes_per_second": plan.topology.chip.link_rate,
            "methods": [_figures(plan, figures) for figures in (plan.own, plan.against) if figures is not None],
            "largest": None
            if plan.largest is None
            else plan.largest._asdict() | {"batch_size": plan.largest.per_chip * plan.topology.chips},
        }
        for plan in plans
    ]


def _figures(plan: Plan, figures: Figures) -> dict[str, Any]:
    if figures.compiled is None or figures.bound is None:
        refused = figures.refused
        assert refused is not None
        return {"method": figures.method, "fits": False, "needs_bytes": refused.used, "usable_bytes": refused.usable}
    compiled, bound = figures.compiled, figures.bound
    return {
        "method": figures.method,
        "fits": True,
        "memory_bytes": compiled.memory._asdict(),
        "flops": compiled.flops,
        "bytes": compiled.bytes,
        "collectives": compiled.collectives._asdict(),
        "seconds": bound._asdict(),
        "images_per_second": plan.batch_size / bound.step,
        "hours": figures.hours,
        "compile_seconds": compiled.seconds,
    }


def as_text(plans: Sequence[Plan]) -> str:
    """A table with a column per plan and a figure per row; in brackets, over the method that it is held against."""
    columns = [_column(plan) for plan in plans]
    names = list(columns[0])
    width = max(map(len, names))
    widths = [max(len(cell) for cell in column.values()) for column in columns]
    lines = [
        "  ".join(
            [name.ljust(width), *(column[name].rjust(room) for column, room in zip(columns, widths, strict=True))]
        )
        for name in names
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, "", *_notes(plans)])


def _column(plan: Plan) -> dict[str, str]:
    own, other = plan.own, plan.against

    def cell(read, form: str) -> str:
        """``read(figures)`` in ``form``, with its ratio to that of the other method."""
        if own.compiled is None:
            return "-"
        text = format(read(own), form)
        if other is None:
            return text
        over = read(other) if other.compiled is not None else 0
        return f"{text} ({read(own) / over:.4f})" if over else text

    def memory(name: str) -> str:
        return cell(lambda figures: getattr(figures.compiled.memory, name) / GIB, ".3f")

    def seconds(name: str) -> str:
        return cell(lambda figures: 1000 * getattr(figures.bound, name), ".3f")

    hbm = plan.topology.chip.hbm_bytes
    if own.compiled is not None:
        fits = f"fits {hbm / GIB:.0f} GiB, {(hbm - own.compiled.memory.total) / GIB:.2f} free"
    else:
        assert own.refused is not None
        needs, room = own.refused.used / GIB, own.refused.usable / GIB
        fits = f"NO: {needs:.2f} GiB or more, {needs - room:.2f} too much"
    return {
        "per chip and step": plan.topology.name,
        "chips": str(plan.topology.chips),
        "batch size": str(plan.batch_size),
        "images a chip": str(plan.per_chip),
        "method": own.method + (f" (over {other.method})" if other else ""),
        "GiB parameters, statistics": memory("params"),
        "GiB optimizer state": memory("optimizer"),
        "GiB teacher": memory("teacher"),
        "GiB data": memory("data"),
        "GiB activations, temporary": memory("temporary"),
        "GiB in all": memory("total"),
        "the chip's memory": fits,
        "largest batch that fits": _largest(plan),
        "GFLOP": cell(lambda figures: figures.compiled.flops / 1e9, ".1f"),
        "GB to and from memory": cell(lambda figures: figures.compiled.bytes / 1e9, ".2f"),
        "collectives": cell(lambda figures: figures.compiled.collectives.count, "d"),
        "MB that go into them": cell(lambda figures: figures.compiled.collectives.operand_bytes / 1e6, ".2f"),
        "ms compute at peak": seconds("compute"),
        "ms memory": seconds("memory"),
        "ms interconnect": seconds("network"),
        "ms a step, at least": seconds("step"),
        "images a second, at most": cell(lambda figures: plan.batch_size / figures.bound.step, ".0f"),
        f"hours for {plan.epochs} epochs, at least": cell(lambda figures: figures.hours, ".2f"),
        "seconds to compile": "-" if own.compiled is None else f"{own.compiled.seconds:.0f}",
    }


def _largest(plan: Plan) -> str:
    if plan.largest is None:
        return "not searched"
    batch = plan.largest.per_chip * plan.topology.chips
    how = "compiled" if plan.largest.compiled else "estimated"
    return f"{batch} ({plan.largest.per_chip} a chip, {how})"


def _notes(plans: Sequence[Plan]) -> list[str]:
    notes = []
    for chip in {plan.topology.chip.name: plan.topology.chip for plan in plans}.values():
        notes.append(
            f"{chip.name}: {chip.flops / 1e12:.0f} TFLOP/s in bfloat16 (of a float32 network as well: by default its "
            f"products are taken in bfloat16), {chip.hbm_bytes / GIB:.0f} GiB at {chip.hbm_rate / 1e9:.0f} GB/s, links "
            f"{chip.link_rate / 1e9:.0f} GB/s each way"
        )
    notes.append(
        "ms a step = max(compute, memory) + interconnect; of S bytes all-reduced a chip sends 2 (n - 1) / n * S"
    )
    if any(plan.largest is not None for plan in plans):
        notes.append(
            "largest batch: searched for on each chip's first topology, on the line through two compiled sizes; "
            "'compiled' where a program of the size that was found was compiled, and fits"
        )
    return notes
