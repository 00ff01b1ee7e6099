"""Networks written for other programs answer there as they do here: ONNX in onnxruntime, StableHLO in plain JAX."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from served import images, live, served

from sdd_jax.models import Classifier
from sdd_jax.models.layers import BatchNorm, conv, torch_affine_init
from sdd_jax.serving.network import write_stablehlo
from sdd_jax.serving.onnx_graph import write_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SLOW = pytest.mark.slow
FAMILIES = {  # one of each, at the smallest size that its poolings leave something of
    "resnet8": {},
    "resnet8 for CUB-200": {"stem": "cub200", "size": 40},
    "wrn_16_1": {"size": 20},
    "vgg8": {"size": 16},
    "mobilenet_v2": {},
    "shufflenet_v1": {},
    "shufflenet_v2": {},
    "resnet18": {"stem": "imagenet", "size": 33},
    "resnet50": {"size": 16},
    "mobilenet_v1": {"stem": "imagenet"},
    "small_trunks:vit": {"size": 16},
    "small_trunks:convnext": {},
    "small_trunks:efficientnet": {"size": 17},
    "own_networks:vit": {"size": 16},
    "own_networks:nnx_convnet": {"size": 16, "channels": 1},
}


@pytest.mark.parametrize("write", [write_onnx, write_stablehlo])
def test_exports_of_one_checkpoint_are_the_same_bytes(tmp_path, write):
    one = served("served:small")
    for name in "ab":
        write(one, tmp_path / name)
        jax.clear_caches()
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes() and b".py" not in content  # nor does it say where it was made


def run_onnx(path, pixels):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"images": pixels})
    return logits


class Mixed(nn.Module):
    """A trunk that has the operations of every family."""

    @nn.compact
    def __call__(self, x, *, train):
        for number, stride in enumerate((2, 1)):
            x = conv(8, 3, stride, dtype=jnp.float32, name=f"conv{number}")(x)
            x = nn.relu(BatchNorm(name=f"bn{number}")(x, train=train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        left, right = jnp.split(x, 2, axis=-1)
        left = nn.avg_pool(left, (3, 3), (1, 1), padding=((1, 1), (1, 1)))
        right = jnp.pad(jax.lax.slice_in_dim(right, 1, None, axis=1), ((0, 0), (0, 1), (0, 0), (0, 0)))
        right = nn.Conv(4, (3, 3), feature_group_count=2, name="grouped")(right)
        x = jnp.concatenate([left, jnp.clip(right, 0, 6)], axis=-1)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height, width, 2, channels // 2).swapaxes(-1, -2).reshape(x.shape)  # shuffled
        tokens = nn.LayerNorm(name="norm")(x.reshape(batch, height * width, channels))
        tokens += nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(tokens)
        return nn.gelu(tokens).reshape(x.shape)


def mixed(*, num_classes, stem, dtype):
    return Classifier(Mixed(), num_classes, torch_affine_init)


FAMILIES["test_serving_export:mixed"] = {}
QUICK = ("test_serving_export:mixed", "own_networks:nnx_convnet")


@pytest.mark.parametrize("case", [pytest.param(name, marks=() if name in QUICK else SLOW) for name in FAMILIES])
def test_an_onnx_file_answers_as_the_live_model(case, tmp_path):
    one = served(case.split(" ")[0], **FAMILIES[case])
    path = tmp_path / "network.onnx"
    write_onnx(one, path)
    pixels = images(one)
    expected = live(one, pixels)
    assert np.abs(expected).max() > 0.05  # there is something to compare
    np.testing.assert_allclose(run_onnx(path, pixels), expected, rtol=1e-5, atol=1e-5)
    one_alone = run_onnx(path, pixels[1:2])  # the batch is free
    np.testing.assert_allclose(one_alone, expected[1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case", ["served:small", *(pytest.param(name, marks=SLOW) for name in ("shufflenet_v1", "own_networks:vit"))]
)
def test_a_stablehlo_file_answers_as_the_live_model(case, tmp_path):
    one = served(case, **FAMILIES.get(case, {}))
    path = tmp_path / "network.stablehlo"
    write_stablehlo(one, path)
    pixels = images(one)
    expected = live(one, pixels)
    again = jax.export.deserialize(path.read_bytes())
    assert again.platforms == ("cpu", "cuda", "rocm", "tpu")
    for count in (1, 3):
        np.testing.assert_allclose(again.call(pixels[:count]), expected[:count], rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "network.stablehlo.json").read_text()) == one.metadata()


@SLOW
def test_a_stablehlo_file_needs_no_package_of_ours(tmp_path):
    one = served("served:small", channels=1)
    path, pixels = tmp_path / "a.stablehlo", images(one, 2)
    write_stablehlo(one, path)
    np.save(tmp_path / "images.npy", pixels)
    code = (
        "import sys, jax, numpy as np; network = jax.export.deserialize(open('a.stablehlo', 'rb').read()); "
        "np.save('logits.npy', network.call(np.load('images.npy'))); assert 'sdd_jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), live(one, pixels), rtol=1e-5, atol=1e-5)


def test_an_onnx_file_says_what_it_takes_and_gives(tmp_path):
    one = served("served:small", channels=1)
    write_onnx(one, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["class_names"]) == [f"class {label}" for label in range(7)]
    assert json.loads(said["mean"]) == [0.5] and "uint8" in said["input"] and "before softmax" in said["output"]
    [taken], [given] = model.graph.input, model.graph.output
    assert (taken.name, given.name) == ("images", "logits")
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    shape = taken.type.tensor_type.shape.dim
    assert shape[0].dim_param == "batch" and [size.dim_value for size in shape[1:]] == [32, 32, 1]
    names = {tensor.name for tensor in model.graph.initializer}
    assert "params/trunk/conv0/kernel" in names  # weights keep their names, normalisations are folded into them
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization", "Sqrt"}


def test_a_bfloat16_run_becomes_a_float32_file(tmp_path):
    one = served("resnet8", dtype="bfloat16")
    write_onnx(one, tmp_path / "a.onnx")
    pixels, exact = images(one), served("resnet8")
    np.testing.assert_allclose(run_onnx(tmp_path / "a.onnx", pixels), live(exact, pixels), rtol=1e-5, atol=1e-5)


def test_what_exists_is_not_overwritten(tmp_path):
    one = served("served:small")
    for name, write in (("a.onnx", write_onnx), ("a.stablehlo", write_stablehlo)):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ValueError, match="not overwritten"):
            write(one, tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.stablehlo"]


class Sorted(nn.Module):
    """A trunk with an operation that has no translation."""

    @nn.compact
    def __call__(self, x, *, train):
        return jnp.sort(nn.Conv(4, (3, 3), name="conv")(x), axis=-1)


def sorting(*, num_classes, stem, dtype):
    return Classifier(Sorted(), num_classes, torch_affine_init, dtype)


def test_an_operation_without_a_translation_is_named(tmp_path):
    with pytest.raises(ValueError, match="JAX's sort, which has no translation"):
        write_onnx(served("test_serving_export:sorting", size=8), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
