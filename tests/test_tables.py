"""The paper's tables as data: counts, values and differences against the paper, and configs that every row has."""

import pytest

from experiments import cells, recipes, results, tables
from experiments.cells import QUOTED, RUN, difference, remarks
from experiments.recipes import PAPER, PRESETS, RELEASED, Recipe
from sdd_jax import build
from sdd_jax.configs import imagenet
from sdd_jax.configs.pairs import PAIRS
from sdd_jax.fields import FIELDS
from sdd_jax.models import model_names, model_stems

# Rows and columns as they stand in the paper: Tables 1 to 9, then the two of appendix 6.1.
SHAPES = {
    "table1": (14, 4),
    "table2": (17, 6),
    "table3": (8, 1),
    "table4": (8, 1),
    "table5": (13, 5),
    "table6": (4, 2),
    "table7": (4, 2),
    "table8": (5, 1),
    "table9": (4, 1),
    "appendix1": (5, 3),
    "appendix2": (3, 2),
}
# Cells that are run of the paper's own, and ours; all others are quoted.
STATUSES = {
    "table1": (9 * 4, 2 * 4),
    "table2": (10 * 6, 2 * 6),
    "table3": (8, 4),
    "table4": (8, 4),
    "table5": (8 * 5 + 3, 2 * 5),
    "table6": (8, 0),
    "table7": (8, 0),
    "table8": (5, 0),
    "table9": (4, 0),
    "appendix1": (15, 0),
    "appendix2": (6, 0),
}


def cell(table, row, column):
    found = tables.TABLES[table].find(row, column)
    assert found is not None, (table, row, column)
    return found


def identity(recipe, preset=RELEASED):
    return recipes.identity(recipes.settings(recipe, preset))


def test_every_table_has_the_papers_rows_and_columns():
    garments = ["fashion", "fashion_cross", "fashion_without_warmup"]
    photographs = ["tiny", "tiny_cross", "tiny_newer", "tiny_newer_2", "tiny_newer_3", "tiny_nkd", "tiny_tuning"]
    assert list(tables.TABLES) == [*SHAPES, *garments, *photographs]
    for name, shape in SHAPES.items():
        table = tables.TABLES[name]
        of_paper = [one for one in table.cells if not one.ours]
        assert (len({one.row for one in of_paper}), len(table.columns)) == shape, name
        assert len(of_paper) == shape[0] * shape[1], name
        assert len({(one.row, one.column) for one in table.cells}) == len(table.cells), name


@pytest.mark.parametrize("name", STATUSES)
def test_what_is_run_or_quoted(name):
    of_paper = [one for one in tables.TABLES[name].cells if not one.ours]
    run, own = STATUSES[name]
    assert sum(one.status == RUN for one in of_paper) == run
    assert sum(one.status == QUOTED for one in of_paper) == len(of_paper) - run
    assert len(tables.TABLES[name].cells) - len(of_paper) == own
    for one in tables.TABLES[name].cells:
        assert not one.ours or (one.status == RUN and not one.paper)


def test_only_the_paper_of_reviewkd_and_mgd_has_gaps():
    gaps = {(table.name, one.row) for table in tables.OF_PAPER for one in table.cells if not one.ours and not one.paper}
    assert gaps == {("table1", "ReviewKD"), ("table5", "ReviewKD"), ("table5", "MGD")}


