"""How far the first step of each pair of the paper is from the same step in float64, by compiler options.

python -m benchmarks.arithmetic --output=benchmarks/results/arithmetic.md [--data=cifar100]

For each pair: one batch of drawn images, drawn weights, SDD-KD with the pair's own settings, and the gradient of the
student's parameters, in float32 under each set of options and in float64 without YNNPACK, where convolutions are sums
of products. Each is a process of its own. A pair that has its line in the page is not measured again, so that an
interrupted measurement goes on.
"""

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.run import header
from experiments.command_line import Parser
from sdd_jax.build import check, described, make_parts
from sdd_jax.configs.pairs import PAIRS
from sdd_jax.training.compiling import YNNPACK, jit_network

BATCH = 64
REDUCE, ELTWISE = "LIBRARY_FUSION_TYPE_REDUCE", "LIBRARY_FUSION_TYPE_ELTWISE"
SETS = {
    "off": "",  # as networks are compiled now
    "reductions and elementwise": f"{REDUCE},{ELTWISE}",  # as they were before
    "library's own": None,
}
EXACT, DRAWN = "float64", "drawn.npz"
ZERO = 1e-6  # of the gradient's largest entry: a tensor below it is zero but for rounding, as what batch norm undoes
HEAD = ["pair", "loss, float64", "gradient's norm", "options", "loss", "norm", "entry"]
LEGEND = (
    "Relative differences from float64: of the loss, of the norm of the gradient, and the largest of an entry of the "
    "gradient, relative to the largest entry of its tensor (at least 1e-6 of the whole gradient's). Rounding alone "
    "gives some 1e-7 for the first, and for an entry what cancels in sums over a batch. What is not finite is printed "
    "as it is."
)


def spec_of(data, teacher, student, options, folder):
    """What `first_step` takes, as JSON-ready values."""
    config = f"teacher={teacher},student={student},method=sdd_kd"
    return {"data": data, "argument": config, "options": options, "folder": str(folder)}


def first_step(spec):
    """Writes the first step's loss and gradient, `OPTIONS.npz` in the folder; what is not there is drawn first."""
    exact, folder = spec["options"] == EXACT, Path(spec["folder"])
    dtype = "float64" if exact else "float32"
    parts, info = parts_of(spec["data"], spec["argument"], dtype)
    fusions = "" if exact else SETS[spec["options"]]
    if not (folder / DRAWN).exists():
        np.savez(folder / DRAWN, **drawn(parts, info, BATCH))
    options = None if fusions is None else {YNNPACK: fusions}
    with nn.intercept_methods(in_products) if exact else contextlib.nullcontext():
        loss, gradient = take_step(parts, np.load(folder / DRAWN), dtype, options)
    np.savez(folder / f"{spec['options']}.npz", loss=loss, **gradient)


