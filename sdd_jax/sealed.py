"""Sealed files: what they hold, what kind it is and whose, under one digest, so that any change of them shows.

A sealed file is JSON: its content, ``kind``, ``owner`` (of a run, `sdd_jax.training.run_dir.owner`), and ``digest``,
the SHA-256 of all the rest. A sealed folder has one, ``MANIFEST.json``, which is written last and holds size and
SHA-256 of every other file. Whoever reads says what is expected, and gets that or ``Damaged``.

This finds accidents and mix-ups. It is no signature: who writes into a folder can compute digests as well.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdd_jax.files import checksum, read_mapping, write_json, write_whole

MANIFEST = "MANIFEST.json"


class Damaged(ValueError):
    """What is sealed is not there, not whole, or another's."""


def digest(content: Any) -> str:
    """SHA-256, in hex, of what is ready for JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write(path: Path, kind: str, owner: str, content: Mapping[str, Any]) -> None:
    """Writes ``content`` as a sealed file."""
    whole = {**content, "kind": kind, "owner": owner}
    write_json(path, {**whole, "digest": digest(whole)})


def read(path: Path, kind: str, owner: str | None, **expected: Any) -> dict[str, Any]:
    """The content of a sealed file; ``Damaged`` if it is not as it was written, or not what is ``expected``.

    Without ``owner`` it may be anybody's.
    """
    try:
        whole = read_mapping(path)
    except FileNotFoundError:
        raise Damaged(f"{path} is not there") from None
    except ValueError as error:
        raise Damaged(str(error)) from error
    stated = whole.pop("digest", None)
    if stated is None:
        raise Damaged(f"{path} has no digest: it was changed, or an earlier version of sdd_jax wrote it (CHANGELOG.md)")
    if stated != digest(whole):
        raise Damaged(f"{path} is not as it was written: its digest differs")
    for name, wanted in {"kind": kind, "owner": owner, **expected}.items():
        if wanted is not None and whole.get(name) != wanted:
            raise Damaged(f"{path} is another's: its {name} is {whole.get(name)!r}, expected {wanted!r}")
    return whole


def seal(
    folder: Path, kind: str, owner: str, content: Mapping[str, Any], files: Mapping[str, bytes] | None = None
) -> None:
    """Seals ``folder``, with the files in it, or with ``files``, which are written first.

    Their digests are then of what is in memory: what another process writes in between does not match.
    """
    if files is None:
        listed = _checksums(folder)
    else:
        listed = {name: {"size": len(of), "sha256": hashlib.sha256(of).hexdigest()} for name, of in files.items()}
        for name, of in files.items():
            write_whole(folder / name, of)
    write(folder / MANIFEST, kind, owner, {**content, "files": listed})


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """``Damaged`` names a file of ``folder`` that is not as ``manifest`` says, is missing, or is one too many."""
    listed, found = manifest["files"], _checksums(folder)
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            raise Damaged(f"{folder / name}: the manifest has {listed.get(name)}, found {found.get(name)}")


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / MANIFEST)
    return {file.relative_to(folder).as_posix(): checksum(file) for file in files}
