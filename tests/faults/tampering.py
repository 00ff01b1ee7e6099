"""Changes every file of run folders and of a cache, and holds what each command says then against what it said before.

    python -m tests.faults.tampering

Each file is deleted, emptied, cut, changed in one byte, replaced by another run's, and by JSON of another form, each
checkpoint's folder deleted, replaced and renamed; then each command reads it. Either what it finds is what it found
before ("right"), or it ends with one line that names the file or its place ("refused"). Anything else is "wrong":
another result, a traceback, a refusal that names something else. Locks and TensorBoard's files are changed as well;
nothing reads them.
"""

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file

from sdd_jax import saved
from sdd_jax.build import build
from sdd_jax.configs import quickstart
from sdd_jax.processes import Preempted
from sdd_jax.reporting.groups import find_runs, group_runs
from sdd_jax.reporting.study import Study
from sdd_jax.training import run_dir, teacher_cache
from sdd_jax.training.loop import train
from sdd_jax.training.teacher import variables_hash
from tests.commands import call

NETWORK = "resnet8"
CONFIG = """
from tests.faults import tampering

def get_config(argument):
    return tampering.config(argument)
"""
WAYS = ("deleted", "emptied", "cut", "a byte changed", "another run's", "JSON of another form")
VERDICTS = ("right", "refused", "wrong")


def config(argument: str) -> ConfigDict:
    """Of ``plain`` or ``kd``, a seed, and where the teacher is."""
    method, seed, *teacher = argument.split(",")
    made = quickstart.get_config(f"run={method}")
    made.argument, made.model.student, made.seed = {}, NETWORK, int(seed)
    made.epochs = 3
    made.save_every_epochs = made.eval_every_epochs = 1
    if teacher:
        made.model.teacher, made.teacher.run = NETWORK, teacher[0]
    return made


class Victim(NamedTuple):
    """What is changed: a copy of ``whole`` at ``place``; ``other`` is another's of the same kind."""

    name: str
    whole: Path
    other: Path
    place: Path
    commands: dict[str, Callable[[], Any]]  # what each found, to be compared; a refusal is an exception


class Refused(Exception):
    """A command ended with one line and exit code 2."""


def command(*arguments: Any) -> str:
    """What a command prints, without times, and without whether the teacher's accuracy was still known."""
    ended = call(*arguments)
    if ended.code != 0:
        raise Refused(ended.refused())
    return re.sub(r"; \d+ s|sdd_jax [\d.]+|measuring the teacher on .*\n", "", ended.out)


def prepare(root: Path) -> list[Victim]:
    """Runs, finished and unfinished, and a cache, each with another of its kind."""
    (root / "config.py").write_text(CONFIG)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save(root / "picture.png")
    flag = f"--config={root}/config.py:"
    for seed in (0, 1):
        train(build(config(f"plain,{seed}").to_dict()), root / "finished" / f"{seed}")
        try:  # between its second and last epoch
            stop = lambda step: signal.SIGTERM if step == 8 else None  # noqa: E731
            train(build(config(f"plain,{seed}").to_dict()), root / "unfinished" / f"{seed}", should_stop=stop)
        except Preempted:
            pass
    place, student = root / "place", f"{flag}kd,0,"
    run, cache = place / "run", place / "cache"
    for seed in (0, 1):
        teacher = root / "finished" / f"{seed}"
        command("cache", f"{student}{teacher}", f"--workdir={root}/caches/{seed}")

    def export(which):
        output = root / "out.safetensors"
        output.unlink(missing_ok=True)
        command("export", f"--workdir={run}", f"--output={output}", f"--checkpoint={which}")
        return variables_hash(load_file(output))

    def report():
        study = Study(group_runs(find_runs([run])), None)
        found = study.groups[0].runs[0]
        results = {name: found.results[name] for name in ("last", "best")}
        unclosed = f"{run} has not finished: it is shown as far as it has come"
        said = (unclosed in study.notes) != (run / run_dir.DONE).exists()  # without done.json a run is not closed
        notes = [note for note in study.notes if note != unclosed]
        hashes = variables_hash(study.logits(study.groups[0]))
        return json.dumps([found.lines, results, found.environment, said, notes, hashes])

    def resume():
        said = command("train", f"{flag}plain,0", f"--workdir={run}")
        done = run_dir.read_done(run)
        ends = [variables_hash(saved.load_variables(run, which)) for which in saved.WHICH]
        return said.splitlines()[-1], done["last"], done["best"], done["seed"], done["steps"], ends

    def teaches():
        made = build(config(f"kd,0,{run}").to_dict())
        return made.teacher_accuracy, variables_hash(made.teacher.arrays)

    def fill():
        command("cache", f"{student}{root}/finished/0", f"--workdir={cache}")
        return cached()

    def cached():
        made = config(f"kd,0,{root}/finished/0").to_dict()
        made["teacher"]["cache"] = str(cache)
        return variables_hash(build(made).teacher.arrays)

    reading = {
        "train": resume,
        "evaluate": lambda: command("evaluate", f"--workdir={run}"),
        "export last": lambda: export("last"),
        "export best": lambda: export("best"),
        "predict": lambda: command("predict", root / "picture.png", f"--workdir={run}"),
        "report": report,
    }
    of_teacher = {
        "teacher.run": teaches,
        "cache of it": lambda: command("cache", f"{student}{run}", f"--workdir={root}/caches/0", "--verify"),
    }
    of_cache = {
        "cache": fill,
        "cache --verify": lambda: command("cache", f"{student}{root}/finished/0", f"--workdir={cache}", "--verify"),
        "teacher.cache": cached,
    }
    return [
        Victim("unfinished run", root / "unfinished/0", root / "unfinished/1", run, reading),
        Victim("finished run", root / "finished/0", root / "finished/1", run, {**reading, **of_teacher}),
        Victim("cache", root / "caches/0", root / "caches/1", cache, of_cache),
    ]


