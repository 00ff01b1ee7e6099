"""Files that are written whole or not at all: JSON, checksums, and named tensors (safetensors; PyTorch's read alone).

PyTorch's format (.pth, .pt) is a pickle, and a pickle can run any code when it is opened. It is read through
`torch.load(weights_only=True)`, which builds tensors and plain containers and refuses everything else.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import secrets
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

flatten: Callable[..., dict[str, Any]] = partial(flatten_dict, sep=".")  # a nested dictionary as one of dotted names
_TORCH_NEEDED = (2, 6)  # older ones could be made to run code even so: CVE-2025-32434
_INSTALL = 'pip install "torch>=2.6" (a build for CPU will do), or convert the file to safetensors where it was made'


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as JSON, whole or not at all; ``ValueError`` for what JSON has no form of, NaN among it."""
    write_whole(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def write_whole(path: Path, content: bytes) -> None:
    """Writes ``content`` so that a kill leaves ``path`` as it was or whole, never half of it."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # of this writer alone
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The content of a JSON file; ``ValueError`` names the file if it does not read."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} does not read as JSON: {error}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a JSON file of names and values; ``ValueError`` if it holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold names and values, got {content!r:.80}")
    return content


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, ready for JSON."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def write_new(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file; ``ValueError`` if there is one at ``path`` already, or it cannot be written."""
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists: it is not overwritten, give another name or remove it")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: {path.parent} is no directory")
    try:
        write_whole(path, content)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def write_safetensors(
    path: str | os.PathLike[str], state_dict: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes `state_dict` as a new file (see `write_new`) that PyTorch's tools read."""
    write_new(path, save({name: np.asarray(array) for name, array in state_dict.items()}, {"format": "pt", **metadata}))


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a file of tensors, as NumPy arrays; the kind of file is told by its content, not its name.

    It is {name: array}, or what was saved around it, such as {"model": {name: array}, "epoch": 240}. bfloat16 tensors
    of PyTorch's files become float32 arrays of the same values. `ValueError` if it is neither kind of file, is damaged,
    or holds Python objects; `ImportError` if PyTorch is needed and missing or too old.
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
        except (SafetensorError, AttributeError, TypeError) as error:  # the latter two: a dtype that NumPy has not
            raise ValueError(f"{path} does not read as safetensors: {error}") from error
    if start[:2] == b"PK" or start[:1] == b"\x80":  # a zip archive, or the bare pickle of PyTorch before 1.6
        return _read_torch(path)
    raise ValueError(f"{path} is neither a safetensors nor a PyTorch file")


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


def _to_numpy(value: Any, torch: Any, where: str) -> Any:
    """`value` with every tensor in its dictionaries as an array."""
    if isinstance(value, Mapping):
        return {name: _to_numpy(item, torch, f"{where}: {name}") for name, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach()
    try:
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantized, without data, of eight bits
        kind = f"{tensor.dtype} on {tensor.device}, {tensor.layout}"
        raise ValueError(f"{where} is a tensor that cannot be read as plain numbers ({kind})") from error
