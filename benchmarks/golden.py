"""What the golden files hold (`tests/golden/README.md`), computed here: in float64 by the tests, on any device by
`benchmarks.right`.
"""

import json
import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import dkd_loss, kd_loss, nkd_as_released_loss, pool_regions, sdd_loss
from sdd_jax.models import create_model
from sdd_jax.regions import Regions, average_grid
from sdd_jax.torch_io import from_state_dict, to_state_dict
from sdd_jax.training import optim
from sdd_jax.training.compiling import jit_network
from sdd_jax.training.objective import distill
from sdd_jax.training.step import State, make_train_step
from sdd_jax.training.teacher import live_teacher

FOLDER = Path(__file__).parents[1] / "tests" / "golden"
RULE = runpy.run_path(str(FOLDER / "weights.py"))  # fill, images and generator: no weight is stored
SHAPES = json.loads((FOLDER / "models.json").read_text())
LOSSES, POOLING, MODELS, TRAINING = (
    np.load(FOLDER / f"{name}.npz") for name in ("losses", "pooling", "models", "training")
)
CASES, BASES = "abcd", ("kd", "dkd", "nkd")

# The official registry's name -> ours; the stem is the part before the slash.
NETWORKS = {
    "cifar/resnet8": "resnet8",
    "cifar/resnet20": "resnet20",
    "cifar/resnet8x4": "resnet8x4",
    "cifar/resnet32x4": "resnet32x4",
    "cifar/wrn_16_2": "wrn_16_2",
    "cifar/wrn_40_2": "wrn_40_2",
    "cifar/vgg8": "vgg8",
    "cifar/vgg13": "vgg13",
    "cifar/MobileNetV2": "mobilenet_v2",
    "cifar/ShuffleV1": "shufflenet_v1",
    "cifar/ShuffleV2": "shufflenet_v2",
    "cifar/ResNet50": "resnet50",
    "imagenet/ResNet18": "resnet18",
    "imagenet/ResNet50": "resnet50",
    "imagenet/MobileNetV2": "mobilenet_v1",  # its name in the official code, not what it is
    "cub200/MobileNetV2": "mobilenet_v2",
    "cub200/ShuffleV1": "shufflenet_v1",
    "cub200/vgg8": "vgg8",
    "cub200/resnet32x4": "resnet32x4",
    "cub200/vgg13": "vgg13",
}

STEPS, BATCH, STEP_CLASSES = 5, 8, 10
ROWS = sorted({key.rpartition("/losses")[0] for key in TRAINING if key.endswith("/losses")})
RELEASED = {"complementary_weight": 2.0, "consistent_weight": 1.0, "consistency": "label", "reduction": "mean"}
TASK_WEIGHT = {"KD": 0.1, "SDD_KD": 0.1, "SDD_DKD": 1.0, "SDD_NKD": 1.0}
OBJECTIVES = {
    "KD": (partial(kd_loss, temperature=4.0), {"task_weight": 0.1, "distill_weight": 0.9}),
    "DKD": (partial(dkd_loss, temperature=4.0, alpha=1.0, beta=8.0), {"warmup_epochs": 20}),
    "NKD": (partial(nkd_as_released_loss, temperature=4.0, gamma=8.0), {"warmup_epochs": 20}),
}
# The fifth epoch, as the official code counts them, in every one of the five steps.
EXAMPLES_PER_EPOCH = BATCH * 2 * STEPS
FIRST_STEP = 4 * EXAMPLES_PER_EPOCH // BATCH


def relative_error(got, expected):
    """The largest difference beside the largest value."""
    return np.max(np.abs(np.asarray(got) - expected)) / np.max(np.abs(expected))


def bases(case):
    """The base losses of a case of losses.npz, with its numbers."""
    temperature, alpha, beta, gamma = (float(value) for value in LOSSES[f"{case}/params"])
    return {
        "kd": partial(kd_loss, temperature=temperature),
        "dkd": partial(dkd_loss, temperature=temperature, alpha=alpha, beta=beta),
        "nkd": partial(nkd_as_released_loss, temperature=temperature, gamma=gamma),
    }


def loss_errors():
    """`{loss: errors of value and of gradient, case by case}`, of the base losses and over regions."""

    @jax.jit
    def run(inputs):
        results = {}
        for case, (student, teacher, labels) in inputs.items():
            for name, base in bases(case).items():
                plain = jax.value_and_grad(lambda s, t, of, base=base: jnp.mean(base(s, t, of)))
                over = jax.value_and_grad(lambda s, t, of, base=base: jnp.mean(sdd_loss(s, t, of, base=base)))
                results[case, name] = plain(student[:, 0], teacher[:, 0], labels)
                results[case, f"sdd_{name}"] = over(student, teacher, labels)
        return results

    roles = ("student", "teacher")
    inputs = {
        case: (*(LOSSES[f"{case}/{role}"].transpose(0, 2, 1) for role in roles), LOSSES[f"{case}/labels"])
        for case in CASES
    }
    errors = {}
    for (case, name), (value, gradient) in run(inputs).items():
        wanted = LOSSES[f"{case}/{name}_grad"].transpose(0, 2, 1)
        wanted = wanted if name.startswith("sdd_") else wanted[:, 0]
        of_value = abs(float(value) / float(LOSSES[f"{case}/{name}"]) - 1)
        errors.setdefault(name, []).append((of_value, float(relative_error(gradient, wanted))))
    return errors