def in_products(call, arguments, options, context):
    """Convolutions without groups as a product for each weight of the kernel: XLA's take minutes in float64."""
    module = context.module
    if not isinstance(module, nn.Conv) or module.feature_group_count > 1 or context.method_name != "__call__":
        return call(*arguments, **options)
    [x], kernel, stride, pad = arguments, module.get_variable("params", "kernel"), module.strides, module.padding
    size, *_, features = kernel.shape
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    ends = [stride * ((length + 2 * pad - size) // stride) + 1 for length in x.shape[1:3]]

    @partial(jax.checkpoint, prevent_cse=False)
    def add(y, place):  # in a loop, or what each weight sees would be kept for the gradient
        seen = jax.lax.dynamic_slice(padded, (0, *place, 0), (len(x), *ends, x.shape[-1]))
        return y + seen[:, ::stride, ::stride] @ kernel[place[0], place[1]], None

    y = jnp.zeros((len(x), *(1 + (end - 1) // stride for end in ends), features), x.dtype)
    y, _ = jax.lax.scan(add, y, jnp.array(list(np.ndindex(size, size))))
    return y + module.get_variable("params", "bias") if module.use_bias else y


def parts_of(data, argument, dtype):
    """Networks and objective of a config, and what is known of its data set."""
    config = importlib.import_module(f"sdd_jax.configs.{data}").get_config(argument)
    config.model.dtype = dtype
    settings = check(config)
    info = described(settings)
    return make_parts(settings, info.num_classes), info


def drawn(parts, info, batch):
    """Images, labels and weights, as `{name: array}` in float32."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, *info.image_shape)).astype(np.float32)
    variables = {"images": images, "labels": rng.integers(0, info.num_classes, batch).astype(np.int32)}
    for number, (role, model) in enumerate({"student": parts.model, "teacher": parts.teacher}.items()):
        start = jit_network(lambda key, model=model: model.init(key, images[:1], train=False), once=True)(
            jax.random.key(number)
        )
        # Statistics of the batch itself, or a deep teacher's activations would grow from layer to layer: running
        # ones are 0.9 of those before and 0.1 of the batch's.
        moved = jit_network(lambda v, model=model: model.apply(v, images, train=True, mutable=["batch_stats"])[1])(
            start
        )
        stats = jax.tree.map(
            lambda new, old: (new - 0.9 * old) / 0.1, moved.get("batch_stats", {}), start.get("batch_stats", {})
        )
        leaves = flatten_dict({"params": start["params"], "batch_stats": stats})
        variables |= {"/".join((role, *path)): np.float32(leaf) for path, leaf in leaves.items()}
    return variables


def take_step(parts, drawn, dtype, options):
    """The first step's loss, and the gradient of the student's parameters as `{name: array}`."""

    def read(role):
        found = {tuple(name.split("/")[1:]): drawn[name].astype(dtype) for name in drawn if name.startswith(f"{role}/")}
        return unflatten_dict(found)

    images, batch = drawn["images"].astype(dtype), {"label": jnp.asarray(drawn["labels"])}
    student, teacher = read("student"), read("teacher")

    def loss_fn(params, rest, teacher, images):
        asked = parts.teacher.apply(teacher, images, train=False, regions=parts.objective.regions)
        outputs, _ = parts.model.apply(
            {"params": params, **rest}, images, train=True, regions=parts.objective.regions, mutable=["batch_stats"]
        )
        now = {"epoch": 0, "epochs_done": 0.0, "key": None}
        return jnp.mean(parts.objective.apply({}, {}, outputs, asked, batch, **now)[0])

    params = student.pop("params")
    run = jax.jit(jax.value_and_grad(loss_fn), compiler_options=options)
    loss, gradient = jax.device_get(run(params, student, teacher, images))
    return loss, {"/".join(path): leaf for path, leaf in flatten_dict(gradient).items()}


def differences(step, exact):
    """Of loss, of norm and of an entry, of two results of `take_step`."""
    (loss, gradient), (right, wanted) = step, exact
    wanted = {name: value.astype(np.float64) for name, value in wanted.items()}
    largest = {name: np.max(np.abs(value)) for name, value in wanted.items()}
    least = ZERO * max(largest.values())
    errors = [np.max(np.abs(gradient[name] - value)) / max(largest[name], least) for name, value in wanted.items()]
    return abs(float(loss) / float(right) - 1), abs(norm_of(gradient) / norm_of(wanted) - 1), float(np.max(errors))


def measure(data, teacher, student):
    """The lines of a pair: a row for each set of options."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for options in (*SETS, EXACT):
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(options == EXACT))}
            spec = json.dumps(spec_of(data, teacher, student, options, folder))
            subprocess.run([sys.executable, "-m", "benchmarks.arithmetic", "--step", spec], env=environment, check=True)
        steps = {options: dict(np.load(Path(folder) / f"{options}.npz")) for options in (EXACT, *SETS)}
    steps = {options: (step.pop("loss"), step) for options, step in steps.items()}
    exact = steps.pop(EXACT)
    loss, norm = float(exact[0]), norm_of(exact[1])
    for number, (options, step) in enumerate(steps.items()):
        first = [f"{data}: {teacher} -> {student}", f"{loss:.6f}", f"{norm:.4f}"] if number == 0 else [""] * 3
        rows.append([*first, options, *(f"{value:.1e}" for value in differences(step, exact))])
    return ["| " + " | ".join(row) + " |" for row in rows]


def norm_of(gradient):
    """The norm of all tensors together."""
    return float(np.sqrt(sum(np.sum(np.square(value.astype(np.float64))) for value in gradient.values())))


def main(arguments):
    """Measures the pairs that the page lacks, and writes it after each."""
    parser = Parser(
        prog="python -m benchmarks.arithmetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the page; it goes on with one")
    parser.add_argument("--data", choices=PAIRS, action="append", help="pairs of this data set; default: all of them")
    options = parser.parse_args(arguments)
    if options.output.exists():
        text = options.output.read_text()
    else:
        lines = [*header(), "", "# The first step against float64", "", LEGEND, ""]
        text = "\n".join([*lines, "| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]) + "\n"
    for data in options.data or PAIRS:
        for teacher, student in PAIRS[data]:
            if f"| {data}: {teacher} -> {student} |" not in text:
                text += "\n".join(measure(data, teacher, student)) + "\n"
                options.output.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        first_step(json.loads(sys.argv[2]))
    else:
        main(sys.argv[1:])
