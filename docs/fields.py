"""Writes `docs/fields.md`, every field of a config: `python -m docs.fields`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import common
from experiments.command_line import Parser
from sdd_jax.config import FIELDS, NONE, Field

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Config fields

A config file is Python with a `get_config(argument)`; its argument chooses by name, and any field can be overridden:
`--config=configs/cifar100.py:teacher=resnet32x4,student=resnet8x4,method=sdd_dkd --config.sdd.scales=1,2`. The defaults
are those of `configs/common.py`; a config file of a data set or a method sets its own. A field that the method does not
read changes nothing. Where `none` stands among what a field may hold, it unsets what a config file has set:
`--config.optim.clip_norm=none`.

`method`, `preset`, `teacher` and `student` are chosen together by the argument: other fields follow from them, and so
they are not overridden alone.

This page is written by `python -m docs.fields`.
"""
MEANING = {
    "seed": "Of initialisation, order, augmentation and the validation split.",
    "seeds": "Several seeds, trained together; each leaves its run in `WORKDIR/seed_N`.",
    "preset": "The settings of the released code, or the paper's; [experiments.md](experiments.md).",
    "method": "What the student learns by; `plain` asks no teacher. [own_loss.md](own_loss.md) is about `own`.",
    "model.student": "The network that is trained: a name of [networks.md](networks.md), or `MODULE:FUNCTION`.",
    "model.teacher": "The network that it learns from, or `none`.",
    "model.stem": "The stem of both: `cifar`, `imagenet` or `cub200`.",
    "model.dtype": "What the student computes in. Weights, statistics and losses are at least float32.",
    "teacher.run": "The folder of the teacher's run, trained or imported.",
    "teacher.cache": "A folder filled by the cache command ([speed.md](speed.md)); unset, the teacher itself is asked.",
    "teacher.dtype": "What the teacher computes in; unset: as the student.",
    "teacher.accuracy": "Its stated test accuracy in percent. A measured one more than 0.1 points off refuses the run.",
    "teacher.published": "What an imported teacher is held against where `teacher.accuracy` is unset.",
    "data.name": "The data set; [data.md](data.md) has the names.",
    "data.path": "The folder of its files.",
    "data.select_on": "What the best epoch is chosen on: a tenth of the training images held out, or the test images.",
    "data.train_examples": "So many training images, the shares of the classes kept; unset: all.",
    "data.num_classes": "K; unset: as many as the set has.",
    "data.image_size": "The side of images of sets on disk; unset: 224.",
    "data.augment": "How images of sets on disk are cropped; unset: the set's own way ([data.md](data.md)).",
    "data.workers": "Processes that decode images on disk; 0: threads.",
    "data.on_bad_image": "Of sets on disk: stop at an image that cannot be decoded, or leave it out.",
    "sdd.scales": "The paper's M: each scale s divides the logit map into s x s regions. Increasing, the first is "
    "1; above 4 with `sdd.pooling=direct` alone.",
    "sdd.pooling": "Regions averaged from the 4x4 grid, or each from the map itself.",
    "sdd.consistency": "What a verdict is: whether the class is the label, or the class itself ([sdd.md](sdd.md)).",
    "sdd.reduction": "The weighted losses of the regions: their mean, or their sum.",
    "sdd.complementary_weight": "The weight of complementary regions.",
    "sdd.consistent_weight": "The weight of consistent regions, the whole image among them.",
    "loss.base": "The base loss; it follows from the method, but for `nkd` and `own`.",
    "loss.temperature": "T of the base loss.",
    "loss.alpha": "DKD's weight of the target class; a number of an own loss.",
    "loss.beta": "DKD's weight of the other classes; DIST's between-class weight; the weight of features.",
    "loss.gamma": "NKD's, DIST's, TTM's or WTTM's number of that name.",
    "loss.task_weight": "The weight of the cross-entropy with the labels.",
    "loss.distill_weight": "The weight of the distillation loss.",
    "loss.warmup_epochs": "Epoch e, from 1, multiplies the distillation loss by `min(e / warmup_epochs, 1)`.",
    "optim.learning_rate": "The first rate of SGD.",
    "optim.momentum": "Its momentum (not Nesterov's).",
    "optim.weight_decay": "L2, added to the gradient of every parameter.",
    "optim.clip_norm": "The largest norm of all gradients together; unset: no clipping.",
    "optim.schedule": "The rate falls to a tenth at each milestone, or along a cosine to zero.",
    "optim.milestones": "Epochs, of `step`: increasing, below `epochs`. A shorter run needs its own, or "
    "`--config.optim.schedule=cosine`.",
    "optim.accumulate_steps": "Parts of a batch, one after the other, where it does not fit ([scale.md](scale.md)).",
    "epochs": "How long. A run has `ceil(epochs * images / batch_size)` steps.",
    "batch_size": "Images a step, over all devices.",
    "steps_per_call": "Steps in one compiled call; 0: 50 on accelerators for data in memory, else one.",
    "eval_every_epochs": "How often validation and test images are measured.",
    "save_every_epochs": "How often a checkpoint is saved.",
    "profile_steps": "`10,20` writes a trace from step 10 up to step 20 to `WORKDIR/profile`.",
}


def shown(value: Any) -> str:
    """A default as it is typed; "unset" where there is none."""
    typed = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
    return f"`{typed}`" if typed else "unset"


def holds(field: Field) -> str:
    """What a field may hold."""
    if field.known:
        return ", ".join(f"`{name}`" for name in (*field.known, *([NONE] if field.optional else [])))
    kind = {"int": "whole number", "float": "number", "str": "text", "tuple": "whole numbers"}[field.kind.__name__]
    least = f", at least {field.least:g}" if field.least > float("-inf") else ""
    above = f", above {field.above:g}" if field.above > float("-inf") else ""
    return kind + least + above + (f", or `{NONE}`" if field.optional else "")


def page() -> str:
    """The page's text."""
    tree, rooms = common.base().to_dict(), {}
    for name, field in FIELDS.items():
        room, _, leaf = name.rpartition(".")
        default = tree[room][leaf] if room else tree[leaf]
        rooms.setdefault(room, []).append(f"| `{name}` | {shown(default)} | {holds(field)} | {MEANING[name]} |")
    parts = [HEAD]
    for room, rows in rooms.items():
        parts.append(f"## {f'`{room}`' if room else 'The run'}\n")
        parts.append("\n".join(["| field | default | may hold | meaning |", "|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def main(arguments: Sequence[str]) -> None:
    """Writes the page; takes no arguments."""
    Parser(prog="python -m docs.fields", description=__doc__).parse_args(arguments)
    PAGE.write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
