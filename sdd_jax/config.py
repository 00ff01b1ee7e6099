"""Reads a config: each of its fields checked, then all together. Reads no data and compiles nothing."""

import contextlib
import difflib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from sdd_jax import data, methods
from sdd_jax.data.randaugment import MOST
from sdd_jax.fields import DTYPES, FIELDS, RENAMED, Field
from sdd_jax.files import flatten
from sdd_jax.methods import Method
from sdd_jax.regions import Regions

NONE = "none"  # as typed, unsets a field that may be unset
CACHE = "cache"  # as model.teacher: whoever filled teacher.cache, which then is all that is known of the teacher
ENSEMBLE = "ensemble"  # as model.teacher: those of teacher.runs and teacher.cache together
READ_BY = (("optim.momentum", "optim.optimizer", "sgd"), ("optim.milestones", "optim.schedule", "step"))
# Fields that follow from the argument of a config file.
CHOSEN = {"preset": "preset", "method": "method", "teacher": "model.teacher", "student": "model.student"}


class Settings(dict):
    """A checked config: dotted field names to plain values."""

    def nested(self) -> dict[str, Any]:
        """As it is written to ``config.json``."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in self.items()}
        return unflatten_dict(plain, sep=".")


def read(config: Mapping[str, Any]) -> Settings:
    """The config's fields as plain values, each checked, then together.

    Raises:
      ValueError: names the field, what it holds and what it may hold.
    """
    tree = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    if "sequence" in tree:
        raise ValueError(f"this config is a sequence of runs: choose one of {tree['sequence']} in its argument")
    flat = flatten(tree)
    argument = {name: flat.pop(f"argument.{name}") for name in CHOSEN if f"argument.{name}" in flat}
    for name, chosen in argument.items():
        field = CHOSEN[name]
        if (now := _value(field, flat.get(field, chosen), FIELDS[field])) != chosen:
            raise ValueError(
                f"config.{field} was changed from {chosen!r} to {now!r}, but other fields follow from it: "
                f"choose it in the config's argument, --config=FILE.py:{name}={now}"
            )
    method, teacher = flat.get("method"), flat.get("model.teacher")
    if (method == "plain") != (teacher == "none"):
        raise ValueError(f"method 'plain' goes with teacher 'none' and no other: got {method!r}, teacher {teacher!r}")
    if teacher == CACHE:
        for name in ("teacher.run", "teacher.checkpoint", "teacher.dtype", "teacher.published"):
            if (given := flat.get(name)) not in (None, NONE):
                raise ValueError(f"teacher {CACHE!r} is whoever filled teacher.cache: leave {name} out, got {given!r}")
    options = {}
    if {"method", "loss.base"} <= flat.keys():
        for name in ("method", "loss.base"):
            flat[name] = _value(name, flat[name], FIELDS[name])
        parsed = parse_method(flat)
        if flat["loss.base"] is None and parsed.base != methods.OWN:
            flat["loss.base"] = parsed.base
        options = option_fields(flat, parsed)
    fields = FIELDS | options
    for name in sorted(flat.keys() - fields.keys()):
        if name in RENAMED:
            now = ", of a feature loss ".join(RENAMED[name])
            raise ValueError(f"config has no field {name!r} any more: it is {now} now")
        raise ValueError(f"config has no field {name!r}{closest(name, fields)}")
    for name in sorted(FIELDS.keys() - flat.keys()):
        raise ValueError(f"config lacks the field {name!r}")
    for name in options.keys() - flat.keys():
        if options[name].default is inspect.Parameter.empty:
            raise ValueError(f"{name} has no default in {flat['loss.base']}: set it")
        flat[name] = options[name].default
    settings = Settings((name, _value(name, flat[name], field)) for name, field in fields.items())
    if settings["seeds"] and settings["seed"]:
        raise ValueError(f"set seed or seeds, not both: got {settings['seed']} and {settings['seeds']}")
    if len(set(settings["seeds"])) != len(settings["seeds"]):
        raise ValueError(f"seeds must differ, got {settings['seeds']}")
    if any(seed >= 2**32 for seed in (settings["seed"], *settings["seeds"])):
        raise ValueError("a seed must be below 2^32: JAX would read a larger one as another")
    with named_field("sdd.scales"):
        regions(settings)
    with named_field("data.name"):
        data.check_name(settings["data.name"])
    operations = settings["data.randaugment"]
    if operations and not (len(operations) == 2 and operations[0] and operations[1] <= MOST):
        raise ValueError(
            f"data.randaugment must be a number of operations and a magnitude of at most {MOST}, such as 2,9; "
            f"got {operations}"
        )
    warmup_epochs, warmup_share = settings["loss.warmup_epochs"], settings["loss.warmup_share"]
    if warmup_share > 1 or (warmup_share and warmup_epochs):
        raise ValueError(
            "loss.warmup_share must be at most 1, and 0 where loss.warmup_epochs is not: "
            f"got a share of {warmup_share:g} and {warmup_epochs} epochs"
        )
    milestones, epochs = settings["optim.milestones"], settings["epochs"]
    increasing = list(milestones) == sorted(set(milestones)) and max(milestones, default=0) < epochs
    if settings["optim.schedule"] == "step" and not increasing:
        raise ValueError(
            f"optim.milestones must increase and lie below the run's {epochs} epochs, got {milestones} "
            "(optim.schedule=cosine needs none)"
        )
    rises, first = settings["optim.rate_warmup_epochs"], min(milestones, default=epochs)
    if rises and rises >= (epochs if settings["optim.schedule"] == "cosine" else min(first + 1, epochs)):
        raise ValueError(
            f"optim.rate_warmup_epochs must end before the run's {epochs} epochs, and by the first milestone of a step "
            f"schedule; got {rises} and milestones {milestones}"
        )
    for name in ("model.dtype", "teacher.dtype"):
        if settings[name] == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError(f"{name} 'float64' needs JAX_ENABLE_X64=1 in the environment")
    batch_size, devices, parts = settings["batch_size"], jax.device_count(), settings["optim.accumulate_steps"]
    if batch_size % devices:
        raise ValueError(f"batch_size must be a multiple of the {devices} devices, got {batch_size}")
    if batch_size % (parts * devices):
        got = f"{batch_size} images are not a multiple of {parts} parts x {devices} devices"
        raise ValueError(f"optim.accumulate_steps splits a batch in parts for all devices: {got}")
    if mixing(settings):
        features = parse_method(settings).features
        if features is not None and methods.FEATURES[features].remembers:
            why = "remembers every example, and a mixed image is of none"
            raise ValueError(f"method {settings['method']!r} {why}: data.mixup and data.cutmix must be 0")
        if batch_size < 2:
            raise ValueError("data.mixup and data.cutmix mix two images of a batch: batch_size is 1")
        if settings["teacher.cache"] is not None:
            refuse_mixed_cache(settings)
    profile = settings["profile_steps"]
    if profile and (len(profile) != 2 or profile[0] >= profile[1]):
        raise ValueError(f"profile_steps must be a trace's first step and one after it, such as 10,20; got {profile}")
    return settings


def parse_method(flat: Mapping[str, Any]) -> Method:
    """The method of a flat config."""
    with named_field("method"):
        return methods.parse(flat["method"])


def option_fields(flat: Mapping[str, Any], method: Method) -> dict[str, Field]:
    """The fields of a method's losses by their full names, ``loss.options.NAME`` and ``features.options.NAME``."""
    with named_field("loss.base"):
        base = methods.base_of(method, flat["loss.base"])
        chosen = {"loss": base, "features": methods.FEATURES[method.features] if method.features else None}
        options = {room: methods.options_of(loss) for room, loss in chosen.items() if loss}
    return {f"{room}.options.{name}": option for room, found in options.items() for name, option in found.items()}


