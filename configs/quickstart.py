"""The quickstart: handwritten digits that come with the package; nothing is downloaded.

    sdd train --config=quickstart --workdir=runs/quickstart

trains a teacher, then the same small student plain, with KD and with SDD-KD, and prints one table. A single one of the
four is ``:run=sdd_kd``; any other method or student, which is how a new one is tried first,

    sdd train --config=quickstart:method=sdd_dkd,student=resnet8 \\
        --config.teacher.run=runs/quickstart/teacher --workdir=runs/sdd_dkd

The student sees twenty images of each digit only, or there would be nothing to distil: digits are an easy data set. One
seed of a small data set shows that everything works, not which method is better.
"""

from ml_collections import ConfigDict

from sdd_jax.configs import common

TEACHER, STUDENT = "resnet14", "resnet8"
RUNS = {"teacher": "plain", "plain": "plain", "kd": "kd", "sdd_kd": "sdd_kd"}


def get_config(argument: str | None = None):
    chosen = common.parse(argument, run="", method="", student=STUDENT, teacher=TEACHER)
    run, method, student, teacher = chosen.values()
    if teacher != TEACHER and not method:
        raise ValueError(f"config argument {argument!r}: teacher={teacher} needs a method=")
    if run and method:
        raise ValueError(f"config argument {argument!r}: run={run} says the method")
    if run == "teacher" and student != STUDENT:
        raise ValueError(f"config argument {argument!r}: run=teacher trains {TEACHER}; leave student out")
    if method:
        return _single(method, student, teacher)
    if run in RUNS:
        return _named(run, student)
    if run not in ("", "all"):
        raise ValueError(f"unknown run {run!r}; known are all, {', '.join(RUNS)}")
    runs = {name: _named(name, student) for name in RUNS}
    for config in runs.values():
        if config.model.teacher == TEACHER:
            config.teacher.run = "teacher"  # the first run of the sequence
    return ConfigDict({"sequence": tuple(RUNS), "runs": runs})


def _named(run: str, student: str) -> ConfigDict:
    return _single("plain", TEACHER, "none", teaches=True) if run == "teacher" else _single(RUNS[run], student, TEACHER)


def _single(method: str, student: str, teacher: str, *, teaches: bool = False) -> ConfigDict:
    distills = method != "plain"
    chosen = {
        "preset": "released",
        "method": method,
        "teacher": teacher if distills else "none",
        "student": student,
    }
    config = common.base()
    config.data.name = "digits"
    config.data.train_examples = None if teaches else 200
    config.epochs = 10 if teaches else 40
    config.eval_every_epochs = config.save_every_epochs = 1 if teaches else 5
    config.batch_size = 64
    config.optim.update({"learning_rate": 0.1, "schedule": "cosine", "milestones": ()})
    return common.choose(config, chosen)
