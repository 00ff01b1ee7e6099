"""Files made to harm: each is refused with one line, in bounded memory, and writes nothing outside its place."""

import gzip
import hashlib
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import pytest
from commands import ROOT, call

from sdd_jax.data import cifar, images
from sdd_jax.data.cifar import Layout, read_cifar
from sdd_jax.data.mnist import read_idx

ROOM = 2**28  # bytes that a hostile file may make its reader take


def header(text):
    return len(text).to_bytes(8, "little") + text


def tensors(**entries):
    return header(json.dumps({name: dict(zip(("dtype", "shape", "data_offsets"), of, strict=True))
                              for name, of in entries.items()}).encode())  # fmt: skip


# safetensors: eight bytes of length, a header in JSON, the values.
LIES = {
    "a header of 2^60 bytes": (2**60).to_bytes(8, "little") + b"{}",
    "a header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "a header longer than the file": (1000).to_bytes(8, "little") + b"{}",
    "values beyond the file": tensors(a=("F32", [4], [0, 16])) + bytes(8),
    "2^60 bytes of values": tensors(a=("F32", [2**58], [0, 2**60])),
    "a shape whose product overflows": tensors(a=("F32", [2**32, 2**32], [0, 0])),
    "a shape of another size": tensors(a=("F32", [3], [0, 16])) + bytes(16),
    "overlapping values": tensors(a=("F32", [4], [0, 16]), b=("F32", [4], [8, 24])) + bytes(24),
    "a hole between values": tensors(a=("F32", [1], [0, 4]), b=("F32", [1], [8, 12])) + bytes(12),
    "offsets that run backwards": tensors(a=("F32", [1], [4, 0])) + bytes(4),
    "negative offsets": tensors(a=("F32", [1], [-4, 0])) + bytes(4),
    "a negative side": tensors(a=("F32", [-1], [0, 4])) + bytes(4),
    "an unknown type": tensors(a=("F99", [1], [0, 4])) + bytes(4),
    "a header that is no text": header(b"{" + b"\xff" * 20),
    "a header that nests": header(b'{"a":' * 5000),
    "a side of 2^62 beside one of 0": tensors(a=("F32", [2**62, 0], [0, 0])),
    "bytes after the values": tensors(a=("F32", [1], [0, 4])) + bytes(9),
}


@pytest.mark.parametrize("case", LIES)
def test_a_safetensors_header_that_lies_is_refused_by_the_command(tmp_path, case):
    path = tmp_path / "a.safetensors"
    path.write_bytes(LIES[case])
    line = call("import", path, "--model=resnet8", "--num_classes=10", f"--workdir={tmp_path}/run").refused()
    assert f"{path} does not read as safetensors" in line
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