def changes(victim: Victim, draw: random.Random) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Each name of what can be changed, how, and what does it to ``victim.place``."""
    for path in sorted(victim.whole.rglob("*")):
        name = path.relative_to(victim.whole)
        place, other = victim.place / name, twin(path, victim)
        if path.is_dir():
            if path.name.isdecimal() or path.name == run_dir.CHECKPOINTS:
                yield str(name), "deleted", lambda place=place: shutil.rmtree(place)
                yield str(name), "another run's", lambda place=place, other=other: replace_folder(place, other)
            if path.name.isdecimal():
                later = place.with_name(f"{int(path.name) + 50:0{len(path.name)}d}")
                yield (
                    str(later.relative_to(victim.place)),
                    "renamed",
                    lambda place=place, later=later: place.rename(later),
                )
            continue
        content = path.read_bytes()
        at = draw.randrange(len(content)) if content else 0
        flipped = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :] if content else b"x"
        forms = [form for form in (b"{}", b"[]", b"null", b'{"steps": 4, "digest": ""}') if form != content]
        contents = {
            "emptied": b"",
            "cut": content[: len(content) // 2],
            "a byte changed": flipped,
            "another run's": other.read_bytes() if other is not None else content,
            "JSON of another form": draw.choice(forms),
        }
        yield str(name), "deleted", lambda place=place: place.unlink()
        for way, changed in contents.items():
            if changed != content:
                yield str(name), way, lambda place=place, changed=changed: place.write_bytes(changed)


def twin(path: Path, victim: Victim) -> Path | None:
    """What the other has at ``path``; of files whose names are drawn, the one at the same place in their order."""
    inside = path.relative_to(victim.whole)
    if (victim.other / inside).exists():
        return victim.other / inside
    beside = [file for file in sorted((victim.other / inside.parent).glob("*")) if file.is_file()]
    number = sorted(file for file in path.parent.glob("*") if file.is_file()).index(path) if path.is_file() else 0
    return beside[number] if number < len(beside) else None


def replace_folder(place: Path, other: Path | None) -> None:
    """``other`` instead of ``place``."""
    shutil.rmtree(place)
    if other is not None:
        shutil.copytree(other, place)


def renew(victim: Victim, whole: Path | None = None) -> None:
    """A fresh copy."""
    shutil.rmtree(victim.place, ignore_errors=True)
    shutil.copytree(whole or victim.whole, victim.place)


def expected(victim: Victim, run: Callable[[], Any]) -> tuple[list[Any], list[Any]]:
    """What a command may find: what it does in the whole folder, and in one that something is deleted from.

    An unfinished run without its newest checkpoint has come less far, a cache without one of its shards holds fewer
    views, and nothing says otherwise: what is printed names the step, or how many views there are.
    """
    renew(victim)
    found, fewer = [run()], []
    gone = sorted(victim.whole.glob("0*")) or sorted((victim.whole / run_dir.CHECKPOINTS).iterdir())[-1:]
    for path in gone if victim.name != "finished run" else ():
        renew(victim)
        shutil.rmtree(victim.place / path.relative_to(victim.whole))
        with contextlib.suppress(Refused, ValueError):
            fewer.append(run())
    return found, fewer


def judge(run: Callable[[], Any], allowed: tuple[list[Any], list[Any]], name: str, way: str, place: Path) -> list[str]:
    """The verdict on one command, and what it said."""
    try:
        found = run()
    except (Refused, ValueError) as refusal:
        above = [path for path in (place / name).parents if path.is_relative_to(place)]
        fits = [place / name, *(above if way == "deleted" else above[:-1]), place / run_dir.CHECKPOINTS]
        line = str(refusal).strip()
        named = any(str(path) in line for path in fits) or Path(name).name in line
        return ["refused" if named and "\n" not in line else "wrong", line]
    except Exception:
        return ["wrong", traceback.format_exc()]
    if found in allowed[0] or (way == "deleted" and found in allowed[1]):
        return ["right", ""]
    return ["wrong", f"found {found}, expected {allowed}"[:1500]]


def main(share: float = 1.0, seed: int = 0, names: tuple[str, ...] = (), files: str = "*") -> Counter:
    """Tries a ``share`` of all changes with all commands, in a drawn order; counts the verdicts by victim and way.

    Of the victims of these ``names``, all if there are none, and the files that ``files`` fits.
    """
    draw, counted = random.Random(seed), Counter()
    with (
        tempfile.TemporaryDirectory(prefix="tampering_") as folder,
        mock.patch.object(teacher_cache, "SHARD_BYTES", 2**18),
    ):
        tries = [
            (victim, change, command)
            for victim in prepare(Path(folder))
            if not names or victim.name in names
            for change in changes(victim, random.Random(seed))
            if fnmatch(change[0], files)
            for command in victim.commands
        ]
        print(f"{len(tries)} changes and commands, of which {share:.0%} are tried")
        allowed: dict[Any, Any] = {}
        try:
            for victim, (name, way, change), command in draw.sample(tries, round(share * len(tries))):
                run, which = victim.commands[command], (victim.name, command)
                if which not in allowed:
                    allowed[which] = expected(victim, run)
                renew(victim)
                change()
                verdict, line = judge(run, allowed[which], name, way, victim.place)
                counted[victim.name, way, verdict] += 1
                if verdict == "wrong":
                    print(f"WRONG {victim.name}: {name} {way}, {command}: {line}")
        finally:
            print(table(counted))
    return counted


def table(counted: Counter) -> str:
    """By victim and way: how many were right, refused by name, and wrong."""
    rows = [f"| {'what':15} | {'how':21} | {' | '.join(f'{verdict:>7}' for verdict in VERDICTS)} |"]
    rows.append(f"|{'-' * 17}|{'-' * 23}|{'|'.join(['--------:'] * len(VERDICTS))}|")
    for victim, way in sorted({key[:2] for key in counted}, reverse=True):
        cells = [counted[victim, way, verdict] for verdict in VERDICTS]
        rows.append(f"| {victim:15} | {way:21} | {' | '.join(f'{cell:7}' for cell in cells)} |")
    totals = [sum(number for key, number in counted.items() if key[2] == verdict) for verdict in VERDICTS]
    rows.append(f"| {'all':15} | {sum(totals):21} | {' | '.join(f'{cell:7}' for cell in totals)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", default="")
    parser.add_argument("--files", default="*", help="a pattern, such as *.json*")
    given = parser.parse_args()
    flags.FLAGS([sys.argv[0]])
    jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "sdd_jax" / "tests"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    found = main(given.share, given.seed, tuple(given.victims.split(",")) if given.victims else (), given.files)
    sys.exit(any(key[2] == "wrong" for key in found))
