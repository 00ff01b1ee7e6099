"""Every setting of a paper's run and its source: one table of rows, each with the fields that differ for some runs.

A row holds for the data sets, pairs, base losses and presets that it names. Rows are applied in order over the defaults
of ``sdd_jax.fields`` and ``sdd_jax.methods``; a later row wins. ``python -m docs.values`` writes the page
`experiments/VALUES.md` from this table, with the source beside every value.

Files are those of the official code of "Scale Decoupled Distillation" (CVPR 2024; commit e412036), unless another code
is named; "the paper" is its text. FILE and OTHER in a source are what ``pairs.released_files`` finds for the run.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sdd_jax import methods
from sdd_jax.configs.pairs import COARSE, DKD_OF_ITS_OWN, PAIRS, Pair, released_files
from sdd_jax.configs.row import PAPER, RELEASED, Row

SMALL = ("cifar10", "cifar100", "cub200")  # sets with the settings of CIFAR-100
TINY = ("tiny_imagenet",)
# Not in the paper: the length of runs is this project's.
OWN = ("digits", "fashion_mnist", "arrays", "image_folder", *TINY)
# Students that the released configs train at a lower rate.
LOW_RATE_STUDENTS = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")


SECTION = "the paper, section 4.1"
DOT = "configs/tiny_imagenet/dot/*.yaml of the code of DOT (ICCV 2023): megvii-research/mdistiller, commit a08d46f"
SCRIPT = f"the --M of the released scripts in the line; {SECTION} where there are none"
CFG_DKD = f"{methods.CFG}:162-167, the DKD section"
CFG_WARMUP = f"{methods.CFG}:167, cfg.DKD.WARMUP, which no file of CIFAR-100 and CUB-200 changes"
CFG_SDD_NKD = "mdistiller/distillers/SDD_nkd.py:163-166, which reads cfg.DKD: its T, its BETA as gamma, its WARMUP"
KD_YAML = "configs/imagenet/r34_r18/kd.yaml:23-27, and configs/imagenet/r50_mv2/kd.yaml"
LS_BETA = "what DKD has for the pair"
RLD_CODE = "RLD's code (Sun et al., ICCV 2025)"
WKD_CODE = "WKD's code (Lv et al., NeurIPS 2024), where gamma falls to 0 along a cosine: here it does not"
MDISTILLER = "mdistiller (megvii-research, commits e8c5bb3 and fae6658)"
REVIEW = "CIFAR-100/script/reviewKD.sh of ReviewKD's code (Chen et al., CVPR 2021; commit 6607308)"
LS_LOGS = "the names of the logs of logit standardisation's code (logs/KD), 2 and 9 for other pairs"


def _of_pair(data: str, pair: tuple[str, str], settings: Pair) -> tuple[Row, ...]:
    """The rows of a pair: the scales, DKD's beta, and the gamma that the released SDD-NKD takes from it."""
    beta, gamma = {"loss.options.beta": settings.beta}, {"loss.options.gamma": settings.beta}
    scales = {"sdd.scales": settings.scales}
    return (
        Row(scales, SCRIPT, (data,), pair, preset=RELEASED),
        Row(scales, SECTION, (data,), pair, preset=PAPER),
        Row(beta, CFG_DKD, (data,), pair, bases=("dkd",), section="DKD"),
        Row(beta, LS_BETA, (data,), pair, bases=("ls_dkd",)),
        Row(gamma, CFG_SDD_NKD, (data,), pair, bases=("nkd",), regions=True, preset=RELEASED, section="DKD"),
    )


