"""One step of SDD-KD in plain PyTorch, as its released code takes it, to hold this project against."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.torch_networks import create, head

CLIP_NORM = 40.0


def logits_and_cells(model, images, scales=(1, 2, 4)):
    """Logits [B,K], and cells [B,R,K]: 4x4 adaptive averages of the logit map, the coarser ones from them."""
    features = model.features(images)
    logit_map = head(model)(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    finest = F.adaptive_avg_pool2d(logit_map, 4)
    cells = [F.adaptive_avg_pool2d(finest, scale).flatten(2) for scale in scales]
    return head(model)(features.mean((2, 3))), torch.cat(cells, 2).transpose(1, 2)


def sdd_kd_losses(student, teacher, images, labels, *, scales=(1, 2, 4), temperature=4.0):
    """Cross-entropy, and the distillation of `student` (in training mode) by `teacher` (in evaluation mode)."""
    with torch.no_grad():
        _, target = logits_and_cells(teacher, images, scales)
        right = target.argmax(2) == labels[:, None]
        weight = 1.0 + (right != right[:, :1])
        target = F.log_softmax(target / temperature, 2)
    logits, cells = logits_and_cells(student, images, scales)
    divergence = F.kl_div(F.log_softmax(cells / temperature, 2), target, reduction="none", log_target=True).sum(2)
    return F.cross_entropy(logits, labels), (weight * divergence).mean() * temperature**2


def sdd_kd_step(student, teacher, optimizer, images, labels, *, losses=sdd_kd_losses):
    """One step of `student` under `teacher`.

    Returns:
      Cross-entropy, distillation, and the gradient's norm before clipping, as tensors: nothing waits for the device.
    """
    task, distill = losses(student, teacher, images, labels)
    optimizer.zero_grad(set_to_none=True)
    (0.1 * task + 0.9 * distill).backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
    optimizer.step()
    return task.detach(), distill.detach(), norm


def torch_step(spec):
    """`(call, wait, about)`: `call` takes a whole step by `spec` on one batch that is already in the device's memory.

    PyTorch's batches are drawn and cropped by other processes, which costs its step nothing here; this project's step
    pays for its own.
    """
    torch.manual_seed(0)
    if spec["precision"] is not None and not hasattr(torch.backends, "fp32_precision"):
        raise ValueError(f"PyTorch {torch.__version__} has no fp32_precision: 2.9 or later is needed")
    device = torch.accelerator.current_accelerator() if spec["on_accelerator"] else torch.device("cpu")
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[spec["format"]]
    placed = {"device": device, "memory_format": layout}
    memory = torch.accelerator if spec["on_accelerator"] else None
    if memory:
        memory.reset_peak_memory_stats()
        held = memory.memory_allocated()
    teacher, student = (create(spec[role], spec["classes"]).to(**placed) for role in ("teacher", "student"))
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    size = spec["size"] or 32
    images = torch.randn(spec["batch"], 3, size, size).to(**placed)
    labels = torch.randint(0, spec["classes"], (spec["batch"],)).to(device)
    losses = partial(sdd_kd_losses, scales=tuple(spec["scales"]))
    losses = torch.compile(losses) if spec["compiled"] else losses

    def forward(*arguments):
        with torch.autocast(device.type, torch.bfloat16, enabled=spec["dtype"] == "bfloat16"):
            return losses(*arguments)

    def call():
        if spec["precision"] is not None:  # of products and convolutions of float32, in the whole process
            torch.backends.fp32_precision = spec["precision"]
        sdd_kd_step(student, teacher, optimizer, images, labels, losses=forward)

    def wait():
        if spec["on_accelerator"]:
            torch.accelerator.synchronize()

    def about():
        return {"bytes": memory.max_memory_allocated() - held} if spec["on_accelerator"] else {}

    return call, wait, about
