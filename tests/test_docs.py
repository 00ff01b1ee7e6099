"""The pages are built without a warning, the generated ones are what their generators write, links lead somewhere."""

import os
import re
import subprocess
import sys
from unittest import mock

import commands
import jax
import jax.numpy as jnp
import pytest
from pages import PAGES, ROOT, blocks

from docs import command_line, fields, networks
from experiments.cells import RUN
from experiments.tables import TABLES
from sdd_jax.config import FIELDS
from sdd_jax.configs import common
from sdd_jax.models import model_names, model_stems

# Parameters, and millions of multiply-adds, of the official networks as measured there.
MEASURED = {
    ("resnet8", "cifar"): (83_892, 12.51),
    ("resnet14", "cifar"): (181_108, 26.66),
    ("resnet20", "cifar"): (278_324, 40.82),
    ("resnet32", "cifar"): (472_756, 69.13),
    ("resnet44", "cifar"): (667_188, 97.44),
    ("resnet56", "cifar"): (861_620, 125.75),
    ("resnet110", "cifar"): (1_736_564, 253.16),
    ("resnet8x4", "cifar"): (1_233_540, 177.07),
    ("resnet32x4", "cifar"): (7_433_860, 1_083.04),
    ("resnet18", "cifar"): (11_220_132, 555.47),
    ("resnet34", "cifar"): (21_328_292, 1_159.45),
    ("resnet50", "cifar"): (23_705_252, 1_298.01),
    ("resnet101", "cifar"): (42_697_380, 2_510.17),
    ("resnet152", "cifar"): (58_341_028, 3_722.32),
    ("wrn_16_1", "cifar"): (180_916, 26.66),
    ("wrn_16_2", "cifar"): (703_284, 101.12),
    ("wrn_40_1", "cifar"): (569_780, 83.29),
    ("wrn_40_2", "cifar"): (2_255_156, 327.61),
    ("vgg8", "cifar"): (3_965_028, 96.19),
    ("vgg11", "cifar"): (9_277_284, 209.44),
    ("vgg13", "cifar"): (9_462_180, 284.94),
    ("vgg16", "cifar"): (14_774_436, 398.18),
    ("vgg19", "cifar"): (20_086_692, 511.43),
    ("mobilenet_v2", "cifar"): (812_836, 6.52),
    ("shufflenet_v1", "cifar"): (949_258, 38.69),
    ("shufflenet_v2", "cifar"): (1_355_528, 44.50),
    ("resnet18", "imagenet"): (11_689_512, 1_814),
    ("resnet34", "imagenet"): (21_797_672, 3_664),
    ("resnet50", "imagenet"): (25_557_032, 4_089),
    ("resnet101", "imagenet"): (44_549_160, 7_801),
    ("resnet152", "imagenet"): (60_192_808, 11_514),
    ("mobilenet_v1", "imagenet"): (4_231_976, 568.74),
    ("resnet32x4", "cub200"): (7_463_400, 13_320),
    ("resnet8x4", "cub200"): (1_263_080, 2_220),
    ("vgg13", "cub200"): (9_513_480, 13_960),
    ("vgg8", "cub200"): (4_016_328, 4_710),
    ("resnet50", "cub200"): (23_917_832, 15_990),
    ("shufflenet_v1", "cub200"): (1_048_814, 516),
    ("mobilenet_v2", "cub200"): (942_856, 106.8),
}


QUICK = (
    "resnet8",
    "wrn_16_1",
    "vgg8",
    "mobilenet_v1",
    "mobilenet_v2",
    "shufflenet_v1",
    "shufflenet_v2",
)  # a family each


@pytest.mark.parametrize(
    ("name", "stem"), [pytest.param(*one, marks=[pytest.mark.slow] * (one[0] not in QUICK)) for one in MEASURED]
)
def test_counts_are_those_of_the_official_networks(name, stem):
    counts = networks.count(name, stem)
    parameters, macs = MEASURED[name, stem]
    assert counts.parameters == parameters
    assert counts.macs / 1e6 == pytest.approx(macs, rel=2e-3)  # given to three or four digits


@pytest.mark.slow
def test_every_network_is_on_the_page_and_the_page_is_as_generated():
    page = networks.page()
    assert page == networks.PAGE.read_text(), "run python -m docs.networks"
    sections = {section: re.search(r'stem="(\w+)"', section)[1] for section in page.split("\n## ")[1:]}
    assert set(sections.values()) == {stem for name in model_names() for stem in model_stems(name)}
    for section, stem in sections.items():
        named = re.findall(r"^\| (\w+) \| [\d,]+ \|", section, re.MULTILINE)
        assert sorted(named) == sorted(name for name in model_names() if stem in model_stems(name))
    for name, known in networks.PUBLISHED.items():
        counts, digits = networks.count(name, "imagenet", 224, 1000), len(str(known.gmacs).partition(".")[2])
        assert (counts.parameters, round(counts.macs / 1e9, digits)) == (known.parameters, known.gmacs), name


