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


def commit() -> str | None:
    """The commit of the checkout that this package runs from, "+changes" if files differ; None outside of one."""
    try:
        revision, changes = (
            subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or an installed package: there is no commit to name
        return None
    return revision + ("+changes" if changes else "")
