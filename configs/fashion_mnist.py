"""Fashion-MNIST (28x28 grey, padded to 32x32): real images without a download on Debian and Ubuntu.

    sudo apt-get install dataset-fashion-mnist
    sdd train --config=fashion_mnist:teacher=none,student=resnet20 \\
        --config.data.train_examples=20000 --workdir=runs/fashion_resnet20
    sdd train --config=fashion_mnist:teacher=resnet20,student=resnet8,method=sdd_kd \\
        --config.data.train_examples=10000 --config.teacher.run=runs/fashion_resnet20 --workdir=runs/fashion_sdd_kd

Ten epochs, cosine from 0.1: settings of this project, not of the paper, chosen so that a run takes minutes on a laptop.
ShuffleNet and MobileNet students start from 0.02, a fifth, as the released configs give them a fifth on CIFAR-100 (0.01
for 0.05). The best epoch is chosen on a tenth of the training images, held out.
"""

from sdd_jax.configs import common
from sdd_jax.configs.rows import LOW_RATE_STUDENTS

RATE, LOW_RATE = 0.1, 0.02


def get_config(argument: str | None = None):
    chosen = common.parse(argument, teacher="resnet20", student="resnet8", method="sdd_kd", preset="released")
    config = common.base()
    config.data.name = "fashion_mnist"
    config.epochs = 10
    config.optim.learning_rate = LOW_RATE if chosen["student"] in LOW_RATE_STUDENTS else RATE
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    return common.choose(config, chosen)