def pooling_errors():
    """The error of each pooling of pooling.npz, by its name there."""
    wanted = {key: POOLING[key] for key in POOLING if not key.startswith("input")}

    @jax.jit
    def run(inputs):
        results = {}
        for key in wanted:
            kind, size, of = key.split("_")
            grid = inputs[size].transpose(0, 2, 3, 1)
            if kind == "cells":
                results[key] = pool_regions(grid, tuple(map(int, of.split("-"))), pooling="nested").transpose(0, 2, 1)
            else:
                results[key] = average_grid(grid, int(of)).transpose(0, 3, 1, 2)
        return results

    inputs = {key.partition("_")[2]: POOLING[key] for key in POOLING if key.startswith("input")}
    return {key: float(relative_error(got, wanted[key])) for key, got in run(inputs).items()}


def filled(network, model):
    """The variables that the golden file's rule gives the model."""
    return from_state_dict(model, RULE["state_dict"](SHAPES[network]["state_dict"]))


def images_of(network, dtype):
    """The images that the golden file's rule draws for the network, [B,H,W,C]."""
    return jnp.asarray(RULE["images"](tuple(SHAPES[network]["input"])).transpose(0, 2, 3, 1), dtype)


def network_errors(network, dtype, jit=jit_network):
    """Errors of logits and of regions [B,R,K] of a network of models.npz."""
    logits, cells = MODELS[f"{network}/logits"], MODELS[f"{network}/cells"]
    model = create_model(NETWORKS[network], logits.shape[1], network.split("/")[0], dtype)
    forward = jit(partial(model.apply, train=False, regions=Regions(pooling="nested")))
    outputs = forward(filled(network, model), images_of(network, dtype))
    assert outputs.logits.dtype == jnp.promote_types(dtype, jnp.float32)
    wanted = cells.transpose(0, 2, 1)
    return relative_error(outputs.logits, logits), relative_error(outputs.region_logits, wanted)


def step_network(name, seed, dtype):
    """A network of training.npz and its variables, filled by the rule of the golden files."""
    model = create_model(NETWORKS[f"cifar/{name}"], STEP_CLASSES, dtype=dtype)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    shapes = {name: array.shape for name, array in to_state_dict(model, blank).items()}
    return model, from_state_dict(model, RULE["state_dict"](shapes, seed))


def five_steps(row, dtype, jit=jit_network):
    """Five steps of a row of training.npz.

    Returns:
      Task term, distillation term and gradient norm [5,3]; logits [4,10] afterwards; the student's variables then.
    """
    pair, method, scales = row.split("/")
    regions = Regions(tuple(int(scale) for scale in scales.split("-")), "nested")
    teacher_name, student_name = pair.split(">")
    teacher_model, teacher_arrays = step_network(teacher_name, 1, dtype)
    model, variables = step_network(student_name, 2, dtype)
    optimizer = optim.sgd(0.05, momentum=0.9, weight_decay=5e-4, clip_norm=40.0)
    base, numbers = OBJECTIVES[method.removeprefix("SDD_")]
    asked = regions if method.startswith("SDD_") else None
    objective = distill(base, regions=asked, sdd=RELEASED if asked else None, **numbers)
    params = jax.tree.map(jnp.asarray, {"student": variables["params"], "objective": {}})
    state = State(jnp.int32(FIRST_STEP), params, variables["batch_stats"], {}, optimizer.init(params))
    teacher = live_teacher(teacher_model, teacher_arrays, regions)
    train_step = jit(make_train_step(model, teacher.apply, objective, optimizer, num_examples=EXAMPLES_PER_EPOCH))

    def drawn(count, seed):
        return jnp.asarray(RULE["images"]((count, 3, 32, 32), seed).transpose(0, 2, 3, 1), dtype)

    measured = []
    for step in range(STEPS):
        labels = RULE["generator"]("labels", 10 + step).integers(0, STEP_CLASSES, BATCH)
        batch = {"image": drawn(BATCH, 10 + step), "label": jnp.asarray(labels, jnp.int32)}
        state, metrics = train_step(state, teacher_arrays, batch, jax.random.key(0))
        task = TASK_WEIGHT[method] * metrics["task_loss"]
        measured.append([task, metrics["loss"] - task, metrics["grad_norm"]])
    variables = {"params": state.params["student"], "batch_stats": state.batch_stats}
    logits = jit(partial(model.apply, train=False))(variables, drawn(4, 99)).logits
    return np.array(measured), logits, to_state_dict(model, variables)
