"""Files of tensors: what is read exactly, what is refused, and that nothing of a hostile file runs."""

import os
import sys
from collections import OrderedDict
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import safetensors

from sdd_jax.files import read_checkpoint, write_safetensors

RNG = np.random.default_rng(0)
TENSORS = {"a.weight": RNG.random((3, 2), np.float32), "a.bias": RNG.random(3), "a.num_batches_tracked": np.int64(7)}


@pytest.fixture
def torch():
    """PyTorch, for slow tests alone: it takes seconds to import."""
    import torch

    return torch


def as_torch(torch, tensors):
    return OrderedDict((name, torch.from_numpy(np.asarray(array))) for name, array in tensors.items())


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert isinstance(got[name], np.ndarray) and got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False], ids=["zip archive", "bare pickle, as before PyTorch 1.6"])
def test_pytorch_files_are_read_with_what_is_around_the_tensors(torch, tmp_path, zipped):
    path = tmp_path / "student_best"  # mdistiller's files have no ending
    saved = {
        "epoch": 240,
        "model": as_torch(torch, TENSORS),
        "accuracy": torch.tensor(79.4),
        "optimizer": {"state": {}},
    }
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert checkpoint["epoch"] == 240 and checkpoint["optimizer"] == {"state": {}}
    assert_same(checkpoint["model"], TENSORS)


@pytest.mark.slow
def test_half_precision_keeps_its_values(torch, tmp_path):
    from safetensors.torch import save_file

    values = torch.tensor([1.0, -2.5, 3.0e-3, 60000.0])
    tensors = {"half": values.half(), "brain": values.bfloat16(), "parameter": torch.nn.Parameter(values)}
    torch.save(tensors, tmp_path / "a.pt")
    save_file({name: tensor.detach() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
        got = read_checkpoint(path)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(got[name].astype(np.float64), tensor.detach().double().numpy())
        assert got["half"].dtype == np.float16 and got["brain"].dtype in (np.float32, ml_dtypes.bfloat16)


def test_safetensors_there_and_back(tmp_path):
    path = tmp_path / "named.anyhow"
    write_safetensors(path, TENSORS, {"model": "resnet8"})
    assert_same(read_checkpoint(path), {name: np.asarray(array) for name, array in TENSORS.items()})
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt", "model": "resnet8"}
    before = path.read_bytes()
    with pytest.raises(ValueError, match="exists: it is not overwritten"):
        write_safetensors(path, {}, {})
    for unwritable in (tmp_path / "none" / "a", path / "a"):
        with pytest.raises(ValueError, match="cannot be written"):
            write_safetensors(unwritable, {}, {})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["named.anyhow"]
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode  # for whom any new file is


def test_the_same_values_are_the_same_bytes(tmp_path):
    metadata = {name: name for name in "model stem num_classes step sdd_jax".split()}
    for number in range(6):
        write_safetensors(tmp_path / f"{number}", TENSORS, metadata)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safetensors.safe_open(tmp_path / "0", "numpy") as file:
        assert file.metadata() == {"format": "pt", **metadata}


class Hostile:
    """Unpickled without restriction, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_carries_code_is_refused_and_nothing_of_it_runs(torch, tmp_path, zipped):
    trace, path = tmp_path / "it_ran", tmp_path / "teacher.pth"
    torch.save({"model": as_torch(torch, TENSORS), "x": Hostile(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"refused, and nothing of it was run.*\((posix|nt)\.mkdir\)"):
        read_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the attack itself works: the test could fail
    assert trace.exists()


@pytest.mark.slow
def test_a_pickled_module_is_refused_by_the_name_of_its_class(torch, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"\(torch.nn.modules.linear.Linear\).*save the weights alone"):
        read_checkpoint(tmp_path / "whole.pth")


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    path = tmp_path / "teacher.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="teacher.pth is neither a safetensors nor a PyTorch file"):
        read_checkpoint(path)


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_named(torch, tmp_path, zipped):
    path = tmp_path / "teacher.pth"
    torch.save({"model": as_torch(torch, TENSORS)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="teacher.pth does not read as a PyTorch checkpoint") as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.slow
def test_pytorch_reads_what_is_written(torch, tmp_path):
    from safetensors.torch import load_file

    write_safetensors(tmp_path / "a.safetensors", TENSORS, {})
    read = load_file(tmp_path / "a.safetensors")
    assert_same({name: tensor.numpy() for name, tensor in read.items()}, TENSORS)


@pytest.mark.slow
def test_what_is_no_dictionary_of_plain_tensors_is_refused(torch, tmp_path):
    from safetensors.torch import save_file

    torch.save(torch.ones(3), tmp_path / "one.pth")
    with pytest.raises(ValueError, match="holds a Tensor, expected a dictionary"):
        read_checkpoint(tmp_path / "one.pth")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    torch.save({"model": {"b": torch.zeros(2, dtype=torch.float8_e4m3fn)}}, tmp_path / "eight.pth")
    torch.save({"c": torch.empty(2, device="meta")}, tmp_path / "meta.pth")
    for file, message in {"sparse": ": a is a .*sparse", "eight": ": model: b is a .*float8", "meta": "meta"}.items():
        with pytest.raises(ValueError, match=rf"{file}.pth{message}" if file != "meta" else "meta.pth: c is"):
            read_checkpoint(tmp_path / f"{file}.pth")
    save_file({"b": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    with pytest.raises(ValueError, match="eight.safetensors does not read"):
        read_checkpoint(tmp_path / "eight.safetensors")


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="is a directory"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file .*none.pth"):
        read_checkpoint(tmp_path / "none.pth")


def test_without_pytorch_or_with_an_unsafe_one_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.pth").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.5.1+cpu"))
    with pytest.raises(ImportError, match=r"needs PyTorch 2.6 or newer, 2.5.1.*pip install"):
        read_checkpoint(tmp_path / "a.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'pip install "torch>=2.6".*safetensors'):
        read_checkpoint(tmp_path / "a.pth")
