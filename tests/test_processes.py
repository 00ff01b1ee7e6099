"""One run on any number of devices and processes learns the same; and how processes come together."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny

from sdd_jax import processes

ROOT = Path(__file__).parents[1]
STEPS, TOLERANCE = 20, {"float64": 1e-9, "float32": 1e-5}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(command, devices, environment=()):
    """A process with so many virtual devices."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            **dict(environment),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(started):
    """What the first of them printed last; all have to end well."""
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), [errors[-3000:] for _, errors in outputs]
    return json.loads(outputs[0][0].splitlines()[-1])


def test_eight_devices_learn_what_one_does(tmp_path):
    started = [start(["tests/print_losses.py", tmp_path / str(devices)], devices) for devices in (8, 1)]
    printed, expected = (finish([process]) for process in started)
    assert (printed["devices"], printed["processes"]) == (8, 1)
    assert_same(printed, expected, ["float64"])


def alone(devices, workdir, *options):
    return finish([start(["tests/print_losses.py", workdir, *options], devices)])


def by_flags(workdir, *options):
    """Two processes of four devices each."""
    port, script = free_port(), "tests/print_losses.py"
    both = [[script, workdir, "--joins=flags", f"--process={index},2,{port}", *options] for index in range(2)]
    return finish([start(command, 4) for command in both])


def by_environment(workdir, *options):
    """The same, as SLURM tells its tasks; the port follows from the number of the job."""
    tasks = {"SLURM_JOB_ID": str(free_port() % 4096), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    command = ["tests/print_losses.py", workdir, "--joins=environment", *options]
    return finish(
        [
            start(command, 4, {**tasks, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}.items())
            for index in range(2)
        ]
    )


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return alone(1, tmp_path_factory.mktemp("one_device"), "--dtypes=float64,float32")


def assert_same(printed, expected, dtypes=("float64", "float32")):
    for dtype in dtypes:
        got, wanted = printed[dtype]["losses"], expected[dtype]["losses"]
        assert len(got) == len(wanted) == 22 and len(set(wanted)) == 22
        steps = STEPS if dtype == "float64" else 1  # float32 programs drift apart
        np.testing.assert_allclose(got[:steps], wanted[:steps], rtol=TOLERANCE[dtype])
        for got, wanted in zip(printed[dtype]["evaluations"], expected[dtype]["evaluations"], strict=True):
            assert got[:3] == wanted[:3] and got[2] == {"test": tiny.TEST, "validation": 6}[got[1]]
            assert dtype == "float32" or got[3:] == [wanted[3], pytest.approx(wanted[4], rel=1e-9)]


@pytest.mark.slow
def test_four_seeds_on_eight_devices_are_each_the_single_run(one_device, tmp_path):
    assert_same(alone(8, tmp_path, "--seeds=4"), one_device, ["float64"])  # each has two devices


@pytest.mark.slow
def test_two_processes_of_four_devices_learn_what_one_device_does(one_device, tmp_path):
    printed = by_flags(tmp_path, "--dtypes=float64,float32")
    assert (printed["devices"], printed["processes"]) == (8, 2)
    assert_same(printed, one_device)


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_other_processes(one_device, tmp_path):
    """Begun on one device, resumed on eight, finished by two processes."""
    assert alone(1, tmp_path, "--stop_at=11")["stopped"]
    assert alone(8, tmp_path, "--stop_at=17")["stopped"]
    printed = by_environment(tmp_path)
    assert (printed["devices"], printed["processes"]) == (8, 2)
    assert_same(printed, one_device, ["float64"])
    starts = json.loads((tmp_path / "float64" / "0" / "environment.json").read_text())["starts"]
    assert [(entry["devices"]["count"], entry["processes"]) for entry in starts] == [(1, 1), (8, 1), (8, 2)]


# ---------------------------------------------------------------------- what is refused


def two(command, *own):
    """How two processes of one command end that differ in what each is given: exit code and last line of each."""
    port = free_port()
    flags = [f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    both = [start([*command, *flags, f"--process={index}", *given], 1) for index, given in enumerate(own)]
    errors = [process.communicate(timeout=240)[1] for process in both]
    return [(process.returncode, text.splitlines()[-1]) for process, text in zip(both, errors, strict=True)]


@pytest.mark.slow
def test_processes_of_different_configs_do_not_train_together(tmp_path):
    command = ["-m", "sdd_jax", "train", "--config=configs/quickstart.py:run=plain", f"--workdir={tmp_path}/run"]
    first, second = two(command, ["--config.seed=0"], ["--config.seed=1"])
    assert first[0] == second[0] == 2 and not (tmp_path / "run").exists()
    assert first[1].endswith("every process needs the config and the data of the first one (processes 1)")
    assert "here seed is the first's [0], now [1] (processes 1)" in second[1]


@pytest.mark.slow
@pytest.mark.parametrize("other", ["bright", "teacher", "stores"])
def test_processes_of_different_data_or_teachers_do_not_train_together(tmp_path, other):
    """From Python, too: hashes are compared before the first step."""
    port = free_port()
    both = [
        start(["tests/train_tiny.py", tmp_path, f"--process={index},2,{port}", f"--{other}={index}"], 1)
        for index in range(2)
    ]
    for process in both:
        assert "the data of the first one" in process.communicate(timeout=240)[1] and process.returncode == 1
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"coordinator": "host:1"}, "go together, got host:1, None and None"),
        ({"count": 2}, "go together, got None, 2 and None"),
        ({"coordinator": "host:1", "count": 2, "index": 2}, "from 0 to 1 of 2 processes, got 2"),
        ({"coordinator": "host:1", "count": 2, "index": -1}, "from 0 to 1 of 2 processes, got -1"),
        ({"coordinator": "host", "count": 2, "index": 1}, "HOST:PORT, got 'host'"),
        ({"coordinator": "host:http", "count": 2, "index": 1}, "HOST:PORT, got 'host:http'"),
        ({"coordinator": "127.0.0.1:1", "count": 2, "index": 1, "wait": 1.0}, "no coordinator answers at 127.0.0.1:1"),
        ({"coordinator": "no.such.host:9999", "count": 2, "index": 1, "wait": 1.0}, "no coordinator answers"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(given, said):
    with pytest.raises(ValueError, match=said):
        processes.join(**given)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on port {port}"):
            processes.join(f"127.0.0.1:{port}", 2, 0)


LAUNCHERS = {
    "nothing": ({}, False),
    "a task of srun": ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"}, True),
    "the only task of srun": ({"SLURM_STEP_NODELIST": "a1", "SLURM_NTASKS": "1"}, False),
    "a batch script of several tasks": ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False),
    "one of Open MPI": ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
    "a pod without the package kubernetes": ({"JOB_COMPLETION_INDEX": "0"}, False),
    "a pod of a slice": ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    "the only pod of a slice": ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    "the pod of one of two slices": ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
    "libtpu on a machine without TPUs": ({"TPU_SKIP_MDS_QUERY": "1"}, False),
}


