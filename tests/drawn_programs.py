"""Drawn programs of the pieces that networks and losses are made of, under sets of YNNPACK's fusions.

python -m tests.drawn_programs --set=REDUCE,off --count=2000 --seed=0 compiles 2000 programs with each set and prints a
line of JSON for each: jaxlib, set, programs, failures, and the seeds that failed. A set's name joins types by "+";
"off" is none, "default" what the library takes by itself. --reduce prints the smallest part of each program that fails.

A value is compared with the same program in NumPy and float64, a gradient with JAX's in float64 with YNNPACK off. What
rounding may do to them is measured: in float64, with what each piece returns off by a float32's last bit. Where an
element is further off than that, YNNPACK off in float32 is asked as well: a set fails by what it adds.
"""

import argparse
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from tests.drawn_pieces import COLUMNS, JAX, OF_IMAGES, OF_ROWS, Piece, Twin, divergence, ending, to_rows

OPTION = "xla_cpu_experimental_ynn_fusion_type"
TOLERANCE = 1e-5  # of an element and the root mean square of its array
FLOOR = (
    1e-6  # of the root mean square of the largest state, or gradient: what should be 0 is not, where it is cancelled
)
# As a user's program is compiled, whatever XLA_FLAGS says: at the level 0 of the tests jaxlib 0.10.2 makes the gradient
# of program 158 NaN, without YNNPACK too.
LEVEL = {"xla_backend_optimization_level": 3}
SAMPLES, TIMES = 2, 128  # drawn roundings of every piece, and how many times what they do is rounding still
AS_BAD = 4  # times the error of YNNPACK off is no error of YNNPACK
MARGIN = 1e-5  # a gradient may change side where a kink is nearer than this,
TURNED = 0.01  # in this share of its elements
ROWS = (16, 63, 64, 257, 1344, 4097, 16_385, 32_769, 65_537)
IMAGES = ((1, 33, 31), (2, 32, 32), (3, 17, 19), (5, 16, 16), (16, 8, 8), (33, 7, 7), (64, 8, 8), (130, 4, 4))
CHANNELS = (1, 3, 4, 6, 8, 12, 16, 24)
MOST = 2**21  # elements of an array


class Program(NamedTuple):
    """Pieces, one after the other, on `x`; with `gradient` also that of a weighted sum of what comes out."""

    x: np.ndarray
    pieces: list[Piece]
    gradient: bool

    def arrays(self, dtype):
        """What the program is called with."""
        return [np.asarray(array, dtype) for array in (self.x, *(a for piece in self.pieces for a in piece.arrays))]

    def run(self, lib, arrays, noise=None):
        """What comes out of the pieces; `noise` are factors, for each piece, of what it returns."""
        x, *arrays = arrays
        for number, piece in enumerate(self.pieces):
            own, arrays = arrays[: len(piece.arrays)], arrays[len(piece.arrays) :]
            x = piece.apply(lib, x, *own)
            x = x if noise is None else x * noise[number]
        return x

    def __str__(self):
        return f"{list(self.x.shape)}: {'; '.join(piece.text for piece in self.pieces)}{' + gradient' * self.gradient}"


def output_shape(piece, shape):
    """The shape that a piece makes of another."""
    arrays = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in piece.arrays]
    return jax.eval_shape(lambda x, *a: piece.apply(JAX, x, *a), jax.ShapeDtypeStruct(shape, np.float32), *arrays).shape


def draw(seed):
    """The program of a seed: of an image whose positions, regions or mean become rows, or of rows alone."""
    rng = np.random.default_rng(seed)
    pieces, images = [], bool(rng.integers(2))
    if images:
        shape = (*IMAGES[rng.integers(len(IMAGES))], int(rng.choice(CHANNELS)))
    else:
        columns = int(rng.choice(COLUMNS))
        shape = (int(rng.choice([rows for rows in ROWS if rows * columns <= MOST])), columns)
    x = rng.standard_normal(shape).astype(np.float32)

    def add(piece):
        nonlocal shape
        made = output_shape(piece, shape)
        if 0 < np.prod(made) <= MOST:
            pieces.append(piece)
            shape = made

    for _ in range(rng.integers(1, 4) if images else 0):
        add(OF_IMAGES[rng.integers(len(OF_IMAGES))](rng, shape))
    if images and rng.random() < 0.7:
        add(to_rows(rng, shape))
    for _ in range(rng.integers(0, 3) if images else rng.integers(1, 5)):
        if len(shape) == 2:
            add(OF_ROWS[rng.integers(len(OF_ROWS))](rng, shape))
    if len(shape) == 2 and rng.random() < 0.8:
        add((ending, divergence)[int(rng.random() < 0.3)](rng, shape))
    if not pieces:  # none that was drawn fits into MOST elements
        return draw(seed + 2**32)
    return Program(x, pieces, bool(rng.integers(2)))


def function_of(program):
    """JAX's program: `f(arrays, weights, noise) -> value`, or `-> value, gradient, ...` of its weighted sum."""

    def weighted(arrays, weights, noise):
        y = program.run(JAX, arrays, noise)
        return jnp.sum(y * weights), y

    def both(arrays, weights, noise):
        gradients, y = jax.grad(weighted, has_aux=True)(arrays, weights, noise)
        return [y, *gradients]

    return both if program.gradient else lambda arrays, _, noise: [program.run(JAX, arrays, noise)]


