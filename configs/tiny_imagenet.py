"""Tiny-ImageNet-200 (64x64 photographs), from its folder or its zip file, with as many classes as its wnids.txt names.

    sdd train --config=tiny_imagenet:teacher=none,student=resnet18 \\
        --config.data.path=tiny-imagenet-200.zip --workdir=runs/tiny_resnet18
    sdd train --config=tiny_imagenet:teacher=resnet18,student=shufflenet_v2,method=sdd_kd \\
        --config.data.path=tiny-imagenet-200.zip --config.teacher.run=runs/tiny_resnet18 --workdir=runs/tiny_sdd_kd

Pairs and settings are those of "DOT: A Distillation-Oriented Trainer" (ICCV 2023): resnet18 teaches mobilenet_v2 or
shufflenet_v2, SGD at batch 256 for 200 epochs, a tenth of 0.2 after 60, 120 and 160 (``configs/rows.py``). Its
MobileNetV2 is another network than ours, of twice the width, and it turns images by up to 20 degrees where they are
padded and cropped here as CIFAR's are. The SDD paper does not use the set. The best epoch is chosen on a tenth of the
training images, held out; ``--config.data.select_on=test`` trains on all.

Images are decoded once and held in memory: all 200 classes take 1.35 GB. ``--config.data.image_size=32`` is the small
form, by a box filter; ``--config.data.in_memory=false`` reads images as they are needed. Networks keep the stem
"cifar", whose maps at 64 pixels are in docs/networks.md.
"""

from sdd_jax.configs import common


def get_config(argument: str | None = None):
    chosen = common.parse(argument, teacher="resnet18", student="shufflenet_v2", method="sdd_kd", preset="released")
    config = common.base()
    config.data.name = "tiny_imagenet"
    config.data.in_memory = True
    return common.choose(config, chosen)
