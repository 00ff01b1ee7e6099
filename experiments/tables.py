"""Every table by name: the paper's nine, its appendix's two, and this project's own studies.

The studies are Fashion-MNIST and half of Tiny-ImageNet at sizes that a CPU trains in minutes; no paper has their rows.
"""

import functools
from collections.abc import Iterator, Mapping

from experiments.ablations import APPENDIX1, APPENDIX2, TABLE6, TABLE7, TABLE8, TABLE9
from experiments.cells import STUDENT, Cell, Row, Table, compare, known
from experiments.paper_tables import TABLE1, TABLE2, TABLE3, TABLE4, TABLE5
from sdd_jax.config import closest

study = functools.partial(
    compare,
    source="this project's own study",
    file="fashion_mnist",
    overrides=(("data.train_examples", 10_000),),
    teacher_overrides=(("data.train_examples", 20_000),),
    tuning_seed=5,
)
DECLARED = (
    "declared before results of DKD and LS-DKD with a warm-up were seen, but after those of other rows, seeds 0 to 4"
)
FASHION = study(
    "fashion",
    "Fashion-MNIST, 10,000 training images, a teacher trained on 20,000",
    "row | RN20 -> RN8",
    rows={
        **known("teacher", "student", "KD"),
        "SD-KD {1,2}": Row("sdd_kd", ("KD",), (("sdd.scales", (1, 2)),)),
        "SD-KD {1,4}": Row("sdd_kd", ("KD", "SD-KD"), (("sdd.scales", (1, 4)),)),
        "SD-KD": Row("sdd_kd", ("KD", "SD-KD {1,2}", "SD-KD weight 1")),
        "SD-KD weight 1": Row("sdd_kd", ("KD",), (("sdd.complementary_weight", 1.0),)),
        "SD-KD weight 4": Row("sdd_kd", ("KD", "SD-KD"), (("sdd.complementary_weight", 4.0),)),
        **known("DKD"),
        "SD-DKD {1,2}": Row("sdd_dkd", ("DKD",), (("sdd.scales", (1, 2)),)),
        "SD-DKD": Row("sdd_dkd", ("DKD", "SD-DKD {1,2}")),
        **known("LS-DKD"),
        "SD-LS-DKD {1,2}": Row("sdd_ls_dkd", ("LS-DKD",), (("sdd.scales", (1, 2)),)),
        "SD-LS-DKD": Row("sdd_ls_dkd", ("LS-DKD", "SD-LS-DKD {1,2}")),
    },
    # What the paper claims of a like pair: SDD at its scales {1,2} over each base loss; then tables 7 and 8.
    declared=(
        ("KD", "student"),
        ("SD-KD {1,2}", "KD"),
        ("SD-DKD {1,2}", "DKD"),
        ("SD-LS-DKD {1,2}", "LS-DKD"),
        ("SD-KD", "SD-KD {1,2}"),
        ("SD-KD", "SD-KD weight 1"),
    ),
    notes=("SD forms at scales {1,2,4} with complementary weight 2 where the row says nothing else", DECLARED),
)
FASHION_CROSS = study(
    "fashion_cross",
    "Fashion-MNIST across families, 10,000 training images, the teacher of the table fashion",
    "row | RN20 -> MobileNetV2",
    rows=known("teacher", "student", "KD", "SD-KD", "DKD", "SD-DKD"),
    declared=(("KD", "student"), ("SD-KD", "KD"), ("SD-DKD", "DKD")),
    notes=(
        "the student's map is 2x2 on these images: at scale 4 each of its locations is compared with four cells of the "
        "teacher's 8x8 map",
        "the student learns at 0.02, a fifth of the others' rate, as in the paper's settings for such students",
        DECLARED,
    ),
)


def _weighed_without_warmup(base: str, weight: float) -> dict[str, Row]:
    """A base loss and its SDD form at a weight that suited the base loss while it had no warm-up."""
    weights = (("loss.distill_weight", weight),)
    method = base.lower().replace("-", "_")
    return {base: Row(method, ("KD",), weights), f"SD-{base}": Row(f"sdd_{method}", (base, "KD"), weights)}


