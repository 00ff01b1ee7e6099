"""Measures on one GPU or TPU whether this project is right there, how fast it is, and what a run of minutes reaches.

python -m benchmarks.accelerator --output=DIR
python -m benchmarks.accelerator --output=DIR --small

What is worth most comes first. Each measurement is a line of DIR/measured.jsonl as soon as it ends, and DIR/page.md is
written after each. The same command goes on where it was stopped, or where its minutes ended; what failed is tried
again. --small is a form for CPUs that shows that the program works. How to take it to a machine without a network:
docs/accelerator.md.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.accelerator_cases import Plan, cases, torch_missing
from benchmarks.accelerator_page import page
from experiments.command_line import Parser, guarded, refuse
from sdd_jax.files import read_json, read_lines, write_json, write_whole

ROOT = Path(__file__).parents[1]
PROGRAM = "benchmarks.accelerator"
LINES, PAGE, ENVIRONMENT = "measured.jsonl", "page.md", "environment.json"
MINUTES = 8.75
QUICK = "--xla_backend_optimization_level=0"
SAME = ("platform", "device", "devices", "versions", "commit", "form", "data")  # of all measurements in a folder


def main(arguments):
    """Measures what the folder lacks, as far as the minutes go."""
    parser = Parser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder; it goes on with one")
    parser.add_argument("--small", action="store_true", help="a short form for CPUs")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"how long, in all; default {MINUTES}")
    parser.add_argument("--data", help="a config of configs/ for the real run; default fashion_mnist, small digits")
    parser.add_argument("--data_path", metavar="DIR", help="the folder of its files")
    options = parser.parse_args(arguments)
    deadline = time.time() + 60 * options.minutes
    data = options.data or ("digits" if options.small else "fashion_mnist")
    if data != "digits" and not (ROOT / "configs" / f"{data}.py").exists():
        refuse(PROGRAM, f"--data={data}: there is no configs/{data}.py")
    with guarded(PROGRAM), contextlib.ExitStack() as stack:
        options.output.mkdir(parents=True, exist_ok=True)
        # A terminated program ends its processes as an interrupted one does.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        if options.small:  # most of its time would go into compiling
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
        os.environ["TMPDIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="accelerator_"))
        found = look(options.output, {"form": "small" if options.small else "full", "data": data}, deadline)
        on_accelerator = found["platform"] != "cpu"
        path = options.data_path and str(Path(options.data_path).absolute())
        plan = Plan(options.small, found["torch"] is None, on_accelerator, data, path, min(16, found["cores"]))
        measure(options.output, found, cases(plan), deadline)
        print(options.output / PAGE)


def look(folder, chosen, deadline):
    """The environment, as a process of its own finds it; `ValueError` if the folder is of another one."""
    asked = {"measure": "accelerator_cases:environment", "arguments": {}}
    line = in_process(asked, deadline) or {"error": "the minutes were over before it answered"}
    if "result" not in line:
        raise ValueError(f"JAX does not compute here: {line['error']}")
    found = {**line["result"], **chosen}
    found["torch"] = torch_missing(found["platform"])
    path = folder / ENVIRONMENT
    if path.exists():
        before = read_json(path)
        for name in SAME:
            if before.get(name) != found[name]:
                got = f"{name} {before.get(name)!r}, this is {found[name]!r}"
                raise ValueError(f"{folder} has measurements of {got}: give another --output")
        return before
    write_json(path, found)
    return found


def measure(folder, found, todo, deadline, measure_one=None):
    """Measures the cases that the folder lacks, and writes its lines and its page after each."""
    path, lines, skipped = folder / LINES, [], []
    if path.exists():
        lines = read_lines(path)
    done = {(line["part"], line["name"]) for line in lines if "result" in line}
    for number, case in enumerate(todo, start=1):
        key = (case.part, case.name)
        if key in done:
            continue
        if time.time() + case.needs >= deadline:
            skipped.append(key)
            continue
        print(f"[{number}/{len(todo)}] {case.part}: {case.name}", flush=True)
        began = time.time()
        line = (measure_one or in_process)(case._asdict(), deadline)
        if line is None:  # its time was over
            skipped.append(key)
            continue
        lines = [one for one in lines if (one["part"], one["name"]) != key]
        lines.append({"part": case.part, "name": case.name, "seconds": round(time.time() - began, 1), **line})
        write_whole(path, "".join(json.dumps(one) + "\n" for one in lines).encode())
        write_whole(folder / PAGE, page(found, lines, []).encode())
    write_whole(folder / PAGE, page(found, lines, skipped).encode())


def in_process(case, deadline):
    """`{"result": ...}` of a case, measured in a process of its own, or its `error`; None if the time is over."""
    call = {"measure": case["measure"], "arguments": case["arguments"]}
    if "left" in call["arguments"]:
        call["arguments"] = {**call["arguments"], "left": deadline - time.time()}
    # The processes of a contest share the device: JAX takes memory as it needs it.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    command = [sys.executable, "-m", PROGRAM, "--case", json.dumps(call)]
    options = {"cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryFile("w+") as errors:
        # A session of its own, so that all that it starts ends with it.
        with subprocess.Popen(command, stderr=errors, start_new_session=True, **options) as process:
            try:
                told, _ = process.communicate(timeout=max(deadline - time.time(), 1))
            except subprocess.TimeoutExpired:
                return None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == 0:
            return {"result": json.loads(told)}
        errors.seek(0)
        last = [line for line in errors.read().splitlines() if line.strip()][-1:]
        return {"error": f"ended with {process.returncode}: {' '.join(last)}"}


def take(call):
    """Measures one case and prints its result, in the process that is its own."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between
    module, _, name = call["measure"].partition(":")
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    print(json.dumps(function(**call["arguments"])), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        take(json.loads(sys.argv[2]))
    else:
        main(sys.argv[1:])