VALUES = [
    ("table1", "teacher", "RN50 -> ShuffleNetV1", 79.34),
    ("table1", "MGD", "WRN40-2 -> VGG8", 73.33),
    ("table1", "SD-DKD", "RN32x4 -> MobileNetV2", 70.08),
    ("table1", "SD-NKD", "WRN40-2 -> MobileNetV2", 70.04),
    ("table2", "student", "RN32x4 -> ShuffleNetV2", 71.82),
    ("table2", "WCoRD", "VGG13 -> MobileNetV2", 69.47),
    ("table2", "KD", "RN32x4 -> ShuffleNetV1", 74.07),
    ("table2", "SD-DKD", "RN50 -> VGG8", 75.86),
    ("table3", "SD-NKD", "RN34 -> RN18", 72.33),
    ("table4", "SD-KD", "RN50 -> MobileNetV1", 72.24),
    ("table5", "SemCKD", "VGG13 -> MobileNetV2", 68.23),
    ("table5", "SD-DKD", "VGG13 -> VGG8", 68.67),
    ("table6", "consistent only", "RN32x4 -> RN8x4", 75.14),
    ("table6", "fusion", "RN32x4 -> RN8x4", 76.63),
    ("table7", "{1,4}", "RN32x4 -> ShuffleNetV1", 75.84),
    ("table8", "beta = 6", "RN32x4 -> ShuffleNetV1", 76.15),
    ("appendix1", "SDD-KD", "RN32x4 -> RN8x4", 75.63),
    ("appendix1", "SDD-KD + CRD", "WRN40-2 -> VGG8", 74.82),
    ("appendix2", "SDD-DKD", "RN32x4 -> RN8x4", 76.63),
]


@pytest.mark.parametrize(("table", "row", "column", "value"), VALUES)
def test_values_are_the_papers(table, row, column, value):
    assert cell(table, row, column).paper["top1"] == value


def test_imagenet_has_both_accuracies_and_table_9_has_times():
    assert cell("table3", "DKD", "RN34 -> RN18").paper == {"top1": 71.70, "top5": 90.41}
    assert cell("table4", "teacher", "RN50 -> MobileNetV1").paper == {"top1": 76.16, "top5": 92.86}
    times = {one.row: one.paper["ms"] for one in tables.TABLES["table9"].cells}
    assert times == {"CRD": 41, "ReviewKD": 26, "KD": 11, "SD-KD": 11}


# Where the difference that the paper prints is not that of its two accuracies: printed, and theirs.
OFF = {
    ("table1", "SD-KD", "WRN40-2 -> VGG8"): (0.57, 0.47),
    ("table2", "SD-KD", "RN50 -> MobileNetV2"): (2.10, 2.20),
    ("table2", "SD-KD", "RN32x4 -> ShuffleNetV2"): (2.32, 2.22),
    ("table2", "SD-NKD", "VGG13 -> MobileNetV2"): (0.82, 0.78),
    ("table3", "SD-KD", "RN34 -> RN18"): (0.84, 0.78),
    ("table5", "SD-KD", "RN50 -> ShuffleNetV1"): (3.25, 3.35),
    ("table5", "SD-DKD", "RN32x4 -> MobileNetV2"): (3.43, 3.03),
    ("table5", "SD-DKD", "RN32x4 -> ShuffleNetV1"): (1.06, 1.07),
}


def test_printed_differences_that_are_off_are_these_and_said_so():
    found = {}
    for table in tables.OF_PAPER:
        for one in table.cells:
            if one.printed is None:
                assert "the paper prints" not in remarks(table, one)
                continue
            real = difference(table, one, one.bases[0], "top1")
            if real != pytest.approx(one.printed, abs=1e-9):
                found[table.name, one.row, one.column] = (one.printed, real)
                assert f"prints {one.printed:+.2f}, its accuracies differ by {real:+.2f}" in remarks(table, one)
            else:
                assert "the paper prints" not in remarks(table, one)
    assert found == OFF


def test_differences_of_some_cells():
    table2, table5 = tables.TABLES["table2"], tables.TABLES["table5"]
    shuffle = cell("table2", "SD-KD", "RN32x4 -> ShuffleNetV1")
    assert difference(table2, shuffle, "KD", "top1") == 2.23
    assert difference(table5, cell("table5", "SD-DKD", "VGG13 -> MobileNetV2"), "DKD", "top1") == 6.41
    assert difference(table2, shuffle, "NKD with SD-NKD's loss", "top1") is None
    assert difference(table2, cell("table2", "SD-NKD", "RN50 -> VGG8"), "NKD with SD-NKD's loss", "top1") is None


