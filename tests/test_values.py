"""The page of values: as its generator writes it, with every pair and a source for every value."""

from experiments import recipes, tables, values
from experiments.recipes import PRESETS, Recipe
from sdd_jax.config import BASES, METHODS


def test_the_page_of_values_is_as_generated():
    assert values.PAGE.read_text() == values.page(), "run python -m experiments.values"


def test_the_page_has_every_pair_of_the_tables_and_a_source_for_every_value():
    page = values.PAGE.read_text()
    for table in tables.OF_PAPER:
        for one in table.cells:
            if one.recipe is not None and one.recipe.teacher != "none":
                assert f"| {one.recipe.teacher} -> {one.recipe.student} | kd |" in page
    used = set()
    for data in values.DATA:
        for preset in PRESETS:
            for method in values.METHODS:
                sources = values.sources_of(data, method, preset)
                settings = recipes.settings(Recipe(data, *_pair(data), method), preset)
                read = recipes.identity(settings)
                wanted = {name for name, field in values.COLUMNS.items() if field in read}
                assert wanted <= sources.keys()
                used |= set("".join(sources[name] for name in wanted))
    assert used == set(values.SOURCES)


def test_the_page_has_every_base_loss_that_the_paper_does_not_use():
    ours = {name for name in BASES if name not in ("own", *values.METHODS)}
    assert ours == set(values.OTHERS)
    section = values.PAGE.read_text().partition("## Base losses that the paper does not use")[2].partition("## ")[0]
    assert "| dist | ImageNet, resnet34 -> resnet18 | 1 |  | 1 | 1 | 1 | 2 | 0 |" in section
    assert all(f"| {name} | CIFAR-100" in section and f"- {name}: " in section for name in ours)


def test_the_page_has_every_method_that_reads_features():
    assert {name for name, method in METHODS.items() if method.features} == set(values.FEATURES)
    section = values.PAGE.read_text().partition("## Distillation of features")[2].partition("## ")[0]
    assert "| sdd_kd_crd | 4 | 0.8 | 0.1 | 0.9 | {1,2} | 2 |" in section and "| sp |  | 3000 | 1 |  |  |  |" in section
    assert section.count("not stated") >= 3


def _pair(data):
    teacher, student = next(iter(values.DATA[data].PAIRS))
    return student, teacher