def compiled(program, fusions, shape):
    """What JAX's program, whose value has this shape, returns in float32; `fusions` None is the library's default."""
    options = {} if fusions is None else {OPTION: fusions}
    function = jax.jit(function_of(program), compiler_options=LEVEL | options)
    weights = cotangent(shape).astype(np.float32)
    return [np.asarray(array, np.float64) for array in function(program.arrays(np.float32), weights, None)]


def cotangent(shape):
    """Weights of what comes out, in no simple order."""
    return np.float32(np.cos(np.arange(np.prod(shape, dtype=int)) * 1.7 % 6.0).reshape(shape) + 0.5).astype(np.float64)


class Exact(NamedTuple):
    """What a program has to return, in float64."""

    arrays: list[np.ndarray]  # value, and gradients
    bounds: list[np.ndarray]  # how far off each element may be
    margin: float  # of the nearest kink


def exact(program):
    """By NumPy, and of gradients by JAX in float64 without YNNPACK, whose value NumPy checks."""
    twin, arrays, rng = Twin(), program.arrays(np.float64), np.random.default_rng(0)
    parts = (program._replace(pieces=program.pieces[:number]) for number in range(1, len(program.pieces) + 1))
    states = [np.asarray(part.run(twin, arrays)) for part in parts]
    value = states[-1]
    noises = [[np.exp2(-23) * rng.uniform(-1, 1, state.shape) + 1 for state in states] for _ in range(SAMPLES)]
    if program.gradient:
        with jax.enable_x64(True):
            function = jax.jit(function_of(program), compiler_options={OPTION: ""})
            none, weights = [np.ones(state.shape) for state in states], cotangent(value.shape)
            right, *noisy = (function(arrays, weights, noise) for noise in (none, *noises))
        right, noisy = [*map(np.asarray, right)], [[*map(np.asarray, sample)] for sample in noisy]
    else:
        right, noisy = [value], [[np.asarray(program.run(Twin(), arrays, noise))] for noise in noises]
    bounds = []
    for number, array in enumerate(right):
        moved = np.max([np.abs(sample[number] - array) for sample in noisy], axis=0)
        least = FLOOR * max(map(root_mean_square, [*right[1:], *states]))  # also where all gradients are zero
        bounds.append(
            TIMES * (moved + root_mean_square(moved)) + TOLERANCE * (np.abs(array) + root_mean_square(array)) + least
        )
    if np.any(np.abs(right[0] - value) > 1e-3 * bounds[0] + 1e-12):
        raise AssertionError(f"NumPy and JAX in float64 differ: {program}")
    return Exact([value, *right[1:]], bounds, twin.margin)


def root_mean_square(array):
    return np.sqrt(np.mean(array**2)) + 1e-30


def wrong(program, fusions, right):
    """Whether the set's program returns what rounding does not explain."""
    shape = right.arrays[0].shape
    arrays, off = compiled(program, fusions, shape), None
    for number, (array, expected, bound) in enumerate(zip(arrays, right.arrays, right.bounds, strict=True)):
        allowed = TURNED * array.size if number and right.margin < MARGIN else 0
        error = np.abs(array - expected)
        if np.sum(~(error <= bound)) <= allowed:
            continue
        if fusions == "":
            return True
        off = off or compiled(program, "", shape)
        by_rounding = AS_BAD * np.max(np.abs(off[number] - expected))
        if np.sum(~(error <= bound + by_rounding)) > allowed:
            return True
    return False


def smallest(program, fusions):
    """The shortest part of a wrong program that is still wrong, without the gradient if that is not needed."""
    shorter = [program._replace(gradient=False)] if program.gradient else []
    for number in range(len(program.pieces)):
        shorter.append(program._replace(pieces=program.pieces[:number] + program.pieces[number + 1 :]))
    for candidate in shorter:
        try:
            still = candidate.pieces and wrong(candidate, fusions, exact(candidate))
        except (TypeError, ValueError, IndexError, AssertionError):  # the pieces do not fit each other any more
            continue
        if still:
            return smallest(candidate, fusions)
    return program


def fusions_of(name):
    """The option of a set's name: "off", "default", or types such as REDUCE joined by "+"."""
    if name in ("off", "default"):
        return "" if name == "off" else None
    return ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in name.split("+"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="default", help="sets, joined by commas")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first program; the others follow")
    parser.add_argument("--reduce", action="store_true", help="print the smallest part of what fails")
    options = parser.parse_args()
    failed = {name: [] for name in options.set.split(",")}
    for seed in range(options.seed, options.seed + options.count):
        program = draw(seed)
        right = exact(program)
        for name, seeds in failed.items():
            if wrong(program, fusions_of(name), right):
                seeds.append(seed)
                if options.reduce:
                    print(f"{name} {seed} {smallest(program, fusions_of(name))}", flush=True)
        if seed % 50 == 0:
            jax.clear_caches()
    for name, seeds in failed.items():
        counts = {"programs": options.count, "failures": len(seeds), "seeds": seeds}
        print(json.dumps({"jaxlib": jaxlib.__version__, "set": name, **counts}), flush=True)


if __name__ == "__main__":
    main()