def test_contradictions_go_with_their_cells():
    for table, row in (("table6", "fusion"), ("table7", "{1,2}"), ("appendix1", "SDD-KD")):
        text = remarks(tables.TABLES[table], cell(table, row, "RN32x4 -> RN8x4"))
        assert "76.63" in text and "75.63" in text and "75.59" in text
    assert "58.23" in cell("table5", "SemCKD", "VGG13 -> MobileNetV2").note
    assert "{1,2,4}" in cell("table5", "SD-KD", "VGG13 -> VGG8").note
    assert "+0.1.02" in cell("table2", "SD-NKD", "RN32x4 -> ShuffleNetV1").note


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("table", tables.TABLES.values(), ids=lambda table: table.name)
def test_every_row_that_is_run_has_a_config_that_checks(table, preset):
    for one in table.cells:
        assert all(table.find(base, one.column) is not None for base in one.bases), (one.row, one.bases)
        if one.status != RUN:
            continue
        settings = recipes.settings(one.recipe, preset)
        network = {settings["model.student"], settings["model.teacher"]} - {"none"}
        assert network <= set(model_names())
        assert all(settings["model.stem"] in model_stems(name) for name in network)
        assert settings["preset"] == (preset if one.recipe.teacher != "none" else RELEASED)
        data = {"imagenet": 1000, "cub200": 200, "cifar100": 100, "fashion_mnist": 10, "tiny_imagenet": 100}
        assert build.described(settings).num_classes == data[settings["data.name"]]


def test_the_columns_name_who_teaches_whom():
    names = {
        "RN32x4": "resnet32x4",
        "RN8x4": "resnet8x4",
        "RN50": "resnet50",
        "RN34": "resnet34",
        "RN18": "resnet18",
        "RN20": "resnet20",
        "RN8": "resnet8",
        "WRN40-2": "wrn_40_2",
        "VGG13": "vgg13",
        "VGG8": "vgg8",
        "MobileNetV1": "mobilenet_v1",
        "MobileNetV2": "mobilenet_v2",
        "ShuffleNetV1": "shufflenet_v1",
        "ShuffleNetV2": "shufflenet_v2",
    }
    for table in tables.TABLES.values():
        for one in table.cells:
            if one.recipe is None:
                continue
            teacher, student = (names[part] for part in one.column.split(" -> "))
            expected = {"teacher": ("none", teacher), "student": ("none", student)}
            assert (one.recipe.teacher, one.recipe.student) == expected.get(one.row, (teacher, student)), one


def test_what_several_tables_have_is_one_run():
    column = "RN32x4 -> ShuffleNetV1"
    kd = [("table2", "KD"), ("table6", "N/A (KD)"), ("table7", "{1}")]
    sdd = [("table2", "SD-KD"), ("table6", "fusion"), ("table7", "{1,2,4}"), ("table8", "beta = 2")]
    for preset in PRESETS:
        for same in (kd, [*sdd, ("appendix1", "SDD-KD")]):
            assert len({recipes.key(recipes.settings(cell(*one, column).recipe, preset)) for one in same}) == 1
    keys = [recipes.key(recipes.settings(one.recipe, RELEASED)) for one in tables.TABLES["table8"].cells]
    assert len(set(keys)) == 5


def test_the_rows_of_the_ablations():
    both = [identity(cell("table6", row, "RN32x4 -> RN8x4").recipe) for row in tables.TABLES["table6"].rows]
    weights = [(one.get("sdd.consistent_weight"), one.get("sdd.complementary_weight")) for one in both]
    assert weights == [(None, None), (1.0, 0.0), (0.0, 2.0), (1.0, 2.0)]
    assert both[0]["method"] == "kd" and both[3]["sdd.scales"] == [1, 2]
    scales = [identity(cell("table7", row, "RN32x4 -> ShuffleNetV1").recipe) for row in tables.TABLES["table7"].rows]
    assert [one.get("sdd.scales") for one in scales] == [None, [1, 2], [1, 4], [1, 2, 4]]
    betas = [identity(one.recipe)["sdd.complementary_weight"] for one in tables.TABLES["table8"].cells]
    assert betas == [1, 2, 4, 6, 8]


