"""Whether a device computes what it should: golden numbers, first steps beside the CPU's, a run that is killed.

Each function returns rows `(what, precision, error, tolerance)`; errors are relative to the largest value, tolerances
None where the number is only told. Precisions are JAX's names (`jax.default_matmul_precision`): "highest" is float32,
"default" what the device does with products of float32 if nobody asks: TF32 or bfloat16 with sums in float32.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

PRECISIONS = ("highest", "default")
# Of float32, ten times and more what a CPU shows. Of "default" as much as bfloat16 throughout, which rounds more than
# any default, and shows 1e-2 in logits and 2e-3 in steps. Losses and poolings hold no product that it rounds.
EXACT = 1e-5
TOLERANCES = {"networks": {"highest": 1e-4, "default": 2e-2}, "step": {"highest": 1e-4, "default": 2e-2}}
CHAOTIC = (
    "resnet20>MobileNetV2/SDD_NKD/1-2-4"  # rounding grows a hundredfold a step in it: tests/test_training_golden.py
)
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # XLA has it for GPUs alone, and other devices take no notice
RUN = {"batch": 64, "examples": 2048, "epochs": 2, "steps_per_call": 10}  # 64 steps, saved after 32
ON_CPU = {"batch": 8, "examples": 256, "steps_per_call": 1}  # as many
SAVED_AT, KILLED_AT = 32, 50


def each_precision(measure, names):
    """Rows of `measure(name, precision) -> rows`, with programs compiled beside each other."""

    def one(name, precision):
        with jax.default_matmul_precision(precision):
            return measure(name, precision)

    precisions = PRECISIONS[:1] if jax.default_backend() == "cpu" else PRECISIONS  # a CPU has float32 alone
    with ThreadPoolExecutor(max(1, os.cpu_count() // 2)) as pool:
        asked = [pool.submit(one, name, precision) for name in names for precision in precisions]
        return [row for future in asked for row in future.result()]


def losses():
    """Base losses, losses over regions and poolings, of all golden cases."""
    from benchmarks import golden

    def measure(_, precision):
        for name, errors in golden.loss_errors().items():
            for what, error in zip(("value", "gradient"), np.max(errors, axis=0), strict=True):
                yield f"{name} loss, {what}", precision, float(error), EXACT
        yield "poolings", precision, max(golden.pooling_errors().values()), EXACT

    return each_precision(lambda *of: list(measure(*of)), [None])


def networks(names):
    """Logits and regions of golden networks in evaluation."""
    from benchmarks import golden

    def measure(name, precision):
        error = float(max(golden.network_errors(name, "float32")))
        return [(f"{name}, logits and regions", precision, error, TOLERANCES["networks"][precision])]

    return each_precision(measure, names)


def steps(rows):
    """Losses and gradient norms of five golden steps."""
    from benchmarks import golden

    def measure(row, precision):
        measured, logits, _ = golden.five_steps(row, "float32")
        errors = np.abs(measured / golden.TRAINING[f"{row}/losses"] - 1)
        after = golden.relative_error(logits, golden.TRAINING[f"{row}/eval_logits"])
        bound = None if row == CHAOTIC else TOLERANCES["step"][precision]
        for what, error, limit in (
            ("losses of step 1", errors[0, :2].max(), TOLERANCES["step"][precision]),
            ("gradient norm of step 1", errors[0, 2], bound),
            ("losses and norms of step 5", errors[-1].max(), bound),
            ("logits after it", after, bound),
        ):
            yield f"{row}, {what}", precision, float(error), limit

    return each_precision(lambda *of: list(measure(*of)), rows)


def beside_cpu(pairs, batch):
    """Loss and gradient of the first step, `(data, teacher, student)`, beside the same step in float32 on the CPU."""
    from benchmarks.arithmetic import differences, drawn, parts_of, take_step
    from sdd_jax.training.compiling import cpu_options

    options = cpu_options() if jax.default_backend() == "cpu" else None
    parts, values, right = {}, {}, {}
    with jax.default_device(jax.devices("cpu")[0]):
        for data, teacher, student in pairs:
            argument = f"teacher={teacher},student={student},method=sdd_kd"
            name = f"{data}: {teacher} -> {student}"
            parts[name], info = parts_of(data, argument, "float32")
            values[name] = drawn(parts[name], info, batch)
            right[name] = take_step(parts[name], values[name], "float32", cpu_options())

    def measure(name, precision):
        found = differences(take_step(parts[name], values[name], "float32", options), right[name])
        told = zip(("loss", "gradient's norm", "largest entry"), found, strict=True)
        return [(f"{name}, {what}", precision, float(error), None) for what, error in told]

    return each_precision(measure, parts)


def resumed(teacher, student, variant):
    """How far a run that was killed and went on is from one that was not, and a second one from the first.

    `variant` is "as it comes", "deterministic" (XLA's flag) or "compiled anew" (no compiled program is kept).
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC if variant == 'deterministic' else ''}".strip()
    environment = {**os.environ, "XLA_FLAGS": flags}
    if variant == "compiled anew":
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    with tempfile.TemporaryDirectory(prefix="benchmark_resumed_") as folder:
        command = [sys.executable, "-m", "benchmarks.right", teacher, student, folder]
        codes = [subprocess.run(command, env=environment, stdout=sys.stderr).returncode for _ in range(2)]
        if codes != [-signal.SIGKILL, 0]:
            raise RuntimeError(f"the run that is killed, and the one that goes on, ended with {codes}")
        whole, again, after = (np.load(Path(folder, f"{name}.npz")) for name in ("whole", "again", "killed"))
    name = f"{teacher} -> {student}, {variant}"
    pairs = {"the same run again": again, f"killed at step {KILLED_AT}, resumed from {SAVED_AT}": after}
    return [(f"{name}: {what}", "default", distance(whole, one), None) for what, one in pairs.items()]


def distance(one, other):
    """The largest difference of an entry, relative to the largest of its tensor; 0 is bit for bit."""
    largest = 0.0
    for name in one:
        if one[name].tobytes() != other[name].tobytes():
            largest = max(largest, float(np.max(np.abs(one[name] - other[name])) / np.max(np.abs(one[name]))))
    return largest


def train(teacher, student, folder):
    """Trains twice in one process, and a third time, which kills the process; started again, that one goes on."""
    from benchmarks.jax_step import prepare
    from benchmarks.worker import jax_spec
    from sdd_jax.__main__ import keep_programs
    from sdd_jax.sealed import MANIFEST
    from sdd_jax.training import loop

    keep_programs()
    options = RUN | (ON_CPU if jax.default_backend() == "cpu" else {})
    [built] = prepare(jax_spec(teacher, student, **options))
    begun = Path(folder, "whole.npz").exists()

    def die(step):
        if step >= KILLED_AT and not begun:
            while not Path(folder, "killed", "checkpoints", f"{SAVED_AT:08}", MANIFEST).exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ["killed"] if begun else ["whole", "again", "killed"]:
        state = loop.train(built, Path(folder, name), should_stop=die if name == "killed" else lambda step: None)
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get((state.params, state.batch_stats)))[0]
        np.savez(Path(folder, f"{name}.npz"), **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})


if __name__ == "__main__":
    train(*sys.argv[1:])
