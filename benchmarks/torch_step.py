"""One step of SDD-KD in plain PyTorch, as its released code takes it: what this project's step is timed against."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import torch_networks

CLIP_NORM = 40.0


def sdd_kd_step(student, teacher, optimizer, images, labels, *, scales=(1, 2, 4), temperature=4.0):
    """One step of `student` (in training mode) under `teacher` (in evaluation mode).

    Returns:
      Cross-entropy, distillation, and the gradient's norm before clipping, as numbers.
    """
    with torch.no_grad():
        _, target = torch_networks.logits_and_cells(teacher, images, scales)
        right = target.argmax(2) == labels[:, None]
        weight = 1.0 + (right != right[:, :1])
        target = F.log_softmax(target / temperature, 2)
    logits, cells = torch_networks.logits_and_cells(student, images, scales)
    divergence = F.kl_div(F.log_softmax(cells / temperature, 2), target, reduction="none", log_target=True).sum(2)
    task, distill = F.cross_entropy(logits, labels), (weight * divergence).mean() * temperature**2
    optimizer.zero_grad(set_to_none=True)
    (0.1 * task + 0.9 * distill).backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
    optimizer.step()
    return task.item(), distill.item(), norm.item()


def torch_step(spec):
    """`step()`, a whole step by `spec` on one batch that is already in memory.

    PyTorch's batches are drawn and cropped by other processes, which costs its step nothing here; this project's step
    pays for its own.
    """
    torch.manual_seed(0)
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[spec["format"]]
    teacher, student = (
        torch_networks.create(spec[role], spec["classes"]).to(memory_format=layout) for role in ("teacher", "student")
    )
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(spec["batch"], 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(0, spec["classes"], (spec["batch"],))

    def step():
        return sdd_kd_step(student, teacher, optimizer, images, labels, scales=tuple(spec["scales"]))

    return step
