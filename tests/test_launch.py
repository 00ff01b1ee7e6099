"""The launch files: they parse, their numbers fit each other, and their training commands are accepted."""

import math
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from pages import config_of

from sdd_jax.build import check
from sdd_jax.commands import train

ROOT = Path(__file__).parents[1]
CHIPS_OF_A_HOST = 4  # of v5e machines that form slices


def jobset():
    return yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())


def commands():
    """The arguments of every training command, by the file that has it."""
    (pod,) = (job["template"]["spec"]["template"]["spec"] for job in jobset()["spec"]["replicatedJobs"])
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "sdd_jax", "train"]
    slurm = (ROOT / "launch" / "slurm.sh").read_text().replace("$SHARED", "/shared").replace("\\\n", " ")
    (line,) = re.findall(r"python -m sdd_jax train (.*)", slurm)
    page = (ROOT / "docs" / "scale.md").read_text().replace("\\\n", " ")
    (slice_,) = re.findall(r'&& \S*python -m sdd_jax train (.*)"', page)
    return {"jobset.yaml": container["args"], "slurm.sh": shlex.split(line), "scale.md": shlex.split(slice_)}


def settings(arguments):
    """The config that the command makes of its arguments."""
    config, rest = config_of(arguments)
    (workdir,) = rest
    assert workdir.startswith("--workdir=/shared/")
    return config


@pytest.mark.parametrize("name", ["jobset.yaml", "slurm.sh", "scale.md"])
def test_the_training_command_is_accepted(name):
    config = check(settings(commands()[name])).nested()
    assert config["teacher"]["run"] and config["data"]["path"]


def test_pods_tasks_and_batches_fit_the_devices():
    (job,) = jobset()["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == CHIPS_OF_A_HOST
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == chips // CHIPS_OF_A_HOST
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert settings(commands()["jobset.yaml"])["batch_size"] % chips == 0

    script = (ROOT / "launch" / "slurm.sh").read_text()
    nodes, tasks, gpus = (
        int(re.search(rf"#SBATCH --{name}=(\d+)", script)[1]) for name in ("nodes", "ntasks-per-node", "gpus-per-node")
    )
    assert tasks == gpus and settings(commands()["slurm.sh"])["batch_size"] % (nodes * gpus) == 0


def test_the_script_is_one_for_bash():
    subprocess.run(["bash", "-n", ROOT / "launch" / "slurm.sh"], check=True)


def test_the_page_names_flags_that_there_are():
    page = (ROOT / "docs" / "scale.md").read_text().split("## Planned")[0]
    named = set(re.findall(r"--(coordinator\w*|process\w*)", page))
    defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', Path(train.__file__).read_text()))
    assert named == {"coordinator", "coordinator_wait", "process", "processes"} <= defined
