"""Small images of your own, 24 to 96 pixels a side, in class folders: their size chooses stem and networks.

    sdd train --config=small_images:path=DIR,teacher=none --workdir=runs/teacher
    sdd train --config=small_images:path=DIR,method=sdd_kd \\
        --config.teacher.run=runs/teacher --workdir=runs/student

DIR holds ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``val``), or is in Tiny-ImageNet's layout. The size is that
of the images, to a multiple of 8; ``size=48`` in the argument says another, and does without ``path``. Up to 40 pixels
the stem is ``cifar``, above ``cub200``, which halves the image first: a step at 64 pixels then costs what it costs at
32. Up to 64 pixels resnet8x4 teaches resnet20: each place of its map sees 51 x 51 pixels of the image there. Larger
images have resnet56, which sees all of one, as teacher. ``stem=``, ``teacher=`` and ``student=`` choose otherwise
(docs/networks.md has maps and costs).

Images are decoded once and held in memory, then padded, cropped and flipped as CIFAR's are, so that a teacher's cache
and several seeds in one program serve (docs/own_images.md). SGD at batch 64 for 60 epochs, cosine from 0.05, for
ShuffleNet and MobileNet students from 0.01: settings of this project, the rates those of the released CIFAR-100
configs. The best epoch is chosen on a tenth of the training images, held out.
"""

from sdd_jax import data
from sdd_jax.configs import common
from sdd_jax.configs.rows import LOW_RATE_STUDENTS

LEAST, MOST, STEP = 24, 96, 8  # pixels a side
# Up to how many pixels, and there the stem, the teacher, the student; this project's choice.
CHOICES = (
    (40, "cifar", "resnet8x4", "resnet20"),
    (64, "cub200", "resnet8x4", "resnet20"),
    (MOST, "cub200", "resnet56", "resnet20"),
)


def get_config(argument: str | None = None):
    given = {"path": "", "size": "", "stem": "", "teacher": "", "student": ""}
    chosen = common.parse(argument, **given, method="sdd_kd", preset="released")
    config = common.base()
    config.data.name = "image_folder"
    if chosen["path"]:
        config.data.path = chosen["path"]
    size = config.data.image_size = find_size(chosen["path"], chosen["size"])
    config.data.in_memory = True
    stem, teacher, student = next(choice for most, *choice in CHOICES if size <= most)
    config.model.stem = chosen["stem"] or stem
    chosen["teacher"] = chosen["teacher"] or teacher
    chosen["student"] = chosen["student"] or (teacher if chosen["teacher"] == "none" else student)
    config.epochs = 60
    config.optim.learning_rate = 0.01 if chosen["student"] in LOW_RATE_STUDENTS else 0.05
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    return common.choose(config, chosen)


def find_size(path: str, size: str) -> int:
    """The side of the images, as ``size`` says, or that of those in ``path``."""
    if size:
        if not size.isdecimal() or not LEAST <= int(size) <= MOST:
            raise ValueError(f"config argument size={size}: expected {LEAST} to {MOST} pixels")
        return int(size)
    if not path:
        raise ValueError(
            "the config's argument must say where the images are, path=DIR, or how large they are, size=64"
        )
    try:
        side = data.usual_side("image_folder", path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    if side > MOST:
        raise ValueError(
            f"the images in {path} have about {side} pixels a side: configs/image_folder.py is for such images; "
            f"size={MOST} in the argument makes small ones of them"
        )
    return max(LEAST, STEP * round(side / STEP))
