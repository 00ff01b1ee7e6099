"""Import, export, the gate of an imported teacher, and the commands around them."""

import hashlib
import json
import re
import shutil
from functools import partial

import jax
import numpy as np
import pytest
import sets
from commands import call
from safetensors.numpy import load_file, save_file
from served import variables

from sdd_jax import data, saved
from sdd_jax.build import build, check
from sdd_jax.build_teacher import read_teacher
from sdd_jax.configs import cifar100, pairs, quickstart
from sdd_jax.models import create_model
from sdd_jax.torch_io import from_state_dict, to_state_dict
from sdd_jax.training import run_dir


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on digits and its weights as another program would have left them: {name: array}."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    model, dataset = create_model("resnet8", 10), data.load("digits")
    values = variables(model, dataset.image_shape)
    images = (dataset.test.images / np.float32(255) - np.float32(dataset.mean)) / np.float32(dataset.std)
    logits = jax.jit(partial(model.apply, train=False, regions=None))(values, images).logits
    write_run(folder, values, float((np.argmax(logits, -1) == dataset.test.labels).mean()))
    return folder, to_state_dict(model, values)


def write_run(folder, values, accuracy, stem="cifar", **data_fields):
    config = quickstart.get_config("run=teacher")
    config.model.student, config.model.stem, config.argument = "resnet8", stem, {}
    config.data.update(data_fields)
    run_dir.open_folder(folder, check(config).nested())
    results = {"step": 3, "epoch": 1.0, "accuracy": accuracy}
    done = {"select_on": "validation", "last": results, "best": results, "steps": 3, "seconds": 1.0}
    checkpoints = saved.checkpoints(folder)
    checkpoints.save({"params": {"student": values["params"]}, "batch_stats": values["batch_stats"]}, 3, done)
    checkpoints.close()
    run_dir.write_sealed(folder, run_dir.DONE, done)


def student(folder, **teacher):
    config = quickstart.get_config("run=sdd_kd")
    config.model.student, config.model.teacher, config.argument = "resnet8", "resnet8", {}
    config.teacher.update({"run": str(folder), **teacher})
    return config


def accuracy(folder):
    return json.loads((folder / "done.json").read_text())["last"]["accuracy"]


def write_safetensors_file(file, state_dict):
    save_file({f"module.{name}": array for name, array in state_dict.items()}, file)


def write_torch_file(file, state_dict):
    import torch

    tensors = {f"module.{name}": torch.from_numpy(array) for name, array in state_dict.items()}
    torch.save({"state_dict": tensors, "epoch": 1}, file)


@pytest.mark.parametrize("write", [write_safetensors_file, pytest.param(write_torch_file, marks=pytest.mark.slow)])
def test_import_export_and_use_as_a_teacher(write, trained, tmp_path):
    """The commands: a file of another program in, held against its accuracy, the same bytes out."""
    original, state_dict = trained
    file, folder, output = tmp_path / "best.pth", tmp_path / "imported", tmp_path / "out.safetensors"
    write(file, state_dict)
    arguments = ("import", file, "--model=resnet8", "--num_classes=10", f"--workdir={folder}")
    result = call(*arguments)
    assert result.code == 0, result
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert "resnet8, 77,754 parameters, 10 classes" in result.out and digest in result.out
    source = json.loads((folder / "config.json").read_text())["imported"]
    assert source == {"file": "best.pth", "sha256": digest, "entry": None, "prefix": None}
    assert call(*arguments).code == 0  # again: the same import is no other run

    result = call("export", f"--workdir={folder}", "--format=safetensors", f"--output={output}")
    assert result.code == 0, result
    exported = load_file(output)
    assert exported.keys() == state_dict.keys()
    for name, array in state_dict.items():
        assert exported[name].dtype == array.dtype and exported[name].tobytes() == array.tobytes()
    assert "is not overwritten" in call("export", f"--workdir={folder}", f"--output={output}").refused()

    result = call("evaluate", f"--workdir={folder}", "--data=digits")
    assert f"accuracy {100 * accuracy(original):.2f}%" in result.out and result.out.count("\n") == 1
    assert "add --data, one of digits" in call("evaluate", f"--workdir={folder}").refused()

    built = build(student(folder))
    assert built.teacher_accuracy == pytest.approx(accuracy(original))
    imported, expected = (saved.load_variables(path, "last") for path in (folder, original))
    jax.tree.map(np.testing.assert_array_equal, imported, expected)


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """A place of this module's own for decoded images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def small(decoded, tmp_path_factory):
    """A run on photographs of 64 pixels in a folder: its folder, the images', and what ``evaluate`` prints of it."""
    root = tmp_path_factory.mktemp("small")
    sets.write_folder(root / "images", classes=("a", "b"), train=4, test=10)
    values = variables(create_model("resnet8", 2, "cub200"), (64, 64, 3))
    write_run(root / "run", values, 0.5, stem="cub200", name="image_folder", path=str(root / "images"), image_size=64)
    result = call("evaluate", f"--workdir={root}/run")
    assert result.code == 0, result
    return root / "run", root / "images", measured(result.out.splitlines()[0])


