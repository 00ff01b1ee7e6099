"""Training images that cannot be decoded, found before the order of a run is made, so that it can leave them out."""

import errno
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdd_jax.data import images

__all__ = ["POLICIES", "Skipped", "find", "listing"]

POLICIES = ("error", "skip")
SHOWN = 20  # paths that a report names
_AT_A_TIME = 32  # images of one task: a million tasks would be gigabytes
_GONE = (errno.ENOENT, errno.ELOOP)  # links that lead nowhere, or in a circle


class Skipped(NamedTuple):
    """The training images that a run leaves out; what ``skipped.json`` in its folder holds.

    Attributes:
      listing: :func:`listing` of the records that the numbers belong to.
      images: ``{number: why}``, in increasing order; the reason names the file.
    """

    listing: str
    images: Mapping[int, str]

    def same(self, other: "Skipped") -> bool:
        """Whether a run that leaves these out has the order of one that leaves out the ``other`` ones."""
        return self.listing == other.listing and self.images.keys() == other.images.keys()

    def to_json(self) -> dict[str, Any]:
        """Ready for a file."""
        return {"listing": self.listing, "images": {str(number): why for number, why in self.images.items()}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Skipped":
        """What :meth:`to_json` made."""
        return cls(content["listing"], {int(number): why for number, why in content["images"].items()})

    def report(self) -> str:
        """What is said of them at the start of a run: each, up to 20, and how many there are."""
        count = len(self.images)
        lines = [f"{count} training image{'' if count == 1 else 's'} skipped"]
        lines += list(self.images.values())[:SHOWN]
        return "\n  ".join(lines + ([f"and {count - SHOWN} more"] if count > SHOWN else []))


def listing(records: Any) -> str:
    """SHA-256, in hex, over names and labels: what makes a number mean the same image. Sizes are not in it."""
    digest = hashlib.sha256() if records.labels is None else hashlib.sha256(records.labels.astype("<i4").tobytes())
    for number in range(len(records)):
        digest.update(records.name(number).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def find(records: Any, numbers: np.ndarray) -> Skipped:
    """Opens and decodes the records of ``numbers``, each once, in threads; of several processes each a share.

    What is wrong with an image is skipped: content that cannot be decoded, too many pixels, a link that leads nowhere.
    What is wrong with the machine is not: any other error of the file system, too little memory, is raised.
    """
    processes = jax.process_count()
    share = numbers[jax.process_index() :: processes]
    parts = [share[start : start + _AT_A_TIME] for start in range(0, len(share), _AT_A_TIME)]
    with ThreadPoolExecutor() as pool:
        bad = {number: why for found in pool.map(lambda part: _problems(records, part), parts) for number, why in found}
    if processes > 1:
        mine = np.zeros(-(-len(numbers) // processes), bool)
        mine[: len(share)] = np.isin(share, list(bad))
        for process, row in enumerate(multihost_utils.process_allgather(mine)):
            theirs = numbers[process::processes]
            for number in set(theirs[row[: len(theirs)]].tolist()) - bad.keys():  # few: seen again to say why
                bad[number] = _problem(records, number) or f"{records.name(number)} cannot be read by process {process}"
    return Skipped(listing(records), dict(sorted(bad.items())))


def _problems(records: Any, numbers: np.ndarray) -> list[tuple[int, str]]:
    problems = ((number, _problem(records, number)) for number in numbers.tolist())
    return [(number, why) for number, why in problems if why is not None]


def _problem(records: Any, number: int) -> str | None:
    """What is wrong with an image; None if nothing is."""
    try:
        content, _ = records.read(number)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return f"{records.name(number)} cannot be opened: {error.strerror}"
    try:
        images.decode(content, records.name(number))
    except ValueError as error:
        return str(error)
    return None
