"""Every method of training: a table of base losses, a table of feature losses, and what a method's name says.

A method is called ``[sdd_]BASE[+FEATURES]`` or ``FEATURES``: ``kd``, ``sdd_dkd``, ``wttm+crd``, ``sdd_kd+sdd_sp``,
``sp``. ``sdd_`` applies the base loss region by region. ``plain`` has no teacher, ``own`` is a base loss of the user's.

To share a loss: write the function, and add one line to ``BASES``. Its method, its ``sdd_`` form, its config fields
(``loss.options.NAME``, by the function's signature), the traces and the page of values follow from that line.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sdd_jax import batch_relations, class_relations, losses
from sdd_jax.fields import Field
from sdd_jax.own import own_function
from sdd_jax.standardize import standardized
from sdd_jax.training.features import contrast, similarity
from sdd_jax.training.hints import attention, hint, review
from sdd_jax.training.objective import Objective

SDD, PLUS = "sdd_", "+"
PLAIN, OWN = "plain", "own"
AS_RELEASED = "_as_released"  # behind a base loss: as the official code has it, with the same settings
RENAMED = {"sdd_kd_sp": "sdd_kd+sp", "sdd_kd_crd": "sdd_kd+crd"}  # names of earlier versions


class Base(NamedTuple):
    """A base loss and the numbers that it is used with where no row says otherwise."""

    function: Callable[..., Any]  # (student_logits, teacher_logits, labels, *, option=default, ...) -> [...]
    source: str  # of the numbers
    task_weight: float = 1.0  # of the cross-entropy with the labels
    distill_weight: float = 1.0
    options: Mapping[str, Any] = {}  # those that differ from the function's own defaults
    # Of a function that needs to know how far apart the teacher's classes are, what makes its ``cost`` [K, K] of their
    # vectors in the teacher's head: (class_vectors [K, C], *, option=default, ...); its options are the loss's too.
    cost: Callable[..., Any] | None = None


class Features(NamedTuple):
    """A loss over feature maps."""

    make: Callable[..., Objective]  # make(weight, *, option=default, ...)
    weight: float
    source: str  # of the numbers
    by_region: bool = False  # whether `make` takes `regions` and `reduction` too
    remembers: bool = False  # whether it has a memory of the training examples


CFG = "mdistiller/engine/cfg.py"  # of the official SDD code, commit e412036
LS_README = "the README of logit standardisation's code (Sun et al., CVPR 2024), --base-temp 2 --kd-weight 9"
TTM_README = "the README of TTM's code (Zheng and Yang, ICLR 2024), its one example, vgg13 -> vgg8 on CIFAR-100"
BASES: dict[str, Base] = {
    "kd": Base(losses.kd_loss, f"{CFG}:60-64, the KD section", task_weight=0.1, distill_weight=0.9),
    "dkd": Base(losses.dkd_loss, f"{CFG}:162-167, the DKD section; the losses are added as they are"),
    "nkd": Base(
        losses.nkd_loss, "the NKD paper (Yang et al., ICCV 2023): T = 1, gamma = 1.5; the losses are added as they are"
    ),
    "nkd_as_released": Base(
        losses.nkd_as_released_loss, "mdistiller/distillers/nkd.py:44-45, hard-coded; the losses are added as they are"
    ),
    "ls_kd": Base(
        standardized(losses.kd_loss),
        f"{LS_README}; CE_WEIGHT 0.1 of its KD section",
        task_weight=0.1,
        distill_weight=9.0,
        options={"temperature": 2.0},
    ),
    "ls_dkd": Base(
        standardized(losses.dkd_loss),
        f"{LS_README}, which multiplies DKD's alpha and beta by 9, here the distill weight. The logs of most pairs "
        "have a beta of 2 and weights of 9 to 18",
        distill_weight=9.0,
        options={"temperature": 2.0},
    ),
    "dist": Base(
        batch_relations.dist_loss, "the paper and the code of DIST (Huang et al., NeurIPS 2022)", distill_weight=2.0
    ),
    "ttm": Base(losses.ttm_loss, TTM_README, distill_weight=45.0),
    "wttm": Base(losses.wttm_loss, f"{TTM_README} with CRD: --add wttm --ttm_l 0.2 -a 4", distill_weight=4.0),
    "rld": Base(
        class_relations.rld_loss,
        "mdistiller/engine/cfg.py:180-185 of RLD's code (Sun et al., ICCV 2025); its README's command has a target "
        "temperature of 4",
    ),
    "abkd": Base(
        losses.abkd_loss,
        "the README of ABKD's code (Wang et al., ICML 2025), standard_classification, CIFAR-100; its train_ab.sh has a "
        "weight of 64",
        distill_weight=32.0,
    ),
    "ldrld": Base(
        class_relations.ldrld_loss,
        "the README of LDRLD's code (Xu et al., ICCV 2025), resnet32x4 -> resnet8x4 on CIFAR-100",
    ),
    "wkd": Base(
        class_relations.wkd_loss,
        "configs/cifar100/wkd_l/*.yaml of WKD's code (Lv et al., NeurIPS 2024), resnet32x4 -> resnet8x4, where gamma "
        "falls to 0 along a cosine from epoch 150: here it does not",
        options={"temperature": 8.0, "gamma": 600.0},
        cost=class_relations.class_cost,
    ),
    "mlkd": Base(
        batch_relations.mlkd_loss,
        "mdistiller/engine/cfg.py:61-64 of MLKD's code (Jin et al., CVPR 2023), whose masks halve it, being factors, "
        "and which adds a strongly augmented view",
        task_weight=0.1,
        distill_weight=0.9,
    ),
}
FEATURES: dict[str, Features] = {
    "sp": Features(
        similarity,
        3000.0,
        "RepDistiller, scripts/run_cifar_distill.sh: -r 1 -a 0 -b 3000; its helper/loops.py:145 reads feat[-2]",
    ),
    "sdd_sp": Features(similarity, 3000.0, "appendix 6.1 names it without a weight or a map: SP's", by_region=True),
    "crd": Features(
        contrast,
        0.8,
        "RepDistiller, scripts/run_cifar_distill.sh: -b 0.8; train_student.py: nce_k, nce_t, nce_m, feat_dim; its "
        "helper/loops.py reads the head's feature, dataset/cifar100.py draws from other classes",
        remembers=True,
    ),
    "fitnet": Features(
        hint,
        100.0,
        "RepDistiller, scripts/run_cifar_distill.sh: --distill hint -a 0 -b 100; train_student.py: hint_layer 2. The "
        f"same in {CFG}, the FITNET section",
    ),
    "at": Features(
        attention,
        1000.0,
        "RepDistiller, scripts/run_cifar_distill.sh: --distill attention -a 0 -b 1000; distiller_zoo/AT.py: p = 2. The "
        f"same in {CFG}, the AT section",
    ),
    "reviewkd": Features(
        review,
        5.0,
        "configs/cifar100/reviewkd.yaml of mdistiller (megvii-research, commit e8c5bb3) and the REVIEWKD section of "
        "its cfg.py; CIFAR-100/script/reviewKD.sh of the authors' code (dvlab-research/ReviewKD, commit 6607308) has a "
        "weight of 5 for most pairs, and none for VGG and MobileNetV2",
    ),
}


class Method(NamedTuple):
    """What a method's name says."""

    base: str | None = None  # a name of BASES, "own", or None where logits are not distilled
    regions: bool = False  # whether the base loss is applied region by region
    features: str | None = None  # a name of FEATURES


