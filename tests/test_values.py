"""The page of values: as its generator writes it, with every pair and a source for every value."""

import re

from docs import values
from experiments import tables
from sdd_jax import methods
from sdd_jax.configs import rows
from sdd_jax.configs.pairs import PAIRS


def test_the_page_of_values_is_as_generated():
    assert values.PAGE.read_text() == values.page(), "run python -m docs.values"


def test_the_page_has_every_pair_of_the_tables_and_every_source():
    page = values.PAGE.read_text()
    for table in tables.OF_PAPER:
        for one in table.cells:
            if one.recipe is not None and one.recipe.teacher != "none":
                assert f"| {one.recipe.teacher} -> {one.recipe.student} | kd |" in page
    for data, pairs in PAIRS.items():
        for pair in pairs:
            for setting in rows.settle(data, *pair, "sdd_dkd", "released").values():
                assert f": {setting.source}\n" in page


def test_the_page_has_every_loss_that_the_paper_does_not_use():
    # nkd_as_released has nkd's numbers: tests/test_build.py compares them.
    section = values.PAGE.read_text().partition("## Base losses that the paper does not use")[2].partition("## ")[0]
    ours = methods.BASES.keys() - set(values.OF_PAPER) - {"nkd_as_released"}
    assert all(f"| {name} | CIFAR-100" in section and f"| {name} | ImageNet" in section for name in ours)
    section = values.PAGE.read_text().partition("## Feature losses")[2].partition("## ")[0]
    assert all(f"| {name} | " in section for name in methods.FEATURES)


def test_the_page_of_methods_tells_of_each_with_its_measured_cost():
    page = (values.PAGE.parents[1] / "docs" / "methods.md").read_text()
    told = set(re.findall(r"^### (.*)$", page, re.MULTILINE))
    told = {name for heading in told for name in re.findall(r"`(\w+)`", heading)}
    assert told == methods.BASES.keys() | methods.FEATURES.keys()
    measured = (values.PAGE.parents[1] / "benchmarks" / "results" / "methods.md").read_text()
    rows = [line for line in measured.splitlines() if line.startswith("| ")]
    assert "\n".join(rows) in page and {row.split()[1] for row in rows} >= methods.BASES.keys()