def test_the_rows_with_features():
    """SDD-KD's loss with another term; of SDD-SP scales, pooling and reduction alone, since it has no classifier."""
    column = "RN32x4 -> RN8x4"
    appendix = tables.TABLES["appendix1"]
    sp, crd, sdd, with_sp, with_crd = (identity(appendix.find(row, column).recipe) for row in appendix.rows)
    assert (sp["features.weight"], crd["features.weight"], sp["loss.task_weight"]) == (3000.0, 0.8, 1.0)
    assert [one["optim.clip_norm"] for one in (sp, with_sp, crd, with_crd)] == [40.0, 40.0, None, None]
    for term, both in ((sp, with_sp), (crd, with_crd)):
        of_features = {name: value for name, value in term.items() if name.startswith("features.")}
        assert both == sdd | of_features | {name: both[name] for name in ("method", "optim.clip_norm")}
        assert not any(name.startswith(("sdd.", "loss.options.")) for name in term)
    regions = {
        name: value for name, value in identity(cell("appendix2", "SDD-SP", column).recipe).items() if "sdd." in name
    }
    assert regions == {"sdd.scales": [1, 2], "sdd.pooling": "nested", "sdd.reduction": "mean"}
    same = [cell("appendix1", "CRD", column), cell("table9", "CRD", column)]
    assert len({recipes.key(recipes.settings(one.recipe, preset)) for one in same for preset in PRESETS}) == 1


def test_the_rows_of_our_own_study():
    column = "RN20 -> RN8"
    rows = {row: identity(cell("fashion", row, column).recipe) for row in tables.TABLES["fashion"].rows}
    assert all(one["data.train_examples"] == (20_000 if row == "teacher" else 10_000) for row, one in rows.items())
    for base in ("KD", "DKD", "LS-DKD"):
        of_base = [rows[base], rows[f"SD-{base} {{1,2}}"], rows[f"SD-{base}"]]
        assert [one.get("sdd.scales") for one in of_base] == [None, [1, 2], [1, 2, 4]]
        assert {one["loss.base"] for one in of_base} == {base.lower().replace("-", "_")}
        assert cell("fashion", f"SD-{base} {{1,2}}", column).bases == (base,)
        assert cell("fashion", f"SD-{base}", column).bases[:2] == (base, f"SD-{base} {{1,2}}")
    assert rows["SD-KD {1,4}"]["sdd.scales"] == [1, 4]
    weights = [rows[row]["sdd.complementary_weight"] for row in ("SD-KD weight 1", "SD-KD", "SD-KD weight 4")]
    assert weights == [1.0, 2.0, 4.0] and cell("fashion", "LS-DKD", column).bases == ("DKD",)
    assert len({recipes.digest(one) for one in rows.values()}) == len(rows) == 14


NO_WARMUP = [f"{row} without warm-up" for row in ("DKD", "SD-DKD", "LS-DKD", "SD-LS-DKD")]


@pytest.mark.parametrize(
    ("table", "row"),
    [("fashion", row) for row in ("teacher", "student", "KD", "SD-KD")]
    + [("fashion_without_warmup", row) for row in NO_WARMUP],
)
def test_committed_results_are_found_again(table, row):
    """Their lines have the field names of an earlier version."""
    key = recipes.key(recipes.settings(cell(table, row, "RN20 -> RN8").recipe, RELEASED))
    found = results.index(results.read_file(results.RESULTS / f"{table}.jsonl"))
    assert {seed for run, seed in found if run.config == key} == ({0} if row == "teacher" else {0, 1, 2, 3, 4})


def test_a_field_that_came_after_a_committed_line_is_in_no_key_while_it_is_unset():
    for line in results.read(results.RESULTS):
        unset = {name for name, field in FIELDS.items() if field.default is None}
        later = unset - line["settings"].keys()
        assert not later & recipes.identity(recipes.completed(line["settings"])).keys()
    tuned = cell("tiny_tuning", "KD 0.225", "RN20 -> RN8").recipe
    assert recipes.key(recipes.settings(tuned, RELEASED)) == "50093a8c0502"  # of runs that were begun before


