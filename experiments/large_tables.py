"""Tables 3 to 5: ImageNet, top-1 and top-5, and CUB-200, top-1 (arXiv 2403.13512, section 4.2), in percent."""

from experiments.comparing import SAME_KD, SAME_NKD, compare

NO_COMMAND = "the released scripts have no command for it"
LOSSES = (
    "KD as released runs at T = 1 with weights 0.5 and 0.5, SD-KD, whose yaml lacks the section, at T = 4 with 0.1 and "
    "0.9: hence the rows with the same loss"
)
RN18, V1 = "RN34 -> RN18", "RN50 -> MobileNetV1"

TABLE3 = compare(
    "table3",
    "ImageNet, RN34 to RN18",
    "arXiv 2403.13512, Table 3",
    "imagenet",
    {RN18: ("resnet34", "resnet18")},
    {
        "teacher": ((73.31, 91.43),),
        "student": ((69.75, 89.07),),
        "KD": ((70.66, 89.88),),
        "SD-KD": ((71.44, 90.05),),
        "DKD": ((71.70, 90.41),),
        "SD-DKD": ((72.02, 91.21),),
        "NKD": ((71.96, 91.10),),
        "SD-NKD": ((72.33, 91.31),),
    },
    own=SAME_KD | SAME_NKD,
    printed={"SD-KD": (0.84,), "SD-DKD": (0.32,), "SD-NKD": (0.37,)},
    recorded={("SD-DKD", RN18): (72.02,)},
    cell_notes={("SD-KD", RN18): NO_COMMAND, ("SD-NKD", RN18): NO_COMMAND},
    measures=("top1", "top5"),
    notes=(LOSSES,),
)
TABLE4 = compare(
    "table4",
    "ImageNet, RN50 to MobileNetV1",
    "arXiv 2403.13512, Table 4",
    "imagenet",
    {V1: ("resnet50", "mobilenet_v1")},
    {
        "teacher": ((76.16, 92.86),),
        "student": ((68.87, 88.76),),
        "KD": ((70.50, 90.34),),
        "SD-KD": ((72.24, 90.71),),
        "DKD": ((72.05, 91.05),),
        "SD-DKD": ((73.08, 91.09),),
        "NKD": ((72.58, 90.80),),
        "SD-NKD": ((73.12, 91.11),),
    },
    own=SAME_KD | SAME_NKD,
    printed={"SD-KD": (1.74,), "SD-DKD": (1.03,), "SD-NKD": (0.54,)},
    recorded={("SD-DKD", V1): (73.08,), ("SD-NKD", V1): (73.12,)},
    cell_notes={("SD-KD", V1): NO_COMMAND},
    measures=("top1", "top5"),
    notes=(
        LOSSES,
        "the released code calls this student MobileNetV2; it is MobileNetV1 (official repository, issue 1)",
    ),
)

