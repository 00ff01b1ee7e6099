"""A process that holds contestants: python -m benchmarks.worker SPECIFICATION.

The specification is the JSON of `jax_spec` or `torch_spec`, or of `several` of one kind. When the first step is done a
line of JSON says how many seconds passed since the process began to import (`start`), and how many of them compilation
took (`compile`; null for PyTorch), and what else is known of each contestant (`about`; its `error` if it cannot run).
Every line on stdin is a number of steps to take, and which of several takes them; a line on stdout answers with the
seconds of one step, and with the processor's seconds of all of them over all threads. When stdin closes, a last line
has the largest resident memory in bytes.
"""

import json
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

STARTED = time.perf_counter()
BATCH, CLASSES, SCALES = 64, 100, (1, 2, 4)
_OF_BOTH = {
    **{"keeps_memory": True, "batch": BATCH, "classes": CLASSES, "scales": SCALES},
    **{"size": None, "dtype": "float32", "precision": None, "steps_per_call": 1},
}


def jax_spec(teacher, student, **changes):
    """A step of this project; `changes` are to `method` and the other fields here."""
    own = {"method": "sdd_kd", "cached": False, "on_device": False, "seeds": 1, "chosen_libraries": True}
    images = {"data": "cifar100", "examples": 2048, "epochs": 8}  # 256 steps of 64
    return {"kind": "jax", "teacher": teacher, "student": student, **own, **images, **_OF_BOTH, **changes}


def torch_spec(teacher, student, layout, **changes):
    """A step in plain PyTorch; `layout` is contiguous or channels_last."""
    own = {"format": layout, "compiled": False, "on_accelerator": False}
    return {"kind": "torch", "teacher": teacher, "student": student, **own, **_OF_BOTH, **changes}


def several(specs):
    """Contestants of one kind, {name: specification}, in one process; one that cannot run is left out, and said."""
    [kind] = {spec["kind"] for spec in specs.values()}
    return {"kind": kind, "keeps_memory": True, "of": specs}


def contestants(spec):
    """`({name: (call, wait, about)}, {name: error}, compile_seconds)`, the last a function without arguments."""
    if spec["keeps_memory"]:
        from sdd_jax.training.compiling import keep_freed_memory

        keep_freed_memory()
    if spec["kind"] == "torch":
        from benchmarks.plain_torch import torch_step as make

        seconds = None
    else:
        import jax.monitoring

        from benchmarks.jax_step import jax_step as make
        from sdd_jax.__main__ import keep_programs

        if "of" in spec:  # no start is timed, and contests share programs
            keep_programs()
        seconds = []

        def listen(event, duration, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                seconds.append(duration)

        jax.monitoring.register_event_duration_secs_listener(listen)

    def compile_seconds():
        return None if seconds is None else sum(seconds)

    def begin(made):
        call, wait, about = made()
        call()
        wait()
        return call, wait, about()

    if "of" not in spec:
        return {"": begin(partial(make, spec))}, {}, compile_seconds
    making = {name: partial(make, one) for name, one in spec["of"].items()}
    if spec["kind"] == "jax":  # programs are compiled beside each other, before the first of them runs
        with ThreadPoolExecutor(max(1, os.cpu_count() // 2)) as pool:
            making = {name: pool.submit(one).result for name, one in making.items()}
    found, errors = {}, {}
    for name, one in making.items():
        try:
            found[name] = begin(one)
        except Exception as error:  # it is told; the others are measured
            errors[name] = f"{type(error).__name__}: {error}"
    return found, errors, compile_seconds


def main():
    """Answers until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the answers

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    spec = json.loads(sys.argv[1])
    found, errors, compile_seconds = contestants(spec)
    told = {name: about for name, (_, _, about) in found.items()} | {name: {"error": of} for name, of in errors.items()}
    answer(start=time.perf_counter() - STARTED, compile=compile_seconds(), about=told)
    for line in sys.stdin:
        steps, _, name = line.rstrip("\n").partition(" ")
        call, wait, _ = found[name]
        size = spec.get("of", {"": spec})[name]["steps_per_call"]
        calls = -(-int(steps) // size)
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(calls):
            call()
        wait()
        seconds = (time.perf_counter() - began) / (calls * size)
        answer(seconds=seconds, cpu_seconds=time.process_time() - worked)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer(peak_bytes=1024 * kibibytes)


if __name__ == "__main__":
    main()
