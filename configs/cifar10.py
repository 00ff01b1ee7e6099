"""CIFAR-10 at the settings of CIFAR-100, without those of its single pairs; the paper does not use the set.

    sdd train --config=cifar10:teacher=none,student=resnet56 \\
        --config.data.path=DIR --workdir=runs/resnet56
    sdd train --config=cifar10:teacher=resnet56,student=resnet20 \\
        --config.data.path=DIR --config.teacher.run=runs/resnet56 --workdir=runs/resnet20_sdd_kd

The best epoch is chosen on a tenth of the training images, held out; ``--config.data.select_on=test`` trains on all.
"""

from sdd_jax.configs import common


def get_config(argument: str | None = None):
    chosen = common.parse(argument, teacher="resnet56", student="resnet20", method="sdd_kd", preset="released")
    config = common.base()
    config.data.name = "cifar10"
    return common.choose(config, chosen)
