"""Every field of a config: its default, what it may hold, what it means, and whether it changes what is computed.

``configs.common.base``, the checks of ``sdd_jax.config`` and the page ``docs/fields.md`` come from this table. The
fields ``loss.options.NAME`` and ``features.options.NAME`` are not in it: they are the parameters of the loss that is
chosen.
"""

import math
from typing import Any, NamedTuple

from sdd_jax.data.images import AUGMENTS
from sdd_jax.data.streamed import ON_BAD_IMAGE
from sdd_jax.regions import POOLINGS
from sdd_jax.sdd import CONSISTENCIES, REDUCTIONS

DTYPES = ("float32", "bfloat16", "float64")
PRESETS = ("released", "paper")


class Field(NamedTuple):
    """A config field.

    Attributes:
      kind: str, int, float, bool, or tuple for integers.
      default: None for an optional field that is unset.
      meaning: one sentence, as Markdown.
      known: the names that it may hold; empty if any.
      least: the smallest number that it may hold.
      above: every number that it may hold is greater.
      optional: whether it may be unset.
      runtime: whether it only says how a run is carried out: a start may change it, and it is not part of the hash.
    """

    kind: type
    default: Any
    meaning: str
    known: tuple[str, ...] = ()
    least: float = -math.inf
    above: float = -math.inf
    optional: bool = False
    runtime: bool = False


