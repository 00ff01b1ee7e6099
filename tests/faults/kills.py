"""Kills real runs and commands with SIGKILL, starts them again, and holds their end against uninterrupted ones'.

    python -m tests.faults.kills --kills=25
    python -m tests.faults.kills --kills=25 --kinds=cache,report,table,onnx --epochs=2

Kinds of run: a student by SDD-KD, one by SDD-DKD and ReviewKD with AdamW, a moving average and mixed images, the first
with two seeds together, the same from a cache whose filling is killed as well, and images on disk read by a worker
process. Kinds of other commands: the filling of a cache, a report, the runner of a table, and the export to ONNX. A
kill falls at a random time, or while a checkpoint, an evaluation or a file is under way; commands that are no runs
write as to a slow disk, which makes that moment longer. Asserted of each: the parameters of a run, the bytes of a
cache, of a report and of an exported file, and the result lines of a table (but for times) are the uninterrupted one's;
each start of a run goes on from a step no more than one checkpoint interval behind what was reached before; nothing has
to be cleared away by hand.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments import results
from sdd_jax import saved
from sdd_jax.fields import SAVED
from sdd_jax.training.logbook import read_metrics
from sdd_jax.training.teacher import variables_hash

ROOT = Path(__file__).parents[2]
QUICK = "--config=configs/quickstart.py:run="
RECIPE = [f"--config.{field}" for field in ("optim.optimizer=adamw", "optim.learning_rate=0.001")]
RECIPE += [f"--config.{field}" for field in ("optim.ema_decay=0.9", "data.mixup=0.8", "data.cutmix=1.0")]
MOMENTS = ("checkpoint", "evaluation", "any time")
PROGRAM = ["-m", "sdd_jax"]
SLOWLY = [
    "-c",
    "import os, time, sdd_jax.__main__, sdd_jax.training.teacher_cache as cache\n"
    "at_once, cache.SHARD_BYTES = os.fsync, 2**18\n"
    "os.fsync = lambda file: (time.sleep(0.1), at_once(file))\n"
    "sdd_jax.__main__.main()",
]
TIMED = ("seconds", "images_per_second", "starts", "started", "commit", results.SEAL)  # of a result line
STEPS_AN_EPOCH = 4  # the most, of the runs here


class Kind(NamedTuple):
    """What is killed: the commands of one result, each until it ends well."""

    name: str
    commands: list[list[str]]
    folders: list[Path]  # of runs, whose ends are compared
    ends: Callable[[], Any]  # what is compared


def kinds(folder: Path, teacher: Path, images: Path, epochs: int) -> dict[str, Kind]:
    """Every kind of run and command, with its folders below ``folder``."""
    student = [f"{QUICK}sdd_kd", f"--config.teacher.run={teacher}", f"--config.epochs={epochs}"]
    student += ["--config.eval_every_epochs=1", "--config.save_every_epochs=1"]
    recipe = ["--config=configs/quickstart.py:method=sdd_dkd+reviewkd", *student[1:], *RECIPE]
    disk = ["--config=configs/image_folder.py:teacher=none,student=resnet8", f"--config.data.path={images}"]
    disk += ["--config.data.image_size=32", "--config.data.workers=1", f"--config.epochs={max(epochs // 4, 2)}"]
    disk += ["--config.batch_size=16", "--config.model.stem=cifar", "--config.data.in_memory=false"]
    run, cache = folder / "run", folder / "cache"
    cached = [*student, f"--config.teacher.cache={cache}", f"--workdir={run}"]
    filling = ["cache", *student, f"--workdir={cache}"]
    runs = {
        "student": [["train", *student, f"--workdir={run}"]],
        "recipe": [["train", *recipe, f"--workdir={run}"]],
        "two seeds": [["train", *student, "--config.seeds=0,1", f"--workdir={run}"]],
        "cached": [filling, ["train", *cached]],
        "disk": [["train", *disk, f"--workdir={run}"]],
    }
    others = {
        "cache": ([*SLOWLY, *filling], lambda: digests(cache)),
        "report": ([*SLOWLY, "report", str(teacher), f"--output={folder}/page"], lambda: digests(folder / "page")),
        "table": (
            ["tests/run_tiny_table.py", f"{folder}/results", "tiny", f"--workdir={folder}/runs"],
            lambda: lines(folder / "results" / "tiny.jsonl"),
        ),
        "onnx": (
            [*SLOWLY, "export", f"--workdir={teacher}", "--format=onnx", f"--output={folder}/out.onnx"],
            lambda: digests(folder)["out.onnx"],
        ),
    }
    found = {}
    for name, commands in runs.items():
        folders = [run / "seed_0", run / "seed_1"] if name == "two seeds" else [run]
        found[name] = Kind(name, [[*PROGRAM, *one] for one in commands], folders, lambda folders=folders: ends(folders))
    return found | {name: Kind(name, [command], [], end) for name, (command, end) in others.items()}


def start(command: list[str], log: Path) -> subprocess.Popen:
    """The command as a process of its own, its output at the end of ``log``."""
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(command: list[str], log: Path) -> None:
    """Runs the command to its end."""
    log.write_text("")
    check_ended(start(command, log), command, log)


def check_ended(process: subprocess.Popen, command: list[str], log: Path) -> None:
    """It ended well: an export that was killed as it was done is refused, since its file is there and whole."""
    said = [process.wait(), log.read_text()]
    assert said[0] == 0 or "it is not overwritten" in said[1], f"{' '.join(command)} failed:\n{said[1][-3000:]}"


def digests(folder: Path) -> dict[str, str]:
    """Of every file below ``folder`` but locks and what a kill left; the page of a report says when it was made."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".tmp", ".txt") and path.name not in ("lock", "lock.json"):
            content = re.sub(rb"made [\d -]+:\d\d UTC", b"", path.read_bytes())
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """The result lines of a table, without what differs between two times of running it."""
    return [{name: one[name] for name in one if name not in TIMED} for one in results.read_file(path)]


