"""Checkpoints: folders that Orbax writes, sealed when they are whole (`sdd_jax.sealed`).

``checkpoints/00000120/`` holds the state after 120 steps. Without ``MANIFEST.json`` it is an unfinished write. That
says of which run and step it is, and how far the run had come: its last and best result, and so which checkpoint is the
best one. What does not match is never given to Orbax, which restores flipped bytes without an error.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from sdd_jax import processes, sealed
from sdd_jax.sealed import MANIFEST, Damaged

KIND = "checkpoint"
KEEP_NEWEST = 2  # and their best. Orbax's own policies would count an unfinished folder, and delete a whole one for it


class SaveFailed(OSError):
    """A checkpoint that could not be written; those before it are whole."""


class Checkpoints:
    """The checkpoints of one run; saves in the background, one at a time."""

    def __init__(self, folder: str | os.PathLike[str], owner: str):
        self.folder, self.owner = Path(folder).absolute(), owner
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None

    def save(self, state: Any, step: int, progress: Mapping[str, Any]) -> None:
        """Starts to save ``state``, which is copied before this returns and may be donated then.

        ``progress`` is how far the run has come, ready for JSON; its ``best`` has the ``step`` of the best checkpoint,
        if there is one yet. ``SaveFailed`` if this save cannot begin, or the one before it has failed.
        """
        self.wait()
        path = self.folder / f"{step:08d}"
        with _reported(path), jax.transfer_guard("allow"):  # of the messages that Orbax sends between processes
            if processes.is_first() and path.exists():
                _set_aside(path, "replaced")
            response = ocp.save_async(str(path), state)
        self._writing = self._executor.submit(self._finish, path, response, step, progress)

    def _finish(self, path: Path, response: Any, step: int, progress: Mapping[str, Any]) -> None:
        with _reported(path):
            response.result()
            if processes.is_first():  # to which Orbax answers when every process has written its part
                content = {"step": step, "best": progress["best"].get("step"), "progress": progress}
                sealed.seal(path, KIND, self.owner, content)
                for later in self.steps():
                    if later > step:  # the run had to go on from before it: whatever it holds, it is not of this way
                        _set_aside(self.folder / f"{later:08d}", "replaced")
                own = {manifest["step"]: manifest["best"] for manifest in self._manifests()}
                newest = sorted(own)[-KEEP_NEWEST:]
                for before in own.keys() - {*newest, *(own[step] for step in newest)}:
                    old = self.folder / f"{before:08d}"
                    (old / MANIFEST).unlink()  # first, so that a half-deleted folder is no checkpoint
                    shutil.rmtree(old)

    def wait(self) -> None:
        """Returns when nothing is being written; ``SaveFailed`` says what went wrong while writing."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """``wait``, and no save after it."""
        with self._executor:
            self.wait()

    def remove_unfinished(self) -> list[str]:
        """Removes what a killed process was writing, and returns what there is to say of it."""
        messages = []
        for path in [path for path in _children(self.folder) if not (path / MANIFEST).exists()]:
            if path.name.isdecimal():  # it only lacks its manifest, and may have had one
                aside = _set_aside(path, "unfinished")
                messages.append(f"a checkpoint without its {MANIFEST} is set aside: {path.name} is now {aside.name}")
            else:
                shutil.rmtree(path)
                messages.append(f"removed an unfinished checkpoint: {path.name}")
        return messages

    def steps(self) -> list[int]:
        """The steps that have a manifest, oldest first."""
        whole = [path for path in _children(self.folder) if (path / MANIFEST).exists()]
        return sorted(int(path.name) for path in whole if path.name.isdecimal())

    def manifest(self, step: int, **expected: Any) -> dict[str, Any]:
        """What the manifest of ``step`` says; ``Damaged`` if it is not this run's, of another step, or not as expected.

        ``best`` is the step of the best checkpoint up to this one, None before the first evaluation: the highest
        accuracy on the selection split, the earliest of equals.
        """
        return sealed.read(self.folder / f"{step:08d}" / MANIFEST, KIND, self.owner, step=step, **expected)

    def best(self, last: int) -> int:
        """The step of the best checkpoint up to that of ``last``; ``Damaged`` if it is not there."""
        best = self.manifest(last)["best"]
        if best is None:
            raise ValueError(f"{self.folder} has no best checkpoint yet: nothing was evaluated up to step {last}")
        return self.manifest(best, best=best)["step"]

    def _manifests(self) -> Iterator[dict[str, Any]]:
        for step in self.steps():
            with suppress(Damaged):  # reported by whoever reads it; never removed
                yield self.manifest(step)

    def verify(self, step: int) -> Path:
        """The folder of ``step``, after checking all of its files; ``Damaged`` names one that is not in order."""
        path = self.folder / f"{step:08d}"
        sealed.check_files(path, self.manifest(step))
        return path

    def load_variables(self, step: int, *, averaged: bool = False) -> dict[str, Any]:
        """The student's Flax variables of ``step``, without its optimizer state, or their moving average.

        ``Damaged`` as in ``verify``; ``ValueError`` if one holds NaN, which no run saves, or if no average was kept.
        """
        path = str(self.verify(step))
        kept: Any = ocp.metadata(path).metadata
        if averaged and "ema" not in kept:
            raise ValueError(f"{path} keeps no average of the weights: the run had no optim.ema_decay")

        def wanted(keys, leaf):
            names = [key.key for key in keys if hasattr(key, "key")]
            student = names[0] == "batch_stats" or names[:2] == ["params", "student"]
            chosen = names[0] == "ema" if averaged else student
            return np.empty(leaf.shape, leaf.dtype) if chosen else ocp.PLACEHOLDER

        state: Any = ocp.load(path, jax.tree_util.tree_map_with_path(wanted, kept))
        room = state["ema"] if averaged else {"params": state["params"]["student"], "batch_stats": state["batch_stats"]}
        variables = {"params": room["params"], "batch_stats": room["batch_stats"]}
        check_finite(variables, path)
        return variables

    def newest_whole(self, at_most: int | None = None) -> tuple[int | None, list[str]]:
        """The newest step, up to ``at_most``, that is not damaged, and a message for each that is.

        The step is None if there is none so far. All processes have to call this; the first one looks. ``Damaged`` if
        all that the run has are damaged: to start afresh would lose the run without a word.
        """

        def look():
            problems = []
            for step in reversed(self.steps()):
                if at_most is not None and step > at_most:
                    continue
                try:
                    self.verify(step)
                except Damaged as error:
                    problems.append(f"damaged checkpoint passed over: {error}")
                    continue
                try:
                    if self.manifest(step)["best"] is not None:
                        self.verify(self.best(step))
                except Damaged as error:
                    problems.append(f"the best checkpoint is lost, unless a later one is better: {error}")
                return step, problems
            return None, problems

        step, problems = processes.from_first(look)
        if step is None and problems and at_most is None:
            raise Damaged("; ".join(["every checkpoint of this run is damaged", *problems]))
        return step, problems

    def load(self, step: int, like: Any, sharding: jax.sharding.Sharding) -> Any:
        """The state of a step that ``newest_whole`` returned, in the shapes and dtypes of ``like``."""
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
        return ocp.load(str(self.folder / f"{step:08d}"), wanted)


def check_finite(variables: Any, where: Any) -> None:
    """``ValueError`` names an array of ``variables`` that holds NaN or an infinite number."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        if not np.isfinite(leaf).all():
            raise ValueError(f"{where}: {jax.tree_util.keystr(path)} holds NaN or an infinite number")


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Any error inside becomes ``SaveFailed``, in one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        reason = os.strerror(errno.ENOSPC) if re.search("No space left|RESOURCE_EXHAUSTED", text) else text[:300]
        raise SaveFailed(
            f"the checkpoint {path} could not be written: {reason}. Those before it are whole: when that is mended, "
            "the same command goes on from the newest"
        ) from error


def _set_aside(path: Path, word: str) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.{word}-{number}")).exists():
        number += 1
    return path.rename(aside)


def _children(folder: Path) -> list[Path]:
    """Checkpoint folders and Orbax's temporary ones, without those that were renamed."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and re.match(r"\d{8,}($|\.orbax)", path.name)]