ROWS: tuple[Row, ...] = (
    # ---- all data sets
    Row(
        {"sdd.complementary_weight": 2.0, "sdd.consistent_weight": 1.0},
        f"{SECTION}, and hard-coded in KD.py:87-90, SDD_DKD.py:112-115, SDD_nkd.py:139-142",
    ),
    Row(
        {"sdd.pooling": "nested", "sdd.consistency": "label", "sdd.reduction": "mean"},
        "models/*/utils.py:8-18 and mdistiller/distillers/KD.py:42-92",
        preset=RELEASED,
    ),
    Row(
        {"sdd.pooling": "direct", "sdd.consistency": "class", "sdd.reduction": "sum"},
        "the paper, equations 6, 7, 9 and 10",
        preset=PAPER,
    ),
    Row({"loss.base": "nkd_as_released"}, "mdistiller/distillers/nkd.py:23", bases=("nkd",), preset=RELEASED),
    Row(
        {"loss.warmup_epochs": 0},
        "none in mdistiller/distillers/KD.py (of SD-KD: lines 133 and 142, commented out)",
        bases=("kd",),
    ),
    Row(
        {"loss.options.temperature": 4.0, "loss.options.gamma": 8.0},
        CFG_SDD_NKD,
        bases=("nkd",),
        regions=True,
        preset=RELEASED,
    ),
    Row({"optim.clip_norm": None}, "mdistiller/engine/trainer.py:213-248: CRDTrainer does not clip", features=("crd",)),
    # ---- CIFAR-100, CUB-200, and CIFAR-10 as they are
    Row({"optim.learning_rate": 0.05, "epochs": 240, "batch_size": 64}, SECTION, SMALL, section="SOLVER"),
    Row({"optim.learning_rate": 0.01}, SECTION, SMALL, students=LOW_RATE_STUDENTS, section="SOLVER"),
    Row({"loss.warmup_epochs": 20}, CFG_WARMUP, SMALL, bases=("dkd", "ls_dkd"), regions=False),
    Row(
        {"loss.warmup_epochs": 20},
        "train_origin.py:198,207: the default of --warmup",
        SMALL,
        bases=("dkd", "ls_dkd"),
        regions=True,
    ),
    Row(
        {"loss.warmup_epochs": 20},
        f"mdistiller/distillers/nkd.py:43,54, which reads {CFG_WARMUP}",
        SMALL,
        bases=("nkd",),
        regions=False,
    ),
    Row({"loss.warmup_epochs": 20}, CFG_SDD_NKD, SMALL, bases=("nkd",), regions=True),
    Row({"loss.warmup_epochs": 20}, f"mdistiller/engine/cfg.py:180-185 of {RLD_CODE}", SMALL, bases=("rld",)),
    # ---- ImageNet
    Row({"epochs": 100}, SECTION, ("imagenet",), section="SOLVER"),
    # The released yaml of SDD-DKD on r34_r18 has a left-over batch of 4.
    Row({"batch_size": 512}, SECTION, ("imagenet",)),
    Row(
        {"optim.learning_rate": 0.2, "optim.weight_decay": 1e-4, "optim.milestones": (30, 60, 90)},
        SECTION,
        ("imagenet",),
        section="SOLVER",
    ),
    Row(
        {"loss.options.temperature": 1.0, "loss.task_weight": 0.5, "loss.distill_weight": 0.5},
        KD_YAML,
        ("imagenet",),
        bases=("kd",),
        regions=False,
    ),
    # The released sdd_kd.yaml has no KD section, so cfg.py's numbers hold there.
    Row(
        {"loss.options.temperature": 1.0, "loss.task_weight": 0.5, "loss.distill_weight": 0.5},
        f"{SECTION}: what KD has, which is {KD_YAML}",
        ("imagenet",),
        bases=("kd",),
        regions=True,
        preset=PAPER,
    ),
    Row({"loss.options.temperature": 1.0}, "DKD.T of configs/imagenet/*/*dkd.yaml", ("imagenet",), bases=("dkd",)),
    Row(
        {"loss.options.beta": 0.5},
        "DKD.BETA of configs/imagenet/r34_r18/*dkd.yaml",
        ("imagenet",),
        bases=("dkd", "ls_dkd"),
    ),
    Row(
        {"loss.options.temperature": 1.0, "loss.options.gamma": 0.5},
        CFG_SDD_NKD,
        ("imagenet",),
        bases=("nkd",),
        regions=True,
        preset=RELEASED,
        section="DKD",
    ),
    Row(
        {"loss.options.temperature": 1.0},
        "the code of DIST (Huang et al., NeurIPS 2022) for ImageNet",
        ("imagenet",),
        bases=("dist",),
    ),
    Row(
        {"loss.warmup_epochs": 1},
        "DKD.WARMUP of configs/imagenet/*/dkd.yaml and */*nkd.yaml; for SD-DKD train.py:195: 1, which is none",
        ("imagenet",),
        bases=("dkd", "ls_dkd", "nkd"),
    ),
    Row(
        {"loss.options.temperature": 1.0, "loss.options.beta": 0.5, "loss.warmup_epochs": 1},
        f"configs/imagenet/r34_r18/rld.yaml:27-30 of {RLD_CODE}; a warm-up of 1 epoch is none",
        ("imagenet",),
        bases=("rld",),
    ),
    Row(
        {"loss.options.temperature": 2.0, "loss.options.gamma": 30.0},
        f"configs/imagenet/r34_r18/wkd_l.yaml:27-35 of {WKD_CODE}",
        ("imagenet",),
        bases=("wkd",),
    ),
    Row(
        {"loss.options.temperature": 1.0, "loss.task_weight": 0.5, "loss.distill_weight": 0.5},
        "configs/imagenet/*/kd_ours.yaml:25-28 of MLKD's code (Jin et al., CVPR 2023)",
        ("imagenet",),
        bases=("mlkd",),
    ),
    # ---- Tiny-ImageNet
    Row({"optim.learning_rate": 0.2, "optim.weight_decay": 5e-4, "optim.milestones": (60, 120, 160)}, DOT, TINY),
    Row({"epochs": 200, "batch_size": 256}, DOT, TINY),
    # ---- this project's own data sets, whose runs are shorter
    Row(
        {"loss.warmup_share": 20 / 240},
        "the share that 20 epochs are of 240",
        OWN,
        bases=("dkd", "ls_dkd", "nkd", "rld"),
    ),
    *(
        Row(
            {"features.options.warmup_epochs": epochs},
            "the share that 20 epochs are of 240",
            data,
            features=("reviewkd",),
        )
        for epochs, data in (
            (1, ("fashion_mnist",)),  # of 10
            (3, ("digits",)),  # of 40
            (5, ("arrays", "image_folder")),  # of 60
            (17, TINY),  # of 200
        )
    ),
    # ---- pairs
    *(
        row
        for data, pairs in PAIRS.items()
        for pair, settings in pairs.items()
        for row in _of_pair(data, pair, settings)
    ),
    # SD-DKD has 8 there.
    Row(
        {"loss.options.beta": 6.0}, CFG_DKD, ("cifar100",), DKD_OF_ITS_OWN, bases=("dkd",), regions=False, section="DKD"
    ),
    Row({"loss.options.beta": 6.0}, LS_BETA, ("cifar100",), DKD_OF_ITS_OWN, bases=("ls_dkd",)),
    *(
        Row(
            {"sdd.scales": COARSE},
            "[1,2] in the released command of SDD-NKD alone (teacher_unpair.sh, teacher_wrn.sh)",
            ("cifar100",),
            (teacher, "vgg8"),
            bases=("nkd",),
            regions=True,
            preset=RELEASED,
        )
        for teacher in ("resnet50", "wrn_40_2")
    ),
    Row(
        {"sdd.scales": COARSE},
        f"{SECTION}: {{1,2}} for pairs of one structure",
        ("cub200",),
        ("vgg13", "vgg8"),
        preset=PAPER,
    ),
    *(
        Row(
            {"loss.options.temperature": temperature, "loss.distill_weight": weight},
            LS_LOGS,
            ("cifar100",),
            pair,
            bases=("ls_kd",),
        )
        for pair, temperature, weight in (
            (("resnet110", "resnet20"), 4.0, 12.0),
            (("resnet32x4", "wrn_16_2"), 3.0, 9.0),
            (("resnet32x4", "wrn_40_2"), 3.0, 9.0),
            (("resnet50", "mobilenet_v2"), 3.0, 1.0),
            (("vgg13", "mobilenet_v2"), 3.0, 9.0),
            (("vgg13", "vgg8"), 3.0, 9.0),
            (("wrn_40_2", "mobilenet_v2"), 3.0, 9.0),
        )
    ),
    *(
        Row(
            {"loss.task_weight": weight},
            f"CE_WEIGHT of configs/imagenet/{name}/kd.yaml of logit standardisation's code",
            ("imagenet",),
            pair,
            bases=("ls_kd",),
        )
        for name, pair, weight in (
            ("r34_r18", ("resnet34", "resnet18"), 1.0),
            ("r50_mv2", ("resnet50", "mobilenet_v1"), 0.5),
        )
    ),
    Row(
        {"loss.options.beta": 2.0},
        f"configs/imagenet/r50_mv1/rld.yaml:27-30 of {RLD_CODE}",
        ("imagenet",),
        ("resnet50", "mobilenet_v1"),
        bases=("rld",),
    ),
    Row(
        {"loss.options.gamma": 25.0, "loss.options.kappa": 2.0},
        f"configs/imagenet/r50_mv1/wkd_l.yaml:30-38 of {WKD_CODE}",
        ("imagenet",),
        ("resnet50", "mobilenet_v1"),
        bases=("wkd",),
    ),
    Row(
        {"loss.options.temperature": 6.0, "loss.options.gamma": 200.0},
        f"configs/cifar100/wkd_l/*.yaml:23-32 of {WKD_CODE}",
        ("cifar100",),
        ("wrn_40_2", "shufflenet_v1"),
        bases=("wkd",),
    ),
    *(
        Row({"features.weight": weight}, REVIEW, ("cifar100",), pair, features=("reviewkd",))
        for pair, weight in (
            (("resnet32x4", "shufflenet_v2"), 8.0),
            (("resnet56", "resnet20"), 0.6),
            (("resnet110", "resnet32"), 1.0),
        )
    ),
    Row(
        {
            "features.weight": 1.0,
            "features.options.warmup_epochs": 1,
            "features.options.student_before_relu": True,
            "batch_size": 256,
            "optim.learning_rate": 0.1,
        },
        f"configs/imagenet/r34_r18/reviewkd.yaml of {MDISTILLER}",
        ("imagenet",),
        features=("reviewkd",),
    ),
    Row(
        {"features.weight": 8.0},
        f"configs/imagenet/r50_mv1/reviewkd.yaml of {MDISTILLER}",
        ("imagenet",),
        ("resnet50", "mobilenet_v1"),
        features=("reviewkd",),
    ),
    # ---- the paper's warm-up
    Row({"loss.warmup_epochs": 30}, SECTION, (*SMALL, "imagenet"), preset=PAPER),
    Row({"loss.warmup_share": 30 / 240}, f"the share that 30 epochs are of 240 ({SECTION})", OWN, preset=PAPER),
)


