"""Every field of a config: its default, what it may hold, what it means, and whether it changes what is computed.

Configs begin from this table (``configs/common.py``); ``sdd_jax.config`` checks by it, ``docs/fields.md`` shows it. The
fields ``loss.options.NAME`` and ``features.options.NAME`` are not in it: they are the parameters of the loss that is
chosen.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from sdd_jax.data.images import AUGMENTS
from sdd_jax.data.streamed import ON_BAD_IMAGE
from sdd_jax.ensemble import MEANS
from sdd_jax.regions import POOLINGS
from sdd_jax.sdd import CONSISTENCIES, REDUCTIONS

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
PRESETS = ("released", "paper")
AVERAGE = "average"
SAVED = ("last", "best", AVERAGE)  # weights of a run: after its last step, the best, the moving average at its end
SELECTIONS, SCHEDULES, OPTIMIZERS = ("validation", "test"), ("step", "cosine"), ("sgd", "adamw")


class Field(NamedTuple):
    """A config field."""

    kind: type  # str, int, float, bool, or tuple for integers
    default: Any  # None: unset
    meaning: str  # one sentence, as Markdown
    least: float = -math.inf  # the smallest number that it may hold
    known: tuple[str, ...] = ()  # the names that it may hold; empty if any
    above: float = -math.inf  # every number that it may hold is greater
    below: float = math.inf  # every number that it may hold is less
    clearable: bool = False  # whether it may be unset although it has a default
    runtime: bool = False  # only says how a run is carried out: a start may change it, and it is not part of the hash

    @property
    def optional(self) -> bool:
        """Whether it may be unset."""
        return self.clearable or self.default is None


FIELDS: dict[str, Field] = {
    "seed": Field(int, 0, "Of initialisation, order and augmentation; the validation split is one for all seeds.", 0),
    "seeds": Field(tuple, (), "Several seeds, trained together; each leaves its run in `WORKDIR/seed_N`.", 0),
    "preset": Field(str, "released", "The released code's settings, or the paper's: `configs/rows.py`.", known=PRESETS),
    "method": Field(str, "plain", "`plain`, a base loss (`kd`), its form over regions (`sdd_kd`), `sp`, `sdd_dkd+sp`."),
    "model.student": Field(str, "", "The network that is trained ([networks.md](networks.md)), or `MODULE:FUNCTION`."),
    "model.teacher": Field(
        str,
        "none",
        "The network that it learns from, `none`, [`cache`](foreign_teacher.md) or [`ensemble`](foreign_teacher.md).",
    ),
    "model.stem": Field(str, "cifar", "The stem of both: `cifar`, `imagenet` or `cub200`."),
    "model.dtype": Field(
        str, "float32", "The student's; weights, statistics, losses: at least float32.", known=tuple(DTYPES)
    ),
    "model.init": Field(
        str,
        None,
        "A run's folder or a file of weights whose trunk the student begins with ([own_images.md](own_images.md)).",
    ),
    "model.init_digest": Field(
        str, None, "SHA-256 of these weights: settled when a run begins, and any other is refused then."
    ),
    "teacher.run": Field(str, None, "The folder of the teacher's run, trained or imported."),
    "teacher.checkpoint": Field(
        str,
        None,
        "Of the teacher's run: the weights after its last step (unset), the best, or their moving `average`.",
        known=SAVED,
    ),
    "teacher.cache": Field(str, None, "A folder that the cache command filled ([speed.md](speed.md))."),
    "teacher.runs": Field(
        str, None, "Of an `ensemble`: the folders of its teachers' runs, `a,b`, or `none` for a cache alone."
    ),
    "teacher.weights": Field(str, None, "Of an `ensemble`: a number above 0 for each, `2,1`; unset: all alike."),
    "teacher.mean": Field(
        str, None, "Of an `ensemble`: the mean of `probabilities` (unset) or of `logits`.", known=MEANS
    ),
    "teacher.dtype": Field(str, None, "The teacher's; unset: the student's.", known=tuple(DTYPES)),
    "teacher.accuracy": Field(
        float,
        None,
        "The teacher's stated test accuracy, in percent; 0.1 points off refuses the run.",
        0,
    ),
    "teacher.published": Field(float, None, "The same of an imported teacher, where `teacher.accuracy` is unset.", 0),
    "data.name": Field(str, "", "The data set; [data.md](data.md) has the names."),
    "data.path": Field(str, None, "Where its files are: a folder, an `.npz` file or a zip file."),
    "data.select_on": Field(
        str, "validation", "Images that choose the best epoch: held-out ones, or the test images.", known=SELECTIONS
    ),
    "data.train_examples": Field(
        int, None, "The number of training images, the shares of the classes kept; unset: all.", 1
    ),
    "data.num_classes": Field(int, None, "K; unset: as many as the set has.", 1),
    "data.image_size": Field(int, None, "The side of images of sets on disk; unset: 224, of Tiny-ImageNet 64.", 1),
    "data.in_memory": Field(
        bool, None, "Sets on disk: decoded once, held as CIFAR is; unset: small images that fit ([data.md](data.md))."
    ),
    "data.augment": Field(str, None, "The crop of images read from disk; unset: the set's own.", known=AUGMENTS),
    "data.workers": Field(
        int, 0, "Processes that decode images; 0: threads, or once, into memory, one a processor.", 0, runtime=True
    ),
    "data.on_bad_image": Field(
        str, "error", "At an image on disk that cannot be decoded: stop, or leave it out.", known=ON_BAD_IMAGE
    ),
    "data.randaugment": Field(
        tuple, (), "`2,9`: 2 operations at magnitude 9 of 10, by RandAugment; images read from disk.", 0
    ),
    "data.mixup": Field(float, 0.0, "The alpha of mixup's Beta(alpha, alpha); 0: none ([recipes.md](recipes.md)).", 0),
    "data.cutmix": Field(float, 0.0, "The same of CutMix; with both, a coin chooses for each batch.", 0),
    "sdd.scales": Field(
        tuple, (1, 2, 4), "The paper's M: s x s regions of each scale s. From 1 on; above 4 with direct pooling.", 1
    ),
    "sdd.pooling": Field(
        str, "nested", "Regions averaged from the map itself, or from a 4x4 grid of it.", known=POOLINGS
    ),
    "sdd.consistency": Field(str, "label", "A verdict: right or wrong, or the predicted class.", known=CONSISTENCIES),
    "sdd.reduction": Field(str, "mean", "The weighted losses of the regions: mean or sum.", known=REDUCTIONS),
    "sdd.complementary_weight": Field(float, 2.0, "The weight of complementary regions.", 0),
    "sdd.consistent_weight": Field(float, 1.0, "The weight of consistent regions, the whole image among them.", 0),
    "loss.base": Field(
        str,
        None,
        "Unset: the method's. `preset=released` sets `nkd_as_released` for `nkd`; `own` needs `MODULE:FUNCTION`.",
    ),
    "loss.task_weight": Field(float, 1.0, "The weight of the cross-entropy with the labels.", 0),
    "loss.distill_weight": Field(float, 1.0, "The weight of the distillation loss.", 0),
    "loss.warmup_epochs": Field(int, 0, "Epoch e, from 1, weighs the distillation by `min(e / warmup_epochs, 1)`.", 0),
    "loss.warmup_share": Field(
        float, 0.0, "The same by steps, as a share, at most 1, of the run's epochs; one of the two is 0.", 0
    ),
    "loss.label_smoothing": Field(
        float,
        0.0,
        "The share of the labels' weight that goes to all classes alike; of the cross-entropy alone.",
        0,
        below=1,
    ),
    "features.weight": Field(float, 1.0, "The weight of the feature loss.", 0),
    "optim.optimizer": Field(str, "sgd", "SGD with momentum, or AdamW ([recipes.md](recipes.md)).", known=OPTIMIZERS),
    "optim.learning_rate": Field(float, 0.05, "The rate that the schedule begins with.", above=0),
    "optim.rate_warmup_epochs": Field(int, 0, "The rate rises along a line, step by step, over so many epochs.", 0),
    "optim.momentum": Field(float, 0.9, "The momentum of SGD (not Nesterov's).", 0, below=1),
    "optim.weight_decay": Field(
        float, 5e-4, "SGD: L2, added to the gradient. AdamW: the share of the weights, times the rate, of a step.", 0
    ),
    "optim.decay_norms": Field(
        bool, True, "Whether norms and biases are decayed too, not weights alone ([recipes.md](recipes.md))."
    ),
    "optim.ema_decay": Field(
        float, None, "Keeps a moving average of the student, and measures it too; near 1, such as 0.9999.", 0, below=1
    ),
    "optim.clip_norm": Field(float, 40.0, "The largest norm of all gradients together.", above=0, clearable=True),
    "optim.schedule": Field(str, "step", "A tenth of the rate from each milestone, or a cosine to 0.", known=SCHEDULES),
    "optim.milestones": Field(tuple, (150, 180, 210), "Epochs of `step`: increasing, below `epochs`.", 1),
    "optim.accumulate_steps": Field(int, 1, "Parts of a batch, one after the other ([scale.md](scale.md)).", 1),
    "epochs": Field(int, 240, "The length of a run, which has `ceil(epochs * images / batch_size)` steps.", 1),
    "batch_size": Field(int, 64, "Images a step, over all devices.", 1),
    "steps_per_call": Field(int, 0, "Steps a compiled call; 0: 50 on accelerators for data in memory, else 1.", 0),
    "eval_every_epochs": Field(int, 1, "How often validation and test images are measured.", 1),
    "save_every_epochs": Field(int, 1, "How often a checkpoint is saved.", 1),
    "track": Field(
        str, None, "`MODULE:FUNCTION` that gets every logged line ([tracking.md](tracking.md)).", runtime=True
    ),
    "profile_steps": Field(tuple, (), "`10,20`: a trace of steps 10 to 19 in `WORKDIR/profile`.", 0, runtime=True),
}
RUNTIME_FIELDS = frozenset(name for name, field in FIELDS.items() if field.runtime)
# Fields that came after runs were finished: one whose config lacks them is one with these values.
LATER = {
    "loss.label_smoothing": 0.0,
    "optim.optimizer": "sgd",
    "optim.rate_warmup_epochs": 0,
    "optim.decay_norms": True,
    "data.randaugment": [],
    "data.mixup": 0.0,
    "data.cutmix": 0.0,
}
# Names of earlier versions, and what they are called now: of a base loss, and of a feature loss where that differs.
RENAMED = {
    "loss.temperature": ("loss.options.temperature",),
    "loss.alpha": ("loss.options.alpha",),
    "loss.beta": ("loss.options.beta", "features.weight"),
    "loss.gamma": ("loss.options.gamma",),
}