def parse(name: str) -> Method:
    """The method called ``name``; ``ValueError`` says how methods are called."""
    if name == PLAIN:
        return Method()
    if name in FEATURES:
        return Method(features=name)
    logits, plus, features = name.partition(PLUS)
    base = logits.removeprefix(SDD)
    if (base in BASES or base == OWN) and (features in FEATURES or not plus):
        return Method(base, logits.startswith(SDD), features or None)
    if name in RENAMED:
        raise ValueError(f"{name!r} is called {RENAMED[name]!r} now")
    close = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)[0]
    raise ValueError(
        f"unknown {name!r}; the closest is {close!r}. A method is {PLAIN}, [{SDD}]BASE[{PLUS}FEATURES] or FEATURES: "
        f"BASE is one of {', '.join((*BASES, OWN))}; FEATURES is one of {', '.join(FEATURES)}"
    )


def names() -> list[str]:
    """Every method but combinations."""
    return [PLAIN, *BASES, OWN, *(SDD + base for base in (*BASES, OWN)), *FEATURES]


def base_of(method: Method, loss_base: str | None) -> Base | None:
    """The base loss of a method whose ``loss.base`` is given: of the table, or the user's own function."""
    if method.base is None:
        return None
    if method.base == OWN:
        if loss_base is None or ":" not in loss_base:
            raise ValueError(f"a method with {OWN!r} needs MODULE:FUNCTION, got {loss_base!r}")
        arguments = "student_logits", "teacher_logits", "labels"
        return Base(own_function(loss_base, "loss", arguments, has_options=True), "the user's own")
    known = [name for name in (method.base, f"{method.base}{AS_RELEASED}") if name in BASES]
    if loss_base not in known:
        raise ValueError(f"the method {method.base!r} has {' or '.join(known)}, got {loss_base!r}")
    return BASES[loss_base]


def options_of(loss: Base | Features) -> dict[str, Field]:
    """The options of a loss: what its function takes after logits and labels, or beside the weight and the regions.

    What the run gives itself, regions and a base loss's ``cost``, is no option.

    ``Parameter.empty`` is the default of one that has none. The kind is that of the annotation, or else of the default:
    a number, True or False, text, or a tuple of integers; with ``| None`` it may be unset. ``ValueError`` for another.
    """
    taken = {loss.function: 3, loss.cost: 1} if isinstance(loss, Base) else {loss.make: 1}
    parameters = {}
    for function, skip in taken.items():
        parameters |= dict(list(inspect.signature(function).parameters.items())[skip:]) if function else {}
    own = ("regions", "reduction") if isinstance(loss, Features) else ("cost",) if loss.cost else ()
    kinds = {"bool": bool, "str": str, "int": int, "float": float, "tuple": tuple}  # of several the last one counts
    options = {}
    for name, parameter in parameters.items():
        if name in own or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = loss.options.get(name, parameter.default) if isinstance(loss, Base) else parameter.default
        annotation = inspect.formatannotation(parameter.annotation)  # of a type, its name
        named = [word for word in kinds if re.search(rf"\b{word}\b", annotation)]
        kind = kinds.get(["float" if default is parameter.empty else type(default).__name__, *named][-1])
        integers = not isinstance(default, tuple) or all(isinstance(item, int) for item in default)
        if kind is None or not integers:
            function = next(iter(taken))
            raise ValueError(
                f"{getattr(function, '__name__', function)} has {name}={default!r} as default; an option is a number, "
                "True or False, text, a tuple of integers, or one of them or None, annotated like `float | None`"
            )
        options[name] = Field(kind, default, "of the loss", clearable="None" in annotation)
    return options
