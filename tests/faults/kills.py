"""Kills real runs with SIGKILL at random moments, starts them again, and holds their end against uninterrupted ones'.

    python -m tests.faults.kills --kills=25

Kinds of run: a student by SDD-KD, the same with two seeds together, the same from a cache whose filling is killed as
well, and images on disk read by a worker process. A kill falls at a random time, or while a checkpoint, an evaluation
or a shard of the cache is under way. Asserted of every run: the parameters of its end are bit for bit the uninterrupted
run's; each start goes on from a step no more than one checkpoint interval behind what was reached before; nothing has
to be cleared away by hand.
"""

import argparse
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
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdd_jax import saved
from sdd_jax.training.logbook import read_metrics
from sdd_jax.training.teacher import variables_hash

ROOT = Path(__file__).parents[2]
QUICK = "--config=configs/quickstart.py:run="
MOMENTS = ("any time", "checkpoint", "evaluation", "cache shard")
STEPS_AN_EPOCH = 4  # the most, of the runs here


class Kind(NamedTuple):
    """What is killed: the commands of one result, each until it ends well."""

    name: str
    commands: list[list[str]]
    folders: list[Path]  # of runs, whose ends are compared


def kinds(folder: Path, teacher: Path, images: Path, epochs: int) -> dict[str, Kind]:
    """Every kind of run, with its folders below ``folder``."""
    student = [f"{QUICK}sdd_kd", f"--config.teacher.run={teacher}", f"--config.epochs={epochs}"]
    student += ["--config.eval_every_epochs=1", "--config.save_every_epochs=1"]
    disk = ["--config=configs/image_folder.py:teacher=none,student=resnet8", f"--config.data.path={images}"]
    disk += ["--config.data.image_size=32", "--config.data.workers=1", f"--config.epochs={max(epochs // 4, 2)}"]
    disk += ["--config.batch_size=16", "--config.model.stem=cifar", "--config.data.in_memory=false"]
    run, cache = folder / "run", folder / "cache"
    cached = [*student, f"--config.teacher.cache={cache}", f"--workdir={run}"]
    found = [
        Kind("student", [["train", *student, f"--workdir={run}"]], [run]),
        Kind(
            "two seeds",
            [["train", *student, "--config.seeds=0,1", f"--workdir={run}"]],
            [run / "seed_0", run / "seed_1"],
        ),
        Kind("cached", [["cache", *student, f"--workdir={cache}"], ["train", *cached]], [run]),
        Kind("disk", [["train", *disk, f"--workdir={run}"]], [run]),
    ]
    return {kind.name: kind for kind in found}


def start(command: list[str], log: Path) -> subprocess.Popen:
    """The command as a process of its own, its output at the end of ``log``."""
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "sdd_jax", *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(command: list[str], log: Path) -> None:
    """Runs the command to its end."""
    if start(command, log).wait():
        raise AssertionError(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")


def ends(kind: Kind) -> list[str]:
    """The hashes of what the runs ended with."""
    hashes = []
    for folder in kind.folders:
        assert (folder / "done.json").exists(), f"{folder} has not finished"
        hashes.append(variables_hash(saved.load_variables(folder, saved.step_of(folder, "last"))))
    return hashes


def reached(folder: Path) -> int:
    """The last step that a run has a line of."""
    path = folder / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0


def under_way(moment: str, kind: Kind) -> bool:
    """Whether a run of ``kind`` is in the middle of what ``moment`` names."""
    if moment == "checkpoint":
        return any(not (path / "MANIFEST.json").exists() for run in kind.folders for path in run.glob("checkpoints/*"))
    if moment == "evaluation":
        for path in (run / "metrics.jsonl" for run in kind.folders):
            lines = read_metrics(path) if path.exists() else []
            if lines and lines[-1]["kind"] == "train" and lines[-1]["step"] % STEPS_AN_EPOCH == 0:
                return True
    if moment == "cache shard":
        return any(kind.folders[0].parent.glob("cache/*.tmp")) or any(kind.folders[0].parent.glob("cache/*.shard"))
    return False


def kill(process: subprocess.Popen, moment: str, kind: Kind, longest: float, draw: random.Random) -> bool:
    """Ends the process at the moment; False if it came to its own end before."""
    begun, at = time.monotonic(), draw.uniform(0, longest)
    while process.poll() is None:
        age = time.monotonic() - begun
        if age > at if moment == "any time" else under_way(moment, kind) and draw.random() < 0.02:
            os.killpg(process.pid, 9)
            process.wait()
            return True
        time.sleep(0.0005)
    return False


def break_one(
    kind: Kind, kills: int, folder: Path, expected: list[str], longest: float, draw: random.Random
) -> Counter:
    """Kills runs of ``kind`` so many times, each until it ends as ``expected``; counts the moments of the kills."""
    log, counted = folder / "log.txt", Counter()
    while True:
        for command in kind.commands:
            while sum(counted.values()) < kills:
                before = max(map(reached, kind.folders))
                moment = draw.choice(MOMENTS if command[0] == "cache" else MOMENTS[:3])
                log.write_text("")
                process = start(command, log)
                killed = kill(process, moment, kind, longest, draw)
                check_resumed(log.read_text(), before)
                if not killed:
                    assert process.returncode == 0, f"{kind.name} failed by itself:\n{log.read_text()[-3000:]}"
                    break
                counted["cache fill" if command[0] == "cache" else moment] += 1
                if command[0] == "cache" and draw.random() < 0.5:
                    break  # on to the run that reads it
            finish(command, log)
        assert ends(kind) == expected, f"{kind.name} ended otherwise than uninterrupted"
        if sum(counted.values()) >= kills:
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
        finish(["train", f"{QUICK}teacher", "--config.epochs=1", f"--workdir={teacher}"], root / "teacher.txt")
        for number, name in enumerate(names):
            whole, broken = (kinds(root / name / part, teacher, images, epochs)[name] for part in ("whole", "broken"))
            for part in ("whole", "broken"):
                (root / name / part).mkdir(parents=True)
            begun = time.monotonic()
            for command in whole.commands:
                finish(command, root / name / "whole" / "log.txt")
            longest = (time.monotonic() - begun) / len(whole.commands)
            share = kills // len(names) + (number < kills % len(names))
            found = break_one(broken, share, root / name / "broken", ends(whole), longest, draw)
            counted += found
            print(f"{name}: {sum(found.values())} kills, ended bit for bit as uninterrupted: {dict(found)}", flush=True)
    print(json.dumps({"kills": sum(counted.values()), **counted}))
    return counted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--kinds", default="student,two seeds,cached,disk")
    given = parser.parse_args()
    main(given.kills, given.seed, given.epochs, given.kinds.split(","))
