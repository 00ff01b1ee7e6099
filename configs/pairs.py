"""The pairs of teacher and student that the official code (commit e412036) has files for, and which files these are."""

from typing import NamedTuple

from sdd_jax import methods

FINE, COARSE = (1, 2, 4), (1, 2)
OF_PAPER = ("kd", "sdd_kd", "dkd", "sdd_dkd", "nkd", "sdd_nkd")


class Pair(NamedTuple):
    """A teacher and a student of the released files.

    Attributes:
      sdd: the name of its files of SD-KD, SD-DKD and SD-NKD, or None where there are none.
      dkd: that of its file of DKD, or None. On ImageNet both are the folder of all its files.
      script: the released scripts that run it.
      beta: DKD.BETA of these files, or of cfg.py where they lack it; of ``DKD_OF_ITS_OWN`` that of the SD methods.
      scales: the paper's M, from the released scripts where they run the pair.
    """

    sdd: str | None
    dkd: str | None
    script: str
    beta: float
    scales: tuple[int, ...]


NO_SCRIPT = "no released command; M as section 4.1 has it for such pairs"
PAIRS: dict[str, dict[tuple[str, str], Pair]] = {
    "cifar100": {
        ("resnet110", "resnet32"): Pair("res110_res32", "res110_res32", NO_SCRIPT, 2.0, COARSE),
        ("resnet32x4", "mobilenet_v2"): Pair("res32x4_mv2", "resnet32_mobinetv2", "teacher_unpair.sh", 8.0, FINE),
        ("resnet32x4", "resnet8x4"): Pair("res32x4_res8x4", "res32x4_res8x4", "teacher_resnet32x4.sh", 8.0, COARSE),
        ("resnet32x4", "shufflenet_v1"): Pair("res32x4_shuv1", "res32x4_shuv1", "teacher_resnet32x4.sh", 8.0, FINE),
        ("resnet32x4", "shufflenet_v2"): Pair("res32x4_shuv2", "res32x4_shuv2", "teacher_resnet32x4.sh", 8.0, FINE),
        ("resnet32x4", "vgg8"): Pair(None, "resnet32x4_vgg8", NO_SCRIPT, 6.0, FINE),
        ("resnet50", "mobilenet_v2"): Pair("res50_mv2", "res50_mv2", "teacher_vgg.sh", 8.0, FINE),
        ("resnet50", "shufflenet_v1"): Pair("res50_shuv1", None, "teacher_unpair.sh", 8.0, FINE),
        ("resnet50", "vgg8"): Pair("res50_vgg8", None, "teacher_unpair.sh", 8.0, FINE),
        ("resnet56", "resnet20"): Pair("res56_res20", "res56_res20", NO_SCRIPT, 2.0, COARSE),
        ("vgg13", "mobilenet_v2"): Pair("vgg13_mv2", "vgg13_mv2", "teacher_vgg.sh", 6.0, FINE),
        ("vgg13", "shufflenet_v1"): Pair("vgg13_shuffv1", "vgg13_shuffv1", NO_SCRIPT, 6.0, FINE),
        ("vgg13", "vgg8"): Pair("vgg13_vgg8", "vgg13_vgg8", "teacher_vgg.sh", 6.0, COARSE),
        ("vgg13", "wrn_16_2"): Pair(None, "vgg13_wrn_16_2", NO_SCRIPT, 6.0, FINE),
        ("wrn_40_2", "mobilenet_v2"): Pair("wrn40_2_mv2", None, "teacher_resnet32x4.sh, teacher_wrn.sh", 6.0, FINE),
        ("wrn_40_2", "shufflenet_v1"): Pair("wrn40_2_shuv1", "wrn40_2_shuv1", "teacher_wrn.sh", 8.0, FINE),
        ("wrn_40_2", "vgg8"): Pair("wrn40_2_vgg8", None, "teacher_wrn.sh", 8.0, FINE),
        ("wrn_40_2", "wrn_16_2"): Pair("wrn40_2_wrn_16_2", "wrn40_2_wrn_16_2", NO_SCRIPT, 6.0, COARSE),
        ("wrn_40_2", "wrn_40_1"): Pair("wrn40_2_wrn_40_1", "wrn40_2_wrn_40_1", NO_SCRIPT, 6.0, COARSE),
    },
    # Every script runs M at [1,2,4] (and [1], the plain loss).
    "cub200": {
        ("resnet32x4", "mobilenet_v2"): Pair("res32x4_mv2", None, "train_cub_2.sh, train_cub_4.sh", 8.0, FINE),
        ("resnet32x4", "shufflenet_v1"): Pair("res32x4_shuv1", "res32x4_shuv1", "train_cub_1.sh", 8.0, FINE),
        ("vgg13", "mobilenet_v2"): Pair("vgg13_mv2", "vgg13_mv2", "train_cub_2.sh, train_cub_4.sh", 6.0, FINE),
        ("vgg13", "vgg8"): Pair("vgg13_vgg8", "vgg13_vgg8", "train_cub_3.sh", 6.0, FINE),
        ("resnet50", "shufflenet_v1"): Pair("res50_shuv1", None, "train_cub_1.sh", 8.0, FINE),
    },
    # The released "MobileNetV2" on ImageNet is MobileNetV1, and is called so here.
    "imagenet": {
        ("resnet34", "resnet18"): Pair("r34_r18", "r34_r18", "run.sh", 0.5, COARSE),
        ("resnet50", "mobilenet_v1"): Pair("r50_mv2", "r50_mv2", "run.sh", 2.0, FINE),
    },
}
DKD_OF_ITS_OWN = ("resnet32x4", "mobilenet_v2")  # the pair whose file of DKD has another BETA
KD_PAIR = ("resnet32x4", "resnet8x4")  # of the one file of KD that CIFAR-100 and CUB-200 have each


def released_files(data: str, teacher: str, student: str, method: str) -> tuple[str | None, str | None]:
    """FILE, the released yaml file of a run or None; and where there is none OTHER, or None.

    OTHER is a file of the pair for another method: a run without a file takes from it what the two share.
    """
    own = _released(data, (teacher, student), method)
    if own is not None or method == methods.PLAIN:
        return own, None
    others = (f"{methods.SDD}{methods.parse(method).base}", "dkd", f"{methods.SDD}dkd")
    found = (_released(data, (teacher, student), other) for other in others)
    return None, next((file for file in found if file is not None), None)


def _released(data: str, pair: tuple[str, str], method: str) -> str | None:
    settings = PAIRS.get(data, {}).get(pair)
    if data in ("cifar100", "cub200") and method == "kd":
        return f"configs/{data}/kd.yaml" if pair == KD_PAIR else None
    if settings is None or method not in OF_PAPER:
        return None
    if data == "imagenet":
        return f"configs/imagenet/{settings.sdd}/{method}.yaml"
    name = settings.sdd if method.startswith(methods.SDD) else settings.dkd if method == "dkd" else None
    return None if name is None else f"configs/{data}/{method}/{name}.yaml"
