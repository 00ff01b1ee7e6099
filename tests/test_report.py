"""The whole report, of runs written down rather than trained, and what a browser makes of it."""

import json
import re
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import call
from served import variables

from sdd_jax import data, saved, sealed
from sdd_jax.build import check
from sdd_jax.configs import quickstart
from sdd_jax.data.augment import normalize
from sdd_jax.models import create_model
from sdd_jax.models.classifier import HEAD
from sdd_jax.regions import Regions
from sdd_jax.reporting import figures, measures, study, write_report
from sdd_jax.reporting.groups import baseline_of, find_runs, group_runs
from sdd_jax.training import run_dir
from sdd_jax.training.compiling import jit_network

for package in ("jinja2", "matplotlib", "sklearn"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[report]'")

STEP, EPOCHS = 40, 4
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
NAME = "served:small"
MODEL = create_model(NAME, 10)
# How many training images the head of each network is fitted to.
RUNS = {
    "teacher": 1400, "plain/seed_0": 60, "plain/seed_1": 70, "kd/seed_0": 150, "kd/seed_1": 180, "sdd_kd/seed_0": 300,
    "sdd_kd/seed_1": 350,
}  # fmt: skip
PER_SCALE = {
    "consistent_loss_1x1": 0.1, "consistent_loss_2x2": 0.2, "consistent_loss_4x4": 0.3, "complementary_loss_2x2": 0.15,
    "complementary_loss_4x4": 0.25, "complementary_share_2x2": 0.25, "complementary_share_4x4": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", select_on="test")


@pytest.fixture(scope="module")
def networks(digits):
    """``{run: variables}``: a random trunk each, and a head fitted to its features by least squares."""
    made = {}
    for seed, (name, count) in enumerate(RUNS.items()):
        made[name] = values = variables(MODEL, (32, 32, 1), seed)
        rows = np.random.default_rng(seed).permutation(len(digits.train.labels))[:count]
        features = forward(values, digits.train.images[rows], digits)[1].astype(np.float64)
        design, wanted = np.pad(features, ((0, 0), (0, 1)), constant_values=1), np.eye(10)[digits.train.labels[rows]]
        weights = np.linalg.solve(design.T @ design + 0.1 * np.eye(17), design.T @ (6 * wanted)).astype(np.float32)
        values["params"]["head"] = {"kernel": weights[:-1], "bias": weights[-1]}
    return made


@jax.jit
def _apply(values, images):
    outputs = MODEL.apply(values, images, train=False)
    return outputs.logits, outputs.feature_maps[HEAD].mean((1, 2))


def forward(values, images, digits):
    """Logits and features, normalised by hand and by the model itself."""
    padded = np.concatenate([images, np.zeros((1400 - len(images), *images.shape[1:]), np.uint8)])
    found = _apply(values, (padded.astype(np.float32) / 255 - digits.mean[0]) / digits.std[0])
    return [np.asarray(array)[: len(images)] for array in found]


@pytest.fixture(scope="module")
def logits(digits, networks):
    """``{run: [N, K]}`` on the test images."""
    return {name: forward(values, digits.test.images, digits)[0] for name, values in networks.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits, networks, logits):
    """The folder of the runs; the second SDD run has not logged the metrics of each scale."""
    root = tmp_path_factory.mktemp("report") / "runs"
    for name in RUNS:
        write_run(root, name, networks, {one: accuracy(values, digits) for one, values in logits.items()})
    return root


def accuracy(values, digits):
    return float((values.argmax(-1) == digits.test.labels).mean())


def write_run(root, name, networks, accuracies, teacher="runs/teacher", dtype="float32", stores=None):
    method, _, seed = name.partition("/seed_")
    config = quickstart.get_config(f"run={method}")
    config.epochs, config.seed, config.argument.student = EPOCHS, int(seed or 0), NAME
    config.model.student, config.model.dtype = NAME, dtype
    distills = method in ("kd", "sdd_kd")
    if distills:
        config.teacher.run, config.model.teacher, config.argument.teacher = str(teacher), NAME, NAME
        config.teacher.cache = stores and "runs/cache"
    folder = root / name
    run_dir.open_folder(folder, check(config.to_dict()).nested())
    checkpoints = saved.checkpoints(folder)
    state = {"params": {"student": networks[name]["params"]}, "batch_stats": networks[name]["batch_stats"]}
    terms = {"complementary_share": 0.4, **({} if seed == "1" else PER_SCALE)} if method == "sdd_kd" else {}
    lines = []
    for epoch in range(1, EPOCHS + 1):
        shared = {"step": 10 * epoch, "epoch": float(epoch), "elapsed": 15.0 * epoch}
        lines.append({"kind": "train", **shared, "loss": 2 / epoch, "distill_loss": 1.0, **terms})
        result = {"accuracy": accuracies[name] * epoch / EPOCHS, "loss": 2 / epoch, "examples": 359}
        lines += [{"kind": "evaluation", **shared, "split": split, **result} for split in ("validation", "test")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = {**shared, **result}
    done = {"select_on": "validation", "last": last, "best": last, "steps": STEP, "log": sealed.digest(lines)}
    checkpoints.save(state, STEP, {**done, "inputs": {"form of the teacher's cache": stores}})
    checkpoints.close()
    noted = accuracies["teacher"] if distills else None
    done |= {"seed": int(seed or 0), "teacher_accuracy": noted, "seconds": 60.0}
    run_dir.write_sealed(folder, run_dir.DONE, done)


@pytest.fixture(scope="module", autouse=True)
def few_points():
    """Most of a page's time goes into its t-SNE."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "POINTS", 60)
        yield


@pytest.fixture(scope="module")
def page(runs):
    return write_report([runs / "plain", runs / "kd", runs / "sdd_kd"], runs.parent / "out", allow=[NAME])


def cells_of(text, first):
    """The table row that begins with ``first``."""
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL) if f"<td>{first}</td>" in row)
    return [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]


def test_the_table_holds_what_the_networks_answer(page, digits, logits):
    text = page.read_text()
    teacher = logits["teacher"]
    for method, label in (
        ("plain", "served:small plain"),
        ("kd", "served:small KD"),
        ("sdd_kd", "served:small SDD-KD"),
    ):
        answers = [logits[f"{method}/seed_{seed}"] for seed in (0, 1)]
        row = cells_of(text, label)
        right = 100 * np.array([accuracy(values, digits) for values in answers])
        assert row[1:4] == ["2", *[f"{right.mean():.2f} ± {right.std(ddof=1):.2f}"] * 2]
        same = 100 * np.array([(values.argmax(-1) == teacher.argmax(-1)).mean() for values in answers])
        said = f"{same.mean():.2f} ± {same.std(ddof=1):.2f}" if method != "plain" else "–"
        assert row[4] == said and row[7] == "60 ± 0"
    assert cells_of(text, "served:small (teacher)")[1:4] == ["1", f"{100 * accuracy(teacher, digits):.2f}", "–"]


def test_the_gallery_begins_with_the_image_that_changed_most(page, digits, logits):
    text, labels = page.read_text(), digits.test.labels
    kinds = {}
    for method in ("kd", "sdd_kd"):
        answers = [logits[f"{method}/seed_{seed}"].astype(np.float64) for seed in (0, 1)]
        chances = [np.exp(v - v.max(1, keepdims=True)) for v in answers]
        own = [(c / c.sum(1, keepdims=True))[np.arange(len(labels)), labels] for c in chances]
        kinds[method] = sum(v.argmax(-1) == labels for v in answers), np.mean(own, axis=0)
    won, gain = (kinds["sdd_kd"][n] - kinds["kd"][n] for n in (0, 1))
    expected = [
        max(
            (rows for rows in range(len(labels)) if sign * won[rows] > 0), key=lambda r: (sign * won[r], sign * gain[r])
        )
        for sign in (1, -1)
    ]
    put_right, put_wrong = text.split("Put right: ")[1].split("Put wrong: ")
    first = [int(re.search(r'data-image="(\d+)"', part)[1]) for part in (put_right, put_wrong)]
    assert first == expected
    assert put_right.count("<article") <= 6 and put_right.count('data-scale="4"') == put_right.count("<article")


def test_what_is_missing_is_said(page):
    notes = re.search(r'<aside class="notes">.*?</aside>', page.read_text(), re.DOTALL)[0]
    assert re.findall(r"<li>(.*?)</li>", notes) == [
        "served:small SDD-KD: the runs of seed 1 have not logged what each scale adds to the loss"
    ]


def test_its_figures_lie_beside_it(page):
    names = ("calibration", "classes_1", "classes_2", "correlation", "curves", "regions", "tsne")
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", *(f"report_{n}.png" for n in names)]
    text = page.read_text()
    addresses = re.findall(r'(?:src|srcset|href)="([^"]*)"|url\(([^)]*)\)', text)
    assert all(either.startswith(("data:", "#")) for pair in addresses for either in pair if either)


def test_a_moved_teacher_is_said_to_be_missing(runs, tmp_path):
    shutil.copytree(runs / "sdd_kd" / "seed_0", tmp_path / "alone")
    text = write_report([tmp_path / "alone"], tmp_path / "page.html", allow=[NAME]).read_text()
    assert "runs/teacher, is not there" in text and "no run of its base method" in text and "<article" not in text
    assert (tmp_path / "page_curves.png").exists() and not (tmp_path / "page_correlation.png").exists()


def test_another_network_in_the_teachers_place_is_refused(runs, tmp_path):
    shutil.copytree(runs / "kd", tmp_path / "runs" / "kd")
    shutil.copytree(runs / "plain" / "seed_1", tmp_path / "runs" / "teacher")
    with pytest.raises(ValueError, match="it is another network, or the data are others"):
        write_report([tmp_path / "runs" / "kd"], tmp_path / "out", allow=[NAME])


def test_each_group_is_held_against_its_own_teacher(runs, tmp_path, networks, digits, logits):
    accuracies = {name: accuracy(values, digits) for name, values in logits.items()}
    places = [tmp_path / f"{place}/teachers/resnet20/seed_0" for place in ("first", "other")]
    for place, name in zip(places, ("teacher", "plain/seed_1"), strict=True):
        shutil.copytree(runs / name, place)
        write_run(place.parents[2], "kd/seed_0", networks, {**accuracies, "teacher": accuracies[name]}, teacher=place)
    groups = group_runs(find_runs([place.parents[2] / "kd" for place in places], [NAME]))
    held = study.Study(groups, None, [NAME])
    assert [held.teachers[group.label].folder for group in groups] == places
    names = [one.label for one in held.every_teacher()]
    assert names == [f"{NAME} (teacher)", f"{NAME} (teacher) [2]"]


def test_each_network_and_its_teacher_see_images_as_its_run_did(runs, tmp_path, networks, digits):
    root = shutil.copytree(runs, tmp_path / "runs")
    other = SimpleNamespace(mean=(0.5,), std=(0.9,))
    expected = {name: forward(networks[name], digits.test.images, other)[0] for name in ("kd/seed_0", "teacher")}
    about = {"class_names": digits.class_names, "image_shape": [32, 32, 1], "mean": [0.5], "std": [0.9]}
    run_dir.keep_data(root / "kd" / "seed_0", about)
    done = run_dir.read_done(root / "kd" / "seed_0")
    done["last"]["accuracy"], done["teacher_accuracy"] = (accuracy(values, digits) for values in expected.values())
    run_dir.write_sealed(root / "kd" / "seed_0", run_dir.DONE, done)
    held = study.Study(group_runs(find_runs([root / "plain" / "seed_0", root / "kd" / "seed_0"], [NAME])), None, [NAME])
    assert held.notes == []
    np.testing.assert_allclose(held.logits(held.groups[1])[0], expected["kd/seed_0"], atol=1e-4)
    answers = held.teachers[held.groups[1].label]
    np.testing.assert_allclose(answers.logits, expected["teacher"], atol=1e-4)
    regions = held.regions(answers, digits.test.images[:3], Regions((1,), "nested"))[1]
    np.testing.assert_allclose(regions, expected["teacher"][:3], atol=1e-4)


def test_a_teacher_is_asked_in_the_dtype_that_its_student_asked_it_in(runs, tmp_path, networks, digits, logits):
    shutil.copytree(runs / "teacher", tmp_path / "runs" / "teacher")
    rough = jit_network(partial(create_model(NAME, 10, dtype=jnp.bfloat16).apply, train=False))
    images = normalize(digits.test.images, digits.mean, digits.std, jnp.float32)
    wanted = np.asarray(rough(networks["teacher"], images).logits, np.float32)
    noted = {"kd/seed_0": 0.5, "teacher": accuracy(wanted, digits)}
    write_run(tmp_path / "runs", "kd/seed_0", networks, noted, dtype="bfloat16")
    groups = group_runs(find_runs([tmp_path / "runs" / "kd"], [NAME]))
    answers = study.Study(groups, None, [NAME]).teachers[groups[0].label]
    off = [np.abs(answers.logits - other).mean() for other in (wanted, logits["teacher"])]
    assert off[0] < off[1] / 10


def test_every_seed_had_the_teacher_that_is_there(runs, tmp_path):
    root = shutil.copytree(runs, tmp_path / "runs")
    done = run_dir.read_done(root / "kd" / "seed_1")
    run_dir.write_sealed(root / "kd" / "seed_1", run_dir.DONE, done | {"teacher_accuracy": 0.5})
    with pytest.raises(ValueError, match="the teacher of .*kd/seed_1 had 50.00 %: it is another network"):
        study.Study(group_runs(find_runs([root / "kd"], [NAME])), None, [NAME])


def test_a_cache_that_changes_what_the_teacher_says_makes_it_another_teacher(runs, tmp_path, networks):
    kept = {"exact": ("float16", 0), "live": (None, 1), "rounded": ("int8", 0), "cut": ("none,top3", 0)}
    for name, (stores, seed) in kept.items():
        for run in (f"kd/seed_{seed}", f"sdd_kd/seed_{seed}"):
            write_run(tmp_path / name, run, networks, dict.fromkeys(RUNS, 0.5), stores=stores)
    groups = group_runs(find_runs([tmp_path], [NAME]))
    found = {group.label: [run.folder.parents[1].name for run in group.runs] for group in groups}
    for method in ("KD", "SDD-KD"):
        label = f"{NAME} {method}"
        assert found.pop(label) == ["exact", "live"]
        assert [found.pop(f"{label} (rounded {one})") for one in ("int8", "none,top3")] == [["rounded"], ["cut"]]
    assert not found
    sdd = [group for group in groups if group.by_region]
    assert [baseline_of(group, groups).label for group in sdd] == [group.label.replace("SDD-", "") for group in sdd]


def test_runs_are_found_and_those_that_differ_in_their_seed_alone_belong_together(runs):
    groups = group_runs(find_runs([runs, runs / "kd" / "seed_0"], [NAME]))  # named twice, it is there once
    found = {group.label: [run.seed for run in group.runs] for group in groups}
    assert list(found.values()) == [[0, 1], [0], [0, 1], [0, 1]] and list(found)[2:] == [
        "served:small KD",
        "served:small SDD-KD",
    ]
    assert list(found)[0].startswith(
        "served:small plain (train_examples 200"
    )  # the teacher is plain too, on all images
    assert list(found)[1].startswith("served:small plain (train_examples None")


REFUSALS = {
    "no run": (lambda runs, tmp: [tmp / "nothing"], "nothing holds no run"),
    "the same run twice": (
        lambda runs, tmp: [runs / "kd", shutil.copytree(runs / "kd" / "seed_0", tmp / "again")],
        "are the same run: seed 0",
    ),
    "something else in its place": (lambda runs, tmp: [runs / "kd"], "page.html is there and no report"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_mistake_is_one_line(case, runs, tmp_path):
    make, message = REFUSALS[case]
    if "place" in case:
        (tmp_path / "page.html").write_text("<p>mine</p>")
    assert (
        message
        in call("report", *make(runs, tmp_path), f"--output={tmp_path / 'page.html'}", f"--allow={NAME}").refused()
    )
    assert not list(tmp_path.glob("*.png"))


def test_without_a_run_it_says_what_is_missing():
    assert "RUN is missing: sdd report RUN ... --flag=value" in call("report").refused()


@pytest.mark.parametrize("package", ["jinja2", "matplotlib", "sklearn"])
def test_without_a_package_it_names_the_command_to_get_it(package, runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install -e '\.\[report\]'"):
        write_report([runs / "kd"], tmp_path / "out")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_a_browser_shows_it_without_an_error_or_a_request(scheme, width, browser, page, tmp_path):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True)
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    assert said == [] and [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll by themselves
    loaded = tab.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert len(loaded) > 8 and all(loaded)
    paper = "rgb(22, 24, 29)" if scheme == "dark" else "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    # Words stay within their regions, and the colours of the two kinds differ.
    spilt = "[...document.querySelectorAll('.cell')].filter(cell => cell.scrollWidth > cell.clientWidth + 1).length"
    assert tab.evaluate(spilt) == 0
    hues = [
        tab.evaluate(f"getComputedStyle(document.querySelector('.cell.{kind}')).borderTopColor")
        for kind in ("consistent", "complementary")
    ]
    assert hues[0] != hues[1]
    shot = tmp_path / "page.png"
    tab.screenshot(path=str(shot), full_page=True)
    assert shot.stat().st_size > 50_000
    context.close()


def test_of_many_classes_some_are_correlated(monkeypatch):
    monkeypatch.setattr(figures, "CORRELATED", 4)
    seen, values = [], np.random.default_rng(0).normal(size=(20, 10))
    monkeypatch.setattr(measures, "correlation_difference", lambda *both: seen.extend(both) or np.eye(4))
    group = SimpleNamespace(label="a")
    of_it = {"groups": [group], "teachers": {"a": SimpleNamespace(logits=values)}, "logits": lambda group: [values]}
    of_ten = SimpleNamespace(**of_it, names=[str(label) for label in range(10)], notes=[])
    assert figures._correlation(of_ten) is not None
    np.testing.assert_array_equal(seen, [values[:, [0, 3, 6, 9]]] * 2)
    assert of_ten.notes == ["correlations: of 4 of the 10 classes, evenly spaced"]


def test_a_network_that_says_the_same_of_every_image_spoils_no_other_ones_picture():
    values = np.random.default_rng(0).normal(size=(20, 4))
    students = {"same": np.ones_like(values), "own": values**3}
    groups, teachers = [SimpleNamespace(label=name) for name in students], SimpleNamespace(logits=values)
    study = SimpleNamespace(groups=groups, teachers=dict.fromkeys(students, teachers), names=[*"abcd"], notes=[])
    study.logits = lambda group: [students[group.label]]
    drawn = [figures._correlation(study)]
    study.groups = groups[1:]
    drawn.append(figures._correlation(study))
    assert all(drawn)


# As a class, a folder or a method may be called; each of them does something where it is not escaped.
HOSTILE = (
    "<script>document.title = 'ran'</script>", '"><img src=x onerror="document.title = 1">', "{{ 7 * 7 }}", "$\\frac{",
    "a\u202egnp.exe", "two\nlines\u2028more", "a\udcffb", "猫 Füße",
    "');background:url(https://example.org/x)", "w" * 999,
)  # fmt: skip


def test_a_name_stays_on_its_line_and_in_its_direction():
    assert study.shown("a\u202egnp.exe\n\u2066\udcff\x1b") == r"a\u202egnp.exe\n\u2066\udcff\x1b"
    for name in ("猫 Füße", "می\u200cخواهم", "a\xa0b", "<b>"):  # joiners belong to words; the page escapes the last
        assert study.shown(name) == name


@pytest.fixture(scope="module")
def hostile_page(runs):
    """The page of runs whose classes and folders have such names."""
    place = runs.parent / "hostile"
    for number, name in enumerate(("plain", "kd", "sdd_kd")):
        shutil.copytree(runs / name / "seed_0", place / HOSTILE[number].replace("/", "\u2215"))
    shutil.copytree(runs / "plain" / "seed_1", place / HOSTILE[4] / HOSTILE[5])
    shutil.copytree(runs / "teacher", place / "runs" / "teacher")
    of_digits = (data._MEMORY["digits"][0], HOSTILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data._MEMORY, "digits", of_digits)
        folders = [path for path in place.iterdir() if path.name != "runs"]
        return write_report(folders, runs.parent / "hostile_out", allow=[NAME])


@pytest.mark.slow
def test_hostile_names_are_words_on_the_page(hostile_page):
    text = hostile_page.read_text()
    assert "<script" not in text and "<img src=x" not in text and "\u202e" not in text and "\u2028" not in text
    for shown in (
        "&lt;script&gt;document.title",
        "&lt;img src=x",
        "{{ 7 * 7 }}",
        "$\\frac{",
        r"a\u202egnp.exe",
        r"two\nlines",
    ):
        assert text.count(shown) > 1, shown
    assert "w" * study.LONGEST in text and "w" * (study.LONGEST + 1) not in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_names_run_nothing_in_a_browser_and_break_nothing(width, browser, hostile_page):
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(hostile_page.as_uri())
    assert said == [] and [url for url in asked if not url.startswith("data:")] == [hostile_page.as_uri()]
    assert tab.title().startswith("digits: ") and tab.evaluate("document.scripts.length") == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert all(tab.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)"))
    sections = tab.evaluate("[...document.querySelectorAll('section > h2')].map(head => head.id)")
    assert sections[0] == "results" and sections[-1] == "runs" and "gallery" in sections
    # What was let in all the same would not run: the page forbids it.
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\">')")
    tab.wait_for_timeout(200)
    assert tab.title() != "1"
    context.close()


@pytest.mark.slow
def test_it_prints_light_even_from_a_dark_screen(browser, page, tmp_path):
    context = browser.new_context(color_scheme="dark", offline=True)
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    sources = tab.evaluate("[...document.querySelectorAll('picture img')].map(i => i.currentSrc === i.src)")
    assert all(sources)
    tab.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    context.close()
