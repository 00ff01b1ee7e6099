"""The processes of a run: how they find each other, agree on what one of them finds, and are asked to stop.

Every process runs the same program over the devices of all. The first one writes files and prints. What it finds on
disk it sends to the others: if each looked for itself, they might see different moments.
"""

import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
HEARTBEAT_SECONDS = 30  # a process that was silent for so long counts as lost, and the others end
_ASKED, _STOPS = itertools.count(), threading.Event()  # how often it was asked whether to stop; that the answer was yes
_HIDING = threading.Lock()  # the script is one, and hidden by one thread at a time
PAUSE = 0.5  # seconds between two attempts to reach the coordinator


def join(
    coordinator: str | None = None, count: int | None = None, index: int | None = None, *, wait: float = 300.0
) -> None:
    """Makes this process number ``index`` of ``count``; to be called before anything else of JAX.

    Process 0 listens at ``coordinator``, ``HOST:PORT``, and all have to come within ``wait`` seconds. One process is
    alone whatever the environment says. Without all three the environment says, and JAX finds the others itself.
    """
    if count == 1 and coordinator is None and index in (None, 0):
        return
    where: dict[str, Any] = {}
    if coordinator is None and count is None and index is None:
        if not named_by_environment():
            return
    elif coordinator is None or count is None or index is None:
        raise ValueError(f"coordinator, processes and process go together, got {coordinator}, {count} and {index}")
    else:
        if not 0 <= index < count:
            raise ValueError(f"process must be from 0 to {count - 1} of {count} processes, got {index}")
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"coordinator must be HOST:PORT, got {coordinator!r}")
        if index == 0:
            try:
                socket.create_server(("", int(port))).close()
            except OSError as error:
                raise ValueError(f"process 0 cannot listen on port {port} of this machine: {error.strerror}") from error
            # If the others do not come, the runtime ends this process with messages of its own.
            print(f"process 0 of {count}: waiting up to {wait:.0f} s at {coordinator} for the others", file=sys.stderr)
        else:
            wait -= _reach(host.strip("[]"), int(port), wait)
        where = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    seconds = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "shutdown_timeout_seconds": HEARTBEAT_SECONDS}
    try:
        jax.distributed.initialize(**where, **seconds, initialization_timeout=int(max(wait, 1.0)))
    except (RuntimeError, ValueError) as error:  # JAX cannot tell from the environment who the others are
        raise ValueError(
            f"the processes could not find each other: {error} (--processes=1 runs this one alone; "
            "--coordinator, --processes and --process say who the others are)"
        ) from error


