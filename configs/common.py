"""What the config files share: every field with its default, and the argument after the colon.

A config file's ``get_config("teacher=resnet32x4,student=resnet8x4,method=sdd_dkd")`` chooses by name. The fields that
follow from the choice come from the table in ``configs/rows.py``, each with its source, and each can be overridden:
``--config.loss.options.temperature=2``.

Presets: ``released`` (the default) has the settings of the released code, ``paper`` those of the paper where the two
differ: pooling, consistency, reduction, warm-up, NKD. The preset does not choose the protocol: ``data.select_on`` does.

Methods: ``sdd_jax.methods`` has them. ``sdd_`` in front of a base loss applies it region by region, with the same
numbers unless a row says otherwise. ``own`` and ``sdd_own`` take ``--config.loss.base=MODULE:FUNCTION``, a base loss of
your own (docs/own_loss.md), with weights of 1 and no warm-up until fields say otherwise.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sdd_jax import methods
from sdd_jax.config import closest
from sdd_jax.configs import rows
from sdd_jax.fields import FIELDS, PRESETS


def parse(argument: str | None, **defaults: str) -> dict[str, str]:
    """``"name=value,name=value"`` over ``defaults``.

    Raises:
      ValueError: for a name that has no default or stands there twice, and for a method that is asked for without a
        teacher. ``teacher=none`` and ``method=plain`` make a plain run, each without the other.
    """
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
    if "teacher" not in seen and chosen.get("method") == methods.PLAIN:
        chosen["teacher"] = "none"
    if "method" in seen and chosen["method"] != methods.PLAIN and chosen.get("teacher") == "none":
        raise ValueError(f"method={chosen['method']} needs a teacher, and teacher=none was given: {argument!r}")
    return chosen


def base() -> ConfigDict:
    """Every field of ``sdd_jax.fields.FIELDS`` with its default."""
    fields = {
        name: placeholder(field.kind) if field.default is None else field.default for name, field in FIELDS.items()
    }
    return ConfigDict(unflatten_dict({"loss.options": {}, "features.options": {}, **fields}, sep="."))


def put(config: ConfigDict, name: str, value: Any) -> None:
    """Sets the field with the dotted ``name``; numbers and arrays of NumPy or JAX become plain ones.

    What a field may hold is checked with the whole config (``sdd_jax.config``). ``ValueError`` for one below a field.
    """
    *rooms, leaf = name.split(".")
    for room in rooms:
        if room not in config:
            config[room] = ConfigDict()
        config = config[room]
        if not isinstance(config, ConfigDict):
            raise ValueError(f"config has no field {name!r}{closest(name, FIELDS)}")
    with config.ignore_type():
        config[leaf] = _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def choose(config: ConfigDict, chosen: Mapping[str, str]) -> ConfigDict:
    """Fills the fields that follow from preset, method, teacher and student.

    Args:
      config: from ``base``, with the name of its data set; changed in place and returned.
      chosen: from ``parse``.
    """
    preset, teacher, student = chosen["preset"], chosen["teacher"], chosen["student"]
    method = methods.PLAIN if teacher == "none" else chosen["method"]
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    config.preset, config.method = preset, method
    config.model.teacher, config.model.student = teacher, student
    config.argument = {"preset": preset, "method": method, "teacher": teacher, "student": student}
    try:
        settled = rows.settle(config.data.name, teacher, student, method, preset)
    except ValueError as error:
        raise ValueError(f"method: {error}") from error
    for name, setting in settled.items():
        put(config, name, setting.value)
    return config
