"""The program for the day an accelerator is there: what it goes on with, skips and says, on made-up measurements."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import accelerator, accelerator_cases, right, travel
from benchmarks.accelerator_cases import BESIDE, Case, Plan, cases
from benchmarks.accelerator_page import page, reference
from benchmarks.worker import jax_spec
from sdd_jax.build import check
from sdd_jax.files import read_lines

ROOT = Path(__file__).parents[1]
FOUND = {
    "machine": ["- commit abc"],
    "devices": 1,
    "device": "Card 9",
    "peaks": {"default": 4e12, "bfloat16": 8e12, "float32": 1e12},
    "form": "full",
    "torch": None,
}
FULL = Plan(False, False, True, "fashion_mnist", None, 16)


def made_up(part, name, needs=0):
    return Case(part, name, needs, "none:none", {})


def contestant(kind, arithmetic, **changes):
    return {"kind": kind, "arithmetic": arithmetic, "batch": 64, "data": "cifar100"} | changes


CONTEST = {
    "specs": {
        "ours, default": contestant("jax", "default"),
        "ours, bfloat16": contestant("jax", "bfloat16"),
        "PyTorch eager, default": contestant("torch", "default"),
        "PyTorch compiled, default": contestant("torch", "default"),
        "PyTorch compiled, bfloat16": contestant("torch", "bfloat16"),
    },
    "seconds": {
        "ours, default": [0.002, 0.003, 0.002],
        "ours, bfloat16": [0.001, 0.001, 0.001],
        "PyTorch eager, default": [0.008, 0.009, 0.008],
        "PyTorch compiled, default": [0.004, 0.004, 0.004],
    },
    "about": {
        "ours, default": {"flops": 2e9, "bytes": 3 * 2**20, "layouts": {"b01f_01io->b01f": 9, "bf01_oi01->bf01": 1}},
        "ours, bfloat16": {"flops": 2e9, "bytes": 2**20, "layouts": {}},
        "PyTorch eager, default": {},
        "PyTorch compiled, default": {},
        "PyTorch compiled, bfloat16": {"error": "RuntimeError: no\ncompiler"},
    },
}


def test_contestants_are_held_against_the_fastest_of_pytorch_in_their_arithmetic():
    assert reference("ours, default", CONTEST) == "PyTorch compiled, default"
    assert reference("ours, bfloat16", CONTEST) == "ours, default"  # PyTorch has none that runs
    text = page(FOUND, [{"part": BESIDE, "name": "a -> b", "seconds": 60, "result": CONTEST}], [])
    assert "| ours, default | 0.500 | 0.500 to 0.625 | 2.000 | 500.0 | 32000 | 25.0% | 3 |" in text
    assert "| ours, bfloat16 | 0.500 | 0.417 to 0.500 | 1.000 | 1000.0 | 64000 | 25.0% | 1 |" in text
    assert "| PyTorch compiled, default | 1 |  | 4.000 | 250.0 | 16000 |  |  |" in text
    assert "PyTorch compiled, bfloat16 does not run: RuntimeError: no compiler" in text
    assert "Convolutions of *ours, default*: 9 b01f_01io->b01f, 1 bf01_oi01->bf01" in text


def test_the_page_says_what_each_part_measured():
    seeds = {
        "specs": {"1 seeds": {"seeds": 1}, "4 seeds": {"seeds": 4}},
        "seconds": {"1 seeds": [1.0, 1.0, 1.0], "4 seeds": [2.0, 2.0, 1.0]},
    }
    runs = {"kd": {"accuracy": 0.9, "seconds": 30}}
    large = {"specs": {"ours": contestant("jax", "default", data="imagenet")}, "seconds": {"ours": [0.064]}}
    results = {
        ("Right", "losses"): [
            ["kd loss", "highest", 1e-7, 1e-5],
            ["more", "default", 0.5, 0.02],
            ["told", "", 0.0, None],
        ],
        ("Fast", "start"): {"starts": {"cold": [30.0, 20.0], "warm": [9.5, 0.0]}},
        (BESIDE, "resnet34 -> resnet18"): large | {"seconds": {"ours": [0.064, 0.064]}, "about": {"ours": {}}},
        ("Seeds together", "resnet20, 4 seeds"): seeds,
        ("A real run", "digits"): {"runs": runs, "epochs": 7, "examples": 100, "images_per_second": 50.0},
        ("Input", "JPEG"): {"workers": 16, "rates": [500.0, 400.0, 600.0]},
    }
    lines = [{"part": part, "name": name, "seconds": 30, "result": of} for (part, name), of in results.items()]
    text = page(FOUND | {"torch": "PyTorch is not installed"}, lines, [])
    assert (
        "| kd loss | highest | 1.0e-07 | 1e-05 | met |" in text
        and "| more | default | 5.0e-01 | 0.02 | missed |" in text
    )
    assert "| told |  | 0.0e+00 |  |  |" in text
    assert "| cold | 30.0 | 20.0 |" in text and "| resnet20 | 4 | 2.00 | 2.00 to 3.00 | 1000.000 | 2000.000 |" in text
    assert (
        "digits: 100 images, 7 epochs each, the teacher at 50 images a second." in text
        and "| kd | 90.00 | 30 |" in text
    )
    assert "16 processes: 500 images a second (3 rounds)." in text
    assert "resnet34 -> resnet18, ours, takes 1000: the pipeline feeds 0.50 of it." in text
    assert "not beside PyTorch: PyTorch is not installed" in text and "All of it took 3.0 minutes." in text


def test_what_is_there_is_not_measured_again_and_what_does_not_fit_is_said(tmp_path):
    asked, rows = [], [["loss", "highest", 0.0, None]]
    answers = {
        "one": {"result": rows},
        "two": {"error": "ended with -9: out of memory"},
        "three": None,
        "five": {"result": rows},
    }

    def measure_one(case, deadline):
        asked.append(case["name"])
        return answers[case["name"]]

    todo = [made_up("Right", name, 3600 if name == "four" else 0) for name in ("one", "two", "three", "four", "five")]
    accelerator.measure(tmp_path, FOUND, todo, time.time() + 600, measure_one)
    assert asked == ["one", "two", "three", "five"]  # four needs an hour; the time of three was over
    text = (tmp_path / "page.md").read_text()
    assert "- Right: three\n- Right: four\n" in text and "- Right: two: ended with -9: out of memory" in text
    asked.clear()
    answers |= {"two": {"result": rows}, "three": {"result": rows}, "four": {"result": rows}}
    accelerator.measure(tmp_path, FOUND, todo, time.time() + 7200, measure_one)
    assert asked == ["two", "three", "four"]
    text = (tmp_path / "page.md").read_text()
    assert "Failed" not in text and "Not measured" not in text
    lines = read_lines(tmp_path / "measured.jsonl")
    assert sorted(line["name"] for line in lines) == ["five", "four", "one", "three", "two"]


def test_each_line_and_the_page_are_there_when_the_next_one_begins(tmp_path):
    def measure_one(case, deadline):
        if case["name"] == "two":
            assert [line["name"] for line in read_lines(tmp_path / "measured.jsonl")] == ["one"]
            assert "| one |" in (tmp_path / "page.md").read_text()
            raise KeyboardInterrupt
        return {"result": [[case["name"], "highest", 0.0, None]]}

    with pytest.raises(KeyboardInterrupt):
        accelerator.measure(
            tmp_path, FOUND, [made_up("Right", "one"), made_up("Right", "two")], time.time() + 60, measure_one
        )


def test_a_folder_is_of_one_device_and_one_commit(tmp_path, monkeypatch):
    result = dict.fromkeys(accelerator.SAME, "a") | {"platform": "cpu"}
    chosen = {"form": "small", "data": "digits"}
    monkeypatch.setattr(accelerator, "in_process", lambda case, deadline: {"result": result})
    found = accelerator.look(tmp_path, chosen, 0)
    assert accelerator.look(tmp_path, chosen, 0) == found
    result["device"] = "another"
    with pytest.raises(ValueError, match="measurements of device 'a', this is 'another': give another --output"):
        accelerator.look(tmp_path, chosen, 0)
    monkeypatch.setattr(accelerator, "in_process", lambda case, deadline: {"error": "no device"})
    with pytest.raises(ValueError, match="JAX does not compute here: no device"):
        accelerator.look(tmp_path / "new", chosen, 0)
    monkeypatch.setattr(accelerator, "in_process", lambda case, deadline: None)
    with pytest.raises(ValueError, match="the minutes were over before it answered"):
        accelerator.look(tmp_path / "new", chosen, 0)


@pytest.mark.parametrize("small", [False, True])
def test_every_case_names_a_function_and_a_config_that_there_are(small):
    plan = FULL._replace(small=small)
    todo = cases(plan)
    assert len({(case.part, case.name) for case in todo}) == len(todo)
    asked = set()
    for case in todo:
        module, _, name = case.measure.partition(":")
        assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), name))
        arguments = json.loads(json.dumps(case.arguments))
        for spec in [*arguments.get("specs", {}).values(), *([arguments["spec"]] if "spec" in arguments else [])]:
            asked.add((spec["data"], spec["teacher"], spec["student"], spec["method"]))
        for pair in arguments.get("pairs", []):
            asked.add((*pair, "sdd_kd"))
    assert len(asked) > (2 if small else 10)
    for data, teacher, student, method in asked:
        teacher = "none" if method == "plain" else teacher
        config = importlib.import_module(f"sdd_jax.configs.{data}").get_config(
            f"teacher={teacher},student={student},method={method}"
        )
        check(config)


def test_the_first_needs_of_an_accelerator_fit_into_the_minutes():
    """What is worth most: golden numbers, a killed run, both pairs beside PyTorch, four seeds, a real run."""
    first = cases(FULL)
    until = next(number for number, case in enumerate(first) if case.part == "Input")
    assert sum(case.needs for case in first[: until + 1]) <= 60 * 12  # in two calls of the program
    assert {case.part for case in first[: until + 1]} == {
        "Right",
        BESIDE,
        "Fast",
        "Seeds together",
        "A real run",
        "Input",
    }


def test_the_real_run_is_a_sequence_whose_students_have_the_teacher():
    from benchmarks.real_run import get_config

    config = get_config("data=digits,teacher=resnet14,student=resnet8,epochs=3")
    assert config.sequence == ("teacher", "kd", "sdd_kd")
    for name in config.sequence:
        check(config.runs[name])
        assert config.runs[name].data.name == "digits" and config.runs[name].epochs == 3
    assert config.runs.teacher.method == "plain" and config.runs.sdd_kd.teacher.run == "teacher"
    assert get_config("runs=teacher").sequence == ("teacher",)


def test_distance_is_zero_only_bit_for_bit():
    import numpy as np

    one = {"a": np.array([1.0, -4.0]), "b": np.array([0.0])}
    assert right.distance(one, {"a": one["a"].copy(), "b": one["b"].copy()}) == 0.0
    assert right.distance(one, {"a": np.array([1.0, -3.0]), "b": one["b"]}) == 0.25


def test_a_failed_case_says_its_last_line(tmp_path):
    line = accelerator.in_process({"measure": "accelerator_cases:start", "arguments": {"spec": {}}}, time.time() + 100)
    assert line["error"].startswith("ended with 1: ") and "KeyError" in line["error"]


def test_only_what_the_machine_lacks_travels(tmp_path, monkeypatch):
    """pip's part is made up: what `requirements.txt` needs beside JAX, and what JAX needs."""
    asked = []

    def pip(python, *arguments):
        asked.append(arguments)
        if arguments[0] == "download":
            folder = Path(
                next(argument for argument in arguments if argument.startswith("--dest=")).removeprefix("--dest=")
            )
            folder.mkdir()
            (folder / "grain-1-py3-none-any.whl").write_bytes(b"wheel")
            return ""
        names = ("jax", "numpy", *(["Grain"] if "-r" in arguments else []))
        return json.dumps({"install": [{"metadata": {"name": name, "version": "1"}} for name in names]})

    monkeypatch.setattr(travel, "pip", pip)
    assert [path.name for path in travel.fetch(tmp_path / "wheels", "python", ["jax"])] == ["grain-1-py3-none-any.whl"]
    assert asked[-1][-1] == "grain==1" and asked[-1][-2].startswith("--dest=")