WEIGHTED = study(
    "weighted",
    "the rows at other weights",
    "row | RN20 -> RN8",
    rows={
        "KD": Row("kd", (), (("loss.distill_weight", 0.9),)),
        **_weighed_without_warmup("DKD", 0.125),
        **_weighed_without_warmup("LS-DKD", 0.5625),
    },
)


def _without_warmup(table: Table) -> Iterator[Cell]:
    """The rows with DKD as they were before they had a warm-up on these images, and what they are compared with."""
    for cell in table.cells:
        weight = dict(cell.recipe.overrides).get("loss.distill_weight")
        names = {
            row: f"{row}{f' weight {weight}' if weight else ''} without warm-up" for row in table.rows if "DKD" in row
        }
        if cell.row in names:
            overrides = (*cell.recipe.overrides, ("loss.warmup_epochs", 1), ("loss.warmup_share", 0.0))
            bases = tuple(names.get(base, base) for base in cell.bases)
            yield cell._replace(row=names[cell.row], recipe=cell.recipe._replace(overrides=overrides), bases=bases)
        elif cell.row in (STUDENT, "KD") and weight is None:
            yield cell


FASHION_WITHOUT_WARMUP = FASHION._replace(
    name="fashion_without_warmup",
    title="Fashion-MNIST: DKD and LS-DKD as the other tables of the study had them first, without a warm-up",
    cells=(*_without_warmup(FASHION), *_without_warmup(WEIGHTED), *_without_warmup(FASHION_CROSS)),
    notes=(
        "a warm-up of one epoch, which is none: distillation has its full weight from the first step",
        "SD forms at scales {1,2,4} with complementary weight 2 where the row says nothing else",
    ),
    declared=(),
)

# Half of Tiny-ImageNet's classes at 32 x 32 pixels. All of it is this project's choice, so that hours on two cores do;
# the rate is what configs/rows.py has for batch 256, halved with the batch.
TINY_SHARED = (
    ("data.num_classes", 100),
    ("data.image_size", 32),
    ("batch_size", 128),
    ("optim.learning_rate", 0.1),
    ("optim.schedule", "cosine"),
    ("eval_every_epochs", 2),
)
# As released, NKD has temperature 1 and gamma 1.5, its SDD form temperature 4 and gamma 8: this is NKD with the latter.
NKD_OF_SDD = "NKD with SD-NKD's loss"
# Weights of distillation, the best on held-out images of those that TINY_TUNING tried. SDD has the same weight.
TINY_WEIGHTS = {
    "KD": 14.4,
    "DKD": 1.0,
    "LS-KD": 9.0,
    "DIST": 0.5,
    "RLD": 1.0,
    "WKD": 1.0,
    "TTM": 45.0,
    "ABKD": 128.0,
    "LDRLD": 1.0,
    "WTTM": 1.0,
    "MLKD": 3.6,
    "NKD": 1.0,
    NKD_OF_SDD: 1.0,
}
# Three of each at first. Others came while the largest, or of DIST and WTTM the smallest, was the best. DIST at 32 and
# WTTM at 16 were left before they had a result: the weight below them was worse than the next smaller one.
TINY_TRIED = {
    "KD": (0.225, 0.9, 3.6, 14.4, 57.6),
    "DKD": (0.0625, 0.25, 1.0, 4.0),
    "LS-KD": (0.5625, 2.25, 9.0, 36.0),
    "DIST": (0.125, 0.5, 2.0, 8.0),
    "RLD": (0.25, 1.0, 4.0),
    "WKD": (0.25, 1.0, 4.0),
    "TTM": (11.25, 45.0, 180.0),
    "ABKD": (8.0, 32.0, 128.0, 512.0),
    "LDRLD": (0.25, 1.0, 4.0),
    "WTTM": (0.25, 1.0, 4.0),
    "MLKD": (0.225, 0.9, 3.6, 14.4),
    "NKD": (0.25, 1.0, 4.0),
    NKD_OF_SDD: (0.25, 1.0, 4.0),
}
tiny_study = functools.partial(
    compare,
    source="this project's own study",
    file="tiny_imagenet",
    overrides=(*TINY_SHARED, ("epochs", 4)),
    teacher_overrides=(*TINY_SHARED, ("epochs", 15)),
    tuning_seed=5,
)


