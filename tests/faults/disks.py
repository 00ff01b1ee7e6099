"""Runs each command on a disk that is full or cannot be written, and holds what it says and leaves against what it may.

    unshare -rm python -m tests.faults.disks FOLDER

``FOLDER`` becomes a small file system, in a name space of this process. What is read lies elsewhere, and for
``evaluate`` on that disk as well. A command that writes has to end with another code than 0 and one line with the name
of a file, and to leave nothing there; of a run, an import, a cache and a table it may leave what the same command goes
on from when there is room, which is then tried.
"""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from tests.commands import call
from tests.run_tiny_table import TINY

QUICK, SHORT = "--config=configs/quickstart.py:run=", "--config.epochs=1"
FREE = 24 * 1024  # bytes that a full disk has left: some files fit, not all
GOES_ON = ("train", "cache", "import", "table")  # the same command goes on from what these leave
SAID = {"full": "No space left on device", "read-only": "Read-only file system"}


def commands(disk: Path, elsewhere: Path) -> dict[str, tuple]:
    """What is typed, by name; each writes to ``disk``."""
    teacher = elsewhere / "teacher"
    kd = (f"{QUICK}kd", SHORT, f"--config.teacher.run={teacher}")
    made = {
        "train": ("train", *kd, f"--workdir={disk}/run"),
        "cache": ("cache", *kd, f"--workdir={disk}/cache"),
        "report": ("report", teacher, f"--output={disk}/page"),
        "predict": ("predict", elsewhere / "pictures", f"--workdir={teacher}", f"--output={disk}/out"),
        "import": (
            *("import", elsewhere / "weights.safetensors", "--model=resnet14", "--num_classes=10"),
            f"--workdir={disk}/imported",
        ),
        "evaluate": ("evaluate", f"--workdir={disk}/teacher"),
        "table": ("tiny", f"--workdir={disk}/runs", "--rows=teacher"),
    }
    for kind in ("safetensors", "onnx", "stablehlo"):
        made[kind] = ("export", f"--workdir={teacher}", f"--format={kind}", f"--output={disk}/out.{kind}")
    return made


def run(name: str, typed: tuple, disk: Path):
    """The command in this process; a table's own runs are processes."""
    if name == "table":
        return call(*typed, name="experiments.run", tables={"tiny": TINY}, folder=disk / "results")
    return call(*typed)


def files(disk: Path) -> set[str]:
    """Every file there, but for locks, which hold nothing."""
    found = (path for path in disk.rglob("*") if path.is_file() and path.name != "lock" and path.suffix != ".lock")
    return {str(path.relative_to(disk)) for path in found}


@contextlib.contextmanager
def broken(disk: Path, how: str) -> Iterator[None]:
    """``disk`` without room, or read-only; as it was afterwards."""
    if how == "read-only":  # by a mount above it: files of an earlier command may still be open
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        yield
        subprocess.run(["umount", "--lazy", disk], check=True)
        return
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - FREE))
    yield
    (disk / "filler").unlink()


def judge(name: str, typed: tuple, place: Path, how: str) -> str:
    """What is wrong, or that it is right, of a command that writes to ``place``, a folder of that disk.

    An exception that gets out of the command gets out of here. TensorStore prints some of its own on a full disk.
    """
    before = files(place)
    with broken(place.parent, how):
        ended = run(name, typed, place)
        left = files(place) - before
    said = ended.err + (ended.out if name == "table" else "")
    if name == "evaluate":
        return "right" if ended.code == 0 and not left else f"ended with {ended.code}, left {left}: {ended.err}"
    lines = [line for line in said.splitlines() if SAID[how] in line]
    if ended.code == 0 or len(lines) != 1 or str(place) not in lines[0]:
        return f"ended with {ended.code}: {said}"
    if name not in GOES_ON or how == "read-only":
        return f"left {sorted(left)}" if left else "right"
    if half := [path for path in left if ".shard" in path or (name == "cache" and path.endswith(".tmp"))]:
        return f"left {half}"
    again = run(name, typed, place)
    return "right" if again.code == 0 else f"did not go on: {again}"


def main(disk: Path) -> dict[str, str]:
    """Tries every command on both kinds of disk."""
    logging.disable(logging.ERROR)  # of Orbax's threads, which the program's own handler leaves out
    found = {}
    with tempfile.TemporaryDirectory(prefix="disks_") as name:
        elsewhere = Path(name)
        assert call("train", f"{QUICK}teacher", SHORT, f"--workdir={elsewhere}/teacher").code == 0
        weights = ("export", f"--workdir={elsewhere}/teacher", f"--output={elsewhere}/weights.safetensors")
        assert call(*weights).code == 0
        (elsewhere / "pictures").mkdir()
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(elsewhere / "pictures" / f"{number}.png")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
        for how in SAID:
            for name in commands(disk, elsewhere):
                place = disk / f"{name}_{how}"  # of its own: threads of an earlier one may still write
                place.mkdir()
                if name == "evaluate":
                    shutil.copytree(elsewhere / "teacher", place / "teacher")
                found[f"{name}, {how}"] = verdict = judge(name, commands(place, elsewhere)[name], place, how)
                print(f"{name:12} {how:10} {verdict}", flush=True)
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    flags.FLAGS([sys.argv[0]])
    sys.exit(any(verdict != "right" for verdict in main(Path(sys.argv[1])).values()))