def test_without_warmup_nothing_else_differs():
    """Every row with DKD of the study's tables, by its name, and some at another weight, which it says."""
    found = 0
    for one in [one for one in tables.TABLES["fashion_without_warmup"].cells if "without warm-up" in one.row]:
        row, *weight = one.row.removesuffix(" without warm-up").split(" weight ")
        now = identity(cell("fashion_cross" if "MobileNetV2" in one.column else "fashion", row, one.column).recipe)
        before = identity(one.recipe)
        assert (now.pop("loss.warmup_share"), now.pop("loss.warmup_epochs")) == (pytest.approx(20 / 240), 0)
        assert before.pop("loss.warmup_epochs") == 1
        assert before == now | ({"loss.distill_weight": float(weight[0])} if weight else {})
        found += 1
    others = [one for one in tables.TABLES["fashion_without_warmup"].cells if "without warm-up" not in one.row]
    assert len(tables.TABLES["fashion_without_warmup"].cells) == found + len(others) == 12 + 4
    assert all(
        identity(one.recipe) == identity(cell(table, one.row, one.column).recipe)
        for one in others
        for table in ("fashion", "fashion_cross")
        if tables.TABLES[table].find(one.row, one.column)
    )


def test_runs_that_choose_weights_count_apart():
    tuning, study, seeds = tables.TABLES["tiny_tuning"], tables.TABLES["tiny"], (0, 4, 5, 6)
    assert [tuning.counts(seed) for seed in seeds] == [False, False, True, False]
    assert [study.counts(seed) for seed in seeds] == [True, True, False, True]
    assert all(tables.TABLES["table1"].counts(seed) for seed in seeds)


def test_each_declared_difference_is_one_of_the_tables():
    declaring = {table.name: len(table.declared) for table in tables.TABLES.values() if table.declared is not None}
    fashion = {"fashion": 6, "fashion_cross": 3, "fashion_without_warmup": 0}
    photographs = {"tiny": 7, "tiny_cross": 4, "tiny_newer": 6, "tiny_newer_2": 6, "tiny_newer_3": 4, "tiny_nkd": 4}
    assert declaring == fashion | photographs | {"table1": 4, "table2": 4, "table3": 5, "table4": 5, "table5": 4}
    for table in tables.TABLES.values():
        if table.declared is not None:
            assert table.family == {(column, row, base) for row, base in table.declared for column in table.columns}
        else:
            assert len(table.family) == sum(len(one.bases) for one in table.cells)


def test_the_pair_across_families_has_the_same_teacher_and_a_fifth_of_the_rate():
    (column,) = tables.TABLES["fashion_cross"].columns
    rows = {row: identity(cell("fashion_cross", row, column).recipe) for row in tables.TABLES["fashion_cross"].rows}
    assert rows.pop("teacher") == identity(cell("fashion", "teacher", "RN20 -> RN8").recipe)
    assert {one["optim.learning_rate"] for one in rows.values()} == {0.02}
    assert list(rows) == ["student", "KD", "SD-KD", "DKD", "SD-DKD"]


def test_the_weights_of_the_photographs_are_those_that_held_out_images_chose():
    held_out = {}
    for line in results.read_file(results.RESULTS / "tiny_tuning.jsonl"):
        held_out[line["config_hash"]] = line["held_out"]["accuracy"]
    for base, tried in tables.TINY_TRIED.items():
        runs = {weight: cell("tiny_tuning", f"{base} {weight}", "RN20 -> RN8").recipe for weight in tried}
        found = {weight: held_out.get(recipes.digest(identity(recipe))) for weight, recipe in runs.items()}
        assert None in found.values() or tables.TINY_WEIGHTS[base] == max(found, key=found.get), (base, found)