FIELDS: dict[str, Field] = {
    "seed": Field(int, 0, "Of initialisation, order, augmentation and the validation split.", least=0),
    "seeds": Field(tuple, (), "Several seeds, trained together; each leaves its run in `WORKDIR/seed_N`.", least=0),
    "preset": Field(
        str,
        "released",
        "The settings of the released code, or the paper's; [experiments.md](experiments.md).",
        known=PRESETS,
    ),
    "method": Field(
        str,
        "plain",
        "What the student learns by: `plain`, a base loss (`kd`), its form over regions (`sdd_kd`), a feature loss "
        "(`sp`), or both (`sdd_dkd+sp`). [own_loss.md](own_loss.md) is about `own`.",
    ),
    "model.student": Field(
        str, "", "The network that is trained: a name of [networks.md](networks.md), or `MODULE:FUNCTION`."
    ),
    "model.teacher": Field(str, "none", "The network that it learns from, or `none`."),
    "model.stem": Field(str, "cifar", "The stem of both: `cifar`, `imagenet` or `cub200`."),
    "model.dtype": Field(
        str,
        "float32",
        "What the student computes in. Weights, statistics and losses are at least float32.",
        known=DTYPES,
    ),
    "teacher.run": Field(str, None, "The folder of the teacher's run, trained or imported.", optional=True),
    "teacher.cache": Field(
        str,
        None,
        "A folder filled by the cache command ([speed.md](speed.md)); unset, the teacher itself is asked.",
        optional=True,
    ),
    "teacher.dtype": Field(
        str, None, "What the teacher computes in; unset: as the student.", known=DTYPES, optional=True
    ),
    "teacher.accuracy": Field(
        float,
        None,
        "Its stated test accuracy in percent. A measured one more than 0.1 points off refuses the run.",
        least=0,
        optional=True,
    ),
    "teacher.published": Field(
        float,
        None,
        "The accuracy that an imported teacher is checked against where `teacher.accuracy` is unset.",
        least=0,
        optional=True,
    ),
    "data.name": Field(str, "", "The data set; [data.md](data.md) has the names."),
    "data.path": Field(str, None, "The folder of its files.", optional=True),
    "data.select_on": Field(
        str,
        "validation",
        "The images that the best epoch is chosen on: a tenth of the training images held out, or the test images, as "
        "the published tables do.",
        known=("validation", "test"),
    ),
    "data.train_examples": Field(
        int, None, "The number of training images, the shares of the classes kept; unset: all.", least=1, optional=True
    ),
    "data.num_classes": Field(int, None, "K; unset: as many as the set has.", least=1, optional=True),
    "data.image_size": Field(int, None, "The side of images of sets on disk; unset: 224.", least=1, optional=True),
    "data.augment": Field(
        str,
        None,
        "How images of sets on disk are cropped; unset: the set's own way ([data.md](data.md)).",
        known=AUGMENTS,
        optional=True,
    ),
    "data.workers": Field(int, 0, "Processes that decode images on disk; 0: threads.", least=0, runtime=True),
    "data.on_bad_image": Field(
        str,
        "error",
        "Of sets on disk: stop at an image that cannot be decoded, or leave it out.",
        known=ON_BAD_IMAGE,
    ),
    "sdd.scales": Field(
        tuple,
        (1, 2, 4),
        "The paper's M: each scale s divides the logit map into s x s regions. Increasing, the first is 1; above 4 "
        "with `sdd.pooling=direct` alone.",
        least=1,
    ),
    "sdd.pooling": Field(
        str, "nested", "Regions averaged from the 4x4 grid, or each from the map itself.", known=POOLINGS
    ),
    "sdd.consistency": Field(
        str,
        "label",
        "What a verdict is: whether the class is the label, or the class itself ([sdd.md](sdd.md)).",
        known=CONSISTENCIES,
    ),
    "sdd.reduction": Field(
        str, "mean", "The weighted losses of the regions: their mean, or their sum.", known=REDUCTIONS
    ),
    "sdd.complementary_weight": Field(float, 2.0, "The weight of complementary regions.", least=0),
    "sdd.consistent_weight": Field(
        float, 1.0, "The weight of consistent regions, the whole image among them.", least=0
    ),
    "loss.base": Field(
        str,
        None,
        "The base loss; it follows from the method, but for `nkd` (or `nkd_as_released`) and `own` "
        "(`MODULE:FUNCTION`).",
        optional=True,
    ),
    "loss.task_weight": Field(float, 1.0, "The weight of the cross-entropy with the labels.", least=0),
    "loss.distill_weight": Field(float, 1.0, "The weight of the distillation loss.", least=0),
    "loss.warmup_epochs": Field(
        int, 0, "Epoch e, from 1, multiplies the distillation loss by `min(e / warmup_epochs, 1)`.", least=0
    ),
    "features.weight": Field(float, 1.0, "The weight of the feature loss.", least=0),
    "optim.learning_rate": Field(float, 0.05, "The first rate of SGD.", above=0),
    "optim.momentum": Field(float, 0.9, "Its momentum (not Nesterov's).", least=0),
    "optim.weight_decay": Field(float, 5e-4, "L2, added to the gradient of every parameter.", least=0),
    "optim.clip_norm": Field(
        float, 40.0, "The largest norm of all gradients together; unset: no clipping.", above=0, optional=True
    ),
    "optim.schedule": Field(
        str,
        "step",
        "The rate falls to a tenth at each milestone, or along a cosine to zero.",
        known=("step", "cosine"),
    ),
    "optim.milestones": Field(
        tuple,
        (150, 180, 210),
        "Epochs, of `step`: increasing, below `epochs`. A shorter run needs its own, or "
        "`--config.optim.schedule=cosine`.",
        least=1,
    ),
    "optim.accumulate_steps": Field(
        int, 1, "Parts of a batch, one after the other, where it does not fit ([scale.md](scale.md)).", least=1
    ),
    "epochs": Field(int, 240, "The length of a run, which has `ceil(epochs * images / batch_size)` steps.", least=1),
    "batch_size": Field(int, 64, "Images a step, over all devices.", least=1),
    "steps_per_call": Field(
        int, 0, "Steps in one compiled call; 0: 50 on accelerators for data in memory, else one.", least=0
    ),
    "eval_every_epochs": Field(int, 1, "How often validation and test images are measured.", least=1),
    "save_every_epochs": Field(int, 1, "How often a checkpoint is saved.", least=1),
    "profile_steps": Field(
        tuple, (), "`10,20` writes a trace from step 10 up to step 20 to `WORKDIR/profile`.", least=0, runtime=True
    ),
}
RUNTIME_FIELDS = frozenset(name for name, field in FIELDS.items() if field.runtime)
# Names of earlier versions, and what they are called now.
RENAMED = {
    "loss.temperature": "loss.options.temperature",
    "loss.alpha": "loss.options.alpha",
    "loss.beta": "loss.options.beta (of a base loss) or features.weight (of a feature loss)",
    "loss.gamma": "loss.options.gamma",
}
