"""``python -m sdd_jax plan`` as a person runs it: its refusals, and one real program for chips that are not here."""

import importlib.util
import json
import re

import pytest
from commands import A_USERS
from test_end_to_end import ENVIRONMENT, refused, run

IMAGENET = "--config=configs/imagenet.py:teacher=resnet34,student=resnet18"
LIBTPU = importlib.util.find_spec("libtpu") is not None

REFUSALS = {
    "a slice that does not exist": ([IMAGENET, "--topology=v5e:3x5"], "'v5e:3x5' does not exist: .*2x4.*16x16"),
    "a chip that does not exist": ([IMAGENET, "--topology=v9:2x2"], "'v9'.*'v[456][a-z]?'.*v5e:16x16"),
    "a batch that does not divide": (
        [IMAGENET, "--topology=v5e:16x16", "--batch_size=1000"],
        "1000 .* 256 chips .* 768 or 1024 would",
    ),
    "a config that is not there": (["--config=configs/imagnet.py", "--topology=v5e:2x2"], "configs/imagnet.py"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_mistake_is_one_line(case):
    arguments, message = REFUSALS[case]
    assert re.search(message, refused("plan", *arguments))


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_it_says_how_to_get_it():
    message = refused("plan", IMAGENET, "--topology=v5e:2x4")
    assert "pip install -e '.[plan]'" in message and "environment of its own" in message


@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed: pip install -e '.[plan]' in an environment of its own")
def test_a_small_pair_is_planned_for_four_chips(tmp_path):
    environment = {**ENVIRONMENT, **A_USERS, "XDG_CACHE_HOME": str(tmp_path)}
    config = ["--config=configs/quickstart.py:run=sdd_kd", "--topology=v5e:2x2", "--nolargest", "--json"]
    result = run("plan", *config, environment=environment)
    assert result.returncode == 0, result.stderr
    [plan] = json.loads(result.stdout)
    sdd, kd = plan["methods"]
    assert (sdd["method"], kd["method"], plan["images_per_chip"]) == ("sdd_kd", "kd", 16)
    assert sdd["memory_bytes"]["optimizer"] < sdd["memory_bytes"]["total"] < plan["hbm_bytes"]
    assert sdd["flops"] >= kd["flops"] > 1e9
    # Every parameter's gradient is summed over the chips once a step.
    assert sdd["collectives"]["operand_bytes"] > 0.95 * sdd["memory_bytes"]["optimizer"]
    again = run("plan", *config, environment=environment)  # from what was kept
    assert json.loads(again.stdout) == [plan]
