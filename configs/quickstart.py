"""The quickstart: handwritten digits that come with scikit-learn; nothing is downloaded.

    python -m sdd_jax train --config=configs/quickstart.py --workdir=runs/quickstart

trains a teacher, then the same small student plain, with KD and with SDD-KD, and prints one table. A single one of the
four: ``--config=configs/quickstart.py:run=sdd_kd --config.teacher.run=runs/quickstart/teacher``.

The student sees twenty images of each digit only, or there would be nothing to distil: digits are an easy data set. One
seed of a small data set shows that everything works, not which method is better.
"""

from ml_collections import ConfigDict

from configs import common

TEACHER, STUDENT = "resnet14", "resnet8"
RUNS = {"teacher": "plain", "plain": "plain", "kd": "kd", "sdd_kd": "sdd_kd"}


def get_config(argument: str | None = None):
    run = common.parse(argument, run="all")["run"]
    if run == "all":
        return ConfigDict({"sequence": tuple(RUNS), "runs": {name: _single(name) for name in RUNS}})
    if run not in RUNS:
        raise ValueError(f"unknown run {run!r}; known are all, {', '.join(RUNS)}")
    return _single(run)


def _single(run: str) -> ConfigDict:
    distills = RUNS[run] != "plain"
    chosen = {
        "preset": "released",
        "method": RUNS[run],
        "teacher": TEACHER if distills else "none",
        "student": TEACHER if run == "teacher" else STUDENT,
    }
    config = common.base()
    config.data.name = "digits"
    config.data.train_examples = None if run == "teacher" else 200
    config.epochs = 10 if run == "teacher" else 40
    config.eval_every_epochs = config.save_every_epochs = 1 if run == "teacher" else 5
    config.batch_size = 64
    config.optim.update({"learning_rate": 0.1, "schedule": "cosine", "milestones": ()})
    if distills:
        config.teacher.run = "teacher"  # in a sequence: an earlier run of it
    return common.choose(
        config, chosen, kd=common.KD, dkd={"temperature": 4.0, "beta": 8.0}, warmup_epochs=1, scales=(1, 2, 4)
    )
