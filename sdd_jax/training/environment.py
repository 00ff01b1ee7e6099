"""Where a run took place: versions, devices, commit; kept beside its results so that a number has its evidence."""

import importlib.metadata
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe() -> dict[str, Any]:
    """A JSON-ready description of this process."""
    from sdd_jax import __version__

    devices = jax.devices()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"sdd_jax": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "commit": commit(),
    }


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout that ``folder`` is in, "+changes" if its code differs; None outside of one.

    Files of results are left out: each run of a table adds a line to them.
    """
    code = ("--", ":(top)", ":(top,exclude)experiments/results")
    try:
        revision, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", *code))
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or an installed package: there is no commit to name
        return None
    return revision + ("+changes" if changes else "")
