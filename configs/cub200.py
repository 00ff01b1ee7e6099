"""CUB-200-2011: the paper's five pairs, at the released code's settings.

    sdd train --config=cub200:teacher=none,student=resnet32x4 \\
        --config.data.path=DIR --workdir=runs/cub200_resnet32x4
    sdd train --config=cub200:teacher=resnet32x4,student=shufflenet_v1,method=sdd_dkd \\
        --config.data.path=DIR --config.teacher.run=runs/cub200_resnet32x4 --workdir=runs/cub200_sdd_dkd

The networks are those of CIFAR with another stem (``docs/networks.md``). The released code cannot train the teachers:
its plain training leaves the stems as they are; here the first command does. SGD as on CIFAR-100 (the paper's section
4.1; released configs/cub200/*/*.yaml, SOLVER): 240 epochs at batch 64, 0.01 for ShuffleNet and MobileNet students and
0.05 for others. ``data.select_on`` is "test" since the published accuracies are: the best epoch on the test set.
"""

from sdd_jax.configs import common

# Test accuracy of the authors' teachers, in percent (Table 5): an imported one is held against it.
PUBLISHED = {"resnet32x4": 66.17, "vgg13": 70.19, "resnet50": 60.01}


def get_config(argument: str | None = None):
    chosen = common.parse(argument, teacher="resnet32x4", student="shufflenet_v1", method="sdd_kd", preset="released")
    config = common.base()
    config.data.name = "cub200"
    config.data.select_on = "test"
    config.model.stem = "cub200"
    config.teacher.published = PUBLISHED.get(chosen["teacher"])
    return common.choose(config, chosen)