def reads(settings: Mapping[str, Any]) -> frozenset[str]:
    """The fields of ``loss``, ``features`` and ``sdd`` that the method reads; every other may hold anything."""
    method = parse_method(settings)
    if method == Method():
        return frozenset({"loss.label_smoothing"})
    names = {"loss.task_weight", "loss.label_smoothing", *option_fields(settings, method)}
    if method.base is not None:
        names |= {"loss.base", "loss.distill_weight", "loss.warmup_epochs", "loss.warmup_share"}
    if method.features is not None:
        names.add("features.weight")
        if methods.FEATURES[method.features].by_region:
            names |= {"sdd.scales", "sdd.pooling", "sdd.reduction"}
    if method.regions:
        names |= {name for name in FIELDS if name.startswith("sdd.")}
    return frozenset(names)


def refuse_unread(settings: Mapping[str, Any], names: Iterable[str]) -> None:
    """``ValueError`` if one of ``names``, fields that somebody set, is of loss, teacher or optimizer and is not read.

    A teacher's cache is of the regions of ``sdd.scales`` and ``sdd.pooling``, whatever the method.
    """
    read_too = {"sdd.scales", "sdd.pooling"} if settings["teacher.cache"] is not None else set()
    for name in names:
        if name.startswith(("loss.", "features.", "sdd.")) and name not in reads(settings) | read_too:
            raise ValueError(f"{name}: the method {settings['method']!r} does not read it")
        if name.startswith("teacher.") and settings["model.teacher"] == "none":
            raise ValueError(f"{name}: the run has no teacher")
        for field, reader, chosen in READ_BY:
            if name == field and settings[reader] != chosen:
                raise ValueError(f"{name}: {reader}={settings[reader]} does not read it")