def measured(line):
    """Loss and accuracy as ``evaluate`` prints them."""
    return re.search(r"\): (.* on .*)", line)[1]


def test_the_size_of_images_goes_with_the_weights_to_a_file_and_back(small, tmp_path):
    run, images, expected = small
    file, folder = tmp_path / "a.safetensors", tmp_path / "imported"
    assert call("export", f"--workdir={run}", f"--output={file}").code == 0
    given = ("import", file, "--model=resnet8", "--num_classes=2", "--stem=cub200", f"--workdir={folder}")
    assert "--image_size=32" in call(*given, "--image_size=32").refused()
    assert "its network has the stem cub200" in call(*given, "--stem=cifar").refused()
    assert "its network has the model resnet8" in call(*given, "--model=resnet14").refused()
    weights = call("export", f"--workdir={run}", f"--output={tmp_path}/b.safetensors", "--data=image_folder")
    assert "--data=image_folder: safetensors holds the weights alone" in weights.refused()
    result = call(*given)
    assert "trained at 64x64 pixels, by the file" in result.out, result
    evaluate = ("evaluate", f"--workdir={folder}", "--data=image_folder", f"--data_path={images}")
    result = call(*evaluate)
    assert measured(result.out) == expected, result
    result = call(*evaluate, "--image_size=96")
    assert "trained at 64x64 pixels, these images have 96x96" in result.out
    assert measured(result.out.splitlines()[-1]) != expected


def import_directly(folder, state_dict, name="resnet8"):
    variables = from_state_dict(create_model(name, 10), state_dict)
    source = {"file": "a.pth", "sha256": "0" * 64}
    saved.write_imported(folder, name=name, stem="cifar", num_classes=10, variables=variables, source=source)


def test_an_imported_teacher_is_held_against_its_published_accuracy(trained, tmp_path):
    original, state_dict = trained
    import_directly(tmp_path / "run", state_dict)
    right = 100 * accuracy(original)
    build(student(tmp_path / "run", published=right + 0.09))
    with pytest.raises(ValueError, match=f"is {right:.2f} %, stated is {right + 0.2:.2f} %"):
        build(student(tmp_path / "run", published=right + 0.2))
    # What the user states goes before what is published, and a run of one's own has an accuracy of its own.
    build(student(tmp_path / "run", published=right + 0.2, accuracy=right))
    build(student(original, published=right + 0.2))


def test_the_published_teachers_stand_in_the_pair_table(trained, tmp_path):
    teachers = {teacher for teacher, _ in pairs.PAIRS["cifar100"]}
    assert cifar100.PUBLISHED.keys() == teachers
    for teacher in teachers:
        settings = check(cifar100.get_config(f"teacher={teacher},student=resnet8"))
        assert settings["teacher.published"] == cifar100.PUBLISHED[teacher]
    _, state_dict = trained
    import_directly(tmp_path / "run", state_dict)
    config = cifar100.get_config("teacher=resnet56,student=resnet20")
    config.argument, config.model.teacher, config.teacher.run = {}, "resnet8", str(tmp_path / "run")
    assert read_teacher(check(config))[2] == 72.34


def test_a_network_without_normalisation_is_imported_too(tmp_path):
    model = create_model("own_networks:plain_function", 10)
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32), train=False)
    for _ in range(2):
        saved.write_imported(
            tmp_path / "run",
            name="own_networks:plain_function",
            stem="cifar",
            num_classes=10,
            variables=variables,
            source={"made": "here"},
        )
    network = saved.read(tmp_path / "run", ["own_networks:plain_function"])
    assert network.data is None and [saved.step_of(tmp_path / "run", which) for which in saved.WHICH] == [0, 0]
    loaded = saved.load_variables(tmp_path / "run", "last")
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])
    config = student(tmp_path / "run")
    config.model.teacher = "own_networks:plain_function"
    built = build(config)
    assert 0 <= built.teacher_accuracy <= 1


