"""Conventions as tests: signatures, docstrings, who imports whom, and what importing the losses loads."""

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sdd_jax

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path for folder in ("sdd_jax", "configs", "benchmarks", "experiments") for path in (ROOT / folder).rglob("*.py")
)
OF_ARRAYS = (
    "batch_relations",
    "class_relations",
    "ensemble",
    "logits",
    "losses",
    "metrics",
    "regions",
    "sdd",
    "standardize",
)
LOSSES = [name for name in sdd_jax.__all__ if name.endswith("_loss")]


def name_of(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return f"sdd_jax.{name}" if name.startswith("configs") else name  # sdd_jax/configs is a link


def level_of(module):
    """Who may import whom: a module imports from its own level and those below."""
    if module in ("sdd_jax", "sdd_jax.data.augment"):
        return 0
    if module in {f"sdd_jax.{name}" for name in OF_ARRAYS}:
        return 0
    if module.startswith("sdd_jax.models") or module in ("sdd_jax.files", "sdd_jax.own"):
        return 1
    if module in ("sdd_jax.torch_io", "sdd_jax.torch_names"):
        return 1
    if module in ("sdd_jax.training.optim", "sdd_jax.mesh", "sdd_jax.processes", "sdd_jax.sealed"):
        return 1
    if module.startswith(("sdd_jax.data", "sdd_jax.training", "sdd_jax.fields")):
        return 2
    if (
        module.startswith(("sdd_jax.build", "sdd_jax.config", "sdd_jax.methods", "sdd_jax.saved"))
        and "configs" not in module
    ):
        return 3
    if module.startswith(("sdd_jax.planning", "sdd_jax.reporting", "sdd_jax.serving")):
        return 3
    if module.startswith(
        (
            "sdd_jax.commands",
            "sdd_jax.__main__",
            "sdd_jax.configs",
            "sdd_jax.from_python",
            "sdd_jax.given_data",
            "benchmarks",
            "experiments",
        )
    ):
        return 4
    raise AssertionError(f"{module} has no level: give it one here")


def imports_of(path):
    """Every module that is imported anywhere in a file, also inside its functions, but not for type checkers alone."""
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not isinstance(node, ast.If) or "TYPE_CHECKING" not in ast.dump(node.test)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:  # `from package import module` imports the module
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT / inner.replace(".", "/")).with_suffix(".py").exists()
                yield inner if is_module or (ROOT / inner.replace(".", "/")).is_dir() else node.module


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path):
    module = name_of(path)
    for imported in imports_of(path):
        root = imported.partition(".")[0]
        if root in ("sdd_jax", "benchmarks", "experiments"):
            assert level_of(imported) <= level_of(module), f"{module} imports {imported}"
        if level_of(module) == 0:
            assert root not in ("flax", "orbax", "absl", "ml_collections", "sklearn"), f"{module} imports {imported}"
        if level_of(module) < 3 and module != "sdd_jax.data.grain_source":  # Grain reads flags of its own
            assert root not in ("absl", "ml_collections"), f"{module} imports {imported}"


def room_of(module):
    """The folder that a module is in, or the module itself at the top of the package."""
    root, *inner = module.split(".")
    if root != "sdd_jax" or not inner:
        return root
    return f"sdd_jax.{inner[0]}"


def test_no_two_rooms_import_each_other():
    """No circle among folders and the package's own modules, of any length."""
    imports = {}
    for path in MODULES:
        for imported in imports_of(path):
            here, there = room_of(name_of(path)), room_of(imported)
            if here != there and there.partition(".")[0] in ("sdd_jax", "benchmarks", "experiments"):
                imports.setdefault(here, set()).add(there)
    order = list(graphlib.TopologicalSorter(imports).static_order())  # CycleError names the circle
    assert order.index("sdd_jax.mesh") < order.index("sdd_jax.data") < order.index("sdd_jax.training")
    assert order.index("experiments") < order.index("benchmarks")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_private_interface_is_used_and_nothing_is_patched_from_outside(path):
    tree = ast.parse(path.read_text())
    imported = {alias.asname or alias.name.partition(".")[0] for alias in imports_in(tree)}
    for imported_module in imports_of(path):
        assert not any(part.startswith("_") for part in imported_module.split(".") if part != "__main__")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            public = ("_fields", "_replace", "_asdict", "_exit")  # of named tuples, and os._exit
            assert not private or node.attr in public, f"{node.value.id}.{node.attr}"
            assert isinstance(node.ctx, ast.Load), f"{node.value.id}.{node.attr} is set from outside"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            target = node.args[0]
            assert not isinstance(target, ast.Name) or target.id not in imported, f"setattr({target.id}, ...)"


def imports_in(tree):
    """The names that a file imports."""
    return [alias for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_short_and_say_what_they_are(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 350 and path.stem != "utils"


def test_importing_the_losses_loads_neither_flax_nor_a_data_library():
    code = "import sys, sdd_jax; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    heavy = {
        "flax",
        "orbax",
        "grain",
        "tensorflow",
        "tensorflow_datasets",
        "sklearn",
        "absl",
        "ml_collections",
        "torch",
    }
    assert not heavy & set(loaded.split())


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_called_alike(name):
    parameters = list(inspect.signature(getattr(sdd_jax, name)).parameters.values())
    suffix = "regions" if name == "sdd_loss" else "logits"
    assert [parameter.name for parameter in parameters[:3]] == [f"student_{suffix}", f"teacher_{suffix}", "labels"]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters[3:])


@pytest.mark.parametrize("name", [name for name in sdd_jax.__all__ if not name.startswith("_")])
def test_public_functions_say_shapes_errors_and_source(name):
    function = getattr(sdd_jax, name)
    text = inspect.getdoc(function)
    for section in ("Attributes:", "Raises:") if inspect.isclass(function) else ("Args:", "Returns:", "Raises:"):
        assert section in text, f"{name} has no {section}"
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter}:" in text, f"{name} does not describe {parameter}"
    source = text + inspect.getdoc(inspect.getmodule(function))
    assert "Source" in source and "[" in text


@pytest.mark.parametrize("module", [*OF_ARRAYS, "data.augment"])
def test_all_names_what_is_public(module):
    module = importlib.import_module(f"sdd_jax.{module}")
    for name in module.__all__:
        assert callable(getattr(module, name)) and getattr(module, name).__doc__
