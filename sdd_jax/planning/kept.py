"""What the compiler said of programs, kept between starts.

JAX's persistent cache keeps programs for chips that are not here, but cannot read them again without the chips. Of a
plan only the figures are needed, and they are a function of the program, the slice and the compiler.
"""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "libtpu")


def place(program: str, topology: str) -> Path:
    """The file for the figures of a lowered program's text on a topology, by the installed compiler.

    Another folder is due when other figures are kept.
    """
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    key = hashlib.sha256("\n".join([*versions, topology, program]).encode()).hexdigest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "sdd_jax" / "plans" / f"{key}.json"


def read(path: Path) -> dict[str, Any] | None:
    """The figures, or None if there are none, or none that can be read."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write(path: Path, figures: dict[str, Any]) -> None:
    """Keeps the figures; by rename, so that two plans at once leave a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(figures))
    part.rename(path)
