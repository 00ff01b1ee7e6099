"""What the config files share: every field with its default, the argument after the colon, presets and methods.

A config file's ``get_config("teacher=resnet32x4,student=resnet8x4,method=sdd_dkd")`` chooses by name; the fields that
follow from the choice are filled here, and each can be overridden: ``--config.loss.temperature=2``. Presets:

================================  =====================================  ===========================
                                  released (default)                     paper
================================  =====================================  ===========================
pooling, consistency, reduction   nested, label, mean                    direct, class, sum
distillation warm-up, epochs      KD, SDD-KD, NKD: none; DKD, SDD-DKD,   30
                                  SDD-NKD: 20 (ImageNet: 1)
NKD                               as released; SDD-NKD takes DKD's       as the NKD paper defines it:
                                  temperature, and its beta as gamma     T = 1, gamma = 1.5
================================  =====================================  ===========================

Sources: "Scale Decoupled Distillation" (CVPR 2024), section 4.1, and its official code at commit e412036
(mdistiller/engine/cfg.py, configs/, mdistiller/distillers/). The preset does not choose the protocol:
``data.select_on`` does.

Base losses that the paper does not use have the numbers of their own released code, under either preset; the preset
chooses pooling, consistency, reduction and, as "paper", the warm-up, for them too:

===========  =======================================================================================================
ls_kd        KD of standardised logits: T = 2, 0.1 cross-entropy + 9 KD (the released README's command)
ls_dkd       DKD of them: T = 2, the pair's alpha and beta, both times 9, which is ``distill_weight`` here; warm-up as
             DKD. The logs beside that README name 2 for beta and weights of 9 to 18 for most pairs
dist         T = 4 (ImageNet: 1), beta = gamma = 1, cross-entropy + 2 DIST
ttm          gamma = 0.1, cross-entropy + 45 TTM: the README's one example, VGG13 to VGG8 on CIFAR-100. Others are tuned
             for each pair in the paper's appendix
wttm         gamma = 0.2, cross-entropy + 4 WTTM: the README's one example, in which CRD is added (VGG13 to VGG8)
===========  =======================================================================================================

With ``sdd_`` in front each is applied region by region with the same numbers, for which there is no published value.
Distillation of features, alone or added to SDD-KD; ``loss.beta`` is its weight, as RepDistiller's -b:

=====================  =============================================================================================
sp                     similarity-preserving, weight 3000 (RepDistiller, scripts/run_cifar_distill.sh; mdistiller)
sdd_sp                 SP of the mean features of regions, same weight, which the paper (appendix 6.1) does not state
crd                    contrastive, weight 0.8 (the same script); 16,384 negatives, T = 0.07, momentum 0.5, 128 numbers
sdd_kd_sp, sdd_kd_crd  SDD-KD with its own numbers plus one of them with its own: the paper states no weights
=====================  =============================================================================================

``own`` and ``sdd_own`` take ``--config.loss.base=MODULE:FUNCTION``, a base loss of your own (docs/own_loss.md), with
weights of 1 and no warm-up until fields say otherwise.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

PRESETS = {
    "released": {"pooling": "nested", "consistency": "label", "reduction": "mean"},
    "paper": {"pooling": "direct", "consistency": "class", "reduction": "sum"},
}
PAPER_WARMUP = 30


def parse(argument: str | None, **defaults: str) -> dict[str, str]:
    """``"name=value,name=value"`` over ``defaults``; ``ValueError`` for a name that has no default."""
    chosen = dict(defaults)
    seen = set()
    for item in (argument or "").split(","):
        if not item:
            continue
        name, separator, value = item.partition("=")
        if not separator or name not in defaults:
            raise ValueError(f"config argument {item!r}: expected NAME=VALUE with NAME among {', '.join(defaults)}")
        if name in seen:
            raise ValueError(f"config argument names {name} twice: {argument!r}")
        seen.add(name)
        chosen[name] = value
    return chosen


def base() -> ConfigDict:
    """Every field. ``sdd_jax.config.FIELDS`` says what each may hold."""
    return ConfigDict(
        {
            "seed": 0,
            "seeds": (),  # several: one run each, in WORKDIR/seed_N
            "preset": "released",
            "method": "plain",
            "model": {"student": "", "teacher": "none", "stem": "cifar", "dtype": "float32"},
            "teacher": {
                "run": placeholder(str),  # the folder of the teacher's run
                "cache": placeholder(str),  # a folder that the cache command filled; None asks the teacher itself
                "dtype": placeholder(str),  # what it computes in; None: as the student
                "accuracy": placeholder(float),  # in percent; off by more than 0.1 points refuses the run
                "published": placeholder(float),  # what an imported teacher is held against where accuracy is not set
            },
            "data": {
                "name": "",
                "path": placeholder(str),
                "select_on": "validation",  # or "test", as the published tables do
                "train_examples": placeholder(int),  # None: all
                "num_classes": placeholder(int),  # None: as many as the set has
                "image_size": placeholder(int),  # of sets on disk; None: 224
                "augment": placeholder(str),  # of sets on disk: resize_crop, random_resized_crop; None: the set's own
                "workers": 0,  # processes that decode sets on disk; 0: threads
                "on_bad_image": "error",  # of sets on disk: "skip" leaves out training images that cannot be decoded
            },
            "sdd": {
                "scales": (1, 2, 4),
                "pooling": "nested",
                "consistency": "label",
                "reduction": "mean",
                "complementary_weight": 2.0,
                "consistent_weight": 1.0,
            },
            "loss": {
                "base": "kd",
                "temperature": 4.0,
                "alpha": 1.0,
                "beta": 8.0,
                "gamma": 1.5,
                "task_weight": 1.0,
                "distill_weight": 1.0,
                "warmup_epochs": 0,
            },
            "optim": {
                "learning_rate": 0.05,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "clip_norm": 40.0,
                "schedule": "step",
                "milestones": (150, 180, 210),  # a tenth of the rate from each of these epochs on
                "accumulate_steps": 1,  # parts of a batch, one after the other, for batches that do not fit
            },
            "epochs": 240,
            "batch_size": 64,  # over all devices
            "steps_per_call": 0,  # 0: one on CPU, 50 on accelerators
            "eval_every_epochs": 1,
            "save_every_epochs": 1,
            "profile_steps": (),  # 10,20 writes a trace of these steps to WORKDIR/profile
        }
    )


def choose(
    config: ConfigDict,
    chosen: Mapping[str, str],
    *,
    kd: Mapping[str, float],
    dkd: Mapping[str, float],
    warmup_epochs: int,
    scales: tuple[int, ...],
    ls_kd: Mapping[str, float] | None = None,
    dist_temperature: float = 4.0,
) -> ConfigDict:
    """Fills the fields that follow from preset, method, teacher and student.

    Args:
      config: from ``base``, changed in place and returned.
      chosen: from ``parse``.
      kd: temperature, task_weight and distill_weight of KD and SDD-KD.
      dkd: temperature and beta of DKD and SDD-DKD; the released SDD-NKD reads them too.
      warmup_epochs: of the released DKD, SDD-DKD and SDD-NKD, and of LS-DKD.
      scales: the paper's M for this pair.
      ls_kd: temperature and distill_weight of LS-KD; None: ``LS``.
      dist_temperature: temperature of DIST.
    """
    preset, method, teacher = chosen["preset"], chosen["method"], chosen["teacher"]
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    if teacher == "none":
        method = "plain"
    config.preset, config.method = preset, method
    config.model.teacher, config.model.student = teacher, chosen["student"]
    config.argument = {"preset": preset, "method": method, "teacher": teacher, "student": chosen["student"]}
    config.sdd.update(PRESETS[preset])
    config.sdd.scales = scales

    paper = preset == "paper"
    name = method.removeprefix("sdd_")
    for feature, weight in FEATURES.items():
        if name == feature or name.endswith(f"_{feature}"):
            config.loss.beta = weight
            name = name.removesuffix(feature).removesuffix("_")
    if name == "kd":
        config.loss.update(kd)
        config.loss.warmup_epochs = 0
    elif name == "dkd":
        config.loss.update({"base": "dkd", "alpha": 1.0, **dkd})
        config.loss.warmup_epochs = warmup_epochs
    elif name == "nkd":
        own = {"temperature": 1.0, "gamma": 1.5}
        shared = {"temperature": dkd["temperature"], "gamma": dkd["beta"]}
        config.loss.base = "nkd" if paper else "nkd_as_released"
        config.loss.update(shared if method == "sdd_nkd" and not paper else own)
        config.loss.warmup_epochs = warmup_epochs if method == "sdd_nkd" else 0
    elif name == "ls_kd":
        config.loss.update({"base": "ls_kd", **KD, **(ls_kd or LS)})
    elif name == "ls_dkd":
        config.loss.update({"base": "ls_dkd", "alpha": 1.0, "beta": dkd["beta"], **LS})
        config.loss.warmup_epochs = warmup_epochs
    elif name == "dist":
        config.loss.update({"base": "dist", **DIST, "temperature": dist_temperature})
    elif name in TEACHER_MATCHING:
        config.loss.update({"base": name, **TEACHER_MATCHING[name]})
    if paper and method != "plain":
        config.loss.warmup_epochs = PAPER_WARMUP
    return config


# KD as the released code has it: T = 4, 0.1 cross-entropy + 0.9 distillation (cfg.py:60-64).
KD = {"temperature": 4.0, "task_weight": 0.1, "distill_weight": 0.9}
# Base losses that the paper does not use; the module's docstring has their sources.
LS = {"temperature": 2.0, "distill_weight": 9.0}
DIST = {"beta": 1.0, "gamma": 1.0, "distill_weight": 2.0}
TEACHER_MATCHING = {"ttm": {"gamma": 0.1, "distill_weight": 45.0}, "wttm": {"gamma": 0.2, "distill_weight": 4.0}}
# Weights of what is done with features; the module's docstring has their sources.
FEATURES = {"sp": 3000.0, "crd": 0.8}
# Students that the released configs train at a lower rate, and their rate (yaml SOLVER.LR).
LOW_RATE_STUDENTS = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
LOW_RATE, RATE = 0.01, 0.05


def cifar_rate(student: str) -> float:
    """The released learning rate on CIFAR and CUB-200."""
    return LOW_RATE if student in LOW_RATE_STUDENTS else RATE