def _weighed(base: str, *, factor: int = 1, sdd: bool = False, against: tuple[str, ...] = (), **changes: object) -> Row:
    """A base loss, or its SDD form, at its chosen weight times ``factor``; ``changes`` are fields of ``sdd``."""
    name = f"SD-{base.partition(' with ')[0]}" if sdd else base
    row = known(name)[name]
    assert row is not None
    fields = tuple((f"sdd.{name}", value) for name, value in changes.items())
    weight = (("loss.distill_weight", TINY_WEIGHTS[base] * factor),)
    return row._replace(bases=against or (base if sdd else STUDENT,), overrides=(*weight, *fields))


def _tiny_notes(*bases: str) -> tuple[str, ...]:
    """What a table of these base losses says of their weights, and of its declaration."""
    return (
        f"weights of distillation: {', '.join(f'{base} {TINY_WEIGHTS[base]}' for base in bases)}; SD forms have those "
        "of their base loss, and complementary weight 2 where the row says nothing else",
        "declared before any result was seen",
    )


TINY = tiny_study(
    "tiny",
    "Tiny-ImageNet, 100 classes at 32x32 pixels",
    "row | RN20 -> RN8",
    rows={
        **known("teacher", "student"),
        "KD": _weighed("KD"),
        "KD x2": _weighed("KD", factor=2, against=("KD",)),
        "KD x4": _weighed("KD", factor=4, against=("KD",)),
        "SD-KD {1,2}": _weighed("KD", sdd=True, against=("KD", "KD x2", "SD-KD {1,2} weight 1"), scales=(1, 2)),
        "SD-KD": _weighed("KD", sdd=True, against=("KD", "KD x2", "SD-KD {1,2}"), scales=(1, 2, 4)),
        "SD-KD {1,2} weight 1": _weighed("KD", sdd=True, scales=(1, 2), complementary_weight=1.0),
        "DKD": _weighed("DKD"),
        "SD-DKD {1,2}": _weighed("DKD", sdd=True, scales=(1, 2)),
        "LS-KD": _weighed("LS-KD", against=("KD",)),
        "SD-LS-KD {1,2}": _weighed("LS-KD", sdd=True, scales=(1, 2)),
    },
    # What the paper claims of a like pair, with "more distillation" told apart from "regions" by KD x2.
    declared=(
        ("KD", "student"),
        ("SD-KD {1,2}", "KD"),
        ("SD-KD {1,2}", "KD x2"),
        ("SD-KD {1,2}", "SD-KD {1,2} weight 1"),
        ("SD-KD", "SD-KD {1,2}"),
        ("SD-DKD {1,2}", "DKD"),
        ("SD-LS-KD {1,2}", "LS-KD"),
    ),
    notes=("SD forms without scales in their name are at {1,2,4}", *_tiny_notes("KD", "DKD", "LS-KD")),
)
TINY_CROSS = tiny_study(
    "tiny_cross",
    "Tiny-ImageNet across families, 100 classes at 32x32 pixels, the teacher of the table tiny",
    "row | RN20 -> MobileNetV2",
    rows={
        **known("teacher", "student"),
        "KD": _weighed("KD"),
        "SD-KD {1,2}": _weighed("KD", sdd=True, scales=(1, 2)),
        "DKD": _weighed("DKD"),
        "SD-DKD {1,2}": _weighed("DKD", sdd=True, scales=(1, 2)),
        "LS-KD": _weighed("LS-KD", against=("KD",)),
        "SD-LS-KD {1,2}": _weighed("LS-KD", sdd=True, scales=(1, 2)),
    },
    declared=(("KD", "student"), ("SD-KD {1,2}", "KD"), ("SD-DKD {1,2}", "DKD"), ("SD-LS-KD {1,2}", "LS-KD")),
    notes=("the student's map is 2x2 on these images, which scale 2 takes whole", *_tiny_notes("KD", "DKD", "LS-KD")),
)