class Runs:
    """Unpickled without restriction, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (__import__("os").mkdir, (str(self.path),))


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_runs_code_is_refused_by_the_command(tmp_path, zipped):
    import torch

    torch.save({"model": Runs(tmp_path / "ran")}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    arguments = ("--model=resnet8", "--num_classes=10", f"--workdir={tmp_path}/run")
    assert "nothing of it was run" in call("import", tmp_path / "a.pth", *arguments).refused()
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def torch_bomb(path, size):
    """A checkpoint whose one tensor is ``size`` zeros, packed to a thousandth."""
    import torch

    torch.save({"a": torch.zeros(4, dtype=torch.uint8)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as file:
                if not name.endswith("data/0"):
                    file.write(content)
                for _ in range(size // 2**24 if name.endswith("data/0") else 0):
                    file.write(bytes(2**24))


def gzip_bomb(path, size, start=b""):
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(size // 2**24):
            file.write(bytes(2**24))


def read_in_little_memory(imports, reader, path):
    """What ``reader(path)`` is refused with, in a process that may not take more than ROOM beyond what it has."""
    script = (
        "import resource, sys\n"
        f"{imports}\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (taken + {ROOM},) * 2)\n"
        f"try: {reader}\n"
        "except ValueError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


SIZE = 2**29


@pytest.mark.slow
def test_an_archive_that_unpacks_to_far_more_is_refused_in_little_memory(tmp_path):
    torch_bomb(tmp_path / "a.pth", SIZE)
    assert (tmp_path / "a.pth").stat().st_size < SIZE / 100
    assert "a.pth is refused: " in read_in_little_memory(
        "import torch\nfrom sdd_jax.files import read_checkpoint",
        "read_checkpoint(sys.argv[1])",
        tmp_path / "a.pth",
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a weight", "an entry", "deep inside"])
def test_a_tensor_that_stands_for_more_than_its_file_holds_takes_no_memory(tmp_path, place):
    """One number, seen a thousand million times: 4 GiB as float32."""
    import torch

    tensor = torch.zeros(1, dtype=torch.bfloat16).expand(2**30)
    content = {"a weight": {"a": tensor}, "an entry": {"model": {}, "optimizer": {"a": tensor}}}
    torch.save(content.get(place, {"optimizer": {"state": {0: {"a": tensor}}}}), tmp_path / "a.pth")
    script = "found = read_checkpoint(sys.argv[1]); from_state_dict(create_model('resnet8', 10), found)"
    imports = "import torch\nfrom sdd_jax.files import read_checkpoint\nfrom sdd_jax.models import create_model\n"
    imports += "from sdd_jax.torch_io import from_state_dict\nimport jax; jax.numpy.zeros(3) + 1\n"
    imports += (
        "import numpy; create_model('resnet8', 10).init(jax.random.key(0), numpy.zeros((1, 32, 32, 3)), train=True)"
    )
    said = read_in_little_memory(imports, script, tmp_path / "a.pth")
    assert "left over: a (1073741824,)" in said or "holds no state dict" in said


@pytest.mark.slow
def test_a_dictionary_that_holds_itself_is_refused_by_the_command(tmp_path):
    import torch

    content = {"epoch": 1}
    content["itself"] = content
    torch.save(content, tmp_path / "a.pth")
    line = call("import", tmp_path / "a.pth", "--model=resnet8", "--num_classes=10", f"--workdir={tmp_path}/run")
    assert f"{tmp_path}/a.pth: the checkpoint holds no state dict" in line.refused()
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def tiff(side, tile):
    """A picture of so many pixels a side, in one tile of so many, all zeros."""
    packer = zlib.compressobj(1)
    packed = b"".join([*(packer.compress(bytes(tile)) for _ in range(tile)), packer.flush()])
    values = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 134, 325: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + packed


def test_a_tile_of_far_more_pixels_than_its_picture_is_not_decoded():
    assert images.decode(tiff(16, 64), "small.tif").size == (16, 16)
    side = 9460  # of 89,478,485 pixels at most
    with pytest.raises(ValueError, match=f"large.tif cannot be read .*: its tiles of {side} x {side} pixels exceed"):
        images.decode(tiff(16, side), "large.tif")


@pytest.mark.slow
def test_a_gzip_file_that_unpacks_to_far_more_is_refused_in_little_memory(tmp_path):
    start = bytes((0, 0, 8, 1)) + (5).to_bytes(4, "big")
    gzip_bomb(tmp_path / "labels.gz", SIZE, start)
    assert "must have 13 bytes" in read_in_little_memory(
        "from sdd_jax.data.mnist import read_idx", "read_idx(sys.argv[1], 1)", tmp_path / "labels.gz"
    )


@pytest.mark.parametrize("sides", [(2**32 - 1,) * 3, (2**20, 28, 28)])
def test_an_idx_header_that_lies_is_refused(tmp_path, sides):
    path = tmp_path / "images"
    path.write_bytes(bytes((0, 0, 8, 3)) + b"".join(side.to_bytes(4, "big") for side in sides))
    with pytest.raises(ValueError, match="must have [0-9]+ bytes for the shape"):
        read_idx(path, 3)


def archive(members, **kinds):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if name in kinds:
                entry.type, entry.linkname = tarfile.SYMTYPE, kinds[name]
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


CLIMBING = ("../climbed", "/tmp/../climbed", "folder/../../climbed", "a/climbed")


@pytest.mark.parametrize("matching", [True, False], ids=["with the published sum", "with another sum"])
def test_an_archive_that_climbs_out_of_its_folder_writes_nothing(tmp_path, matching):
    """Even were its sum the published one: archives are read in memory, and nothing of them is unpacked to disk."""
    inside = tmp_path / "inside"
    inside.mkdir()
    content = archive(dict.fromkeys(CLIMBING, b"x"), **{"a/climbed": str(tmp_path / "secret")})
    (tmp_path / "secret").write_bytes(bytes(3074))
    (inside / "set.tar.gz").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest() if matching else "0" * 32
    layout = Layout("set.tar.gz", md5, "a", {"climbed": 3074, "../climbed": 3074})
    with pytest.raises(ValueError, match="climbed (is not a file|must have)" if matching else "the MD5 sum must be"):
        read_cifar("cifar100", inside / "set.tar.gz", {"cifar100": (layout,)})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "secret", "set.tar.gz"]


@pytest.mark.slow
def test_an_archive_of_another_sum_is_not_unpacked(tmp_path):
    """The bomb is never inflated: the sum is taken of the packed bytes."""
    gzip_bomb(tmp_path / "cifar-100-python.tar.gz", SIZE)
    line = read_in_little_memory(
        "from sdd_jax.data.cifar import read_cifar",
        "read_cifar('cifar100', sys.argv[1])",
        tmp_path / "cifar-100-python.tar.gz",
    )
    assert "the MD5 sum must be" in line and "download it again" in line


@pytest.mark.parametrize("called", ["os.system", "builtins.eval", "numpy.load", "subprocess.Popen"])
def test_a_pickle_of_a_set_that_names_a_function_is_refused_before_it_is_imported(called):
    module, name = called.split(".")
    content = b"c" + f"{module}\n{name}\n".encode() + b"(S'true'\ntR."
    with pytest.raises(ValueError, match=f"asks for {called}.*refused"):
        cifar._decode_pickle(content, hashlib.md5(content).hexdigest(), "it")
