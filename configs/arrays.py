"""Your own arrays: images and labels in one ``.npz`` file, as ``numpy.savez`` writes it and MedMNIST offers it.

    sdd train --config=arrays:teacher=none,student=resnet20 --config.data.path=own.npz --workdir=runs/teacher
    sdd train --config=arrays:teacher=resnet20,student=resnet8,method=sdd_kd \\
        --config.data.path=own.npz --config.teacher.run=runs/teacher --workdir=runs/student

The file holds ``train_images`` and ``test_images``, uint8 [N, H, W, C] or [N, H, W], and ``train_labels`` and
``test_labels``, integers from 0. ``val_images`` and ``val_labels``, if they are there, choose the best epoch, else a
tenth of the training images does. It may also say ``class_names``, ``mean``, ``std``, ``pad`` and ``flip``
(docs/data.md).

Images of about 32 pixels have the stem "cifar"; larger ones may want ``--config.model.stem=imagenet``. SGD at batch 64
for 60 epochs, cosine from 0.05: settings of this project, not of the paper.
"""

from sdd_jax.configs import common


def get_config(argument: str | None = None):
    chosen = common.parse(argument, teacher="resnet20", student="resnet8", method="sdd_kd", preset="released")
    config = common.base()
    config.data.name = "arrays"
    config.epochs, config.batch_size = 60, 64
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    return common.choose(config, chosen)