def test_an_import_that_does_not_fit_names_everything_and_leaves_no_folder(trained, tmp_path):
    _, state_dict = trained
    file, folder = tmp_path / "a.safetensors", tmp_path / "run"
    save_file(state_dict, file)
    common = ("import", file, f"--workdir={folder}")
    message = call(*common, "--model=resnet8", "--num_classes=100").refused()
    assert "wrong shape: fc.weight (10, 64), expected (100, 64)" in message and str(file) in message
    message = call(*common, "--model=resnet14", "--num_classes=10").refused()
    assert "missing: layer1.1.bn1.bias (16,)" in message
    assert re.search("missing: .*; and [0-9]+ more", message) and len(message) < 1000
    assert "did you mean 'resnet8'" in call(*common, "--model=resnet9", "--num_classes=10").refused()
    assert "has no stem 'imagenet'" in call(*common, "--model=resnet8", "--num_classes=10", "--stem=imagenet").refused()
    assert "FILE is missing" in call("import", "--model=resnet8", "--num_classes=10", f"--workdir={folder}").refused()
    assert "'b.pth'" in call(*common, "b.pth", "--model=resnet8", "--num_classes=10").refused()
    assert (
        "there is no file" in call("import", "none.pth", "--model=resnet8", "--num_classes=10", "--workdir=x").refused()
    )
    assert "from Python" in call(*common, "--model=own_networks:vit", "--num_classes=10").refused()
    assert not folder.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(trained, tmp_path, value):
    state_dict = {name: array.copy() for name, array in trained[1].items()}
    state_dict["layer2.0.conv1.weight"][3, 2, 1, 0] = value
    save_file(state_dict, tmp_path / "a.safetensors")
    given = ("--model=resnet8", "--num_classes=10", f"--workdir={tmp_path}/run")
    line = call("import", tmp_path / "a.safetensors", *given).refused()
    assert f"{tmp_path}/a.safetensors: ['params']['trunk']['stage2_block0']['conv1']['kernel'] holds NaN or an" in line
    assert not (tmp_path / "run").exists()
    network = {"name": "resnet8", "stem": "cifar", "num_classes": 10}
    with pytest.raises(ValueError, match=r"^variables: \['params'\]\['head'\] holds NaN or an infinite number"):
        saved.write_imported(tmp_path / "run", **network, variables={"params": {"head": np.float32(value)}}, source={})


def test_another_import_into_the_same_folder_is_refused(trained, tmp_path):
    _, state_dict = trained
    import_directly(tmp_path / "run", state_dict)
    with pytest.raises(ValueError, match="another config, .*imported.sha256"):
        saved.write_imported(
            tmp_path / "run", name="resnet8", stem="cifar", num_classes=10, variables={"params": {}}, source={}
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variables": {"kernel": 1}}, r"variables must be .*got \['kernel'\]"),
        ({"variables": None}, "got NoneType"),
        ({"source": {"file": object()}}, "JSON-ready"),
        ({"name": "resnet9"}, "did you mean 'resnet8'"),
    ],
)
def test_what_cannot_be_written_leaves_no_folder(tmp_path, changes, message):
    arguments = {"name": "resnet8", "stem": "cifar", "num_classes": 10, "variables": {"params": {}}, "source": {}}
    with pytest.raises(ValueError, match=message):
        saved.write_imported(str(tmp_path / "run"), **arguments | changes)
    assert not (tmp_path / "run").exists()


def test_evaluating_on_other_data_does_not_look_for_them_where_the_run_found_its_own(trained, tmp_path):
    original, _ = trained
    write_run(tmp_path / "run", saved.load_variables(original, "last"), 0.1, name="fashion_mnist", path=str(tmp_path))
    result = call("evaluate", f"--workdir={tmp_path}/run", "--data=digits")  # which has no path at all
    assert result.code == 0 and "359 test images of digits" in result.out, result


def test_a_folder_of_runs_leaves_imported_ones_out_and_says_so(trained, tmp_path):
    original, state_dict = trained
    shutil.copytree(original, tmp_path / "b")
    import_directly(tmp_path / "a", state_dict)
    result = call("evaluate", f"--workdir={tmp_path}")
    assert result.code == 0 and "a holds an imported network" in result.out and "b last" in result.out


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match="config.json must have model.student, of type str; got None"):
        saved.read(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"student": "resnet8", "stem": "cifar", "dtype": "float32"}}')
    with pytest.raises(ValueError, match="config.json must have seed, of type int"):
        saved.read(tmp_path)
