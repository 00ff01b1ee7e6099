"""Files that are written whole or not at all: JSON, checksums, and named tensors (safetensors; PyTorch's read alone).

PyTorch's format (.pth, .pt) is a pickle, and a pickle can run any code when it is opened. It is read through
`torch.load(weights_only=True)`, which builds tensors and plain containers and refuses everything else.
"""

import contextlib
import hashlib
import json
import math
import os
import pickle
import re
import secrets
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, ValuesView
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import numpy as np
from flax.traverse_util import flatten_dict
from jax.numpy import bfloat16
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

flatten: Callable[..., dict[str, Any]] = partial(flatten_dict, sep=".")  # a nested dictionary as one of dotted names
Fields = Mapping[str, type | UnionType]  # dotted names and the types of their values; a missing one counts as None
ANY: Fields = {}
NUMBER = int | float
# What reading a zip file raises that is damaged, encrypted, or packed in a way that Python does not know.
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
MOST_LEVELS = 32  # of names within names, in JSON
_TORCH_NEEDED = (2, 6)  # older ones could be made to run code even so: CVE-2025-32434
_INSTALL = 'pip install "torch>=2.6" (a build for CPU will do), or convert the file to safetensors where it was made'


def size_text(count: float) -> str:
    """So many bytes in GB, or in MB if they are few."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def cache_folder(name: str) -> Path:
    """The folder ``name`` of what this package keeps for the user between starts; ``ValueError`` without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sdd_jax", name)
    except RuntimeError as error:
        raise ValueError(f"{error} Nothing can be kept between starts: set XDG_CACHE_HOME") from error


def walk(folder: Path, without: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """Each folder from ``folder`` down, and its files, in the order of their names; but for what lies in ``without``.

    What is hidden is left out. Links to folders are followed, each folder once. ``OSError`` if one cannot be listed.
    """
    seen = set() if without is None else {os.path.realpath(without)}
    for place, subfolders, files in os.walk(folder, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(part for part in subfolders if not part.startswith("."))
        yield place, sorted(file for file in files if not file.startswith("."))


def _raise(error: OSError) -> None:
    """Or a folder that cannot be listed would be left out."""
    raise error


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as JSON, whole or not at all; ``ValueError`` for what JSON has no form of, NaN among it."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def write_whole(path: Path, content: bytes) -> None:
    """Writes ``content`` so that a kill leaves ``path`` as it was or whole, never half of it."""
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files, each whole or not at all; none of them if the disk has no room for all. ``OSError`` names one."""
    written, path = {}, None
    try:
        for path, content in contents.items():
            written[path] = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # of this writer alone
            with open(written[path], "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in written.items():
            os.replace(temporary, path)
    except OSError as error:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; ``ValueError`` names the file if it does not read."""
    return _parse(path.read_bytes(), str(path))


def read_mapping(path: Path, fields: Fields = ANY) -> dict[str, Any]:
    """The content of a JSON file of names and values; ``ValueError`` if it holds anything else, or lacks ``fields``."""
    return check_fields(read_json(path), fields, str(path))


def read_lines(path: Path, fields: Fields = ANY) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file, each as by ``read_mapping``; a last one that a kill cut short is left out."""
    numbered = ((line, f"{path}:{number}") for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1))
    return [check_fields(_parse(line, where), fields, where) for line, where in numbered]


def check_fields(content: Any, fields: Fields, where: str) -> dict[str, Any]:
    """``content`` if it is a dictionary with these fields of these types, each number finite; else ``ValueError``."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold names and values, got {content!r:.80}")
    for name, kind in fields.items():
        value: Any = content
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        infinite = isinstance(value, float) and not math.isfinite(value)
        number = isinstance(value, bool) and bool not in (kind, *get_args(kind))  # as which Python counts it
        if infinite or number or not isinstance(value, kind):
            wanted = getattr(kind, "__name__", kind)
            raise ValueError(f"{where} must have {name}, of type {wanted}; got {value!r:.80}")
    return content


def _parse(text: bytes, where: str) -> Any:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} does not read as JSON: {error}") from error
    layer = [content]
    for _ in range(MOST_LEVELS):
        inside = (value.values() if isinstance(value, dict) else value for value in layer)
        layer = [value for values in inside if isinstance(values, list | ValuesView) for value in values]
        if not layer:
            return content
    raise ValueError(f"{where} nests deeper than {MOST_LEVELS} levels")


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, ready for JSON."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def write_new(contents: Mapping[Path, bytes]) -> None:
    """``write_together``; ``ValueError`` if there is a file at one of the places already, or none can be written."""
    for path in contents:
        if path.exists():
            raise ValueError(f"{path} exists: it is not overwritten, give another name or remove it")
        if not path.parent.is_dir():
            raise ValueError(f"{path} cannot be written: {path.parent} is no directory")
    try:
        write_together(contents)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be written: {error.strerror}") from error


