"""The drivers of ``tests/faults`` in a short form; their long forms are commands (docs/reliability.md)."""

import pytest

from tests.faults import kills

pytestmark = pytest.mark.slow


def test_runs_that_are_killed_end_as_uninterrupted_ones():
    counted = kills.main(kills=2, seed=1, epochs=4, names=["recipe"])
    assert counted.total() == 2


def test_commands_that_are_killed_make_what_uninterrupted_ones_make():
    counted = kills.main(kills=4, seed=2, epochs=2, names=["cache", "report", "table", "onnx"])
    assert counted.total() == 4
