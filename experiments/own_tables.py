"""This project's own study: Fashion-MNIST at a size that a CPU trains in minutes. No paper has these rows.

Another row is a name of ``comparing.METHODS`` in ``ROWS``; another column a pair in ``PAIRS``.
"""

from experiments.comparing import compare

PAIRS = {"RN20 -> RN8": ("resnet20", "resnet8")}
ROWS = ("teacher", "student", "KD", "SD-KD", "DKD", "SD-DKD")
FASHION = compare(
    "fashion",
    "Fashion-MNIST, 10,000 training images, a teacher trained on 20,000",
    "this project's own study",
    "fashion_mnist",
    PAIRS,
    {row: (None,) * len(PAIRS) for row in ROWS},
    overrides=(("data.train_examples", 10_000),),
    teacher_overrides=(("data.train_examples", 20_000),),
)