PAIRS5 = {
    "RN32x4 -> MobileNetV2": ("resnet32x4", "mobilenet_v2"),
    "RN32x4 -> ShuffleNetV1": ("resnet32x4", "shufflenet_v1"),
    "VGG13 -> MobileNetV2": ("vgg13", "mobilenet_v2"),
    "VGG13 -> VGG8": ("vgg13", "vgg8"),
    "RN50 -> ShuffleNetV1": ("resnet50", "shufflenet_v1"),
}
PAPER5 = {
    "teacher": (66.17, 66.17, 70.19, 70.19, 60.01),
    "student": (40.23, 37.28, 40.23, 46.32, 37.28),
    "SP": (48.49, 61.83, 44.28, 54.78, 55.31),
    "CRD": (57.45, 62.28, 56.45, 66.10, 57.45),
    "SemCKD": (56.89, 63.78, 68.23, 66.54, 57.20),
    "ReviewKD": (None, 64.12, 58.66, 67.10, None),
    "MGD": (None, None, None, 66.89, 57.12),
    "KD": (56.09, 61.68, 53.98, 64.18, 57.21),
    "SD-KD": (60.51, 65.46, 59.80, 67.32, 60.56),
    "DKD": (59.94, 64.51, 58.45, 67.20, 59.21),
    "SD-DKD": (62.97, 65.58, 64.86, 68.67, 60.66),
    "NKD": (59.81, 64.0, 58.40, 67.16, 59.11),
    "SD-NKD": (62.69, 65.50, 64.63, 68.37, 60.42),
}
# train_cub_1..4.sh of the released code runs each SD form at M = [1], which is the base loss itself, and at [1,2,4]. Of
# SD-NKD the former is NKD with SD-NKD's numbers.
RECORDED5 = {
    ("KD", "RN50 -> ShuffleNetV1"): (56.81,),
    ("SD-KD", "RN50 -> ShuffleNetV1"): (60.14,),
    ("DKD", "RN50 -> ShuffleNetV1"): (59.33,),
    ("SD-DKD", "RN50 -> ShuffleNetV1"): (60.42,),
    ("NKD with SD-NKD's loss", "RN50 -> ShuffleNetV1"): (60.32,),
    ("SD-NKD", "RN50 -> ShuffleNetV1"): (61.30,),
    ("KD", "RN32x4 -> ShuffleNetV1"): (62.15,),
    ("SD-KD", "RN32x4 -> ShuffleNetV1"): (65.65,),
    ("SD-DKD", "RN32x4 -> ShuffleNetV1"): (60.20,),
    ("KD", "VGG13 -> MobileNetV2"): (52.23,),
    ("SD-KD", "VGG13 -> MobileNetV2"): (60.2,),
    ("DKD", "VGG13 -> MobileNetV2"): (58.4,),
    ("SD-DKD", "VGG13 -> MobileNetV2"): (65.58,),
    ("NKD with SD-NKD's loss", "VGG13 -> MobileNetV2"): (58.9,),
    ("SD-NKD", "VGG13 -> MobileNetV2"): (63.3,),
    ("KD", "RN32x4 -> MobileNetV2"): (56.0,),
    ("SD-KD", "RN32x4 -> MobileNetV2"): (61.18,),
    ("DKD", "RN32x4 -> MobileNetV2"): (60.3,),
    ("SD-DKD", "RN32x4 -> MobileNetV2"): (63.4,),
    ("NKD with SD-NKD's loss", "RN32x4 -> MobileNetV2"): (57.38,),
    ("SD-NKD", "RN32x4 -> MobileNetV2"): (63.7,),
    ("KD", "VGG13 -> VGG8"): (63.2,),
    ("SD-KD", "VGG13 -> VGG8"): (68.83,),
    ("DKD", "VGG13 -> VGG8"): (66.3,),
    ("SD-DKD", "VGG13 -> VGG8"): (67.93,),
    ("NKD with SD-NKD's loss", "VGG13 -> VGG8"): (67.5,),
    ("SD-NKD", "VGG13 -> VGG8"): (69.3,),
}
TABLE5 = compare(
    "table5",
    "CUB-200-2011",
    "arXiv 2403.13512, Table 5",
    "cub200",
    PAIRS5,
    PAPER5,
    own=SAME_NKD,
    printed={
        "SD-KD": (4.42, 3.78, 5.82, 3.14, 3.25),
        "SD-DKD": (3.43, 1.06, 6.41, 1.47, 1.45),
        "SD-NKD": (2.88, 1.5, 6.23, 1.21, 1.31),
    },
    recorded=RECORDED5,
    cell_notes={
        ("SemCKD", "VGG13 -> MobileNetV2"): "as printed; far from its neighbours, perhaps 58.23",
        ("SD-DKD", "RN32x4 -> ShuffleNetV1"): "the recorded run stands in a line that is commented out",
        **{
            (row, "VGG13 -> VGG8"): "one structure, for which the paper's text has {1,2}; the scripts ran {1,2,4}"
            for row in ("SD-KD", "SD-DKD", "SD-NKD")
        },
    },
    notes=("the released code cannot train these teachers: it leaves their stems as they are on small images",),
)
