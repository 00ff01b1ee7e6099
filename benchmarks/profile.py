"""Where the seconds of a training step go, by kinds of operations, beside plain PyTorch's: on one processor.

A process that is given one processor runs operation after operation, so that the seconds of each are its own:
python -m benchmarks.profile SPECIFICATION prints a line of JSON for one of `jax_spec` or `torch_spec`.
"""

import glob
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter

from benchmarks.pairs import PAIRS
from benchmarks.timing import ROOT
from benchmarks.worker import jax_spec, torch_spec
from experiments.command_line import table
from sdd_jax.training.compiling import keep_freed_memory

STEPS = 3
FORWARD, GRADIENTS, KERNELS, PRODUCTS = "convolutions", "their gradients", "kernels' gradients", "products"
NORM, TURNED, REDUCED, ELEMENTWISE = "batch normalisation", "copies, other layouts", "reductions", "elementwise"
KINDS = (FORWARD, GRADIENTS, KERNELS, PRODUCTS, NORM, TURNED, REDUCED, ELEMENTWISE)
OF_TORCH = {  # what an operation's name begins with
    "aten::mkldnn_convolution": FORWARD,
    "aten::convolution_backward": GRADIENTS,
    **dict.fromkeys(("aten::mm", "aten::addmm", "aten::bmm"), PRODUCTS),
    **dict.fromkeys(("aten::native_batch_norm", "aten::batch_norm"), NORM),
    **dict.fromkeys(("aten::copy_", "aten::cat", "aten::clone"), TURNED),
    **dict.fromkeys(("aten::sum", "aten::mean", "aten::linalg", "aten::_adaptive", "aten::max", "aten::avg"), REDUCED),
}
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?\S) ([a-z\-]+)\((.*)$", re.MULTILINE)
PLAIN = {"parameter", "bitcast", "copy", "reshape", "constant", "tuple", "get-tuple-element"}


def section():
    """Profiles every pair; lines of markdown."""
    rows = []
    for teacher, student, _ in PAIRS:
        contestants = {
            "PyTorch, channels last": torch_spec(teacher, student, "channels_last"),
            "SDD-KD": jax_spec(teacher, student),
            "SDD-KD, cached teacher": jax_spec(teacher, student, cached=True),
        }
        for name, spec in contestants.items():
            seconds = profiled(spec)
            rows.append([f"{teacher} -> {student}", name, f"{sum(seconds.values()):.3f}"])
            rows[-1] += [f"{seconds[kind]:.3f}" if kind in seconds else "" for kind in KINDS]
    return [
        "## Where a step's seconds go",
        "",
        f"Seconds of a step at batch {contestants['SDD-KD']['batch']} by kinds of operations, on one processor, of "
        f"{STEPS} steps. PyTorch does not tell the two gradients of a convolution apart. XLA counts a batch "
        "normalisation as products, reductions and elementwise passes; convolutions of one pixel and of groups are "
        "products here, and what takes their groups apart is under other layouts.",
        "",
        *table(("teacher -> student", "step", "all", *KINDS), rows),
    ]


def profiled(spec):
    """Seconds of a step by `spec`, `{kind: seconds}`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.profile", json.dumps(spec)]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def of_torch(spec):
    """`{kind: seconds}` of PyTorch's step."""
    import torch

    from benchmarks.plain_torch import torch_step

    torch.set_num_threads(1)
    call, _, _ = torch_step(spec)
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(STEPS):
            call()
    seconds = Counter()
    for event in profile.key_averages():
        kind = next((kind for name, kind in OF_TORCH.items() if event.key.startswith(name)), ELEMENTWISE)
        seconds[kind] += event.self_cpu_time_total / 1e6 / STEPS
    return seconds


def of_jax(spec):
    """`{kind: seconds}` of this project's step."""
    import jax

    from benchmarks.jax_step import compiled_step

    call, wait, _, compiled = compiled_step(spec)
    kinds = kinds_of(compiled.as_text())
    call()
    wait()
    with tempfile.TemporaryDirectory(prefix="benchmark_profile_") as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                call()
            wait()
        [path] = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        profile = jax.profiler.ProfileData.from_file(path)
    events = [event for plane in profile.planes for line in plane.lines for event in line.events]
    seconds, begun = Counter(), {}
    for event in sorted(events, key=lambda event: event.start_ns):
        name = event.name.removeprefix("end: ")
        if name == event.name:
            begun[name] = event.start_ns
        elif name in kinds and name in begun:
            seconds[kinds[name]] += (event.start_ns + event.duration_ns - begun.pop(name)) / 1e9 / STEPS
    return seconds


def kinds_of(program):
    """`{name: kind}` of the instructions of a compiled program, in XLA's text."""
    inside = {}
    for body in re.split(r"\n(?=\S)", program):
        if head := re.match(r"%?([\w.\-]+) \(", body):
            inside[head[1]] = {operation for _, _, operation, _ in LINE.findall(body)}
    found = {}
    for name, shape, operation, rest in LINE.findall(program):
        if operation in ("while", "call", "conditional"):
            continue  # what they run has lines of its own
        called = re.search(r"calls=%?([\w.\-]+)", rest)
        parts = inside[called[1]] if called else {operation}
        if "convolution" in parts:
            found[name] = of_convolution(shape, rest)
        elif "dot" in parts:
            found[name] = PRODUCTS
        elif parts & {"reduce", "reduce-window"}:
            found[name] = REDUCED
        else:
            found[name] = TURNED if parts <= PLAIN or parts & {"transpose", "concatenate"} else ELEMENTWISE
    return found


def of_convolution(shape, rest):
    """Whether a convolution is one of the network's, or the gradient of its input or of its kernel."""
    if int(shape.split(",")[1]) % 2:
        return KERNELS  # their sides are odd, and those of maps of 32x32 images are not
    return GRADIENTS if "transpose(" in rest else FORWARD


if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    given = json.loads(sys.argv[1])
    keep_freed_memory()  # as a run does, and before JAX starts
    print(json.dumps((of_torch if given["kind"] == "torch" else of_jax)(given)))
