"""A recipe of today on your own images: a DeiT-Tiny student of a ResNet50 teacher, by AdamW with mixup and CutMix.

    sdd train --config=image_folder:teacher=none,student=resnet50 \\
        --config.data.path=DIR --workdir=runs/teacher
    sdd train --config=deit --config.data.path=DIR \\
        --config.teacher.run=runs/teacher --workdir=runs/deit_tiny

DIR is as in ``configs/image_folder.py``. Any pair takes the recipe, such as
``configs/deit.py:teacher=resnet34,student=resnet18``.

Numbers are those of "Training data-efficient image transformers & distillation through attention" (DeiT, 2021), table
9, and where it has none of its released code (main.py, commit 0282d2a: the average of the weights). The batch is a
quarter of DeiT's, and so is the rate: 0.0005 for each 512 images; change both together. With KD, also by regions, the
temperature is 3 and the teacher's weight 0.1 (section 6, soft distillation); the distillation token is not here. Left
out of the recipe are stochastic depth, repeated augmentation, random erasing, and a rate that ends at 0.00001. What
RandAugment, the warm-up and the average do otherwise than timm: docs/recipes.md.
"""

from sdd_jax import methods
from sdd_jax.configs import common


def get_config(argument: str | None = None):
    chosen = common.parse(argument, teacher="resnet50", student="deit_tiny", method="sdd_kd", preset="released")
    config = common.base()
    config.data.name = "image_folder"
    config.model.stem = "imagenet"
    config.epochs, config.batch_size = 300, 256
    optim, data = config.optim, config.data
    optim.optimizer, optim.weight_decay, optim.decay_norms = "adamw", 0.05, False
    optim.learning_rate = 0.0005 * config.batch_size / 512
    optim.schedule, optim.milestones, optim.rate_warmup_epochs = "cosine", (), 5
    optim.clip_norm = None
    optim.ema_decay = 0.99996
    data.randaugment = (2, 9)  # after the random window of an image folder
    data.mixup, data.cutmix = 0.8, 1.0
    common.choose(config, chosen)
    config.loss.label_smoothing = 0.1
    if "warmup_epochs" in config.features.options:
        config.features.options.warmup_epochs = config.epochs // 12  # the share that 20 epochs are of 240
    if methods.parse(config.method).base == "kd":
        config.loss.options.temperature = 3.0
        config.loss.task_weight, config.loss.distill_weight = 0.9, 0.1
    return config
