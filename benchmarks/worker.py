"""A process that holds one contestant: python -m benchmarks.worker SPECIFICATION.

The specification is the JSON of `jax_spec` or `torch_spec`. When the first step is done a line of JSON says how many
seconds passed since the process began to import (`start`), and how many of them compilation took (`compile`; null for
PyTorch). Every line on stdin is a number of steps to take; a line on stdout answers with the seconds of one step, and
with the processor's seconds of all of them over all threads. When stdin closes, a last line has the largest resident
memory in bytes.
"""

import json
import os
import resource
import sys
import time

STARTED = time.perf_counter()
BATCH, CLASSES, SCALES = 64, 100, (1, 2, 4)
_OF_BOTH = {"keeps_memory": True, "batch": BATCH, "classes": CLASSES, "scales": SCALES}


def jax_spec(teacher, student, **changes):
    """A step of this project; `changes` are to `method` and the other fields here."""
    own = {"method": "sdd_kd", "cached": False, "seeds": 1, "chosen_libraries": True}
    return {"kind": "jax", "teacher": teacher, "student": student, **own, **_OF_BOTH, **changes}


def torch_spec(teacher, student, layout, **changes):
    """A step in plain PyTorch; `layout` is contiguous or channels_last."""
    return {"kind": "torch", "teacher": teacher, "student": student, "format": layout, **_OF_BOTH, **changes}


def contestant(spec):
    """`(step, compile_seconds)`, both functions without arguments."""
    if spec["keeps_memory"]:
        from sdd_jax.training.compiling import keep_freed_memory

        keep_freed_memory()
    if spec["kind"] == "torch":
        from benchmarks.plain_torch import torch_step

        return torch_step(spec), lambda: None

    import jax.monitoring

    from benchmarks.jax_step import jax_step

    seconds = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return jax_step(spec), lambda: sum(seconds)


def main():
    """Answers until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the answers

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    step, compile_seconds = contestant(json.loads(sys.argv[1]))
    step()
    answer(start=time.perf_counter() - STARTED, compile=compile_seconds())
    for line in sys.stdin:
        steps = int(line)
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        answer(seconds=(time.perf_counter() - began) / steps, cpu_seconds=time.process_time() - worked)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer(peak_bytes=1024 * kibibytes)


if __name__ == "__main__":
    main()
