"""A row of settings: the fields of some runs, with their source, and of which runs; `configs/rows.py` has them all."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sdd_jax import methods

RELEASED, PAPER = "released", "paper"


class Row(NamedTuple):
    """Fields of some runs, and their source. A condition that is left out holds for every run.

    Attributes:
      fields: dotted config fields and their values.
      source: where the values are from.
      data: data sets.
      pair: teacher and student.
      students: students.
      bases: base losses.
      regions: whether the base loss is applied region by region.
      features: feature losses.
      preset: "released" or "paper".
      section: the part of FILE that has them as well.
    """

    fields: Mapping[str, Any]
    source: str
    data: tuple[str, ...] | None = None
    pair: tuple[str, str] | None = None
    students: tuple[str, ...] | None = None
    bases: tuple[str, ...] | None = None
    regions: bool | None = None
    features: tuple[str, ...] | None = None
    preset: str | None = None
    section: str | None = None

    def holds(self, data: str, teacher: str, student: str, method: methods.Method, preset: str) -> bool:
        """Whether the row is about such a run."""
        return (
            (self.data is None or data in self.data)
            and (self.pair is None or (teacher, student) == self.pair)
            and (self.students is None or student in self.students)
            and (self.bases is None or method.base in self.bases)
            and (self.regions is None or method.regions == self.regions)
            and (self.features is None or method.features in self.features)
            and (self.preset is None or preset == self.preset)
        )
