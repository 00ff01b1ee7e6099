"""What a run says, for reading: ``metrics.jsonl``, TensorBoard files, and a bar or lines on the terminal."""

import copy
import errno
import functools
import io
import json
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sdd_jax import processes, sealed
from sdd_jax.files import NUMBER, check_fields, read_lines, write_whole
from sdd_jax.own import own_function
from sdd_jax.sealed import Damaged
from sdd_jax.training.programs import Built

METRICS = "metrics.jsonl"
EMA = "ema_"  # before the name of what was measured of the moving average
PLACE = ("kind", "split", "step", "epoch", "elapsed")  # of a line, beside what was measured
TRACK = ("folder", "config")  # arguments of the function in the field track
LOG_EVERY = 50  # steps; a line of metrics.jsonl holds the means of so many
SECONDS_BETWEEN_LINES = 15.0  # of progress, at most, where there is no terminal for a bar
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class NonFinite(FloatingPointError):
    """A loss, a term of it, a gradient or an evaluation that is NaN or infinite."""

    def __init__(self, message: str, step: int = -1):
        super().__init__(message)
        self.step = step  # of training; -1: an evaluation


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line that a kill cut short is left out."""
    lines = read_lines(Path(path), {"kind": str, "step": int, "epoch": NUMBER, "elapsed": NUMBER})
    evaluations = (line for line in lines if line["kind"] == "evaluation")
    for line in evaluations:
        check_fields(line, {"split": str, "accuracy": NUMBER}, f"{path}, an evaluation at step {line['step']},")
    return lines


def read_log(folder: Path, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The log of the run in ``folder`` up to ``results``, of its end or a checkpoint; ``Damaged`` if it is another."""
    path = folder / METRICS
    lines = [line for line in read_metrics(path) if line["step"] <= results["steps"]] if path.exists() else []
    if sealed.digest(lines) != results["log"]:
        raise Damaged(f"{path} is not as this run wrote it up to step {results['steps']}")
    return lines


def _parse(text: bytes) -> dict[str, Any] | None:
    """A line of a log that a resumed run goes on with, or None if it is none: what is lost is said."""
    with suppress(ValueError, RecursionError):
        line = json.loads(text)
        if isinstance(line, dict) and {"kind", "step"} <= line.keys() and isinstance(line["step"], int):
            return line
    return None


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log by the names that TensorBoard shows: ``train/loss``, ``test/accuracy``."""
    values = {name: value for name, value in line.items() if name not in PLACE and isinstance(value, int | float)}
    return {f"{line.get('split', line['kind'])}/{name}": value for name, value in values.items()}


def _tracker(name: str | None, folder: Path, config: Mapping[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """What the field ``track`` makes for a run, to be called with each line of its log; it may be unset."""
    if name is None:
        return lambda line: None
    track = own_function(name, "track", TRACK)(folder, copy.deepcopy(dict(config)))
    if not callable(track):
        raise ValueError(f"track {name!r} must return a function of a line of the log, got {type(track).__name__}")
    return track


def _open(path: Path) -> io.FileIO:
    """A file to add to, without a buffer: there is no second attempt when it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "ab", buffering=0)


def _append(file: io.FileIO, data: bytes) -> None:
    """Writes all of ``data``, or raises with the file's name."""
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error


class _TensorBoard:
    """What TensorBoard shows of one start of a run, into an open file. A line is written when ``add`` returns.

    tensorboardX has the messages and the checksum. Its own writer is a thread, which on a full disk ends by itself.
    """

    def __init__(self, file: io.FileIO, step: int):
        self._file = file
        self._write(file_version="brain.Event:2")
        self._write(step=step, session_log={"status": "START"})  # what earlier starts have from this step on is hidden

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by the names that TensorBoard shows."""
        shown = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._write(step=step, summary={"value": shown})

    def _write(self, **event: Any) -> None:
        """Appends a record of TFRecord's format: length, its checksum, the message, its checksum."""
        make_event, masked_crc32c = _tensorboardx()
        message = make_event(wall_time=time.time(), **event).SerializeToString()
        parts = struct.pack("<Q", len(message)), message
        _append(self._file, b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in parts))


@functools.cache
def _tensorboardx() -> tuple[Callable[..., Any], Callable[[bytes], int]]:
    """The message and the checksum of tensorboardX, which imports PyTorch where there is one: two seconds for nothing.

    So it is imported as where PyTorch is not installed, which changes its annotations alone.
    """
    imported = "torch" in sys.modules
    if not imported:
        sys.modules["torch"] = None  # type: ignore[unsupported-operation]  # None: an import of it fails
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c
    finally:
        if not imported:
            del sys.modules["torch"]
    return event_pb2.Event, masked_crc32c  # type: ignore[missing-attribute]


def whole_epochs(epoch: float) -> int:
    """How many epochs have ended at ``epoch``: a step may end one and begin the next, or several at once."""
    return int(epoch + 1e-9)