def regions(settings: Mapping[str, Any]) -> Regions:
    """The regions of a config, whether its method reads them or not."""
    return Regions(settings["sdd.scales"], settings["sdd.pooling"])


def mixing(settings: Mapping[str, Any]) -> dict[str, float] | None:
    """The arguments of ``sdd_jax.data.mixing.mix``, or None where images are not mixed."""
    alphas = {name: settings[f"data.{name}"] for name in ("mixup", "cutmix")}
    return alphas if any(alphas.values()) else None


def refuse_mixed_cache(settings: Mapping[str, Any]) -> None:
    """``ValueError`` if images are mixed, which no cache of a teacher can serve."""
    if alphas := mixing(settings):
        mixed = " and ".join(f"data.{option} {alpha:g}" for option, alpha in alphas.items() if alpha)
        raise ValueError(f"a cache holds what the teacher says of single images, not of mixtures of two: {mixed}")


def teacher_dtype(fields: Mapping[str, Any]) -> str:
    """What the teacher computes in: ``teacher.dtype``, which older configs lack, or what the student does."""
    return fields.get("teacher.dtype") or fields["model.dtype"]


def image_dtype(settings: Settings) -> Any:
    """Images are normalised in float32 (float64 for float64 networks); a bfloat16 network casts them itself."""
    return jnp.promote_types(DTYPES[settings["model.dtype"]], jnp.float32)


@contextlib.contextmanager
def named_field(field: str) -> Iterator[None]:
    """Puts the field's name before the message of a ``ValueError``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _value(name: str, value: Any, field: Field) -> Any:
    """``value`` as the field's kind, or ``ValueError``."""
    if field.optional and value in (None, NONE):
        return None
    if field.kind is tuple:
        values = tuple(value) if isinstance(value, tuple | list) else (value,)
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= field.least for item in values):
            bound = f" of at least {field.least:g}" if field.least > -math.inf else ""
            raise ValueError(f"{name} must be integers{bound}, such as 1,2,4; got {value!r}")
        return values
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits, kind = {
        str: (isinstance(value, str), "a name"),
        bool: (isinstance(value, bool), "True or False"),
        int: (number and float(value).is_integer(), "an integer"),
        float: (number and math.isfinite(value), "a finite number"),
    }[field.kind]
    if not fits:
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    if field.known and value not in field.known:
        raise ValueError(f"{name}: unknown {value!r}{closest(value, field.known)}")
    if number and (value < field.least or value <= field.above or value >= field.below):
        bound = f"greater than {field.above:g}" if field.above > -math.inf else f"at least {field.least:g}"
        bound += f" and below {field.below:g}" if field.below < math.inf else ""
        raise ValueError(f"{name} must be {bound}, got {value!r}")
    return field.kind(value)


def closest(name: str, known: Iterable[str]) -> str:
    """What to say after a name that is not known: the closest that is, and all of them."""
    close = difflib.get_close_matches(name, known := list(known), n=1, cutoff=0.0)
    return f"; the closest is {close[0]!r}, known are {', '.join(known)}"
