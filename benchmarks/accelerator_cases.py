"""What `benchmarks.accelerator` measures, in the order of worth, and the functions that measure it.

Each case is a process of its own, so that one that fails costs the others nothing. A function that starts processes
itself asks for no device: one process may be all that a device takes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import run, timing
from benchmarks.worker import SCALES, jax_spec, torch_spec
from sdd_jax.configs.pairs import PAIRS

BESIDE = "Beside PyTorch"
# Arithmetic of a step, as the page calls it: its dtype, and how exact products of float32 are for JAX and PyTorch.
ARITHMETIC = {
    "default": ("float32", "default", "tf32"),
    "bfloat16": ("bfloat16", "default", "tf32"),
    "float32": ("float32", "highest", "ieee"),
}
FORMS = {"eager": ("contiguous", False), "channels last": ("channels_last", False), "compiled": ("channels_last", True)}
MAIN, LARGE = ("cifar100", "resnet32x4", "resnet8x4"), ("imagenet", "resnet34", "resnet18")
FAMILIES = [
    MAIN,
    ("cifar100", "vgg13", "vgg8"),
    ("cifar100", "wrn_40_2", "wrn_16_2"),
    ("cifar100", "resnet32x4", "shufflenet_v1"),
    ("cifar100", "resnet32x4", "shufflenet_v2"),
    ("cifar100", "resnet50", "mobilenet_v2"),
]
LARGE_FAMILIES = [LARGE, ("imagenet", "resnet50", "mobilenet_v1")]
GOLDEN_FAMILIES = ["cifar/resnet20", "cifar/wrn_16_2", "cifar/vgg8", "cifar/MobileNetV2", "cifar/ShuffleV1"]
GOLDEN_FAMILIES += ["cifar/ShuffleV2", "imagenet/ResNet18", "imagenet/MobileNetV2"]
GOLDEN_STEPS = [f"resnet20>resnet8/{of}" for of in ("SDD_KD/1-2-4", "SDD_DKD/1-2", "KD/1-2-4")]


class Case(NamedTuple):
    """One measurement, and the seconds that it needs at least on an accelerator; it is not begun with fewer."""

    part: str  # a heading of the page
    name: str
    needs: int
    measure: str  # module:function of benchmarks
    arguments: dict[str, Any]


class Plan(NamedTuple):
    """What the cases depend on."""

    small: bool
    torch: bool  # whether PyTorch is there, on the same device
    on_accelerator: bool
    data: str  # of configs/
    data_path: str | None
    workers: int  # processes that decode


def cases(plan):
    """All cases, the most worth first."""
    return small_cases(plan) if plan.small else full_cases(plan)


def full_cases(plan):
    """For an accelerator."""
    from benchmarks.golden import NETWORKS
    from benchmarks.right import CHAOTIC

    right, fast = "Right", "Fast"

    def first(*pairs, batch=64):
        return {"pairs": pairs, "batch": batch}

    def one(*pair, **changes):
        return spec(plan, *pair, **changes)

    killed = {"teacher": "resnet20", "student": "resnet8"}
    same_network = {"SDD-KD": one(*MAIN), "KD": one(*MAIN, method="kd"), "plain": one(*MAIN, method="plain")}
    cached = {"SDD-KD, cached": one(*MAIN, cached=True), "KD, cached": one(*MAIN, cached=True, method="kd")}
    calls = {f"{count} steps a call": one(*MAIN, steps_per_call=count) for count in (50, 10, 1)}
    batches = {f"batch {batch}": one(*MAIN, batch=batch) for batch in (64, 128, 256, 512, 1024)}
    large = {f"batch {batch}": one(*LARGE, "bfloat16", batch=batch) for batch in (64, 256, 1024)}
    photographs = {"workers": plan.workers, "steps": 256, "count": 3}
    return [
        Case(right, "losses and poolings", 20, "right:losses", {}),
        Case(right, "five training steps", 30, "right:steps", {"rows": GOLDEN_STEPS}),
        Case(right, "networks", 30, "right:networks", {"names": GOLDEN_FAMILIES}),
        Case(right, "killed, as it comes", 30, "right:resumed", {**killed, "variant": "as it comes"}),
        Case(right, "killed, deterministic", 30, "right:resumed", {**killed, "variant": "deterministic"}),
        Case(right, "first steps", 40, "right:beside_cpu", first(*FAMILIES[:2])),
        beside(plan, *MAIN, needs=100),
        contest(plan, fast, "method and teacher", 50, {**same_network, **cached}),
        beside(plan, *LARGE, needs=100),
        *(seeds_case(plan, student, 4, 40) for student in ("resnet8x4", "resnet20")),
        real_run(plan, needs=100),
        Case("Input", "JPEG", 30, "accelerator_cases:photographs", photographs),
        contest(plan, fast, "steps a call", 40, calls),
        contest(plan, fast, "batch", 60, batches),
        Case(fast, "start", 60, "accelerator_cases:start", {"spec": one(*MAIN)}),
        contest(plan, fast, "batch, resnet34 -> resnet18 in bfloat16", 60, large),
        *(seeds_case(plan, student, count, 60) for count in (2, 8, 16) for student in ("resnet8x4", "resnet20")),
        *(beside(plan, *pair, needs=100) for pair in FAMILIES[1:]),
        Case(right, "killed, compiled anew", 40, "right:resumed", {**killed, "variant": "compiled anew"}),
        Case(right, "more first steps", 60, "right:beside_cpu", first(*FAMILIES[2:])),
        Case(right, "first steps at 224", 60, "right:beside_cpu", first(*LARGE_FAMILIES, batch=8)),
        Case(right, "five chaotic steps", 30, "right:steps", {"rows": [CHAOTIC]}),
        Case(right, "more networks", 60, "right:networks", {"names": sorted(NETWORKS.keys() - GOLDEN_FAMILIES)}),
    ]


def small_cases(plan):
    """Each of them in a form that a CPU takes: it shows that the program works, its numbers say nothing."""
    pair = ("cifar100", "resnet8", "resnet8")
    main, kd = spec(plan, *pair), spec(plan, *pair, method="kd", cached=True)
    large = ("imagenet", "resnet18", "resnet18")
    return [
        Case("Right", "losses and poolings", 0, "right:losses", {}),
        Case("Right", "five training steps", 0, "right:steps", {"rows": GOLDEN_STEPS[-1:]}),
        Case("Right", "networks", 0, "right:networks", {"names": ["cifar/vgg8"]}),
        Case(
            "Right",
            "killed",
            0,
            "right:resumed",
            {**dict(zip(("teacher", "student"), pair[1:], strict=True)), "variant": "deterministic"},
        ),
        Case("Right", "first steps", 0, "right:beside_cpu", {"pairs": [pair], "batch": 8}),
        beside(plan, *pair, needs=0),
        beside(plan, *large, needs=0),
        contest(plan, "Fast", "method and teacher", 0, {"SDD-KD": main, "KD, cached": kd}),
        Case("Fast", "start", 0, "accelerator_cases:start", {"spec": main}),
        seeds_case(plan, "resnet8", 2, 0),
        real_run(plan, needs=0),
        Case("Input", "JPEG", 0, "accelerator_cases:photographs", {"workers": 2, "steps": 4, "count": 2}),
    ]


def spec(plan, data, teacher, student, arithmetic="default", **changes):
    """A step of this project, 50 to a call, with the teacher's rows on the device where it is cached."""
    dtype, precision, _ = ARITHMETIC[arithmetic]
    known = PAIRS[data].get((teacher, student))
    options = {"data": data, "scales": known.scales if known else SCALES, "dtype": dtype, "precision": precision}
    options |= {"steps_per_call": 50, "on_device": True, "examples": 50_000, "epochs": 1000}
    if data == "imagenet":
        options |= {"classes": 1000, "examples": 2048}
    if plan.small:
        options |= {"steps_per_call": 1, "examples": 64, "epochs": 4, "batch": 8, "size": 32, "classes": 10}
    elif changes.get("cached"):
        options |= {"examples": 2048, "epochs": 2 * max(1, changes.get("batch", 64) // 64)}
    return jax_spec(teacher, student, **{**options, **changes}) | {"arithmetic": arithmetic}


def contest(plan, part, name, needs, specs):
    """Steps in turns."""
    rounds = {"rounds": 2, "turn_seconds": 0.1} if plan.small else {"rounds": 5, "turn_seconds": 0.5}
    return Case(part, name, needs, "accelerator_cases:in_turns", {"specs": specs, **rounds})


def beside(plan, data, teacher, student, needs):
    """A pair in every arithmetic, and plain PyTorch's steps of the same networks."""
    arithmetics = ("default",) if plan.small else ARITHMETIC
    specs = {f"ours, {name}": spec(plan, data, teacher, student, name) for name in arithmetics}
    for arithmetic in arithmetics if plan.torch and has_twin(teacher, student) else ():
        dtype, _, precision = ARITHMETIC[arithmetic]
        forms = {"default": ("eager", "channels last") if plan.small else FORMS, "bfloat16": list(FORMS)[1:]}
        for form in forms.get(arithmetic, ["channels last"]):
            layout, compiled = FORMS[form]
            same = {name: specs[f"ours, {arithmetic}"][name] for name in ("batch", "classes", "scales", "size")}
            same["size"] = same["size"] or (224 if data == "imagenet" else 32)
            options = {"dtype": dtype, "precision": precision, "compiled": compiled, **same}
            options |= {"on_accelerator": plan.on_accelerator, "arithmetic": arithmetic}
            specs[f"PyTorch {form}, {arithmetic}"] = torch_spec(teacher, student, layout, **options)
    return contest(plan, BESIDE, f"{teacher} -> {student}", needs, specs)


def has_twin(*networks):
    """Whether plain PyTorch has these networks here; only where PyTorch is."""
    from benchmarks.torch_networks import NETWORKS

    return all(name in NETWORKS for name in networks)


def seeds_case(plan, student, count, needs):
    """So many seeds in one program, and one."""
    teacher = {"resnet8x4": "resnet32x4", "resnet20": "resnet56"}.get(student, student)
    one = spec(plan, "cifar100", teacher, student, cached=True)
    specs = {f"{seeds} seeds": one | {"seeds": seeds} for seeds in (1, count)}
    return contest(plan, "Seeds together", f"{student}, {count} seeds", needs, specs)


def in_turns(specs, rounds, turn_seconds):
    """Seconds of a step of each, round by round, and what is known of it."""
    seconds, about = timing.contest_in_few(specs, rounds, turn_seconds)
    return {"seconds": seconds, "about": about, "specs": specs}


def start(spec):
    """From the start of a process to its first step, cold and with kept programs."""
    from benchmarks.cost import starts

    return {"starts": starts(spec)}


def real_run(plan, needs):
    """Teacher, KD and SDD-KD, for as many epochs as two minutes take."""
    networks = ("resnet14", "resnet8") if plan.small else ("resnet32x4", "resnet8x4")
    argument = f"data={plan.data},teacher={networks[0]},student={networks[1]}"
    options = {"argument": argument, "path": plan.data_path, "seconds": 10 if plan.small else 120, "left": 0.0}
    return Case("A real run", f"{plan.data}, {networks[0]} -> {networks[1]}", needs, "accelerator_cases:train", options)


def train(argument, path, seconds, left):
    """`sdd train`, first for an epoch of the teacher, which says how many the rest may have."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark_run_") as folder:

        def take(epochs, name, runs):
            config = f"benchmarks/real_run.py:{argument},epochs={epochs},runs={runs.replace(',', '+')}"
            command = [sys.executable, "-m", "sdd_jax", "train", f"--config={config}", f"--workdir={folder}/{name}"]
            if path:
                command += [f"--config.runs.{one}.data.path={path}" for one in runs.split(",")]
            subprocess.run(command, stdout=sys.stderr, check=True)
            return [Path(folder, name, one) for one in runs.split(",")]

        [tried] = take(1, "tried", "teacher")
        rates = [json.loads(line).get("images_per_second") for line in (tried / "metrics.jsonl").open()]
        rate = [rate for rate in rates if rate][-1]
        examples = json.loads((tried / "done.json").read_text())["train_examples"]
        started = time.monotonic() - began  # the start of a program, compilation and an epoch: each run's at most
        seconds = min(seconds, left - 4 * started - 10)
        epochs = max(1, int(seconds / 3 * rate / examples))
        folders = take(epochs, "run", "teacher,kd,sdd_kd")
        done = {one.name: json.loads((one / "done.json").read_text()) for one in folders}
    results = {name: {"accuracy": of["last"]["accuracy"], "seconds": of["seconds"]} for name, of in done.items()}
    return {"runs": results, "epochs": epochs, "images_per_second": rate, "examples": examples}


def photographs(workers, steps, count):
    """Images per second of the pipeline from JPEG files to the device, round by round."""
    from benchmarks import images

    with tempfile.TemporaryDirectory(prefix="benchmark_images_") as folder:
        images.write_photographs(Path(folder))
        [seconds] = images.rounds(images.ours(Path(folder), workers), steps=steps, count=count)
    return {"workers": workers, "rates": [steps * images.BATCH / of for of in seconds]}


def environment():
    """Device, versions, and the operations a second of a large product of matrices in each arithmetic."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    size = 1024 if device.platform == "cpu" else 8192
    peaks = {}
    for name, (dtype, precision, _) in ARITHMETIC.items():
        product = jax.jit(lambda x, precision=precision: jnp.matmul(x, x, precision=precision) / size)
        x = jax.block_until_ready(product(jnp.ones((size, size), dtype)))
        seconds = []
        for _ in range(5):
            began, y = time.perf_counter(), x
            for _ in range(4):
                y = product(y)
            jax.block_until_ready(y)
            seconds.append((time.perf_counter() - began) / 4)
        peaks[name] = 2 * size**3 / min(seconds)
    found = {"platform": device.platform, "device": device.device_kind, "devices": jax.device_count()}
    return {
        **found,
        "machine": run.described(),
        "cores": os.cpu_count(),
        "peaks": peaks,
        "versions": run.versions(),
    } | {
        "commit": run.commit_here(),
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
    }


def torch_missing(platform):
    """Why PyTorch has no contestants beside JAX on `platform`; None if it has."""
    if "torch" not in run.versions():
        return "PyTorch is not installed"
    if platform == "cpu":
        return None
    import torch

    return None if torch.accelerator.is_available() else "PyTorch finds no accelerator"
