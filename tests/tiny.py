"""A run small enough to repeat many times: sixteen-pixel images, a network of two convolutions, a teacher like it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sdd_jax.data import from_arrays
from sdd_jax.data.augment import normalize
from sdd_jax.losses import dkd_loss, kd_loss
from sdd_jax.mesh import make_mesh
from sdd_jax.models import Classifier
from sdd_jax.models.classifier import HEAD, stage
from sdd_jax.models.layers import BatchNorm, conv, torch_affine_init
from sdd_jax.regions import Regions
from sdd_jax.training import optim
from sdd_jax.training.objective import distill
from sdd_jax.training.programs import Built
from sdd_jax.training.teacher import live_teacher

SDD = {"complementary_weight": 2.0, "consistent_weight": 1.0, "consistency": "label", "reduction": "mean"}
REGIONS = Regions((1, 2, 4), "nested")
CLASSES, TRAIN, TEST, BATCH = 3, 50, 23, 8


class Trunk(nn.Module):
    """Two convolutions with batch normalisation, each a stage; the map is half as wide and high as the image."""

    width: int = 8
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        maps = {}
        for number, stride in enumerate((1, 2)):
            x = conv(self.width, 3, stride, dtype=self.dtype, name=f"conv{number}")(x)
            before = BatchNorm(self.dtype, name=f"bn{number}")(x, train=train)
            x = nn.relu(before)
            maps |= {stage(number + 1): x, stage(number + 1, before_relu=True): before}
        return maps | {HEAD: x}


def model(width=8, dtype=jnp.float32):
    return Classifier(trunk=Trunk(width, dtype), num_classes=CLASSES, head_init=torch_affine_init, dtype=dtype)


def dataset(select_on="validation"):
    """Noise with a bright row that tells the class: learnable, and nothing in it is symmetric."""
    rng = np.random.default_rng(7)
    images = rng.integers(0, 120, (TRAIN + TEST, 16, 16, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, TRAIN + TEST)
    images[np.arange(TRAIN + TEST), 3 + 4 * labels] += 90
    return from_arrays(images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:], select_on=select_on, name="rows")


def built(*, epochs=3, seed=0, dtype=jnp.float32, learning_rate=0.05, **changes):
    """A distillation by SDD-KD with everything in it: warm-up, validation split, batches across epoch ends."""
    teacher, data = model(12, dtype), dataset()
    variables = teacher.init(jax.random.key(99), jnp.zeros((1, 16, 16, 3)), train=False)
    # Untrained it would say one class of all regions: its head is made decided, and fair to the classes.
    head, images = variables["params"]["head"], normalize(data.train.images, data.mean, data.std, dtype)
    head["kernel"] *= 30
    head["bias"] -= teacher.apply(variables, images, train=False).logits.mean(0)
    examples = len(data.train.labels)
    schedule = optim.cosine_schedule(learning_rate, optim.total_steps(epochs, examples, BATCH))
    run = Built(
        config={"seed": seed, "epochs": epochs, "learning_rate": learning_rate},
        model=model(8, dtype),
        teacher=live_teacher(teacher, variables, REGIONS),
        teacher_accuracy=None,
        teacher_stated=None,
        objective=distill(kd_loss, regions=REGIONS, sdd=SDD, task_weight=0.1, distill_weight=0.9, warmup_epochs=2),
        optimizer=optim.sgd(schedule, momentum=0.9, weight_decay=5e-4, clip_norm=40.0),
        dataset=data,
        mesh=make_mesh(),
        seed=seed,
        epochs=epochs,
        batch_size=BATCH,
        steps_per_call=1,
        eval_every_epochs=1,
        save_every_epochs=1,
        dtype=dtype,
    )
    return run._replace(**changes)


def recipe(run):
    """The run by a recipe of today: AdamW with a warm-up, norms undecayed, an average, smooth labels, mixed images."""
    examples = len(run.dataset.train.labels)
    steps = optim.total_steps(run.epochs, examples, BATCH)
    schedule = optim.warmed_up(optim.cosine_schedule(0.01, steps), 0.01, optim.first_step(1, examples, BATCH))
    optimizer = optim.adamw(schedule, weight_decay=0.05, clip_norm=None, decayed=optim.weights_alone)
    terms = {"task_weight": 0.1, "distill_weight": 0.9, "label_smoothing": 0.1}
    objective = distill(dkd_loss, regions=REGIONS, sdd=SDD, **terms)
    mixing = {"mixup": 0.8, "cutmix": 1.0}
    return run._replace(optimizer=optimizer, objective=objective, mixing=mixing, ema_decay=0.9)
