"""What a compiled program sends between chips, read from its text."""

import math
import re
from typing import NamedTuple

OPERATIONS = ("all-reduce", "reduce-scatter", "all-gather")
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "s4": 4, "u4": 4}  # others end with their bits
_DEFINITION = re.compile(r"^\s*(?:ROOT )?%(?P<name>\S+) = (?P<shape>.*?) (?P<operation>[a-z][a-z0-9-]*)\((?P<rest>.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")


class Collectives(NamedTuple):
    """The collective operations of one step.

    Attributes:
      count: how many there are; several arrays may share one.
      operand_bytes: of all that goes into them, on one chip.
      sent_bytes: that a chip sends for them in rings of all chips: of S bytes that go in, 2 (n - 1) / n * S for an
        all-reduce, (n - 1) / n * S for a reduce-scatter, (n - 1) * S for an all-gather, whose operand is one chip's
        share.
    """

    count: int
    operand_bytes: int
    sent_bytes: float


def read_collectives(text: str, chips: int) -> Collectives:
    """The collectives in a compiled module's text, each counted once; a loop's body is written, and counted, once.

    Args:
      text: what ``compiled.as_text()`` gives; an operand's shape is that of its definition.
      chips: n; every collective is taken to span all of them, as those of a single run do.
    """
    shapes: dict[str, str] = {}
    found = []
    for line in text.splitlines():
        match = _DEFINITION.match(_COMMENT.sub("", line))
        if match is None:
            continue
        shapes[match["name"]] = match["shape"]
        operation = match["operation"].removesuffix("-start")
        if operation in OPERATIONS:
            inside = match["rest"][: match["rest"].index(")")]
            found.append((operation, re.findall(r"%([^\s,)]+)", inside)))
    sent_of = {"all-reduce": 2 * (chips - 1) / chips, "reduce-scatter": (chips - 1) / chips, "all-gather": chips - 1}
    operand_bytes, sent_bytes = 0, 0.0
    for operation, operands in found:
        size = sum(shape_bytes(shapes[name]) for name in operands)
        operand_bytes += size
        sent_bytes += sent_of[operation] * size
    return Collectives(len(found), operand_bytes, sent_bytes)


def shape_bytes(shape: str) -> int:
    """Bytes of a shape as HLO writes it, a tuple's arrays together; the padding of tiles is left out."""
    bare = re.sub(r"\{[^{}]*\}", "", shape)  # layouts
    return sum(
        _bits(kind) * math.prod(int(side) for side in sides.split(",") if side) // 8
        for kind, sides in _ARRAY.findall(bare)
    )


def _bits(kind: str) -> int:
    if kind in _BITS:
        return _BITS[kind]
    return int(re.findall(r"\d+", kind)[0])
