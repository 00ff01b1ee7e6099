"""The runner on a table of seconds: `python run_tiny_table.py RESULTS ARGUMENT...`, a process that tests can kill."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from experiments import run  # noqa: E402
from experiments.cells import compare, known  # noqa: E402

SHORT = (("data.name", "digits"), ("epochs", 2), ("batch_size", 16))
TINY = compare(
    "tiny",
    "Digits",
    "row | RN8 -> RN8",
    source="the tests",
    file="fashion_mnist",
    rows=known("teacher", "FitNet", "SD-KD"),
    overrides=(*SHORT, ("data.train_examples", 64)),
    teacher_overrides=(*SHORT, ("data.train_examples", 96)),
)
SLEEP = "import os, pathlib, sys, time; pathlib.Path('started').write_text(str(os.getpid())); time.sleep(100)"

if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    if arguments[0] == "--sleep":
        run.COMMAND = (sys.executable, "-c", SLEEP)
        arguments = arguments[1:]
    sys.exit(run.main(arguments, {"tiny": TINY}, Path(folder)))
