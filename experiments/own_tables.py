"""This project's own study: Fashion-MNIST at a size that a CPU trains in minutes. No paper has these rows.

Another row is a name of ``comparing.METHODS`` in ``ROWS``, or a variant of such a row; another column a pair.
"""

from experiments.cells import Cell, Table
from experiments.comparing import METHODS, compare
from experiments.recipes import Recipe

SOURCE = "this project's own study"
STUDENT_DATA = (("data.train_examples", 10_000),)
TEACHER_DATA = (("data.train_examples", 20_000),)


def scales(*chosen: int):
    """The override that has these scales."""
    return (("sdd.scales", chosen),)


def weight(complementary: float):
    """The override that weighs complementary regions so."""
    return (("sdd.complementary_weight", complementary),)


# The SD forms are at scales {1,2,4} and weight 2 where their row says nothing else; at {1} each is its base loss.
VARIANTS = {
    "SD-KD {1,2}": ("SD-KD", scales(1, 2)),
    "SD-KD {1,4}": ("SD-KD", scales(1, 4)),
    "SD-KD weight 1": ("SD-KD", weight(1.0)),
    "SD-KD weight 4": ("SD-KD", weight(4.0)),
    "SD-DKD {1,2}": ("SD-DKD", scales(1, 2)),
    "SD-LS-DKD {1,2}": ("SD-LS-DKD", scales(1, 2)),
}
ROWS = (
    "teacher",
    "student",
    "KD",
    "SD-KD {1,2}",
    "SD-KD {1,4}",
    "SD-KD",
    "SD-KD weight 1",
    "SD-KD weight 4",
    "DKD",
    "SD-DKD {1,2}",
    "SD-DKD",
    "LS-DKD",
    "SD-LS-DKD {1,2}",
    "SD-LS-DKD",
)
FASHION = compare(
    "fashion",
    "Fashion-MNIST, 10,000 training images, a teacher trained on 20,000",
    SOURCE,
    "fashion_mnist",
    {"RN20 -> RN8": ("resnet20", "resnet8")},
    dict.fromkeys(ROWS, (None,)),
    variants=VARIANTS,
    overrides=STUDENT_DATA,
    teacher_overrides=TEACHER_DATA,
    notes=("SD forms at scales {1,2,4} with complementary weight 2 where the row says nothing else",),
)
FASHION_CROSS = compare(
    "fashion_cross",
    "Fashion-MNIST across families, 10,000 training images, the teacher of the table fashion",
    SOURCE,
    "fashion_mnist",
    {"RN20 -> MobileNetV2": ("resnet20", "mobilenet_v2")},
    dict.fromkeys(("teacher", "student", "KD", "SD-KD", "DKD", "SD-DKD"), (None,)),
    overrides=STUDENT_DATA,
    teacher_overrides=TEACHER_DATA,
    notes=(
        "the student's map is 2x2 on these images: at scale 4 each of its locations is compared with four cells of the "
        "teacher's 8x8 map",
        "the student learns at 0.02, a fifth of the others' rate, as in the paper's settings for such students",
    ),
)
# Chosen for the base loss alone, on held-out images: experiments/README.md has what was tried. SDD has the same weight.
WEIGHTS = {"KD": 0.9, "DKD": 0.125, "LS-DKD": 0.5625}


def weighted(row: str, base: str) -> Cell:
    """A row of the pair in ``FASHION``, with the weight that suits its base loss."""
    overrides = (*STUDENT_DATA, ("loss.distill_weight", WEIGHTS[base]))
    recipe = Recipe("fashion_mnist", "resnet8", "resnet20", METHODS[row], overrides, None, TEACHER_DATA)
    bases = tuple(dict.fromkeys(other for other in (base, "KD") if other != row))
    return Cell(row, "RN20 -> RN8", recipe=recipe, bases=bases)


FASHION_WEIGHTS = Table(
    "fashion_weights",
    "Fashion-MNIST, the pair of the table fashion, with a weight of distillation that suits each base loss",
    SOURCE,
    tuple(weighted(row, base) for base in WEIGHTS for row in (base, f"SD-{base}")),
    notes=(
        "weights of distillation: " + ", ".join(f"{base} {weight}" for base, weight in WEIGHTS.items()),
        "SD forms at scales {1,2,4} with complementary weight 2",
    ),
)