def test_the_photographs_are_studied_at_weights_that_were_tried_with_more_distillation_beside_regions():
    cells = [
        one
        for table in ("tiny", "tiny_newer", "tiny_newer_2", "tiny_newer_3", "tiny_nkd")
        for one in tables.TABLES[table].cells
    ]
    rows = {one.row: identity(one.recipe) for one in cells}
    assert all(rows[one.row] == identity(one.recipe) for one in cells)  # what both tables have is the same
    tried = {one.row: identity(one.recipe) for one in tables.TABLES["tiny_tuning"].cells}
    weight = {row: one["loss.distill_weight"] for row, one in rows.items() if "loss.distill_weight" in one}
    for base, chosen in tables.TINY_WEIGHTS.items():
        assert tried[f"{base} {chosen}"] == rows[base]
        regions = f"SD-{base} {{1,2}}" if base != tables.NKD_OF_SDD else "SD-NKD {1,2}"
        assert rows[regions]["sdd.scales"] == [1, 2]
        if base != "NKD":  # by regions it has the other loss, and the weight of that
            assert weight[regions] == weight[base]
    assert [weight[f"KD{times}"] / weight["KD"] for times in ("", " x2", " x4")] == [1, 2, 4]
    one, two = rows["SD-KD {1,2} weight 1"], rows["SD-KD {1,2}"]
    assert one == two | {"sdd.complementary_weight": 1.0} and rows["SD-KD"] == two | {"sdd.scales": [1, 2, 4]}
    (column,) = tables.TABLES["tiny_cross"].columns
    across = {one.row: identity(one.recipe) for one in tables.TABLES["tiny_cross"].cells}
    assert across.pop("teacher") == rows["teacher"] and column == "RN20 -> MobileNetV2"
    for row, found in across.items():
        assert found == rows[row] | {"model.student": "mobilenet_v2"}
    assert all(
        one["data.in_memory"] is True and one["data.image_size"] == 32 for one in (*rows.values(), *tried.values())
    )


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table4", "table5"])
def test_ours_differ_from_their_base_by_sdd_alone(table):
    columns = tables.TABLES[table].columns
    pairs = [("SD-NKD with NKD's loss", "NKD"), ("SD-NKD", "NKD with SD-NKD's loss")]
    if table in ("table3", "table4"):
        pairs += [("SD-KD with KD's loss", "KD"), ("SD-KD", "KD with SD-KD's loss")]
    for column in columns:
        for row, base in pairs:
            assert base in cell(table, row, column).bases
            first, second = (identity(cell(table, name, column).recipe) for name in (row, base))
            differ = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
            assert differ == {"method", *(name for name in first if name.startswith("sdd."))}
        released = [identity(cell(table, name, column).recipe) for name in ("NKD", "NKD with SD-NKD's loss")]
        assert released[0]["loss.options.gamma"] == 1.5 != released[1]["loss.options.gamma"]
        # The paper's preset has one base loss for both already.
        paper = [identity(cell(table, name, column).recipe, PAPER) for name in ("NKD", "NKD with SD-NKD's loss")]
        assert paper[0] == paper[1]


def test_a_runs_key_is_of_what_is_computed_and_of_nothing_else():
    recipe = cell("table2", "KD", "RN32x4 -> ShuffleNetV1").recipe
    settings = recipes.settings(recipe, RELEASED)
    same = {
        "seed": 7,
        "data.path": "elsewhere",
        "teacher.run": "runs/a",
        "steps_per_call": 50,
        "sdd.scales": (1, 2),  # KD reads none
        "features.weight": 3.0,
    }
    assert recipes.key({**settings, **same}) == recipes.key(settings)
    for other in ({"epochs": 200}, {"data.train_examples": 100}, {"data.select_on": "validation"}, {"batch_size": 32}):
        assert recipes.key({**settings, **other}) != recipes.key(settings)
    for other in ({"loss.options.temperature": 2.0}, {"loss.warmup_epochs": 1}, {"model.dtype": "bfloat16"}):
        assert recipes.key({**settings, **other}) != recipes.key(settings)
    student = recipes.settings(cell("table2", "student", "RN32x4 -> ShuffleNetV1").recipe, RELEASED)
    assert recipes.key({**student, "loss.task_weight": 2.0, "preset": "paper"}) == recipes.key(student)