def test_every_field_is_on_the_page_with_its_default():
    assert fields.page() == fields.PAGE.read_text(), "run python -m docs.fields"
    assert all(field.meaning in fields.page() for field in FIELDS.values())
    text, tree = fields.PAGE.read_text(), common.base().to_dict()
    assert f"| `sdd.complementary_weight` | `{tree['sdd']['complementary_weight']}` | number, at least 0 |" in text


def test_every_command_is_on_the_page_as_it_is():
    with mock.patch.dict(os.environ, {"COLUMNS": str(command_line.COLUMNS)}):
        page = command_line.page(lambda command: commands.call(command, "--help").out)
    assert page == command_line.PAGE.read_text(), "run python -m docs.command_line"


@pytest.mark.parametrize("columns", [60, 200])
def test_help_fits_the_terminal_and_what_is_typed_is_whole(columns):
    with mock.patch.dict(os.environ, {"COLUMNS": str(columns)}):
        told = commands.call("train", "--help").out
    assert "sdd train --config=quickstart --workdir=runs/quickstart\n" in told
    typed = re.compile(r"sdd |    --")
    widest = max(len(line) for line in told.splitlines() if not typed.match(line))
    assert min(columns, 100) - 20 < widest <= min(columns, 100)


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path):
    pytest.importorskip("furo", reason="Furo is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", tmp_path]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    api = (tmp_path / "api.html").read_text()
    assert 'id="sdd_jax.sdd_loss"' in api and 'id="sdd_jax.models.create_model"' in api
    copy = (tmp_path / "_elsewhere" / "experiments" / "VALUES.html").read_text()
    assert (
        'href="_elsewhere/experiments/VALUES.html"' in (tmp_path / "experiments.html").read_text() and "<table" in copy
    )


def executed(page):
    """The names of the page's Python."""
    names = {"__name__": "page"}
    for block in blocks(ROOT / "docs" / page):
        if block.language == "python":
            exec(compile(block.text, page, "exec"), names)
    return names


def test_the_table_of_the_page_is_a_table():
    table = executed("experiments.md")["MATCHING"]
    assert table.rows == ("KD", "matching") and all(cell.recipe.student == "resnet8" for cell in table.cells)


def test_the_own_networks_of_the_page_are_networks():
    names = executed("own_network.md")
    for make in (names["vit"], names["convnet"], names["linear"]):  # as `create_model` calls a user's function
        model = make(num_classes=7, stem="cifar", dtype=jnp.float32)
        images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
        outputs, variables = model.init_with_output(jax.random.key(1), images, train=False)
        height, width = outputs.logit_map.shape[1:3]
        assert height == width > 1 and outputs.region_logits.shape == (2, 21, 7) and "params" in variables


def test_links_between_pages_and_the_files_they_name_are_there():
    found = 0
    for page in PAGES:
        text = page.read_text()
        links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if "://" not in link]
        assert all((page.parent / link).exists() for link in links), (page, links)
        named = re.findall(r"\b(?:configs|docs|tests)/[\w/.]*\w", text)
        named = [] if page.stem == "VALUES" else named  # there they are the official code's
        assert all((ROOT / name).exists() for name in named), (page, named)
        found += len(links) + len(named)
    assert found > 50


def test_the_index_lists_each_of_its_pages():
    listed, *trees = (ROOT / "docs" / "index.md").read_text().split("```{toctree}")
    pages = {line for tree in trees for line in tree.partition("```")[0].splitlines() if re.fullmatch(r"\w+", line)}
    assert len(pages) > 20 and not [name for name in pages if f"({name}.md)" not in listed]


def test_the_first_run_shows_the_message_of_today(tmp_path):
    shown = re.search(r"^sdd: method: .*$", (ROOT / "docs" / "first_run.md").read_text(), re.MULTILINE)[0]
    line = commands.call("train", "--config=quickstart:method=sdd_kdk", f"--workdir={tmp_path}/x").refused()
    assert line.startswith(shown.removesuffix("..."))


@pytest.mark.parametrize("name", ["fashion", "tiny", "table9"])
def test_the_page_of_tables_names_what_is_run(name):
    row = re.search(rf"^\| .*`{name}`.*$", (ROOT / "docs" / "experiments.md").read_text(), re.MULTILINE)[0]
    run = [cell for cell in TABLES[name].cells if cell.status == RUN]
    if name == "table9":
        assert all(cell.row in row for cell in run)
    else:
        recipe = next(cell.recipe for cell in run if cell.recipe.teacher != "none")
        assert f"{recipe.teacher} to {recipe.student}:" in row
