"""Several processes as one run: how they find each other, and how they agree on what only one of them can know.

Every process runs the same program over the devices of all. One of them, the first, writes files and speaks; what it
finds on disk it tells the others, since two processes that look for themselves may see different moments.
"""

import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
HEARTBEAT_SECONDS = 30  # after so long without a sign of it a process counts as lost, and the others end
PAUSE = 0.5  # seconds between two tries


def join(
    coordinator: str | None = None, count: int | None = None, index: int | None = None, *, wait: float = 300.0
) -> None:
    """Makes this process one of several; to be called before anything else of JAX.

    Args:
      coordinator: ``HOST:PORT``, where process 0 listens and every other one can reach it.
      count: how many processes there are; 1 is this one alone, whatever the environment says.
      index: which one this is, from 0.
      wait: seconds in which all of them have to come.

    Without the first three it is one of several where the environment says so, as JAX reads it: SLURM, Open MPI, a
    slice of Cloud TPUs, Kubernetes (with the package ``kubernetes``). Elsewhere it stays alone.

    Raises:
      ValueError: if only some of the three are given, they are out of range, the coordinator cannot be reached, its
        port is taken, or not all processes come in time.
    """
    given = {"coordinator": coordinator, "processes": count, "process": index}
    if count == 1 and coordinator is None and index in (None, 0):
        return
    if coordinator is None and count is None and index is None:
        if _processes_of_environment() > 1:
            _initialize(None, wait)
        return
    if coordinator is None or count is None or index is None:
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise ValueError(f"coordinator, processes and process go together: {missing} is not given")
    if not 0 <= index < count:
        raise ValueError(f"process must be from 0 to {count - 1} of {count} processes, got {index}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator must be HOST:PORT, got {coordinator!r}")
    if index == 0:
        _check_free(int(port))
        # If they do not come, the runtime ends this process with lines of its own.
        print(f"process 0 of {count}: waiting up to {wait:.0f} s at {coordinator} for the others", file=sys.stderr)
    else:
        wait -= _reach(host.strip("[]"), int(port), wait)
    _initialize({"coordinator_address": coordinator, "num_processes": count, "process_id": index}, max(wait, 1.0))


def is_first() -> bool:
    """Whether this process writes the files and speaks."""
    return jax.process_index() == 0


def coordinator() -> str | None:
    """Where the processes came together, ``HOST:PORT``; None for one alone."""
    from jax._src import distributed  # the public functions do not say

    return distributed.global_state.coordinator_address


def from_first(make: Callable[[], T]) -> T:
    """What ``make``, called in the first process alone, returns there (JSON-ready); every process gets it.

    All processes have to call this. An error of ``make`` is raised in all of them, a ``ValueError`` as one, so that no
    process waits for one that has ended.
    """
    if jax.process_count() == 1:
        return make()
    answer: dict[str, Any] = {}
    error = None
    if is_first():
        try:
            answer = {"value": make()}
        except Exception as caught:
            error = caught
            answer = {"error": str(caught), "refusal": isinstance(caught, ValueError)}
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if error is not None:
        raise error
    if "error" in answer:
        kind = ValueError if answer["refusal"] else RuntimeError
        raise kind(f"process 0: {answer['error']}")
    return answer["value"]


def check_all(fine: bool, message: str) -> None:
    """``ValueError`` in every process if it is not ``fine`` in one; the message ends with which ones."""
    everyone = multihost_utils.process_allgather(np.array(fine)).reshape(-1)
    if not everyone.all():
        raise ValueError(f"{message} (processes {', '.join(str(number) for number in np.flatnonzero(~everyone))})")


def _broadcast(message: bytes) -> bytes:
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    text = np.zeros(length, np.uint8)
    if is_first():
        text[:] = np.frombuffer(message, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(text))


def _initialize(arguments: dict[str, Any] | None, wait: float) -> None:
    try:
        jax.distributed.initialize(
            **(arguments or {}),
            initialization_timeout=int(wait),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except RuntimeError as error:  # of the detection: a cluster that does not say who the others are
        raise ValueError(f"the processes could not come together: {error}") from error


def _processes_of_environment() -> int:
    """How many processes JAX's own detection finds; its public functions tell only by joining them."""
    from jax._src.clusters import ClusterEnv

    with warnings.catch_warnings():  # that a pod without the package `kubernetes` is not looked into
        warnings.simplefilter("ignore")
        found = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method and kind.is_env_present()]
    return found[0].get_process_count() if found else 1


def _check_free(port: int) -> None:
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise ValueError(f"process 0 cannot listen on port {port} of this machine: {error.strerror}") from error


def _reach(host: str, port: int, wait: float) -> float:
    """Tries until somebody answers; the seconds that took."""
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


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