@pytest.mark.slow
def test_a_killed_measurement_goes_on(tmp_path, monkeypatch):
    """The small form is killed in its first measurement; three short ones then go on to a page."""
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--output={tmp_path}", "--small", "--minutes=30"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("[1/")
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "measured.jsonl").exists() and (tmp_path / "environment.json").exists()

    def few(plan):
        chosen = [
            case for case in accelerator_cases.small_cases(plan) if case.name in ("networks", "method and teacher")
        ]
        assert len(chosen) == 2
        return [*chosen, Case("Input", "JPEG", 10**6, "accelerator_cases:photographs", {})]

    monkeypatch.setattr(accelerator, "cases", few)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        for name in ("TMPDIR", "XLA_FLAGS"):
            monkeypatch.setenv(name, os.environ.get(name, ""))
        accelerator.main([f"--output={tmp_path}", "--small", "--minutes=30"])
    text = (tmp_path / "page.md").read_text()
    assert "Failed" not in text and "- Input: JPEG" in text
    assert "| cifar/vgg8, logits and regions | highest |" in text and "| KD, cached |" in text
    assert [line["part"] for line in read_lines(tmp_path / "measured.jsonl")] == ["Right", "Fast"]


@pytest.mark.slow
def test_steps_of_several_a_call_are_those_of_one(monkeypatch):
    """The same state after as many steps, also where the run begins again."""
    from benchmarks import jax_step

    options = {"batch": 8, "examples": 32, "epochs": 1, "classes": 10}  # four steps
    for size in (1, 2):
        call, wait, about = jax_step.jax_step(jax_spec("resnet8", "resnet8", steps_per_call=size, **options))
        for _ in range(6 // size):
            call()
        wait()
        found = about()
        assert found["flops"] > 1e6 and found["bytes"] > 2**20 and sum(found["layouts"].values()) > 10
    with pytest.raises(ValueError, match="1 epochs of 32 examples have 4 steps, a call 8"):
        jax_step.jax_step(jax_spec("resnet8", "resnet8", steps_per_call=8, **options))