class Setting(NamedTuple):
    """The value of a config field, and its source."""

    value: Any
    source: str


def settle(data: str, teacher: str, student: str, method_name: str, preset: str) -> dict[str, Setting]:
    """Every field that follows from the choice of data set, pair, method and preset, with its source."""
    method, listed = methods.parse(method_name), method_name.replace(methods.AS_RELEASED, "")  # both have the same rows
    found: dict[str, Setting] = {}
    rows = [row for row in ROWS if row.holds(data, teacher, student, methods.parse(listed), preset)]
    if method.base in methods.BASES:
        loss_base = next((row.fields["loss.base"] for row in reversed(rows) if "loss.base" in row.fields), method.base)
        found |= dict(_of_base(loss_base))
    if method.features is not None:
        features = methods.FEATURES[method.features]
        found["features.weight"] = Setting(features.weight, features.source)
        for name, option in methods.options_of(features).items():
            found[f"features.options.{name}"] = Setting(option.default, features.source)
    own, other = released_files(data, teacher, student, listed)
    cited = "FILE" if own else "OTHER, since the method has no file of the pair" if other else None
    for row in rows:
        source = f"{row.source}; {row.section} of {cited}" if row.section and cited else row.source
        found |= {name: Setting(value, source) for name, value in row.fields.items()}
    return found


def _of_base(name: str) -> Iterator[tuple[str, Setting]]:
    base = methods.BASES[name]
    yield "loss.base", Setting(name, base.source)
    yield "loss.task_weight", Setting(base.task_weight, base.source)
    yield "loss.distill_weight", Setting(base.distill_weight, base.source)
    for option, of_function in methods.options_of(base).items():
        yield f"loss.options.{option}", Setting(of_function.default, base.source)
