"""Which accelerators are here, and the environment that gives a process its share of them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

# A process of its own looks, so that the runner holds no device. A TPU chip may hold two devices: chips are shared out.
LOOK = """
import jax, json
devices = jax.local_devices()
chips = {tuple(getattr(device, "coords", ())) for device in devices}
count = len(chips) if devices[0].platform == "tpu" else len(devices)
print(json.dumps([devices[0].platform, devices[0].device_kind, count]))
"""
VISIBLE = {"gpu": "CUDA_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_CHIPS"}


class Found(NamedTuple):
    """The accelerators of this machine."""

    platform: str  # cpu, gpu or tpu
    kind: str
    count: int


def look() -> Found:
    """What JAX sees; ``RuntimeError`` with its own words if it does not start."""
    result = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"JAX does not start: {result.stderr.strip().splitlines()[-1]}")
    return Found(*json.loads(result.stdout.splitlines()[-1]))


def shares(found: Found, jobs: int | None, environment: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """What each of ``jobs`` processes at a time adds to its environment.

    Without ``jobs`` that is one for each device, and one on CPU. Fewer jobs than GPUs share them out evenly; one job on
    TPU has every chip.

    Raises:
      ValueError: for more jobs than devices, or a number that does not share them out evenly.
    """
    if found.platform not in VISIBLE:
        return [{} for _ in range(jobs or 1)]
    jobs = jobs or found.count
    if jobs == 1:
        return [{}]
    if found.count % jobs or (found.platform == "tpu" and jobs != found.count):
        known = "1 or one for each" if found.platform == "tpu" else "a number that divides them"
        raise ValueError(f"--jobs={jobs} on {found.count} x {found.kind}: expected {known}")
    name, size = VISIBLE[found.platform], found.count // jobs
    visible = environment[name].split(",") if environment.get(name) else [str(n) for n in range(found.count)]
    parts = [",".join(visible[start : start + size]) for start in range(0, found.count, size)]
    # A TPU process that has one chip is told that its part of the machine is one chip wide.
    bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    return [{name: part, **(bounds if found.platform == "tpu" else {})} for part in parts]