def named_by_environment() -> bool:
    """Whether this is one of several processes by the variables that the launchers known to JAX set."""
    values = os.environ
    hosts = values.get("TPU_PROCESS_ADDRESSES") or values.get("TPU_WORKER_HOSTNAMES")
    # A TPU host outside of GKE has none: True, and JAX asks the metadata server, which may say that it is alone.
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    asks = hosts is None and "TPU_SKIP_MDS_QUERY" not in values  # which JAX sets where it finds no TPU
    slices = "," in (hosts or "") or int(values.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return (
        ("SLURM_STEP_NODELIST" in values and int(values.get("SLURM_NTASKS", 1)) > 1)
        or int(values.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or ("JOB_COMPLETION_INDEX" in values and find_spec("kubernetes") is not None)
        or (find_spec("libtpu") is not None and (slices or (chips and asks)))
    )


def is_first() -> bool:
    """Whether this process writes the files and prints."""
    return jax.process_index() == 0


KINDS = (ValueError, OSError)  # what a command tells in a line


def from_first(make: Callable[[], T]) -> T:
    """What ``make()`` returns in the first process, for every process; it must be ready for JSON.

    All processes have to call this. An error of ``make`` is raised in all of them, so that none waits for one that has
    ended; a ``ValueError`` and an ``OSError`` stay what they are.
    """
    if jax.process_count() == 1:
        return make()
    message, error = b"", None
    if is_first():
        try:
            answer = {"value": make()}
        except Exception as caught:
            kind = next((kind.__name__ for kind in KINDS if isinstance(caught, kind)), None)
            error, answer = caught, {"error": str(caught), "kind": kind}
        message = json.dumps(answer).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    text = np.frombuffer(message.ljust(length), np.uint8)  # of one length in all processes, only the first one's counts
    answer = json.loads(bytes(multihost_utils.broadcast_one_to_all(text)))
    if error is not None:
        raise error
    if "error" in answer:
        kinds = {kind.__name__: kind for kind in KINDS}
        raise kinds.get(answer["kind"], RuntimeError)(f"process 0: {answer['error']}")
    return answer["value"]


def check_all(fine: bool, message: str) -> None:
    """``ValueError`` in every process if one of them is not ``fine``; the message ends with the numbers of those."""
    everyone = multihost_utils.process_allgather(np.array(fine)).reshape(-1)
    if not everyone.all():
        raise ValueError(f"{message} (processes {', '.join(str(number) for number in np.flatnonzero(~everyone))})")


class Preempted(Exception):
    """The run was asked to stop and has saved; the same command goes on with it."""

    def __init__(self, number: int, step: int):
        where = f"after step {step}, which is saved" if step else "before its first step"
        super().__init__(f"{signal.Signals(number).name}: ended {where}; the same command goes on")
        self.code = 128 + number  # the process's exit code: 143 after SIGTERM, 130 after SIGINT


def preemption_requested(step: int) -> int | None:
    """SIGTERM if one of several processes was sent it and all of them are to stop at ``step``; else None.

    JAX has all of them stop at the number that follows the largest it was given before, and says so of that one alone.
    A step's number would be left out by chunks of steps, and begins anew with the next run; all processes ask equally
    often. Where the answer comes with a run's last step, the next run stops.
    """
    if jax.process_count() == 1:
        return None
    if not _STOPS.is_set() and multihost_utils.reached_preemption_sync_point(next(_ASKED)):
        _STOPS.set()
    return signal.SIGTERM if _STOPS.is_set() else None


@contextmanager
def stop_signals() -> Iterator[Callable[[int], int | None]]:
    """Gives ``should_stop(step)``, which returns a signal that was sent or None, and catches SIGTERM and SIGINT inside.

    A second signal ends the process at once. With several processes it is JAX that catches SIGTERM and tells the
    others, so that all of them stop after the same step.
    """
    if jax.process_count() > 1:
        yield preemption_requested
        return
    received: list[int] = []

    def receive(number: int, _) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        name = signal.Signals(number).name
        print(f"{name}: saving after these steps; the same signal again ends it now", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: one that was not set from Python


def _reach(host: str, port: int, wait: float) -> float:
    """Tries until the coordinator answers; the seconds that took."""
    start = time.monotonic()
    while True:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return time.monotonic() - start
        except OSError as error:
            if time.monotonic() - start + PAUSE > wait:
                raise ValueError(
                    f"no coordinator answers at {host}:{port} within {wait:.0f} s ({error.strerror or error}): process "
                    "0 has to run there, and every process needs its address and a way to its port"
                ) from error
        time.sleep(PAUSE)


@contextmanager
def without_script() -> Iterator[None]:
    """Processes that are started meanwhile do not run the user's script again, as ``spawn`` has them do."""
    with _HIDING:
        script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


def end_second_script() -> None:
    """Ends a new process, with a line, that runs the user's script again and would train or read images in it."""
    again = sys.modules.get("__mp_main__")  # as multiprocessing calls it, and it is the main module from its end on
    if getattr(again, "__name__", "") == "__mp_main__" and again is not sys.modules["__main__"]:
        raise SystemExit(
            "a new process runs this script again, as each of data.workers does: put its calls of sdd_jax under "
            'if __name__ == "__main__":'
        )


def end_with_parent() -> None:
    """In a worker process: ends it when the one that started it is killed, for whose work it would wait for ever."""
    parent = multiprocessing.parent_process()

    def watch():
        assert parent is not None  # this runs in no other process
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def memory_bytes() -> int:
    """The machine's memory, or the share of it that a container or a batch job may use."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2 of Linux's control groups
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        own = root / group.lstrip("/")  # which a container may not see: its root is its own then
        for place in (own, *own.parents):
            if place.is_relative_to(root) and (place / name).is_file():
                text = (place / name).read_text().strip()
                limits += [int(text)] if text.isdecimal() else []  # "max" is none
    return min(limits)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
