"""The dry run: each settings checked once, and traces until every part of a row was in one."""

import pytest
from run_tiny_table import TINY

from experiments import dry_run, plan, recipes, tables
from experiments.cells import Cell
from experiments.recipes import PRESETS, RELEASED, Recipe

ALL = plan.chosen(tables.TABLES.values(), [])


def test_a_dry_run_has_each_settings_once_and_counts(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(
        "def loss(student_logits, teacher_logits, labels):\n"
        "    if len(student_logits) > 2:  # not in the check, which tries it with two examples\n"
        "        raise TypeError('broken on purpose')\n"
        "    return (student_logits - teacher_logits).sum(-1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = TINY.find("SD-KD", "RN8 -> RN8").recipe
    own = recipe._replace(method="sdd_own", overrides=(*recipe.overrides, ("loss.base", "broken:loss")))
    cells = {
        "many": Recipe("fashion_mnist", "resnet8", overrides=(("data.train_examples", 10**6),)),
        "broken": own,
        "relies on it": own._replace(overrides=(*own.overrides, ("loss.distill_weight", 2.0))),
    }
    table = TINY._replace(cells=(*TINY.cells, *(Cell(name, "RN8 -> RN8", recipe=made) for name, made in cells.items())))
    wanted, said = [table, TINY._replace(name="again")], []
    assert not dry_run.run(wanted, plan.chosen(wanted, []), [RELEASED], 1, said.append)
    results = [text for text in said if text.startswith(("ok", "FAILED"))]
    assert len(results) == 5 and sum("tiny, again | 77,754 parameters" in text for text in results) == 2
    broken, relies, many = (text for text in results if text.startswith("FAILED"))
    assert "data.train_examples is 1000000, there are 60000" in many
    assert all("TypeError: broken on purpose" in text for text in (broken, relies)) and "distill_weight=2.0" in relies
    assert "tiny: 6 rows x 1 columns: 5 run, 1 quoted, 5 distinct runs" in said
    assert said[-1].startswith("5 distinct rows, 4 traced, 3 failed, presets released; ")


def row_of(table, row, column, preset):
    return dry_run.Row(tables.TABLES[table].find(row, column).recipe, preset, (table,))


def test_a_row_traces():
    traced = dry_run.trace(row_of("table7", "{1,4}", "RN32x4 -> RN8x4", RELEASED))
    assert traced == (1_233_540, "")


@pytest.mark.slow
def test_every_table_passes_its_dry_run():
    said = []
    assert dry_run.run(list(tables.TABLES.values()), ALL, PRESETS, 2, said.append), "\n".join(said)


def test_a_row_is_traced_for_what_no_row_before_it_had():
    def parts(*rows, table="table1", column="WRN40-2 -> VGG8", preset=RELEASED):
        found = zip(*(dry_run.parts(row_of(table, row, column, preset)) for row in rows), strict=True)
        return [len(set(part)) for part in found]

    assert parts("KD", "DKD", "NKD", "NKD with SD-NKD's loss") == [1, 1, 3]  # the last differs in numbers
    assert parts("{1,2}", "{1,4}", "{1,2,4}", table="table7", column="RN32x4 -> RN8x4") == [1, 3, 1]
    assert parts("SP", "CRD", "SDD-KD", "SDD-KD + SP", table="appendix1") == [3, 2, 4]
    assert parts("teacher", "student", "KD", "SD-KD") == [3, 2, 3]
    both = [dry_run.parts(row_of("table1", "SD-KD", "WRN40-2 -> VGG8", preset)) for preset in PRESETS]
    assert [one == other for one, other in zip(*both, strict=True)] == [True, False, False]


def test_a_dry_run_of_all_tables_has_every_run_once_and_traces_every_pair():
    rows = dry_run.distinct(ALL, PRESETS)
    keys = {recipes.key(row.settings) for row in rows}
    assert len(keys) == len(rows)
    for _, cell in ALL:
        assert {recipes.key(recipes.settings(cell.recipe, preset)) for preset in PRESETS} <= keys
    assert {row.recipe.file for row in rows} == {"cifar100", "cub200", "imagenet", "fashion_mnist", "tiny_imagenet"}
    traced = set(dry_run.firsts(rows).values())
    networks = [{(row.recipe.file, row.recipe.teacher, row.recipe.student) for row in some} for some in (rows, traced)]
    assert networks[0] == networks[1] and len(traced) < len(rows) / 4
    assert {row.settings["method"] for row in traced} == {row.settings["method"] for row in rows}
