"""Import, export, the gate of an imported teacher, and the commands around them."""

import hashlib
import json
import re
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_build import digits
from test_end_to_end import refused, run

from configs import cifar100
from sdd_jax import saved
from sdd_jax.build import build, check
from sdd_jax.build_teacher import read_teacher
from sdd_jax.models import create_model
from sdd_jax.torch_io import from_state_dict, to_state_dict
from sdd_jax.training.loop import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on digits and its weights as another program would have left them: {name: array}."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    train(build(digits(model__student="resnet8")), folder)
    network = saved.read(folder)
    variables = saved.load_variables(folder, saved.steps(folder)["last"])
    return folder, to_state_dict(network.model, variables)


def student(folder, **overrides):
    overrides = {"model__teacher": "resnet8", "model__student": "resnet8", "teacher__run": str(folder)} | overrides
    return digits(method="sdd_kd", **overrides)


def accuracy(folder):
    return json.loads((folder / "done.json").read_text())["last"]["accuracy"]


def test_import_export_and_use_as_a_teacher(trained, tmp_path):
    """The commands: a .pth of another program in, held against its accuracy, the same bytes out."""
    run_folder, state_dict = trained
    file, folder, output = tmp_path / "best.pth", tmp_path / "imported", tmp_path / "out.safetensors"
    tensors = {f"module.{name}": torch.from_numpy(array) for name, array in state_dict.items()}
    torch.save({"state_dict": tensors, "epoch": 1}, file)
    arguments = ("import", file, "--model=resnet8", "--num_classes=10", f"--workdir={folder}")
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert "resnet8, 77,754 parameters, 10 classes" in result.stdout and digest in result.stdout
    source = json.loads((folder / "config.json").read_text())["imported"]
    assert source == {"file": "best.pth", "sha256": digest, "entry": None, "prefix": None}
    assert run(*arguments).returncode == 0  # again: the same import is no other run

    result = run("export", f"--workdir={folder}", "--format=safetensors", f"--output={output}")
    assert result.returncode == 0, result.stderr
    exported = load_file(output)
    assert exported.keys() == state_dict.keys()
    for name, array in state_dict.items():
        assert exported[name].dtype == array.dtype and exported[name].tobytes() == array.tobytes()
    assert "is not overwritten" in refused("export", f"--workdir={folder}", f"--output={output}")

    result = run("evaluate", f"--workdir={folder}", "--data=digits")
    assert f"accuracy {100 * accuracy(run_folder):.2f}%" in result.stdout and result.stdout.count("\n") == 1
    assert "add --data, one of digits" in refused("evaluate", f"--workdir={folder}")

    built = build(student(folder))
    assert built.teacher_accuracy == pytest.approx(accuracy(run_folder))
    imported, expected = (saved.load_variables(path, saved.steps(path)["last"]) for path in (folder, run_folder))
    jax.tree.map(np.testing.assert_array_equal, imported, expected)


def import_directly(folder, state_dict, name="resnet8"):
    variables = from_state_dict(create_model(name, 10), state_dict)
    source = {"file": "a.pth", "sha256": "0" * 64}
    saved.write_imported(folder, name=name, stem="cifar", num_classes=10, variables=variables, source=source)


def test_an_imported_teacher_is_held_against_its_published_accuracy(trained, tmp_path):
    run_folder, state_dict = trained
    import_directly(tmp_path / "run", state_dict)
    right = 100 * accuracy(run_folder)
    build(student(tmp_path / "run", teacher__published=right + 0.09))
    with pytest.raises(ValueError, match=f"is {right:.2f} %, stated is {right + 0.2:.2f} %"):
        build(student(tmp_path / "run", teacher__published=right + 0.2))
    # What the user states goes before what is published, and a run of one's own has an accuracy of its own.
    build(student(tmp_path / "run", teacher__published=right + 0.2, teacher__accuracy=right))
    build(student(run_folder, teacher__published=right + 0.2))


def test_the_published_teachers_stand_in_the_pair_table(trained, tmp_path):
    teachers = {teacher for teacher, _ in cifar100.PAIRS}
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
    network = saved.read(tmp_path / "run")
    assert network.imported and saved.steps(tmp_path / "run") == {"last": 0, "best": 0}
    loaded = saved.load_variables(tmp_path / "run", 0)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])
    built = build(student(tmp_path / "run", model__teacher="own_networks:plain_function"))
    assert 0 <= built.teacher_accuracy <= 1


def test_an_import_that_does_not_fit_names_everything_and_leaves_no_folder(trained, tmp_path):
    _, state_dict = trained
    file, folder = tmp_path / "a.safetensors", tmp_path / "run"
    save_file(state_dict, file)
    common = ("import", file, f"--workdir={folder}")
    message = refused(*common, "--model=resnet8", "--num_classes=100")
    assert "wrong shape: fc.weight (10, 64), expected (100, 64)" in message and str(file) in message
    message = refused(*common, "--model=resnet14", "--num_classes=10")
    assert "missing: layer1.1.bn1.bias (16,)" in message
    assert re.search("missing: .*; and [0-9]+ more", message) and len(message) < 1000
    assert "did you mean 'resnet8'" in refused(*common, "--model=resnet9", "--num_classes=10")
    assert "has no stem 'imagenet'" in refused(*common, "--model=resnet8", "--num_classes=10", "--stem=imagenet")
    assert "FILE is missing" in refused("import", "--model=resnet8", "--num_classes=10", f"--workdir={folder}")
    assert "'b.pth'" in refused(*common, "b.pth", "--model=resnet8", "--num_classes=10")
    assert "there is no file" in refused("import", "none.pth", "--model=resnet8", "--num_classes=10", "--workdir=x")
    assert "from Python" in refused(*common, "--model=own_networks:vit", "--num_classes=10")
    assert not folder.exists()


def test_another_import_into_the_same_folder_is_refused(trained, tmp_path):
    _, state_dict = trained
    import_directly(tmp_path / "run", state_dict)
    with pytest.raises(ValueError, match="another config .*imported.sha256"):
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
    run_folder, _ = trained
    config = json.loads((run_folder / "config.json").read_text())
    config["data"] |= {"name": "fashion_mnist", "path": str(tmp_path)}
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    result = run("evaluate", f"--workdir={tmp_path}/run", "--data=digits")  # which has no path at all
    assert result.returncode == 0 and "359 test images of digits" in result.stdout, result.stderr


def test_a_folder_of_runs_leaves_imported_ones_out_and_says_so(trained, tmp_path):
    run_folder, state_dict = trained
    shutil.copytree(run_folder, tmp_path / "b")
    import_directly(tmp_path / "a", state_dict)
    result = run("evaluate", f"--workdir={tmp_path}")
    assert result.returncode == 0 and "a holds an imported network" in result.stdout and "b last" in result.stdout


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match="not the config of a run"):
        saved.read(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"student": "resnet8", "stem": "cifar", "dtype": "float32"}}')
    with pytest.raises(ValueError, match="not the config of a run"):
        saved.read(tmp_path)
