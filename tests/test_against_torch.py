"""Against PyTorch at run time: imported networks give its logits, and training steps are its steps."""

import functools
from collections import OrderedDict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import weights

from sdd_jax.files import read_checkpoint
from sdd_jax.losses import kd_loss
from sdd_jax.models import create_model
from sdd_jax.regions import Regions
from sdd_jax.torch_io import from_state_dict, to_state_dict
from sdd_jax.training import optim
from sdd_jax.training.features import similarity
from sdd_jax.training.objective import distill, plain
from sdd_jax.training.step import State, make_train_step
from sdd_jax.training.teacher import live_teacher

CLASSES, BATCH, STEPS = 10, 6, 5


pytestmark = pytest.mark.slow


@pytest.fixture
def torch():
    """PyTorch, imported by slow tests alone, with its random numbers from one seed."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield torch


@pytest.fixture
def plain_torch(torch):
    from benchmarks import plain_torch

    return plain_torch


def torchvision_vgg11(nn, num_classes, batch_norm):
    """torchvision's layout, with or without batch normalisation."""
    layers, channels = [], 3
    for size, width in zip((1, 1, 2, 2, 2), (64, 128, 256, 512, 512), strict=True):
        for _ in range(size):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    parts = {
        "features": nn.Sequential(*layers),
        "pool": nn.AdaptiveAvgPool2d(7),
        "flatten": nn.Flatten(),
        "classifier": nn.Sequential(*dense, nn.Linear(4096, num_classes)),
    }
    return nn.Sequential(OrderedDict(parts))


def randomise_statistics(nn, model):
    """Running statistics as if it had been trained, so that a swapped or forgotten one shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def as_jax(images):
    return jnp.asarray(images.numpy().transpose(0, 2, 3, 1))


NETWORKS = [
    "shufflenet_v1", "shufflenet_v2", "vgg13", "resnet8x4", "resnet50", "mobilenet_v2", "wrn_16_2", "wrn_40_2",
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pth_file_gives_the_same_logits_here(torch, plain_torch, name, tmp_path):
    module = randomise_statistics(torch.nn, plain_torch.create(name, CLASSES)).eval()
    torch.save({"model": module.state_dict(), "epoch": 240}, tmp_path / "ckpt_epoch_240.pth")
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        logits, cells = plain_torch.logits_and_cells(module, images)
    model = create_model(name, CLASSES)
    variables = from_state_dict(model, read_checkpoint(tmp_path / "ckpt_epoch_240.pth"))
    outputs = jax.jit(functools.partial(model.apply, train=False, regions=Regions(pooling="nested")))(
        variables, as_jax(images)
    )
    for got, expected in ((outputs.logits, logits.numpy()), (outputs.region_logits, cells.numpy())):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (96, 40)])
def test_a_vgg_in_torchvisions_layout_gives_the_same_logits_here(torch, batch_norm, size):
    module = randomise_statistics(torch.nn, torchvision_vgg11(torch.nn, CLASSES, batch_norm)).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = module(images).numpy()
    model = create_model("vgg11" if batch_norm else "vgg11_without_bn", CLASSES, "imagenet")
    variables = from_state_dict(model, module.state_dict())
    outputs = jax.jit(functools.partial(model.apply, train=False))(variables, as_jax(images))
    np.testing.assert_allclose(outputs.logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(outputs.region_logits, np.repeat(outputs.logits[:, None], 21, 1), rtol=1e-5, atol=1e-6)


def filled(torch, module, seed):
    """In float64, with weights large enough that predictions differ from image to image."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    tensors = {name: torch.from_numpy(array) for name, array in weights.state_dict(shapes, seed).items()}
    module.double().load_state_dict(tensors)
    return module


