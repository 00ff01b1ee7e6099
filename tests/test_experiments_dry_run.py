"""Every row traced without data: each settings once, in processes that share what a pair's networks trace to."""

import jax
import pytest
from run_tiny_table import TINY

from experiments import dry_run, recipes, shared_traces, tables
from experiments.cells import Cell
from experiments.recipes import PAPER, PRESETS, RELEASED, Recipe
from sdd_jax import build
from sdd_jax.models import Classifier


def test_a_dry_run_traces_each_settings_once_and_counts(tmp_path):
    said = []
    bad = Cell(
        "wrong", "RN8 -> RN8", recipe=Recipe("fashion_mnist", "resnet8", overrides=(("data.train_examples", 10**6),))
    )
    missing = Cell("SP", "RN8 -> RN8", {"top1": 1.0}, missing="no SP here")
    table = TINY._replace(cells=(*TINY.cells, bad, missing))
    assert not dry_run.run([table, TINY._replace(name="again")], PRESETS, 1, said.append)
    results = [text for text in said if text.startswith(("ok", "FAILED"))]
    assert len(results) == 4 and sum("tiny, again" in text for text in results) == 3
    (failed,) = [text for text in results if text.startswith("FAILED")]
    assert "data.train_examples is 1000000, there are 60000" in failed
    assert sum("method=sdd_kd,preset=paper" in text for text in results) == 1
    assert "tiny: 5 rows x 1 columns: 3 run, 1 quoted, 1 not available yet, 4 distinct runs" in said
    assert "    not available yet: SP: no SP here" in said
    assert said[-1].startswith("4 distinct rows, 1 failed, presets released and paper; ")


SAMPLES = [
    ("table2", "SD-NKD with NKD's loss", "RN50 -> VGG8", PAPER, 3_965_028),
    ("table7", "{1,4}", "RN32x4 -> RN8x4", RELEASED, 1_233_540),
]


@pytest.mark.parametrize(("table", "row", "column", "preset", "parameters"), SAMPLES)
def test_rows_trace(table, row, column, preset, parameters):
    recipe = tables.TABLES[table].find(row, column).recipe
    traced = dry_run.trace_row(dry_run.Row(recipe, preset, (table,)))
    assert (traced.problem, traced.parameters) == ("", parameters)


def test_shared_networks_trace_to_the_same_shapes(monkeypatch):
    recipe = tables.TABLES["table7"].find("{1,4}", "RN32x4 -> RN8x4").recipe
    made = [build.trace(recipes.settings(recipe, preset).nested()) for preset in PRESETS]
    calls = []

    def counted(method):
        def call(network, *arguments, **keywords):
            calls.append(network)
            return method(network, *arguments, **keywords)

        return call

    for name in shared_traces.METHODS:
        shared = shared_traces._shared(counted(getattr(Classifier, name)))
        monkeypatch.setattr(Classifier, name, shared)
    for preset, expected in zip(PRESETS, made, strict=True):
        shared = build.trace(recipes.settings(recipe, preset).nested())
        assert jax.tree.structure(shared) == jax.tree.structure(expected)
        shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (shared, expected)]
        assert shapes[0] == shapes[1]
    seen = len(calls)
    build.trace(recipes.settings(recipe, preset).nested())
    assert len(calls) == seen > 0  # all of it was traced before


def test_a_dry_run_of_all_tables_has_every_run_once():
    rows = dry_run.distinct(tables.TABLES.values(), PRESETS)
    keys = {recipes.key(recipes.settings(row.recipe, row.preset)) for row in rows}
    assert len(keys) == len(rows)
    for table in tables.TABLES.values():
        for cell in table.cells:
            if cell.recipe is not None:
                assert {recipes.key(recipes.settings(cell.recipe, preset)) for preset in PRESETS} <= keys
    files = {row.recipe.file for row in rows}
    assert files == {"cifar100", "cub200", "imagenet", "fashion_mnist"}
