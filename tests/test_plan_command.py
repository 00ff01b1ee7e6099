"""``python -m sdd_jax plan`` as a person runs it: its refusals, and one real program for chips that are not here."""

import importlib.util
import json
import re

import pytest
from commands import A_USERS, call
from test_end_to_end import ENVIRONMENT, run

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

IMAGENET = "--config=configs/imagenet.py:teacher=resnet34,student=resnet18"
LIBTPU = importlib.util.find_spec("libtpu") is not None

REFUSALS = {
    "a slice that does not exist": ([IMAGENET, "--topology=v5e:3x5"], "'v5e:3x5' does not exist: .*2x4.*16x16"),
    "a chip that does not exist": ([IMAGENET, "--topology=v9:2x2"], "'v9:2x2'.*v4:2x2x4.*v5e:16x16"),
    "a batch that does not divide": (
        [IMAGENET, "--topology=v5e:16x16", "--batch_size=1000"],
        "1000 .* 256 chips .* 768 or 1024 would",
    ),
    "a config that is not there": (["--config=configs/imagnet.py", "--topology=v5e:2x2"], "configs/imagnet.py"),
    "a batch that does not divide into its parts": (
        [IMAGENET, "--topology=v5e:2x4", "--batch_size=1000", "--config.optim.accumulate_steps=16"],
        "1000 .* 8 chips of v5e:2x4 in 16 parts: 896 or 1024 would",
    ),
    "a comparison of nothing": (
        ["--config=configs/quickstart.py:run=plain", "--topology=v5e:2x4", "--compare=kd"],
        "--compare=kd goes with a distillation by another method; got 'plain'",
    ),
    "a comparison with itself": (
        ["--config=configs/quickstart.py:run=kd", "--topology=v5e:2x4", "--compare=kd"],
        "--compare=kd goes with .*; got 'kd'",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_mistake_is_one_line(case):
    arguments, message = REFUSALS[case]
    assert re.search(message, call("plan", *arguments).refused())


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_it_says_how_to_get_it():
    message = call("plan", IMAGENET, "--topology=v5e:2x4").refused()
    assert "pip install -e '.[plan]'" in message and "environment of its own" in message


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed: pip install -e '.[plan]' in an environment of its own")
def test_a_small_pair_is_planned_for_four_chips():
    config = ["--config=configs/quickstart.py:method=sdd_kd,teacher=resnet8", "--topology=v5e:2x2", "--json"]
    result = run("plan", *config, "--compare=kd", environment={**ENVIRONMENT, **A_USERS})
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("compiling") == 2
    [plan] = json.loads(result.stdout)
    sdd, kd = plan["methods"]
    assert (sdd["method"], kd["method"], plan["images_per_chip"], plan["largest"]) == ("sdd_kd", "kd", 16, None)
    assert sdd["memory_bytes"]["optimizer"] < sdd["memory_bytes"]["total"] < plan["hbm_bytes"]
    assert sdd["flops"] >= kd["flops"] > 1e9
    # Every parameter's gradient is summed over the chips once a step, and little else.
    assert 0.95 < sdd["memory_bytes"]["optimizer"] / sdd["collectives"]["operand_bytes"] < 1


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed: pip install -e '.[plan]' in an environment of its own")
def test_a_batch_that_is_too_large_is_an_answer():
    config = ["--config=configs/quickstart.py:run=plain", "--topology=v5e:1x1", f"--batch_size={2**22}"]
    result = run("plan", *config, environment={**ENVIRONMENT, **A_USERS})
    assert result.returncode == 0, result.stderr
    assert "NO: more than 16 GiB" in result.stdout and "does not fit v5e:1x1: RESOURCE_EXHAUSTED" in result.stdout