@pytest.mark.parametrize("name", ["vgg8", "shufflenet_v1"])
def test_five_steps_are_those_of_plain_pytorch(torch, plain_torch, name, x64):
    teacher_module, module = (
        filled(torch, plain_torch.create(network, CLASSES), number)
        for number, network in enumerate(("vgg11", name), start=1)
    )
    teacher_module.eval()
    torch_sgd = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    teacher, student = (create_model(network, CLASSES, dtype=jnp.float64) for network in ("vgg11", name))
    teacher_arrays = from_state_dict(teacher, teacher_module.state_dict())
    variables = from_state_dict(student, module.state_dict())
    optimizer = optim.sgd(0.01, momentum=0.9, weight_decay=5e-4, clip_norm=40.0)
    params = {"student": variables["params"], "objective": {}}
    state = State(jnp.int32(0), params, variables["batch_stats"], {}, optimizer.init(params))
    released = {"complementary_weight": 2.0, "consistent_weight": 1.0, "consistency": "label", "reduction": "mean"}
    regions = Regions((1, 2, 4), "nested")
    train_step = jax.jit(
        make_train_step(
            student,
            live_teacher(teacher, teacher_arrays, regions).apply,
            distill(
                functools.partial(kd_loss, temperature=4.0),
                regions=regions,
                sdd=released,
                task_weight=0.1,
                distill_weight=0.9,
            ),
            optimizer,
            num_examples=BATCH * STEPS,
        )
    )
    for _ in range(STEPS):
        images, labels = torch.randn(BATCH, 3, 32, 32, dtype=torch.float64), torch.randint(0, CLASSES, (BATCH,))
        expected = plain_torch.sdd_kd_step(module, teacher_module, torch_sgd, images, labels)
        batch = {"image": as_jax(images), "label": jnp.asarray(labels.numpy(), jnp.int32)}
        state, metrics = train_step(state, teacher_arrays, batch, jax.random.key(0))
        assert metrics["complementary_share"] > 0.05
        distilled = (metrics["loss"] - 0.1 * metrics["task_loss"]) / 0.9
        np.testing.assert_allclose((metrics["task_loss"], distilled, metrics["grad_norm"]), expected, rtol=1e-6)
    trained = {"params": state.params["student"], "batch_stats": state.batch_stats}
    for name, array in to_state_dict(student, trained).items():
        if not name.endswith("num_batches_tracked"):
            expected = module.state_dict()[name].numpy()
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2", "wrn_16_2"])
def test_similarity_reads_the_last_stage_and_has_pytorchs_value_and_gradient(torch, plain_torch, name, x64):
    """A student in training mode and a vgg11 as teacher; the gradient is that of every weight before the map."""

    def similarity_loss(student, teacher):
        """SP as its paper has it: Gram matrices of the batch, each row of length 1, their squared distance over B^2."""
        normalize = torch.nn.functional.normalize
        first, second = (normalize(one.flatten(1) @ one.flatten(1).T) for one in (student, teacher))
        return ((second - first) ** 2).sum() / len(student) ** 2

    teacher_module = filled(torch, plain_torch.create("vgg11", CLASSES), 1).eval()
    module = filled(torch, plain_torch.create(name, CLASSES), 2).train()
    images = torch.randn(BATCH, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        target = teacher_module.features(images)
    expected = similarity_loss(module.last_stage(images), target)
    expected.backward()

    teacher, student = (create_model(network, CLASSES, dtype=jnp.float64) for network in ("vgg11", name))
    variables = from_state_dict(student, filled(torch, plain_torch.create(name, CLASSES), 2).state_dict())
    teacher_outputs = teacher.apply(from_state_dict(teacher, teacher_module.state_dict()), as_jax(images), train=False)
    objective = similarity(1.0)

    @jax.jit
    @jax.value_and_grad
    def loss_fn(params):
        outputs, _ = student.apply({**variables, "params": params}, as_jax(images), train=True, mutable=["batch_stats"])
        now = {"epoch": 0, "epochs_done": 0.1, "key": None}
        return jnp.mean(objective.apply({}, {}, outputs, teacher_outputs, {}, **now)[0])

    loss, gradient = loss_fn(variables["params"])
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-9)
    found = to_state_dict(student, {"params": gradient, "batch_stats": variables["batch_stats"]})
    largest = max(float(tensor.grad.abs().max()) for tensor in module.parameters() if tensor.grad is not None)
    compared = 0
    for entry, tensor in module.named_parameters():
        wanted = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(found[entry], wanted, rtol=0, atol=1e-9 * largest, err_msg=entry)
        compared += tensor.grad is not None
    assert compared > 10


def test_adamw_that_spares_norms_and_biases_is_pytorchs(torch, x64):
    shapes = {"kernel": (4, 3), "bias": (3,), "scale": (4,)}
    tensors = {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}
    groups = [
        {"params": [tensors["kernel"]], "weight_decay": 0.05},
        {"params": [tensors["bias"], tensors["scale"]], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=0.01)
    params = {name: as_jax_of_any(tensor) for name, tensor in tensors.items()}
    ours = optim.adamw(0.01, weight_decay=0.05, clip_norm=1.0, decayed=optim.weights_alone)
    state = ours.init(params)
    for step in range(STEPS):
        for tensor in tensors.values():
            tensor.grad = torch.randn(tensor.shape, dtype=torch.float64) * 10.0 ** (1 - step)
        grads = {name: as_jax_of_any(tensor.grad) for name, tensor in tensors.items()}
        torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0)
        theirs.step()
        updates, state = ours.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name, tensor in tensors.items():
            np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=1e-10)


def test_the_cross_entropy_with_smooth_and_mixed_labels_is_pytorchs(torch, x64):
    logits, share = torch.randn(BATCH, CLASSES, dtype=torch.float64), 0.3
    first, second = (torch.randint(0, CLASSES, (BATCH,)) for _ in range(2))
    rows = torch.eye(CLASSES, dtype=torch.float64)
    target = share * rows[first] + (1 - share) * rows[second]
    expected = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1, reduction="none")
    batch = {"label": jnp.asarray(first.numpy()), "other_label": jnp.asarray(second.numpy())}
    batch["share"] = jnp.full(BATCH, share)
    outputs = SimpleNamespace(logits=as_jax_of_any(logits))
    now = {"epoch": 0, "epochs_done": 0.1, "key": None}
    loss, _, _ = plain(label_smoothing=0.1).apply({}, {}, outputs, None, batch, **now)
    np.testing.assert_allclose(loss, expected.numpy(), rtol=1e-12)


def as_jax_of_any(tensor):
    return jnp.asarray(tensor.detach().numpy())
