"""What a run says: ``metrics.jsonl`` (the source of truth), TensorBoard files, and a bar or lines on the terminal."""

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

METRICS = "metrics.jsonl"


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line that a kill cut short is left out."""
    lines = Path(path).read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Logbook:
    """Writes the metrics of one run; resumed at a step, it first drops what was written after that step.

    Those lines come again as the steps are repeated, so the file of an interrupted run holds what that of an
    uninterrupted one does. Of several runs at a time each has a ``name``, and one of them shows their progress.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        total_steps: int,
        num_examples: int,
        batch_size: int,
        name: str = "",
        shows_progress: bool = True,
    ):
        from tensorboardX import SummaryWriter

        self._path = folder / METRICS
        self._per_epoch = num_examples / batch_size
        self._batch_size = batch_size
        self._total = total_steps
        kept = [line for line in read_metrics(self._path) if line["step"] <= step] if self._path.exists() else []
        temporary = self._path.with_name(METRICS + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self._path)
        self.lines = kept
        self._file = open(self._path, "ab", buffering=0)  # no second attempt when it is closed
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._elapsed_before = kept[-1]["elapsed"] if kept else 0.0
        self._start = self._last_time = time.monotonic()
        self._last_step = step
        self._console = _Console(sys.stdout, step, total_steps, shows_progress)
        self._name = f"{name} | " if name else ""

    @property
    def elapsed(self) -> float:
        """Seconds spent on this run, over all its starts."""
        return self._elapsed_before + time.monotonic() - self._start

    def train(self, step: int, values: dict[str, float]) -> None:
        """The means of the steps since the last such line."""
        now = time.monotonic()
        rate = (step - self._last_step) * self._batch_size / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        self._write("train", step, {**values, "images_per_second": round(rate, 1)})
        self._console.progress(step, values, rate)

    def evaluation(self, step: int, split: str, values: dict[str, float]) -> None:
        """The result of one evaluation of ``split``."""
        self._write("evaluation", step, {"split": split, **values})
        text = " ".join(f"{name} {_format(name, value)}" for name, value in values.items() if name != "examples")
        self.say(f"epoch {step / self._per_epoch:.1f} step {step}/{self._total} | {split}: {text}")

    def say(self, text: str) -> None:
        """A line for the person at the terminal."""
        self._console.say(self._name + text)

    def restart_clock(self) -> None:
        """Leaves what came since the last line (an evaluation, a save) out of images per second."""
        self._last_time = time.monotonic()

    def close(self) -> None:
        """Closes the files and the bar."""
        self._console.close()
        self._tensorboard.close()
        self._file.close()

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        epoch = round(step / self._per_epoch, 4)
        line = {"kind": kind, "step": step, "epoch": epoch, **values, "elapsed": round(self.elapsed, 3)}
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(text)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if written != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self.lines.append(line)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._tensorboard.add_scalar(f"{values.get('split', kind)}/{name}", value, step)


class Silence:
    """The logbook of a process that is not the first: it says and writes nothing."""

    lines: tuple[dict[str, Any], ...] = ()
    elapsed = 0.0

    def train(self, step: int, values: dict[str, float]) -> None:
        """The first process has the same values."""

    def evaluation(self, step: int, split: str, values: dict[str, float]) -> None:
        """Likewise."""

    def say(self, text: str) -> None:
        """Likewise."""

    def restart_clock(self) -> None:
        """There is none."""

    def close(self) -> None:
        """Nothing was opened."""


class _Console:
    """A progress bar on a terminal; elsewhere a plain line now and then."""

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, stream: TextIO, step: int, total: int, shows_progress: bool):
        self._stream, self._total, self._first, self._shows_progress = stream, total, step, shows_progress
        self._bar = None
        if stream.isatty() and shows_progress:
            layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(total=total, initial=step, file=stream, bar_format=layout, dynamic_ncols=True, leave=False)
        self._start = self._last_line = time.monotonic()

    def progress(self, step: int, values: dict[str, float], rate: float) -> None:
        status = f"loss {values['loss']:.3f} acc {100 * values['accuracy']:.1f}% {rate:.0f} img/s"
        if self._bar is not None:
            self._bar.set_postfix_str(status, refresh=False)
            self._bar.update(step - self._bar.n)
            self._bar.refresh()
        elif self._shows_progress and time.monotonic() - self._last_line > self.SECONDS_BETWEEN_LINES:
            done = (step - self._first) / (self._total - self._first)
            left = (time.monotonic() - self._start) * (1 - done) / done
            self.say(f"step {step}/{self._total} | {status} | {tqdm.format_interval(left)} left")

    def say(self, text: str) -> None:
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self._stream, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _format(name: str, value: float) -> str:
    return f"{100 * value:.2f}%" if name in ("accuracy", "top5") else f"{value:.4f}"
