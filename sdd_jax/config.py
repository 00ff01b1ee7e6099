"""A config's fields: what each may hold, and what may not stand together. Reads no data and compiles nothing."""

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdd_jax import data
from sdd_jax.data.bad_images import POLICIES
from sdd_jax.data.images import AUGMENTS
from sdd_jax.sdd import CONSISTENCIES, POOLINGS, REDUCTIONS, check_scales
from sdd_jax.training.run_dir import RUNTIME_FIELDS

OWN = "MODULE:FUNCTION"  # a user's function
NONE = "none"  # as typed, unsets a field that may be unset


class Method(NamedTuple):
    """What a method is put together from.

    Attributes:
      bases: what config.loss.base may be; empty where logits are not distilled.
      regions: whether that is done region by region: SDD.
      features: what is done with feature maps beside it, or alone: "sp", "sdd_sp" (SP region by region), "crd" or none.
    """

    bases: tuple[str, ...] = ()
    regions: bool = False
    features: str | None = None


# The base losses of a method that distils logits: each has a form with "sdd_" in front.
BASES = {
    "kd": ("kd",),
    "dkd": ("dkd",),
    "nkd": ("nkd", "nkd_as_released"),
    "ls_kd": ("ls_kd",),
    "ls_dkd": ("ls_dkd",),
    "dist": ("dist",),
    "ttm": ("ttm",),
    "wttm": ("wttm",),
    "own": (OWN,),
}
METHODS = {
    "plain": Method(),
    **{name: Method(bases) for name, bases in BASES.items()},
    **{f"sdd_{name}": Method(bases, regions=True) for name, bases in BASES.items()},
    **{name: Method(features=name) for name in ("sp", "sdd_sp", "crd")},
    **{f"sdd_kd_{name}": Method(BASES["kd"], regions=True, features=name) for name in ("sp", "crd")},
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


class Field(NamedTuple):
    """What a config field may hold."""

    kind: type
    known: tuple[str, ...] = ()
    least: float = -math.inf
    optional: bool = False
    above: float = -math.inf


FIELDS: dict[str, Field] = {
    "seed": Field(int, least=0),
    "seeds": Field(tuple, least=0),
    "preset": Field(str, known=("released", "paper")),
    "method": Field(str, known=tuple(METHODS)),
    "model.student": Field(str),
    "model.teacher": Field(str),
    "model.stem": Field(str),
    "model.dtype": Field(str, known=tuple(DTYPES)),
    "teacher.run": Field(str, optional=True),
    "teacher.cache": Field(str, optional=True),
    "teacher.dtype": Field(str, known=tuple(DTYPES), optional=True),
    "teacher.accuracy": Field(float, least=0, optional=True),
    "teacher.published": Field(float, least=0, optional=True),
    "data.name": Field(str),
    "data.path": Field(str, optional=True),
    "data.select_on": Field(str, known=("validation", "test")),
    "data.train_examples": Field(int, least=1, optional=True),
    "data.num_classes": Field(int, least=1, optional=True),
    "data.image_size": Field(int, least=1, optional=True),
    "data.augment": Field(str, known=AUGMENTS, optional=True),
    "data.workers": Field(int, least=0),
    "data.on_bad_image": Field(str, known=POLICIES),
    "sdd.scales": Field(tuple, least=1),
    "sdd.pooling": Field(str, known=POOLINGS),
    "sdd.consistency": Field(str, known=CONSISTENCIES),
    "sdd.reduction": Field(str, known=REDUCTIONS),
    "sdd.complementary_weight": Field(float, least=0),
    "sdd.consistent_weight": Field(float, least=0),
    "loss.base": Field(str),
    "loss.temperature": Field(float, above=0),
    "loss.alpha": Field(float, least=0),
    "loss.beta": Field(float, least=0),
    "loss.gamma": Field(float, least=0),
    "loss.task_weight": Field(float, least=0),
    "loss.distill_weight": Field(float, least=0),
    "loss.warmup_epochs": Field(int, least=0),
    "optim.learning_rate": Field(float, above=0),
    "optim.momentum": Field(float, least=0),
    "optim.weight_decay": Field(float, least=0),
    "optim.clip_norm": Field(float, above=0, optional=True),
    "optim.schedule": Field(str, known=("step", "cosine")),
    "optim.milestones": Field(tuple, least=1),
    "optim.accumulate_steps": Field(int, least=1),
    "epochs": Field(int, least=1),
    "batch_size": Field(int, least=1),
    "steps_per_call": Field(int, least=0),
    "eval_every_epochs": Field(int, least=1),
    "save_every_epochs": Field(int, least=1),
    "profile_steps": Field(tuple, least=0),
}
# What follows from the argument of a config file; see `check`.
CHOSEN = {"preset": "preset", "method": "method", "teacher": "model.teacher", "student": "model.student"}


class Settings(dict):
    """A checked config: dotted field names to plain values."""

    def nested(self) -> dict[str, Any]:
        """As it is written to ``config.json``."""
        tree: dict[str, Any] = {}
        for name, value in self.items():
            *rooms, leaf = name.split(".")
            room = tree
            for part in rooms:
                room = room.setdefault(part, {})
            room[leaf] = list(value) if isinstance(value, tuple) else value
        return tree

    def hash(self) -> str:
        """SHA-256, in hex, of the config, up to how it is carried out."""
        what = Settings((name, value) for name, value in self.items() if name not in RUNTIME_FIELDS)
        return hashlib.sha256(json.dumps(what.nested(), sort_keys=True).encode()).hexdigest()


def read(config: Mapping[str, Any]) -> Settings:
    """The config's fields as plain values, each checked, and together.

    Raises:
      ValueError: names the field, what it holds and what it may hold.
    """
    tree = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    if "sequence" in tree:
        raise ValueError(f"this config is a sequence of runs: choose one of {tree['sequence']} in its argument")
    flat = _flatten(tree)
    argument = {name: flat.pop(f"argument.{name}") for name in CHOSEN if f"argument.{name}" in flat}
    for name in sorted(flat.keys() - FIELDS.keys()):
        raise ValueError(f"config has no field {name!r}{_closest(name, FIELDS)}")
    for name in sorted(FIELDS.keys() - flat.keys()):
        raise ValueError(f"config lacks the field {name!r}")
    settings = Settings((name, _value(name, flat[name], field)) for name, field in FIELDS.items())

    for name, chosen in argument.items():
        if (now := settings[CHOSEN[name]]) != chosen:
            raise ValueError(
                f"config.{CHOSEN[name]} was changed from {chosen!r} to {now!r}, but other fields follow from it: "
                f"choose it in the config's argument, --config=FILE.py:{name}={now}"
            )
    method, teacher = settings["method"], settings["model.teacher"]
    if settings["seeds"] and settings["seed"]:
        raise ValueError(f"set seed or seeds, not both: got {settings['seed']} and {settings['seeds']}")
    if len(set(settings["seeds"])) != len(settings["seeds"]):
        raise ValueError(f"seeds must differ, got {settings['seeds']}")
    if any(seed >= 2**32 for seed in (settings["seed"], *settings["seeds"])):
        raise ValueError("a seed must be below 2^32: JAX would read a larger one as another")
    if (method == "plain") != (teacher == "none"):
        raise ValueError(f"method 'plain' goes with teacher 'none' and no other: got {method!r}, teacher {teacher!r}")
    _check_base(method, settings["loss.base"])
    try:
        check_scales(settings["sdd.scales"], settings["sdd.pooling"])
    except ValueError as error:
        raise ValueError(f"sdd.scales: {error}") from error
    try:
        data.check_name(settings["data.name"])
    except ValueError as error:
        raise ValueError(f"data.name: {error}") from error
    if settings["optim.momentum"] >= 1:
        raise ValueError(f"optim.momentum must be below 1, got {settings['optim.momentum']}")
    milestones, epochs = settings["optim.milestones"], settings["epochs"]
    if settings["optim.schedule"] == "step" and (
        list(milestones) != sorted(set(milestones)) or any(milestone >= epochs for milestone in milestones)
    ):
        raise ValueError(f"optim.milestones must increase and lie below the run's {epochs} epochs, got {milestones}")
    for name in ("model.dtype", "teacher.dtype"):
        if settings[name] == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError(f"{name} 'float64' needs JAX_ENABLE_X64=1 in the environment")
    batch_size, devices = settings["batch_size"], jax.device_count()
    if batch_size % devices:
        raise ValueError(f"batch_size must be a multiple of the {devices} devices, got {batch_size}")
    parts = settings["optim.accumulate_steps"]
    if batch_size % (parts * devices):
        raise ValueError(
            f"optim.accumulate_steps splits a batch in parts for all devices: {batch_size} images are not a multiple "
            f"of {parts} parts x {devices} devices"
        )
    profile = settings["profile_steps"]
    if profile and (len(profile) != 2 or profile[0] >= profile[1]):
        raise ValueError(
            f"profile_steps must be the first step of a trace and one after it, such as 10,20; got {profile}"
        )
    return settings


def teacher_dtype(settings: Settings) -> str:
    """What the teacher computes in: ``teacher.dtype``, or what the student does."""
    return settings["teacher.dtype"] or settings["model.dtype"]


def image_dtype(settings: Settings) -> Any:
    """Images are normalised in float32 (float64 for float64 networks); a bfloat16 network casts them itself."""
    return jnp.promote_types(DTYPES[settings["model.dtype"]], jnp.float32)


def _check_base(method: str, base: str) -> None:
    """Raises ``ValueError`` unless ``method`` goes with the base loss; one that distils no logits reads none."""
    known = METHODS[method].bases
    if known and base not in known and not (OWN in known and ":" in base):
        raise ValueError(f"method {method!r} has loss.base {' or '.join(known)}, got {base!r}")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _value(name: str, value: Any, field: Field) -> Any:
    """``value`` as the field's kind, or ``ValueError``."""
    if field.optional and value in (None, NONE):
        return None
    if field.kind is tuple:
        values = tuple(value) if isinstance(value, tuple | list) else (value,)
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= field.least for item in values):
            raise ValueError(f"{name} must be integers of at least {field.least:g}, such as 1,2,4; got {value!r}")
        return values
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        str: isinstance(value, str),
        int: number and float(value).is_integer(),
        float: number and math.isfinite(value),
    }[field.kind]
    if not fits:
        kind = {str: "a name", int: "an integer", float: "a finite number"}[field.kind]
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    if field.known and value not in field.known:
        raise ValueError(f"{name}: unknown {value!r}{_closest(value, field.known)}")
    if number and (value < field.least or value <= field.above):
        bound = f"greater than {field.above:g}" if field.above > -math.inf else f"at least {field.least:g}"
        raise ValueError(f"{name} must be {bound}, got {value!r}")
    return field.kind(value)


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known := list(known), n=1, cutoff=0.0)
    return f"; the closest is {close[0]!r}, known are {', '.join(known)}"
