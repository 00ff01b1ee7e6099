"""Your own images: a folder of classes, or any set of labelled images that TFDS prepared.

    sdd train --config=image_folder:teacher=none,student=resnet34 \\
        --config.data.path=DIR --workdir=runs/teacher
    sdd train --config=image_folder:teacher=resnet34,student=resnet18,method=sdd_dkd \\
        --config.data.path=DIR --config.teacher.run=runs/teacher --workdir=runs/student

DIR holds ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` (or ``val``). A TFDS set instead, in the ArrayRecord format:
``--config.data.name=tfds:oxford_iiit_pet --config.data.path=TFDS_DATA_DIR``.

224 x 224 pixels by RandomResizedCrop and flips; ``--config.data.augment=resize_crop`` keeps more of an image, which
fine differences may need. For images of at most 96 pixels there is ``configs/small_images.py``.
``--config.data.workers=8`` decodes in eight processes. SGD at batch 128 for 60 epochs, cosine from 0.05: settings of
this project, not of the paper. The best epoch is chosen on a tenth of the training images, held out.
"""

from sdd_jax.configs import common


def get_config(argument: str | None = None):
    chosen = common.parse(argument, teacher="resnet34", student="resnet18", method="sdd_kd", preset="released")
    config = common.base()
    config.data.name = "image_folder"
    config.model.stem = "imagenet"
    config.epochs = 60
    config.batch_size = 128
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    return common.choose(config, chosen)