def _newer(name: str, title: str, *losses: str, seen: str) -> Table:
    """Each newer loss alone, against KD, and its SDD form at {1,2} against it: all of them declared."""
    rows = {**known("teacher", "student"), "KD": _weighed("KD")}
    for base in losses:
        rows[base] = _weighed(base, against=("KD",))
        rows[f"SD-{base} {{1,2}}"] = _weighed(base, sdd=True, scales=(1, 2))
    return tiny_study(
        name,
        f"Tiny-ImageNet with {title}, the pair, the teacher and KD of the table tiny",
        "row | RN20 -> RN8",
        rows=rows,
        declared=(*((base, "KD") for base in losses), *((f"SD-{base} {{1,2}}", base) for base in losses)),
        notes=(*_tiny_notes("KD", *losses), f"but for {seen}"),
    )


# One newer loss for each kind of idea: relations within a batch, a ranking that the label corrects, a cost of moving.
TINY_NEWER = _newer("tiny_newer", "newer losses", "DIST", "RLD", "WKD", seen="KD's, which the table tiny had before")
# Two that compare distributions otherwise than by KL at one temperature, and one by the order of classes.
TINY_NEWER_2 = _newer(
    "tiny_newer_2", "three more newer losses", "TTM", "ABKD", "LDRLD", seen="those of the tables tiny and tiny_newer"
)
# One that weighs what the teacher is unsure of, and one of several temperatures and relations at once.
TINY_NEWER_3 = _newer(
    "tiny_newer_3", "two more newer losses", "WTTM", "MLKD", seen="those of the other tables of these images"
)
# What SD-NKD gains over NKD as both are released, in two parts: the other numbers, and the regions.
TINY_NKD = tiny_study(
    "tiny_nkd",
    "Tiny-ImageNet with NKD, the pair, the teacher and KD of the table tiny",
    "row | RN20 -> RN8",
    rows={
        **known("teacher", "student"),
        "KD": _weighed("KD"),
        "NKD": _weighed("NKD", against=("KD",)),
        NKD_OF_SDD: _weighed(NKD_OF_SDD, against=("NKD",)),
        "SD-NKD {1,2}": _weighed(NKD_OF_SDD, sdd=True, against=("NKD", NKD_OF_SDD), scales=(1, 2)),
    },
    declared=(("NKD", "KD"), (NKD_OF_SDD, "NKD"), ("SD-NKD {1,2}", NKD_OF_SDD), ("SD-NKD {1,2}", "NKD")),
    notes=(*_tiny_notes("KD", "NKD", NKD_OF_SDD), "but for those of the other tables of these images"),
)
TINY_TUNING = tiny_study(
    "tiny_tuning",
    "Tiny-ImageNet, the pair of the table tiny: the runs that choose its weights",
    "row | RN20 -> RN8",
    rows={
        f"{base} {weight}": known(base)[base]._replace(bases=(), overrides=(("loss.distill_weight", weight),))
        for base, weights in TINY_TRIED.items()
        for weight in weights
    },
    notes=("what chooses is the accuracy on held-out images after the last step",),
    tunes=True,
)

ALL = "all"
OF_PAPER = (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLE6, TABLE7, TABLE8, TABLE9, APPENDIX1, APPENDIX2)
OF_STUDY = (
    FASHION,
    FASHION_CROSS,
    FASHION_WITHOUT_WARMUP,
    TINY,
    TINY_CROSS,
    TINY_NEWER,
    TINY_NEWER_2,
    TINY_NEWER_3,
    TINY_NKD,
    TINY_TUNING,
)
TABLES: Mapping[str, Table] = {table.name: table for table in (*OF_PAPER, *OF_STUDY)}


def choose(name: str, tables: Mapping[str, Table] = TABLES) -> list[Table]:
    """The table of that name, or "all" of them; ``ValueError`` names those that there are."""
    if name == ALL:
        return list(tables.values())
    if name not in tables:
        raise ValueError(f"no table is called {name!r}{closest(name, (*tables, ALL))}")
    return [tables[name]]
