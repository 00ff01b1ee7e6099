"""Freed memory stays with the process: counted in pages that the kernel had to give."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from commands import A_USERS

from sdd_jax import processes
from sdd_jax.training import compiling

STEPS = """
import json, resource, sys
if sys.argv[1] == "keeps":
    from sdd_jax.training.compiling import keep_freed_memory
    assert keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: x[::-1] + 1)
x = jnp.ones((4096, 4096))  # 64 MiB: at most 32 are kept by glibc's own rules
for number in range(40):
    if number == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


def pages(how, monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):  # the tests' own
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XLA_FLAGS", A_USERS["XLA_FLAGS"])  # without fusion a step needs one array more
    return json.loads(subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_steps_need_few_new_pages(monkeypatch):
    """An array of the twenty steps has 16,384 pages of 4 KiB. A machine that is short of memory takes pages back."""
    assert any(pages("keeps", monkeypatch) < 2 * 16384 for _ in range(3))
    assert 15 * 16384 < pages("does not", monkeypatch)


@pytest.fixture
def told(monkeypatch):
    """What a C library was told."""
    calls = []

    class Library:
        def mallopt(self, *setting):
            calls.append(setting)
            return 1

    monkeypatch.setattr(compiling.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(compiling.sys, "platform", "linux")
    return calls


@pytest.mark.parametrize(
    ("chosen", "there", "keeps"),
    [
        ("cpu", "jax_plugins", True),
        ("", None, True),
        ("", "jax_plugins", False),
        ("", "libtpu", False),
        ("cuda,cpu", None, False),
    ],
)
def test_only_where_nothing_but_the_cpu_computes(monkeypatch, told, chosen, there, keeps):
    monkeypatch.setattr(compiling, "jax", SimpleNamespace(config=SimpleNamespace(values={"jax_platforms": chosen})))
    monkeypatch.setattr(compiling, "find_spec", lambda name: there if name == there else None)
    assert compiling.keep_freed_memory() == keeps
    assert bool(told) == keeps


def test_another_c_library_is_left_alone(monkeypatch, told):
    monkeypatch.setattr(compiling.ctypes, "CDLL", lambda name: object())
    assert not compiling.keep_freed_memory()


def test_a_container_has_the_memory_that_it_may_use(tmp_path, monkeypatch):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(processes, "Path", lambda name: tmp_path / name.lstrip("/"))

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert processes.memory_bytes() == whole  # on another system
    write("proc/self/cgroup", "3:cpu,cpuacct:/\n4:hugetlb,memory:/jobs/7\n0::/jobs:a/7\n")
    assert processes.memory_bytes() == whole
    write("sys/fs/cgroup/cpu/memory.limit_in_bytes", "1\n")  # of nothing that has the memory
    for name in ("memory.max", "jobs:a/7/memory.max", "jobs:a/memory.max", "memory/jobs/memory.limit_in_bytes"):
        for text, expected in {"1000\n": 1000, "max\n": whole, f"{2 * whole}\n": whole}.items():
            write(f"sys/fs/cgroup/{name}", text)
            assert processes.memory_bytes() == expected, name
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n")
    write("sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", "2000\n")
    assert processes.memory_bytes() == 2000