def ends(folders: list[Path]) -> list[str]:
    """The hashes of what runs ended with."""
    hashes = []
    for folder in folders:
        assert (folder / "done.json").exists(), f"{folder} has not finished"
        kept = [which for which in SAVED if saved.result_of(saved.read_results(folder), which)]
        hashes += [variables_hash(saved.load_variables(folder, which)) for which in kept]
    return hashes


def reached(folder: Path) -> int:
    """The last step that a run has a line of."""
    path = folder / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0


def under_way(moment: str, kind: Kind, folder: Path) -> bool:
    """Whether what makes ``kind`` in ``folder`` is in the middle of what ``moment`` names."""
    if moment == "checkpoint":
        return any(not (path / "MANIFEST.json").exists() for run in kind.folders for path in run.glob("checkpoints/*"))
    if moment == "evaluation":
        for path in (run / "metrics.jsonl" for run in kind.folders):
            lines = read_metrics(path) if path.exists() else []
            if lines and lines[-1]["kind"] == "train":  # in so few steps there is a line at their ends alone
                return True
    if moment == "file":  # on its way to its name
        with suppress(FileNotFoundError):  # of a folder that is gone since
            return any(re.search(r"\.(tmp|shard|orbax.*)$", path.name) for path in folder.rglob("*"))
    return False


def kill(process: subprocess.Popen, moment: str, kind: Kind, folder: Path, longest: float, draw: random.Random) -> bool:
    """Ends the process at the moment; False if it came to its own end before.

    Of what it has started, such as the runs of a table, half are left to go on.
    """
    begun, at = time.monotonic(), draw.uniform(0, longest)
    while process.poll() is None:
        age = time.monotonic() - begun
        if age > at if moment == "any time" else under_way(moment, kind, folder) and draw.random() < 0.1:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.killpg(process.pid, 9)
            process.wait()
            for child in children if draw.random() < 0.5 else ():
                with suppress(ProcessLookupError):
                    os.kill(int(child), 9)
            return True
        time.sleep(0.005)
    return False


def break_one(kind: Kind, kills: int, folder: Path, expected: Any, longest: float, draw: random.Random) -> Counter:
    """Kills what makes ``kind`` so many times, each until it ends as ``expected``; counts the moments of the kills."""
    log, counted = folder / "log.txt", Counter()
    while True:
        for command in kind.commands:
            ended, fills = False, kind.folders and "cache" in command
            while not ended and counted.total() < kills:
                before = max(map(reached, kind.folders), default=0)
                moments = MOMENTS if kind.folders and not fills else ("file", "any time")
                moment = moments[counted.total() % len(moments)]
                log.write_text("")
                process = start(command, log)
                ended = not kill(process, moment, kind, folder, longest, draw)
                check_resumed(log.read_text(), before)
                if ended:
                    check_ended(process, command, log)
                    break
                counted["cache fill" if fills else moment] += 1
                if fills and draw.random() < 0.5:
                    break  # on to the run that reads it
            if not ended:
                finish(command, log)
        assert kind.ends() == expected, f"{kind.name} ended otherwise than uninterrupted"
        if counted.total() >= kills:
            return counted
        shutil.rmtree(folder)  # it ended before it was killed often enough: another one
        folder.mkdir()


def check_resumed(output: str, before: int) -> None:
    """A start went on from no more than one checkpoint interval behind ``before``."""
    assert "Traceback" not in output, output[-3000:]
    for step in re.findall(r"going on from step (\d+)", output):
        assert int(step) >= before - STEPS_AN_EPOCH, f"went on from step {step}, had reached {before}"


def write_images(folder: Path) -> None:
    """Three classes of noise, 16 images to train on and 5 to test."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 5)):
        for number, name in enumerate(("ant", "bee", "cat")):
            (folder / part / name).mkdir(parents=True)
            for image in range(count):
                pixels = draw.integers(0, 150, (40, 40, 3), dtype=np.uint8) + np.uint8(30 * number)
                Image.fromarray(pixels).save(folder / part / name / f"{image}.png")


def main(kills: int, seed: int, epochs: int, names: list[str]) -> Counter:
    """Breaks runs of every kind in ``names``, and prints what was counted."""
    draw, counted = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory(prefix="kills_") as name:
        root = Path(name)
        teacher, images = root / "teacher", root / "images"
        write_images(images)
        finish([*PROGRAM, "train", f"{QUICK}teacher", "--config.epochs=1", f"--workdir={teacher}"], root / "log.txt")
        for number, name in enumerate(names):
            whole, broken = (kinds(root / name / part, teacher, images, epochs)[name] for part in ("whole", "broken"))
            for part in ("whole", "broken"):
                (root / name / part).mkdir(parents=True)
            begun = time.monotonic()
            for command in whole.commands:
                finish(command, root / name / "whole" / "log.txt")
            longest = (time.monotonic() - begun) / len(whole.commands)
            share = kills // len(names) + (number < kills % len(names))
            found = break_one(broken, share, root / name / "broken", whole.ends(), longest, draw)
            counted += found
            print(f"{name}: {found.total()} kills, ended bit for bit as uninterrupted: {dict(found)}", flush=True)
    print(json.dumps({"kills": counted.total(), **counted}))
    return counted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--kinds", default="student,recipe,two seeds,cached,disk")
    given = parser.parse_args()
    main(given.kills, given.seed, given.epochs, given.kinds.split(","))