def test_a_field_that_came_later_is_taken_for_its_default():
    settings = recipes.settings(cell("fashion", "SD-KD", "RN20 -> RN8").recipe, RELEASED)
    before = {name: value for name, value in recipes.identity(settings).items() if name != "optim.clip_norm"}
    assert recipes.key(recipes.completed(before)) == recipes.key(settings)
    assert recipes.key(recipes.completed(before | {"optim.clip_norm": 1.0})) != recipes.key(settings)


def test_the_command_line_of_a_row():
    recipe = cell("table7", "{1,4}", "RN32x4 -> RN8x4").recipe
    assert recipes.command_line(recipe, PAPER) == [
        "--config=configs/cifar100.py:teacher=resnet32x4,student=resnet8x4,method=sdd_kd,preset=paper",
        "--config.sdd.scales=1,4",
    ]
    same = cell("table1", "SD-NKD with NKD's loss", "WRN40-2 -> MobileNetV2").recipe
    assert recipes.command_line(same, RELEASED)[1:] == [
        "--config.loss.options.gamma=1.5",
        "--config.loss.options.temperature=1.0",
    ]
    assert recipes.command_line(same, PAPER)[1:] == []


def test_an_override_of_no_field_is_refused():
    with pytest.raises(ValueError, match="no field 'sdd.scale'"):
        recipes.settings(Recipe("cifar100", "resnet8x4", overrides=(("sdd.scale", (1, 2)),)), RELEASED)


def test_unknown_tables_are_named_with_those_there_are():
    assert [table.name for table in tables.choose("all")] == list(tables.TABLES)
    with pytest.raises(
        ValueError,
        match="'tabel1'; the closest is 'table1', known are table1, .*fashion_without_warmup, .*tiny_tuning, all",
    ):
        tables.choose("tabel1")


# ---------------------------------------------------------------------- CUB-200 and ImageNet


def test_cub200_is_run_as_its_scripts_and_yaml_files_say():
    expected = {
        ("resnet32x4", "mobilenet_v2"): (0.01, 8.0),
        ("resnet32x4", "shufflenet_v1"): (0.01, 8.0),
        ("vgg13", "mobilenet_v2"): (0.01, 6.0),
        ("vgg13", "vgg8"): (0.05, 6.0),
        ("resnet50", "shufflenet_v1"): (0.01, 8.0),
    }
    assert set(PAIRS["cub200"]) == set(expected)
    for (teacher, student), (rate, beta) in expected.items():
        settings = recipes.settings(Recipe("cub200", student, teacher, "sdd_dkd"), RELEASED)
        assert (settings["optim.learning_rate"], settings["loss.options.beta"]) == (rate, beta)
        assert (settings["epochs"], settings["batch_size"]) == (240, 64)
        assert settings["optim.milestones"] == (150, 180, 210) and settings["optim.weight_decay"] == 5e-4
        assert settings["sdd.scales"] == (1, 2, 4) and settings["loss.warmup_epochs"] == 20
        assert settings["data.select_on"] == "test" and settings["model.stem"] == "cub200"
        paper = recipes.settings(Recipe("cub200", student, teacher, "sdd_dkd"), PAPER)
        assert paper["sdd.scales"] == ((1, 2) if student == "vgg8" else (1, 2, 4))
        nkd = recipes.settings(Recipe("cub200", student, teacher, "sdd_nkd"), RELEASED)
        assert (nkd["loss.options.temperature"], nkd["loss.options.gamma"]) == (4.0, beta)


def test_imagenet_gives_sd_kd_what_kd_has_under_the_papers_preset_alone():
    def weights(method, preset):
        loss = imagenet.get_config(f"method={method},preset={preset}").loss
        return loss.options.temperature, loss.task_weight, loss.distill_weight

    assert weights("kd", RELEASED) == weights("kd", PAPER) == weights("sdd_kd", PAPER) == (1.0, 0.5, 0.5)
    assert weights("sdd_kd", RELEASED) == (4.0, 0.1, 0.9)


def test_the_measures_have_names():
    assert all(measure in cells.MEASURES for table in tables.TABLES.values() for measure in table.measures)
