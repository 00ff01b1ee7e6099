"""CIFAR-100: the paper's pairs, at the released code's settings.

    sdd train --config=cifar100:teacher=none,student=resnet32x4 \\
        --config.data.path=DIR --workdir=runs/resnet32x4
    sdd train --config=cifar100:teacher=resnet32x4,student=resnet8x4,method=sdd_dkd \\
        --config.data.path=DIR --config.teacher.run=runs/resnet32x4 --workdir=runs/resnet8x4_sdd_dkd

A published teacher instead of the first command: ``sdd import ckpt_epoch_240.pth --model=resnet32x4
--num_classes=100 --workdir=runs/resnet32x4``. It is held against its published accuracy.

Argument: ``teacher`` ("none" trains the student plain), ``student``, ``method`` (kd, sdd_dkd, wttm+crd, ...; see
``sdd_jax.methods``) and ``preset`` (released, paper). ``configs/pairs.py`` has the pairs, ``configs/rows.py`` the
source of every number. SGD at batch 64 for 240 epochs, a tenth of the rate after 150, 180 and 210. ``data.select_on``
is "test" as in the published tables: the best epoch on the test set. The last epoch's accuracy is reported beside it.
"""

from sdd_jax.configs import common

# Test accuracy, in percent, of the published teachers: "Contrastive Representation Distillation" (2020), tables 1 and
# 2, whose files every code of this field uses. An evaluation with the SDD code by others found 79.42, 75.60 and 79.33
# for resnet32x4, wrn_40_2 and resnet50.
PUBLISHED = {
    "resnet56": 72.34,
    "resnet110": 74.31,
    "resnet32x4": 79.42,
    "wrn_40_2": 75.61,
    "vgg13": 74.64,
    "resnet50": 79.34,
}


def get_config(argument: str | None = None):
    chosen = common.parse(argument, teacher="resnet32x4", student="resnet8x4", method="sdd_kd", preset="released")
    config = common.base()
    config.data.name = "cifar100"
    config.data.select_on = "test"
    config.teacher.published = PUBLISHED.get(chosen["teacher"])
    return common.choose(config, chosen)
