"""Prints everything that is measured, as markdown.

python -m benchmarks.run --output=cpu.md
python -m benchmarks.run --only=pairs,loss
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from benchmarks import cost, images, pairs, profile, stems
from experiments.command_line import Parser, refuse
from sdd_jax.training.run_dir import commit

SECTIONS = {
    "pairs": pairs.section,
    "loss": cost.loss_section,
    "methods": cost.methods_section,
    "memory": cost.memory_section,
    "start": cost.start_section,
    "seeds": cost.seeds_section,
    "profile": profile.section,
    "libraries": cost.libraries_section,
    "allocator": cost.allocator_section,
    "images": images.section,
    "stems": stems.section,
}
PACKED = "commit.txt"
PACKAGES = ("jax", "jaxlib", "flax", "torch")


def header():
    """The head of a page of benchmarks."""
    return ["# Benchmarks", "", *described()]


def described():
    """Where and with what this was measured, as lines of markdown."""
    return [
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"- commit {commit_here()}",
        f"- Python {platform.python_version()}, {', '.join(map(' '.join, versions().items()))}",
        f"- {processor()}, {len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f} at the beginning",
    ]


def versions():
    """`{name: version}` of the packages that matter, those that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit_here():
    """The commit of this checkout, or the one that `benchmarks.travel` packed; None if nobody knows."""
    packed = Path(__file__).parents[1] / PACKED
    return commit() or (packed.read_text().strip() if packed.exists() else None)


def processor():
    """The processor's name."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def chosen_sections(only):
    """The names in `only`."""
    chosen = only.split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}: there are {', '.join(SECTIONS)}")
    return chosen


def main(arguments):
    """Prints section after section; the file has what was printed so far. 1 if one of them could not be measured."""
    parser = Parser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sections = f"some of {', '.join(SECTIONS)}; default all"
    parser.add_argument("--only", type=chosen_sections, default=list(SECTIONS), metavar="SECTION,...", help=sections)
    parser.add_argument("--output", type=Path, metavar="FILE", help="gets what is printed, section by section")
    options = parser.parse_args(arguments)
    if options.output and (options.output.is_dir() or not options.output.absolute().parent.is_dir()):
        refuse("benchmarks.run", f"--output={options.output} must name a file in a folder that is there")
    text, failed = "", False
    for name, section in {"header": header, **{name: SECTIONS[name] for name in options.only}}.items():
        try:
            lines = section()
        except Exception as error:  # such as PyTorch that is not there: the others are measured
            failed, said = True, str(error).strip().splitlines() or [""]
            lines = [f"## {name}", "", f"Not measured: {type(error).__name__}: {said[-1]}"]
        part = "\n".join(lines) + "\n"
        print(part, flush=True)
        text += ("\n" if text else "") + part
        if options.output:
            options.output.write_text(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
