"""The compiler: drawn programs under the options that are chosen for networks, known programs under others as well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models.layers import BatchNorm
from sdd_jax.training import compiling
from tests import drawn_programs
from tests.drawn_programs import OPTION, draw, exact, fusions_of, wrong

DRAWN, AT_ONCE = 300, 30
WRONG_TODAY = {  # under which sets of the installed jaxlib each known program is wrong, as far as it does not vary
    "sum(x @ ones)": ("default", "REDUCE", "REDUCE+ELTWISE", "REDUCE+INDIVIDUAL_DOT"),
    "logsumexp((x @ ones) * 0.1)": ("ELTWISE", "REDUCE+ELTWISE", "REDUCE+DOT"),
    "logsumexp(x @ (ones * 0.1))": ("DOT", "REDUCE+DOT"),
}


def options_of(name):
    return {} if name == "default" else {OPTION: fusions_of(name)}


def test_both_name_the_option_alike():
    assert OPTION == compiling.YNNPACK


@pytest.mark.parametrize("name", compiling.PROBES)
def test_a_known_program_is_right_as_networks_are_compiled(name):
    probe = compiling.PROBES[name]
    x = np.random.default_rng(0).standard_normal(probe.shape)
    got = jax.jit(probe.program, compiler_options=compiling.cpu_options())(x.astype(np.float32))
    np.testing.assert_allclose(got, probe.right(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("known, sets", WRONG_TODAY.items(), ids=WRONG_TODAY)
def test_the_check_at_the_start_finds_a_known_fault(known, sets):
    """If one of these fails, a new jaxlib may have mended it: the drawn programs tell which sets can be had back."""
    for name in sets:
        assert known in compiling.wrong_probes(options_of(name)), name


@pytest.mark.parametrize("name", ["default", "REDUCE+ELTWISE", "REDUCE+DOT"])
def test_batch_norm_is_right_in_programs_of_ones_own_too(name):
    """It sums by products with ones, which these sets are wrong for if they see that the ones are constant."""
    x = np.random.default_rng(0).standard_normal((21, 8, 8, 7)).astype(np.float32)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)

    def sum_of_cubes(x):
        return jnp.sum(layer.apply(variables, x, train=True, mutable=["batch_stats"])[0] ** 3, (0, 1, 2))

    def both(x):
        value, pull = jax.vjp(sum_of_cubes, x)
        return value, pull(jnp.ones(7))[0]

    value, gradient = jax.jit(both, compiler_options=options_of(name))(x)
    wide = np.float64(x) - np.mean(x, (0, 1, 2), np.float64)
    deviation = np.sqrt(np.mean(wide**2, (0, 1, 2)) + 1e-5)
    y = wide / deviation
    expected = 3 * (y**2 - np.mean(y**2, (0, 1, 2)) - y * np.mean(y**3, (0, 1, 2))) / deviation
    np.testing.assert_allclose(value, np.sum(y**3, (0, 1, 2)), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_drawn_programs_find_a_known_fault():
    program = draw(0)._replace(
        x=np.random.default_rng(0).standard_normal((1344, 64), np.float32),
        pieces=[drawn_programs.Piece("sum(x @ ones)", lambda lib, x: (x @ lib.xp.ones((64, 7), x.dtype)).sum(0))],
        gradient=False,
    )
    assert wrong(program, fusions_of("REDUCE"), exact(program))
    assert not wrong(program, fusions_of("off"), exact(program))


@pytest.mark.slow
def test_gradients_of_drawn_programs_are_those_of_finite_differences():
    """`exact` takes gradients from JAX in float64: here NumPy's own differences stand beside them."""
    checked = 0
    for seed in range(40):
        program = draw(seed)
        right = exact(program) if program.gradient and program.x.size < 2**15 else None
        if right is None or right.margin < 1e-3:
            continue
        arrays, rng = program.arrays(np.float64), np.random.default_rng(seed)
        direction = [rng.standard_normal(array.shape) for array in arrays]
        ahead, behind = (
            np.sum(value * drawn_programs.cotangent(np.shape(value)))
            for value in (
                program.run(
                    drawn_programs.Twin(), [a + sign * 1e-6 * d for a, d in zip(arrays, direction, strict=True)]
                )
                for sign in (1, -1)
            )
        )
        slope = sum(np.sum(g * d) for g, d in zip(right.arrays[1:], direction, strict=True))
        size = sum(np.sum(np.abs(g * d)) for g, d in zip(right.arrays[1:], direction, strict=True))
        assert abs((ahead - behind) / 2e-6 - slope) <= 1e-5 * size + 1e-6, str(program)
        checked += 1
    assert checked >= 3


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, DRAWN, AT_ONCE))
def test_drawn_programs_are_right_as_networks_are_compiled(first):
    fusions = (compiling.cpu_options() or {OPTION: None})[OPTION]
    for seed in range(first, first + AT_ONCE):
        program = draw(seed)
        assert not wrong(program, fusions, exact(program)), f"{seed}: {program}"
