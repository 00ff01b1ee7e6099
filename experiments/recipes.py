"""How a cell is run: config file, argument and overrides; and the fields that tell one experiment from another."""

import functools
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdd_jax import fields, methods, sealed
from sdd_jax.build import check
from sdd_jax.config import Settings, reads
from sdd_jax.configs import common
from sdd_jax.fields import FIELDS, PRESETS, RENAMED, RUNTIME_FIELDS
from sdd_jax.files import flatten

RELEASED, PAPER = PRESETS
# Fields that do not tell experiments apart: paths, seeds and how a run is executed. A teacher is compared by how it was
# trained, not by its folder, and a preset by the fields that follow from it.
NO_IDENTITY = RUNTIME_FIELDS | {
    "seed",
    "seeds",
    "preset",
    "data.path",
    "model.init",  # its digest counts
    "teacher.run",
    "teacher.runs",
    "teacher.cache",
    "teacher.accuracy",
    "teacher.published",
    "steps_per_call",
    "save_every_epochs",
}
# Fields that came after the first results. At one of these values a run is what it was before, and keeps its key.
LATER = {
    "optim.accumulate_steps": (1,),
    "data.on_bad_image": ("error",),
    "data.in_memory": (None, False),
    "loss.warmup_share": (0.0,),
    "model.init_digest": (None,),
    "teacher.checkpoint": (None,),
    "optim.ema_decay": (None,),
    **{name: (value, FIELDS[name].default) for name, value in fields.LATER.items()},
    "teacher.weights": (None,),
    "teacher.mean": (None,),
}
Overrides = tuple[tuple[str, Any], ...]  # dotted fields and their values


class Recipe(NamedTuple):
    """A run, up to its preset and seed."""

    file: str  # of ``configs/``, without its ending
    student: str
    teacher: str = "none"
    method: str = "plain"
    overrides: Overrides = ()
    loss_of: str | None = None  # another method, whose fields of ``loss`` replace those of this one
    teacher_overrides: Overrides = ()  # of the run that trains the teacher


def teacher_recipe(recipe: Recipe) -> Recipe | None:
    """The run that trains the teacher of ``recipe``; None for a plain run."""
    return None if recipe.teacher == "none" else Recipe(recipe.file, recipe.teacher, overrides=recipe.teacher_overrides)


def argument(recipe: Recipe, preset: str) -> str:
    """The argument after the colon of ``--config=FILE.py:``."""
    if recipe.teacher == "none":
        return f"teacher=none,student={recipe.student}"  # no preset: it changes nothing of a plain run
    return f"teacher={recipe.teacher},student={recipe.student},method={recipe.method},preset={preset}"


def overrides(recipe: Recipe, preset: str) -> dict[str, Any]:
    """The fields that the recipe changes, those of ``loss_of`` among them, in a fixed order."""
    changed = {}
    if recipe.loss_of is not None:
        own, other = (
            flatten({"loss": _config(recipe._replace(method=method), preset).loss.to_dict()})
            for method in (recipe.method, recipe.loss_of)
        )
        changed = {name: value for name, value in other.items() if own[name] != value}
    return changed | dict(recipe.overrides)


@functools.cache
def settings(recipe: Recipe, preset: str) -> Settings:
    """The checked config of a recipe, with seed 0 and without paths; ``ValueError`` says what is wrong."""
    config = _config(recipe, preset)
    for name, value in overrides(recipe, preset).items():
        common.put(config, name, value)
    return check(config)


def identity(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that tell an experiment from others, ready for JSON.

    Left out are those of ``NO_IDENTITY``, those that the method does not read, and those of ``LATER`` at a value that
    stands there.
    """
    unread = {name for name in flat if name.startswith(("loss.", "sdd.", "features."))} - reads(flat)
    if flat["method"] == "plain":
        unread |= {name for name in flat if name.startswith("teacher.")}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in sorted(flat.items())
        if name not in NO_IDENTITY and name not in unread and not (name in LATER and value in LATER[name])
    }


def key(flat: Mapping[str, Any]) -> str:
    """A name for the experiment of a config."""
    return digest(identity(flat))


def digest(value: Any) -> str:
    """Twelve hex digits of the SHA-256 of ``value`` as JSON."""
    return sealed.digest(value)[:12]


def completed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A config of an earlier version with today's names; fields that came later have their default."""
    renamed = {RENAMED.get(name, (name,))[0]: value for name, value in flat.items()}
    renamed["method"] = methods.RENAMED.get(flat["method"], flat["method"])
    return _defaults() | renamed


def command_line(recipe: Recipe, preset: str) -> list[str]:
    """The config's flags."""
    flags = [f"--config=configs/{recipe.file}.py:{argument(recipe, preset)}"]
    return flags + [f"--config.{name}={_text(value)}" for name, value in overrides(recipe, preset).items()]


@functools.cache  # hundreds of lines ask for it
def _defaults() -> dict[str, Any]:
    return flatten(common.base().to_dict())


def _config(recipe: Recipe, preset: str):
    return importlib.import_module(f"sdd_jax.configs.{recipe.file}").get_config(argument(recipe, preset))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
