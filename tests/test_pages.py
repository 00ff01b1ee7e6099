"""Every block of README and docs: run as it stands, or marked with the reason, and then its commands are held against
the program and its configs traced."""

import contextlib
import fcntl
import functools
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import commands
import pytest
from pages import PAGES, ROOT, blocks, config_of, missing_imports
from pages import commands as commands_in

from experiments import plan, tables
from experiments import run as runner
from sdd_jax.build import check
from sdd_jax.build_shapes import trace

SHELL = ("bash", "python")
READ_BY_SPHINX = ("{toctree}", "{eval-rst}")
REASONS = ("needs ", "these are the tests", "minutes")
QUICKSTART = "sdd train --config=quickstart --workdir=runs/quickstart"
WITH_CODE = [page for page in PAGES if any(block.language in SHELL and not block.not_run for block in blocks(page))]
MARKED = [page for page in PAGES if any(block.not_run for block in blocks(page))]
# The environment is there already: `pip install` stands for it. The program is the checkout's.
PRELUDE = 'set -euo pipefail\npip() { :; }\nsdd() { python -m sdd_jax "$@"; }\n'
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    "JAX_PLATFORMS": "cpu",
}


def names(page):
    return str(page.relative_to(ROOT))


def shell(text, folder, **environment):
    """Runs a block in ``folder``; what it printed."""
    ended = subprocess.run(
        ["bash", "-c", PRELUDE + text],
        cwd=folder,
        env={**ENVIRONMENT, "PYTHONPATH": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, f"{text}\nended with {ended.returncode}:\n{ended.stdout}"
    return ended.stdout


def checkout(folder):
    """A checkout whose configs have runs of one epoch."""
    (folder / "sdd_jax").mkdir(parents=True)
    for path in (ROOT / "sdd_jax").iterdir():
        (folder / "sdd_jax" / path.name).symlink_to("../configs" if path.name == "configs" else path)
    for room in ("configs", "experiments"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for config in (folder / "configs").glob("*.py"):
        config.write_text(re.sub(r"(?m)^( +config\.epochs =) .*$", r"\1 1", config.read_text()))
    return folder


def run_before(page):
    """The blocks for the shell of the pages before this one: one that stands on several is run on the first."""
    return {
        block.text for one in WITH_CODE[: WITH_CODE.index(page)] for block in blocks(one) if block.language == "bash"
    }


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """The folder of the README's first command and what it printed, run once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pages"  # of this start alone
    with open(f"{shared}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "printed.txt").exists():
            (block,) = (block for block in blocks(ROOT / "README.md") if QUICKSTART in block.text)
            printed = shell(block.text, checkout(shared), **commands.A_USERS)
            (shared / "printed.txt").write_text(printed)
    return shared


@pytest.mark.slow
def test_the_first_command_ends_in_one_table(quickstart):
    printed = (quickstart / "printed.txt").read_text()
    table = printed[printed.rindex("\nrun ") :].splitlines()[1:]
    assert table[0].split() == ["run", "student", "teacher", "images", "last", "%", "best", "%", "seconds"]
    for name, row in zip(("teacher", "plain", "kd", "sdd_kd"), table[2:], strict=True):
        folder, student, _, images, last, best, _ = row.split()
        run = quickstart / "runs" / "quickstart" / name
        done = json.loads((run / "done.json").read_text())
        assert folder == f"runs/quickstart/{name}" and images == str(done["train_examples"])
        assert student == ("resnet14" if name == "teacher" else "resnet8")
        assert float(last) == pytest.approx(100 * done["last"]["accuracy"], abs=0.005)
        assert float(best) == pytest.approx(100 * done["best"]["accuracy"], abs=0.005)
        left = {path.name for path in run.iterdir()} - {"measured.json", "lock"}
        files = {"config.json", "data.json", "environment.json", "metrics.jsonl", "done.json"}
        assert left == files | {"checkpoints", "tensorboard"}


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_blocks_are_run_or_say_why_not(page):
    for block in blocks(page):
        where = f"{page}:{block.line}"
        assert block.language in (*SHELL, "text", *READ_BY_SPHINX), f"{where}: a block of {block.language!r}"
        assert block.language != "python" or not [*missing_imports(block.text)], where
        assert block.not_run is None or block.language in SHELL and block.not_run.startswith(REASONS), where


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=names)
def test_the_page_runs(page, quickstart, tmp_path, monkeypatch):
    folder = checkout(tmp_path / "checkout")
    (folder / "runs").mkdir()
    # Of its own, but for the weights: a page may train on in them.
    shutil.copytree(quickstart / "runs" / "quickstart", folder / "runs" / "quickstart")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # as of Python started there
    found, elsewhere = blocks(page), run_before(page)
    for block in found:
        if block.file:
            (folder / block.file).write_text(block.text)
            sys.modules.pop(block.file.removesuffix(".py"), None)  # of the same name on another page
    namespace = {"__name__": "page"}
    for number, block in enumerate(found):
        if block.language not in SHELL or block.not_run or block.text in elsewhere:
            continue
        if block.language == "bash":
            printed = shell(block.text, folder)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), namespace)
            printed = out.getvalue()
            following = found[number + 1] if number + 1 < len(found) else None
            if printed and following and following.language == "text":
                assert printed == following.text, f"{page}:{following.line}"


@functools.cache
def holds(accept, config):
    """Whether the config is accepted, by its fields alone or by tracing a step."""
    return accept(json.loads(config)) is not None


def on_no_disk(config):
    """The config, with what is told by files that are not here, and without the places of files."""
    data = config["data"]
    data["train_examples"] = data["train_examples"] or 100_000
    if data["name"] == "image_folder" or data["name"].startswith("tfds:"):
        data["num_classes"] = data["num_classes"] or 100
    config["data"]["path"] = config["teacher"]["run"] = config["teacher"]["cache"] = config["track"] = None
    return config


@pytest.mark.parametrize("accept", [check, pytest.param(trace, marks=pytest.mark.slow)])
@pytest.mark.parametrize("page", MARKED, ids=names)
def test_what_is_not_run_names_what_there_is(page, accept):
    for block in blocks(page):
        if block.language != "bash" or not block.not_run:
            continue
        for program, *words in commands_in(block.text):
            if program == "experiments.run":
                options = runner.parse(words, tables.TABLES)
                patterns = [pattern for pattern in ",".join(options.rows).split(",") if pattern]
                assert plan.chosen(tables.choose(options.table), patterns), words
            elif program == "sdd_jax":
                command, *given = words
                told = helped(command)
                if any(word.startswith("--config=") and word != "--config=..." for word in given):
                    config, given = config_of(given)
                    assert holds(accept, json.dumps(on_no_disk(config), sort_keys=True)), words
                named = {word[2:].partition("=")[0] for word in given if word.startswith("--")}
                unknown = {
                    name for name in named if f"--{name.removeprefix('no')}:" not in told and f"--{name}:" not in told
                }
                assert not unknown, (words, unknown)
            elif program not in ("pytest", "venv", "pip"):
                assert importlib.util.find_spec(program), f"{page}:{block.line}: python -m {program}"


@functools.cache
def helped(command):
    return commands.call(command, "--help").out
