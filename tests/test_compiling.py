"""How programs of networks are compiled, and the check at the first start on a CPU."""

import os

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from sdd_jax.models import create_model
from sdd_jax.training import compiling, run_dir
from tests.drawn_programs import fusions_of

SERIES = ".".join(jaxlib.__version__.split(".")[:2])


@pytest.fixture
def unchecked():
    """The check is made anew, and what comes out of it is not kept."""
    compiling.cpu_options.cache_clear()
    yield
    compiling.cpu_options.cache_clear()


def sum_of_product(x):
    """What is wrong with today's library wherever YNNPACK takes reductions."""
    return jnp.sum(x @ jnp.ones((64, 7)), 0)


def test_the_installed_jaxlib_is_right_without_ynnpack(unchecked, capsys):
    assert compiling.known_options({compiling.YNNPACK: compiling.OFF})
    assert compiling.cpu_options() == {compiling.YNNPACK: compiling.OFF}
    assert capsys.readouterr().err == ""


def test_the_first_set_that_computes_right_is_taken(unchecked, monkeypatch, capsys):
    sets = tuple(map(fusions_of, ("REDUCE+ELTWISE", "INDIVIDUAL_DOT", "REDUCE")))
    monkeypatch.setitem(compiling.FASTER, SERIES, sets)
    assert compiling.cpu_options() == {compiling.YNNPACK: sets[1]}
    assert capsys.readouterr().err.count("wrong on this CPU") == 1


def test_a_set_that_computes_wrong_is_told_of_once_and_not_used(unchecked, monkeypatch, capsys):
    monkeypatch.setitem(compiling.FASTER, SERIES, (fusions_of("REDUCE+ELTWISE"),))
    jitted = [compiling.jit_network(function) for function in (sum_of_product, create_model("resnet8").init)]
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"jaxlib {jaxlib.__version__} computes sum(x @ ones)" in line
    assert "ELTWISE': networks do without that set" in line
    assert compiling.cpu_options() == {compiling.YNNPACK: ""}
    x = np.random.default_rng(0).standard_normal((1344, 64), np.float32)
    np.testing.assert_allclose(jitted[0](x), np.full(7, x.astype(np.float64).sum()), rtol=1e-4)


def test_another_process_than_the_first_does_not_tell(unchecked, monkeypatch, capsys):
    monkeypatch.setitem(compiling.FASTER, SERIES, (fusions_of("REDUCE+ELTWISE"),))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert compiling.cpu_options() == {compiling.YNNPACK: ""}
    assert capsys.readouterr().err == ""


def test_a_jaxlib_that_is_wrong_without_ynnpack_is_refused(unchecked, monkeypatch):
    wrong = compiling.Probe((2, 2), lambda x: x + 1, lambda x: x)
    monkeypatch.setitem(compiling.PROBES, "x + 1", wrong)
    monkeypatch.setitem(compiling.FASTER, SERIES, (fusions_of("INDIVIDUAL_DOT"),))
    with pytest.raises(ValueError) as caught:
        compiling.cpu_options()
    version = f"jaxlib {jaxlib.__version__}"
    assert str(caught.value) == (
        f"{version} computes x + 1 wrong on this CPU with {compiling.YNNPACK}='': install another jaxlib"
    )


def test_a_jaxlib_of_another_series_runs_without_ynnpack(unchecked, monkeypatch):
    monkeypatch.setattr(compiling, "FASTER", {f"{SERIES}9": ("of another",)})
    assert compiling.cpu_options() == {compiling.YNNPACK: ""}


def test_a_jaxlib_that_does_not_know_them_compiles_without(unchecked, monkeypatch):
    monkeypatch.setattr(compiling, "YNNPACK", "xla_cpu_option_of_another_year")
    assert compiling.known_options({compiling.YNNPACK: "1"}) is None
    monkeypatch.setattr(compiling, "PROBES", {})  # the library's own set is not right in all of them
    double = compiling.jit_network(lambda x: 2 * x, donate_argnums=0)
    assert double(jnp.float32(2)) == 4


def test_nothing_is_checked_for_other_devices(unchecked, monkeypatch):
    monkeypatch.setattr(compiling, "wrong_probes", None)  # cannot be called
    assert compiling.jit_network(lambda x: 2 * x, platform="tpu")(2) == 4


def test_the_program_can_be_compiled_without_the_options():
    """`benchmarks.jax_step` does so."""

    def function(x):
        return 2 * x

    assert compiling.jit_network(function).__wrapped__ is function


def test_a_program_that_runs_once_returns_the_same_bits():
    """A run's first state does not depend on how its program is compiled."""

    def draw(key):
        return create_model("resnet8", num_classes=7).init(key, jnp.zeros((1, 32, 32, 3)), train=False)

    as_a_step = jax.jit(draw, compiler_options=compiling.cpu_options() | {"xla_backend_optimization_level": 3})
    drawn = [program(jax.random.key(3)) for program in (as_a_step, compiling.jit_network(draw, once=True))]
    assert jax.tree.all(jax.tree.map(np.array_equal, *drawn))


def test_every_start_notes_the_options(tmp_path):
    run_dir.open_folder(tmp_path, {})
    [start] = run_dir.read_starts(tmp_path)
    assert start["compiler_options"] == compiling.cpu_options()
    assert start["processors"] == len(os.sched_getaffinity(0))
