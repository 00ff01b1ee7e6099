"""The layout page names every room of the code, at the level that imports are held to, and only what is there."""

import re
from pathlib import Path

import pytest
from test_api import MODULES, ROOT, level_of, name_of

TEXTS = {name: (ROOT / name).read_text() for name in ("docs/layout.md", "CONTRIBUTING.md")}
PAGE = TEXTS["docs/layout.md"]
PACKAGE = [path for path in MODULES if path.is_relative_to(ROOT / "sdd_jax")]
ROOMS = sorted({f"sdd_jax/{path.relative_to(ROOT / 'sdd_jax').parts[0]}" for path in PACKAGE})
LEVELS = {
    name: int(level)
    for level, names in re.findall(r"^\| (\d) \| (.*?) \|", PAGE, re.MULTILINE)
    for name in re.findall(r"`([^`]+)`", names)
}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_of_the_package_is_told_of(room):
    room += "/" if (ROOT / room).is_dir() else ""
    told = re.search(r"^What each does:\n\n(.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)[1]
    assert f"`{room}`" in told


def test_every_folder_with_python_in_it_is_a_room():
    tracked = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/*.py")}
    named = set(re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE))
    assert {room for room in tracked if not room.startswith(("build", "runs", "plan"))} <= named
    assert all((ROOT / room).is_dir() for room in named)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_levels_are_those_that_imports_are_held_to(path):
    name = str(path.relative_to(ROOT))
    stated = max((room for room in LEVELS if name == room or (room.endswith("/") and name.startswith(room))), key=len)
    assert LEVELS[stated] == level_of(name_of(path)), (name, stated)


@pytest.mark.parametrize("page", TEXTS)
def test_files_and_what_is_in_them_are_there(page):
    """`path` (`name`, `name`): the file exists, and defines or assigns each name."""
    found = 0
    for name, inside in re.findall(r"`((?:[\w.]+/)+[\w.]*|\w+\.py)`(?: \(((?:`\w+`(?:, )?)+)\))?", TEXTS[page]):
        if name == "utils.py":  # there is none, as the page says
            continue
        assert (ROOT / name).exists(), name
        for wanted in re.findall(r"`(\w+)`", inside):
            text = (ROOT / name).read_text()
            definition = rf"^ *(?:def|class) {wanted}\b|^{wanted}(?:: .*)? = "
            assert re.search(definition, text, re.MULTILINE), (name, wanted)
            found += 1
    assert found > 40 or page != "docs/layout.md"


def test_links_are_there():
    for page, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / page).parent / link).exists(), (page, link)


def test_the_length_of_a_file_is_limited_as_the_page_says():
    assert "<= 350" in (Path(__file__).parent / "test_api.py").read_text() and "at most 350 lines" in PAGE