def write_safetensors(
    path: str | os.PathLike[str], state_dict: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes `state_dict` as a new file (see `write_new`) that PyTorch's tools read: the same bytes each time."""
    content = save({name: np.asarray(array) for name, array in state_dict.items()}, {"format": "pt", **metadata})
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])  # whose metadata are in another order each time
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    write_new({Path(path): len(text).to_bytes(8, "little") + text + content[start:]})


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a file of tensors, as NumPy arrays; the kind of file is told by its content, not its name.

    It is {name: array}, or what was saved around it, such as {"model": {name: array}, "epoch": 240}; what lies deeper
    stays as PyTorch has it. No tensor is copied, so that one that stands for more than the file holds takes no memory.
    `ValueError` if it is neither kind of file, is damaged, or holds Python objects; `ImportError` if PyTorch is needed
    and missing or too old.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":  # after eight bytes of length, a header in JSON
        try:
            return load_file(path)
        except (SafetensorError, AttributeError, TypeError, ValueError) as error:  # a dtype or size that NumPy has not
            raise ValueError(f"{path} does not read as safetensors: {error}") from error
    if start[:2] == b"PK" or start[:1] == b"\x80":  # a zip archive, or the bare pickle of PyTorch before 1.6
        return _read_torch(path)
    raise ValueError(f"{path} is neither a safetensors nor a PyTorch file")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a safetensors file that `read_checkpoint` has read says of itself; nothing of any other file."""
    with open(path, "rb") as file:
        if file.read(9)[8:] != b"{":
            return {}
    with safe_open(path, "numpy") as opened:
        return opened.metadata() or {}


def _read_torch(path: Path) -> dict[str, Any]:
    inside, size = 0, path.stat().st_size
    with contextlib.suppress(zipfile.BadZipFile, NotImplementedError, OSError):  # PyTorch's reader says what is wrong
        with zipfile.ZipFile(path) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
    if inside > size:
        raise ValueError(f"{path} is refused: its {size} bytes unpack to {inside}, and PyTorch packs nothing")
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"reading {path} needs PyTorch: {_INSTALL}") from error
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < _TORCH_NEEDED:
        raise ImportError(f"reading {path} safely needs PyTorch 2.6 or newer, {torch.__version__} is here: {_INSTALL}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise ValueError(
            f"{path} is refused, and nothing of it was run: beside tensors and plain containers it holds Python "
            f"objects{what}. Where it can be trusted, save the weights alone: "
            'torch.save({"model": model.state_dict()}, FILE)'
        ) from error
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        reason = str(error).partition(". ")[0] or type(error).__name__  # what follows is advice to trust the file
        raise ValueError(f"{path} does not read as a PyTorch checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    return _to_numpy(content, torch, str(path))


def _to_numpy(value: Any, torch: Any, where: str, levels: int = 1) -> Any:
    """`value` with every tensor in its dictionaries, and in those `levels` deeper, as an array over its numbers."""
    if isinstance(value, Mapping) and levels >= 0:
        return {name: _to_numpy(item, torch, f"{where}: {name}", levels - 1) for name, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach()
    try:
        return tensor.numpy() if tensor.dtype != torch.bfloat16 else tensor.view(torch.int16).numpy().view(bfloat16)
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantized, without data, of eight bits
        kind = f"{tensor.dtype} on {tensor.device}, {tensor.layout}"
        raise ValueError(f"{where} is a tensor that cannot be read as plain numbers ({kind})") from error