class Logbook:
    """Adds up the metrics of one run's steps, refuses what is not finite, and writes lines.

    Resumed from a checkpoint, ``before`` is the progress noted there, and the lines after it, which the repeated steps
    write again, are dropped. The log is for reading: nothing of the run depends on it. Every process has a logbook, and
    the first one's writes. A line ends at every fiftieth step and at the ``boundaries``.
    """

    def __init__(
        self, folder: Path, run: Built, before: dict[str, Any], total: int, boundaries: set[int], name: str, shows: bool
    ):
        self.lines: list[dict[str, Any]] = []
        self._writes, step = processes.is_first(), before.get("steps", 0)
        self._per_epoch, self._batch_size = len(run.dataset.train.index) / run.batch_size, run.batch_size
        self._first, self._total, self._boundaries, self._name = step, total, boundaries, name
        self._sums: dict[str, float] = {}
        self._count = 0
        self._status = ""  # loss and accuracy of the newest means
        if self._writes:
            self._track = _tracker(run.config.get("track"), folder, run.config)
            path = self._path = folder / METRICS
            kept = map(_parse, path.read_bytes().splitlines() if path.exists() else [])
            self.lines = [line for line in kept if line is not None and line["step"] <= step]
            write_whole(path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
            # Of two starts within a second, too, TensorBoard reads the later one's file last.
            events = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
            with ExitStack() as files:
                self._file = files.enter_context(_open(path))
                self._tensorboard = _TensorBoard(files.enter_context(_open(folder / "tensorboard" / events)), step + 1)
                self._files = files.pop_all()
        self._elapsed_before = before.get("elapsed", 0.0)
        self._start = self._last_time = time.monotonic()
        self._last_step, self._last_said = step, -math.inf
        self._begun: tuple[int, float] | None = None  # the step after the first chunk, which compiles, and its time
        self._window = step, self._start  # of images per second as they are shown
        terminal = sys.stdout.isatty()
        self._shows_lines = shows and not terminal
        self._bar = tqdm(
            total=total,
            initial=step,
            file=sys.stdout,
            bar_format=BAR,
            dynamic_ncols=True,
            leave=False,
            disable=not (self._writes and shows and terminal),
        )

        if self._writes and before and sealed.digest(self.lines) != before["log"]:
            self.say(f"{self._path} is not as this run wrote it: the log may be wrong; the run does not depend on it")

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log: seconds spent on this run over all its starts, and a digest."""
        return {"elapsed": round(self._elapsed(), 3), "log": sealed.digest(self.lines)}

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._start

    def add(self, first: int, count: int, measured: dict[str, np.ndarray]) -> None:
        """Adds ``count`` steps from ``first`` on, and writes a line when one is due; ``NonFinite`` names a bad step."""
        for i in range(count):
            values = {name: float(column[i]) for name, column in measured.items()}
            if not all(math.isfinite(value) for value in values.values()):
                terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
                run = f"{self._name}: " if self._name else ""
                raise NonFinite(f"{run}step {first + i} is not finite: {terms}", first + i)
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
            self._count += 1
            done = first + i + 1
            if done % LOG_EVERY == 0 or done in self._boundaries:
                self.write_means(done)
        self._show(first + count)

    def write_means(self, step: int) -> None:
        """Writes the means of the steps since the last such line, if there are any."""
        if not self._count:
            return
        values = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        now = time.monotonic()
        rate = (step - self._last_step) * self._batch_size / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        self._write("train", step, {**values, "images_per_second": round(rate, 1)})
        self._status = f"loss {values['loss']:.3f} acc {100 * values['accuracy']:.1f}%"

    def _show(self, step: int) -> None:
        """Brings the bar to ``step``, or says how far the run is if it is time to."""
        now = time.monotonic()
        if self._begun is None:  # the first chunk, which was compiled
            self._begun = self._window = step, now
            return
        if self._count:
            loss, accuracy = (self._sums[name] / self._count for name in ("loss", "accuracy"))
            self._status = f"loss {loss:.3f} acc {accuracy:.1%}"
        done, since = self._window
        status = f"{self._status} {(step - done) * self._batch_size / max(now - since, 1e-9):.0f} img/s"
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update(step - self._bar.n)
        if now - self._last_said > SECONDS_BETWEEN_LINES:
            self._last_said, self._window = now, (step, now)
            if self._shows_lines and step < self._total:
                left = (now - self._begun[1]) * (self._total - step) / (step - self._begun[0])  # with evaluations
                self._print(f"step {step}/{self._total} | {status} | {tqdm.format_interval(left)} left")

    def evaluation(self, step: int, split: str, values: dict[str, float]) -> dict[str, Any]:
        """Writes the results of an evaluation of ``split``, and returns them with step and epoch."""
        self._write("evaluation", step, {"split": split, **values})
        return {"step": step, "epoch": round(step / self._per_epoch, 4), **values}

    def say_evaluations(self, step: int, measured: Mapping[str, Mapping[str, float]]) -> None:
        """Says the results of all splits at ``step`` in one line."""
        epoch, epochs = (whole_epochs(steps / self._per_epoch) for steps in (step, self._total))
        forms = {"accuracy": ".2%", "top5": ".2%"}
        results = [
            " ".join(
                f"{name} {value:{forms.get(name.removeprefix(EMA), '.4f')}}"
                for name, value in values.items()
                if name != "examples"
            )
            for values in measured.values()
        ]
        shown = (f"{split}: {result}" for split, result in zip(measured, results, strict=True))
        self.say(f"epoch {epoch}/{epochs} | {' | '.join(shown)}")

    def say(self, text: str) -> None:
        """Prints a line."""
        self._print(f"{self._name} | {text}" if self._name else text)

    def restart_clock(self) -> None:
        """Leaves what came since the last line (an evaluation, a save) out of images per second."""
        self._last_time = time.monotonic()
        self._window = self._last_step, self._last_time

    def close(self) -> None:
        """Closes the bar and the files."""
        self._bar.close()
        if self._writes:
            self._files.close()

    def _print(self, text: str) -> None:
        if self._writes:
            tqdm.write(text, sys.stdout)  # above the bar, if there is one
            sys.stdout.flush()

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if not self._writes:
            return
        epoch = round(step / self._per_epoch, 4)
        line = {"kind": kind, "step": step, "epoch": epoch, **values, "elapsed": round(self._elapsed(), 3)}
        _append(self._file, json.dumps(line, allow_nan=False).encode() + b"\n")
        self.lines.append(line)
        self._tensorboard.add(step, scalars(line))
        self._track(dict(line))