@pytest.mark.parametrize("case", LAUNCHERS)
def test_launchers_are_known_by_their_variables(monkeypatch, case):
    environment, several = LAUNCHERS[case]
    joined = []
    monkeypatch.setattr(processes, "find_spec", lambda name: name == "libtpu" and "TPU" in str(environment) or None)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **given: joined.append(given))
    processes.join()
    assert bool(joined) == several and not any("coordinator_address" in given for given in joined)


def test_a_cluster_that_jax_does_not_find_is_one_line(monkeypatch):
    def initialize(**given):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(os, "environ", {"OMPI_COMM_WORLD_SIZE": "4"})
    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="could not find each other: .*--processes=1 runs this one alone"):
        processes.join()


@pytest.mark.parametrize("given", [{}, {"count": 1}, {"count": 1, "index": 0}])
def test_one_process_stays_alone(given):
    processes.join(**given)
    assert processes.from_first(lambda: [1, "two"]) == [1, "two"]


@pytest.mark.parametrize(
    "error, raised", [(ValueError("a"), ValueError), (OSError(28, "full", "b"), OSError), (KeyError("c"), RuntimeError)]
)
def test_an_error_of_the_first_process_is_of_its_kind_in_all(monkeypatch, error, raised):
    sent = []
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    for index, kind in ((0, type(error)), (1, raised)):
        monkeypatch.setattr(processes.jax, "process_index", lambda index=index: index)

        def broadcast(array, index=index):
            if index == 0:
                sent.append(array)
            return array if index == 0 else sent.pop(0)

        monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", broadcast)
        with pytest.raises(kind, match=re.escape(str(error))):
            processes.from_first(mock.Mock(side_effect=error))


@pytest.mark.slow
def test_no_coordinator_is_one_line_and_exit_code_2(tmp_path):
    command = ["-m", "sdd_jax", "train", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]
    where = ["--coordinator=127.0.0.1:1", "--processes=2", "--process=1", "--coordinator_wait=1"]
    process = start([*command, *where], 1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(errors.splitlines()) == 1 and "no coordinator answers at 127.0.0.1:1 within 1 s" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_refusal_of_the_first_process_ends_all(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    command = ["-m", "sdd_jax", "train", "--config=configs/cifar100.py:teacher=none", f"--workdir={tmp_path}"]
    where = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    both = [start([*command, *where, f"--process={index}"], 1) for index in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert f"{tmp_path} is not empty and holds no run" in errors.splitlines()[-1]
