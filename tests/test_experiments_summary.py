"""Summaries of lines that the tests write."""

import csv
import io
import json
import statistics
import sys

import pytest
from experiment_lines import line, seeded
from scipy import stats

from experiments import plot, recipes, results, summarize, summary, tables
from experiments.recipes import PAPER, RELEASED
from experiments.summary import EXPLORATORY, UNTESTED, holm

FASHION = tables.TABLES["fashion"]
COLUMN = "RN20 -> RN8"
KD, SDD = (FASHION.find(row, COLUMN).recipe for row in ("KD", "SD-KD"))


def summarized(table, *lines):
    return summary.summarize(table, lines, lines)


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


# ---------------------------------------------------------------------- which lines belong together


def kd_lines():
    return [line(KD, seed, last, best) for seed, (last, best) in enumerate([(89.0, 89.2), (88.6, 88.9), (89.1, 89.1)])]


def sdd_lines():
    return [line(SDD, seed, last, best) for seed, (last, best) in enumerate([(89.9, 90.0), (89.6, 89.6), (89.8, 90.1)])]


def test_numbers_are_exact_in_markdown_and_csv():
    made = summarized(FASHION, *kd_lines(), *sdd_lines(), line(FASHION.find("student", COLUMN).recipe, 0, 88.0))
    text = summarize.markdown(made)
    # 89.0, 88.6, 89.1: mean 88.9, sd 0.2646; 89.2, 88.9, 89.1: mean 89.0667, sd 0.1528
    assert "| KD | - | 88.90 ± 0.26 (n=3) | 89.07 ± 0.15 (n=3) | validation | 10000 | run, teacher 90.00 % |" in text
    assert "| student | - | 88.00 (n=1) | 88.00 (n=1) | validation | 10000 | run |" in text
    assert "| DKD | - | - | - | - | - | no runs yet |" in text
    paired = stats.ttest_rel([89.9, 89.6, 89.8], [89.0, 88.6, 89.1])
    welch = stats.ttest_ind([89.9, 89.6, 89.8], [89.0, 88.6, 89.1], equal_var=False)
    (low, high), of_welch = paired.confidence_interval(0.95), welch.confidence_interval(0.95)
    tests = f"[{low:+.2f}, {high:+.2f}] (n=3) | {paired.pvalue:.3g} | +0.87 [{of_welch.low:+.2f}, {of_welch.high:+.2f}]"
    assert f"| SD-KD | KD | - | +0.87 {tests} |" in text.partition("Exploratory differences:")[2]
    assert "| KD | student | - | +1.00 (n=1) | cannot be tested | +0.90 |" in text
    cells = {(row["row"], row["which"]): row for row in rows_of(summarize.cells_csv(made))}
    assert len(cells) == 2 * len(FASHION.rows)
    kd = cells["KD", "best"]
    assert (kd["mean"], kd["sd"], kd["n"], kd["seeds"]) == ("89.0667", "0.1528", "3", "0 1 2")
    assert (kd["chosen_on"], kd["train_examples"], kd["paper"], kd["status"]) == ("validation", "10000", "", "run")
    assert cells["DKD", "last"]["mean"] == "" and cells["DKD", "last"]["n"] == "0"
    assert (cells["student", "last"]["sd"], cells["student", "last"]["n"]) == ("", "1")
    differences = {(row["row"], row["base"], row["which"]): row for row in rows_of(summarize.differences_csv(made))}
    one = differences["SD-KD", "KD", "last"]
    assert (one["difference"], one["pairs"], one["declared"]) == ("0.8667", "3", "False")
    assert (one["verdict"], one["holm"]) == (EXPLORATORY, "")
    assert float(one["low"]) == pytest.approx(low, abs=1e-4) and float(one["p"]) == pytest.approx(
        paired.pvalue, rel=1e-2
    )
    assert float(one["welch_low"]) == pytest.approx(of_welch.low, abs=1e-4)
    assert float(one["welch_p"]) == pytest.approx(welch.pvalue, rel=1e-2)
    one = differences["KD", "student", "last"]
    assert (one["difference"], one["pairs"], one["welch_difference"]) == ("1.0", "1", "0.9")
    assert (one["verdict"], one["declared"], one["low"], one["p"], one["holm"]) == (UNTESTED, "True", "", "", "")


def test_runs_of_another_config_teacher_or_preset_never_mix():
    other = [
        line(KD, 3, 10.0, **{"data.train_examples": 500}),
        line(KD, 4, 11.0, **{"data.select_on": "test"}),
        line(KD, 5, 12.0, **{"epochs": 11}),
    ]
    imported = [line(KD, seed, 20.0 + seed, teacher="imported 0123456789ab") for seed in (0, 1)]
    paper = [line(KD, 0, 30.0, preset=PAPER)]
    made = summarized(FASHION, *kd_lines(), *sdd_lines(), *other, *imported, *paper)
    entries = [entry for entry in made.entries if entry.cell.row == "KD"]
    assert [entry.values("top1", "last") for entry in entries] == [
        pytest.approx(seeded(20.0, 21.0)),
        pytest.approx(seeded(89.0, 88.6, 89.1)),
        pytest.approx({0: 30.0}),
    ]
    compared = [(one.entry.cell.row, one.base.values("top1", "last")) for one in made.comparisons if one.ours]
    assert compared == [("SD-KD", pytest.approx(seeded(89.0, 88.6, 89.1)))]
    text = summarize.markdown(made)
    assert "| KD (teacher: imported 0123456789ab) | - | 20.50 ± 0.71 (n=2) |" in text
    assert "| KD (preset paper) | - | 30.00 (n=1) |" in text
    for stray in ("500 training images", "seed 4", "seed 5"):
        assert any(stray in remark for remark in made.remarks), stray
    assert len(made.remarks) == 3 and "belongs to no row as it is configured now" in text


def test_a_teacher_that_was_trained_again_and_a_cache_that_changes_answers_are_apart():
    def taught(recipe, seed, last, **changes):
        one = line(recipe, seed, last)
        return one | {"teacher": one["teacher"] | changes}

    again = [taught(KD, seed, 80.0, accuracy=0.8) for seed in (3, 4)]
    rounded = [taught(KD, seed, 70.0 + seed, cached=True, store="int8") for seed in (6, 8)]
    kept = taught(KD, 7, 88.9, cached=True, store="float16")  # rounded, but not apart
    made = summarized(FASHION, *kd_lines(), kept, *again, *rounded, *sdd_lines(), taught(SDD, 3, 81.0, accuracy=0.8))
    found = {entry.label(made.entries): [*entry.values("top1", "last")] for entry in made.entries if entry.lines}
    assert found == {
        "KD (a teacher of 90 %, no such cache)": [0, 1, 2, 7],
        "KD (a teacher of 80 %, no such cache)": [3, 4],
        "KD (a teacher of 90 %, a cache of int8)": [6, 8],
        "SD-KD (a teacher of 90 %)": [0, 1, 2],
        "SD-KD (a teacher of 80 %)": [3],
    }
    compared = {
        (one.entry.teacher_accuracy, one.base.teacher_accuracy, one.base.group.store)
        for one in made.comparisons
        if one.ours
    }
    assert compared == {(90.0, 90.0, None), (80.0, 80.0, None)} and not made.remarks
    made = summarized(FASHION, *kd_lines(), taught(SDD, 3, 81.0, accuracy=0.8))
    assert not any(one.ours for one in made.comparisons)
    assert made.remarks == [f"{COLUMN}: SD-KD is not compared with KD: that has another teacher"]


def test_two_lines_of_one_run_count_once_and_are_named():
    made = summarized(FASHION, *kd_lines(), kd_lines()[0])
    assert [entry.spread("top1", "last").n for entry in made.entries if entry.cell.row == "KD"] == [3]
    assert made.remarks == ["1 lines tell of a run that another line tells of, and are left out"]
    assert not summary.summarize(tables.TABLES["tiny"], [*kd_lines(), kd_lines()[0]], []).remarks  # no row of tiny


def test_runs_with_other_numbers_of_images_are_apart():
    """Of a set on disk the config does not say how many it has."""
    fewer = [one | {"train_examples": 9_999} for one in sdd_lines()[:2]]
    made = summarized(FASHION, *kd_lines(), *fewer, *sdd_lines()[2:])
    entries = [entry for entry in made.entries if entry.cell.row == "SD-KD"]
    assert [entry.values("top1", "last") for entry in entries] == [pytest.approx({0: 89.9, 1: 89.6}), {2: 89.8}]
    compared = {(one.entry.label(made.entries), one.ours["last"].pairs) for one in made.comparisons if one.ours}
    assert compared == {("SD-KD (10000 training images)", 1)}
    [remark] = made.remarks
    assert f"{COLUMN}: SD-KD (9999 training images) and KD are not compared: 9999 and 10000 training" in remark


def test_held_out_accuracy_is_shown_where_a_line_has_it_and_runs_that_choose_count_apart():
    tuning = tables.TABLES["tiny_tuning"]
    chosen = line(tuning.find("KD 0.9", *tuning.columns).recipe, 5, 89.5, held_out=89.75)
    before = {
        name: value for name, value in kd_lines()[0].items() if name != "held_out"
    }  # a line of an earlier version
    text = summarize.markdown(summary.summarize(tuning, [chosen, before], [chosen]))
    assert "| ours, last | ours, best | ours, last, held-out images | best chosen on |" in text
    assert "| KD 0.9 | - | 89.50 (n=1) | 89.50 (n=1) | 89.75 (n=1) | validation |" in text
    made = summary.summarize(tuning, [chosen, before], [chosen])
    held_out = {row["row"]: row for row in rows_of(summarize.cells_csv(made)) if row["which"] == "held_out"}
    assert (held_out["KD 0.9"]["seeds"], held_out["DKD 0.25"]["seeds"]) == ("5", "")
    assert held_out["KD 0.9"]["mean"] == "89.75" and held_out["DKD 0.25"]["mean"] == ""
    assert not made.remarks and "--seeds=5` makes them" in summarize.markdown(summarized(tuning))

    study = summary.summarize(FASHION, [chosen, before], [chosen, before])
    assert [entry.values("top1", "last") for entry in study.entries if entry.cell.row == "KD"] == [{0: 89.0}]
    assert "held-out" not in summarize.markdown(study) and ["seed 5" in remark for remark in study.remarks] == [True]


def test_a_run_counts_in_every_table_that_has_it():
    recipe = tables.TABLES["table2"].find("KD", "RN32x4 -> ShuffleNetV1").recipe
    lines = [line(recipe, seed, 74.0 + seed, rate=6400.0) for seed in (0, 1)]
    for name, row in (("table2", "KD"), ("table6", "N/A (KD)"), ("table7", "{1}")):
        made = summary.summarize(tables.TABLES[name], lines, [])
        found = [e for e in made.entries if e.cell.row == row and e.cell.column == "RN32x4 -> ShuffleNetV1"]
        assert [entry.values("top1", "last") for entry in found] == [seeded(74.0, 75.0)] and not made.remarks
        assert "74.50 ± 0.71 (n=2) | 74.50 ± 0.71 (n=2) | test | 50000 |" in summarize.markdown(made)


def test_the_papers_difference_stands_beside_ours():
    table = tables.TABLES["table2"]
    lines = []
    for row, values in (("KD", (74.0, 74.2)), ("SD-KD", (76.0, 76.4))):
        recipe = table.find(row, "RN32x4 -> ShuffleNetV1").recipe
        lines += [line(recipe, seed, value) for seed, value in enumerate(values)]
    text = summarize.markdown(summarized(table, *lines))
    welch = stats.ttest_ind([76.0, 76.4], [74.0, 74.2], equal_var=False).confidence_interval(0.95)
    paired = stats.ttest_rel([76.0, 76.4], [74.0, 74.2])
    low, high = paired.confidence_interval(0.95)
    family = 4 * 6  # four rows less another, in six columns
    p = f"{paired.pvalue:.3g}, {min(1, family * paired.pvalue):.3g}, not shown"
    row = f"+2.10 [{low:+.2f}, {high:+.2f}] (n=2) | {p} | +2.10 [{welch.low:+.2f}, {welch.high:+.2f}]"
    assert f"| SD-KD | KD | +2.23 | {row} |" in text and f"Declared differences, a family of {family}:" in text
    assert "| SD-KD | KD | +1.82 | - | - | - | - | - | - |" in text  # another column, without runs
    for column in text.split("## ")[1:]:
        declared, _, exploratory = column.partition("Exploratory differences:")
        assert "| SD-KD | KD |" in declared and "| KD | student |" in exploratory
    assert "| SD-KD | 76.30 | 76.20 ± 0.28 (n=2) |" in text


def test_top5_and_times():
    table = tables.TABLES["table3"]
    recipe = table.find("DKD", "RN34 -> RN18").recipe
    text = summarize.markdown(summarized(table, *(line(recipe, seed, 71.0 + seed, top5=90.0) for seed in (0, 1))))
    assert "| DKD | top-1 % | 71.70 | 71.50 ± 0.71 (n=2) |" in text
    assert "|  | top-5 % | 90.41 | 90.00 ± 0.00 (n=2) |" in text
    table = tables.TABLES["table9"]
    lines = [
        line(table.find("KD", "RN32x4 -> RN8x4").recipe, seed, 73.0, rate=rate) for seed, rate in ((0, 6400), (1, 3200))
    ]
    lines.append(lines[0] | {"seed": 2, "teacher": lines[0]["teacher"] | {"cached": True}})  # no batch of KD's
    text = summarize.markdown(summarized(table, *lines))
    assert "| KD | 11.00 | 15.00 ± 7.07 (n=2) | 50000 |" in text and "best" not in text.split("## ")[1]
    sdd = line(table.find("SD-KD", "RN32x4 -> RN8x4").recipe, 0, 74.0, rate=3200) | {"device": "1 x H200"}
    made = summarized(table, *lines, lines[0] | {"device": "1 x H200", "seed": 3}, sdd | {"seed": 3})
    found = {entry.label(made.entries): entry.values("ms", "last") for entry in made.entries if entry.lines}
    device = lines[0]["device"]
    assert found == {f"KD ({device})": {0: 10.0, 1: 20.0}, "KD (1 x H200)": {3: 10.0}, "SD-KD": {3: 20.0}}
    assert [one.base.group.device for one in made.comparisons if one.ours] == ["1 x H200"]


def test_without_results_it_says_so_and_has_the_papers_values():
    for table in tables.OF_PAPER:
        text = summarize.markdown(summarized(table))
        assert "**No results of ours yet**" in text and f"experiments.run {table.name}" in text
        for one in table.cells:
            assert all(f"| {value:.2f} |" in text for value in one.paper.values()), one
    text = summarize.markdown(summarized(tables.TABLES["table1"]))
    assert "| SemCKD | 68.99 | - | - | - | - | quoted |" in text and "| SD-KD | KD | +1.12 | - | - |" in text


def test_a_family_has_every_declared_difference_and_those_alone():
    """Of last and of best apart, also those without runs; a second preset is one test more."""
    rows = [
        ("student", (88.0, 88.3, 88.1)),
        ("KD", (89.0, 88.9, 89.3)),
        ("SD-KD {1,2}", (89.4, 89.5, 89.6)),
        ("SD-KD", (89.5, 89.9, 90.0)),
    ]
    lines = [
        line(FASHION.find(row, COLUMN).recipe, seed, value, value + seed / 10)
        for row, values in rows
        for seed, value in enumerate(values)
    ]
    assert len(FASHION.family) == 6 and all(column == COLUMN for column, _, _ in FASHION.family)

    def ours(made, which):
        return {
            one.name[1:]: one.ours[which]
            for one in made.comparisons
            if which in one.ours and one.entry.preset == RELEASED
        }

    for which in ("last", "best"):
        found = ours(summarized(FASHION, *lines), which)
        assert len(found) == 4 and found.pop(("SD-KD", "KD")).verdict == EXPLORATORY
        expected = holm([one.paired.p for one in found.values()], 6)
        assert [one.corrected for one in found.values()] == expected
    (column,) = FASHION.columns
    paper = [
        line(FASHION.find(row, column).recipe, seed, 89.0 + seed * value, preset=PAPER)
        for row, value in (("KD", 0.1), ("SD-KD {1,2}", 0.3))
        for seed in range(3)
    ]
    made = summarized(FASHION, *lines, *paper)
    tested = [one.ours["last"] for one in made.comparisons if one.name in FASHION.family and one.ours]
    assert len(tested) == 5
    assert [one.corrected for one in tested] == holm([one.paired.p for one in tested], 5 + 3)


def test_what_was_declared_is_on_the_page_before_its_runs():
    table = tables.TABLES["tiny_newer_3"]
    for made in (summarized(table), summarized(table, line(table.find("KD", *table.columns).recipe, 0, 35.0))):
        text = summarize.markdown(made).partition("a family of 4:")[2].partition("Exploratory")[0]
        assert [row.split(" | ")[:2] for row in text.splitlines() if "{1,2} |" in row or "KD |" in row] == [
            ["| WTTM", "KD"],
            ["| SD-WTTM {1,2}", "WTTM"],
            ["| MLKD", "KD"],
            ["| SD-MLKD {1,2}", "MLKD"],
        ]
        assert {one.name for one in made.comparisons} >= table.family


def test_the_page_states_the_error_of_the_test_images():
    text = summarize.markdown(summarized(FASHION, *kd_lines()))
    # 100 sqrt(p (1 - p) / 10,000) is 0.3178 at 88.6 % and 0.3116 at 89.1 %.
    assert "top-1 accuracy is 0.31 to 0.32 points on 10,000 images." in text


# ---------------------------------------------------------------------- the command


def write(folder, name, lines):
    for one in lines:
        results.append(folder / f"{name}.jsonl", one)


def test_the_command_prints_and_writes_everything(tmp_path, capsys):
    write(tmp_path, "fashion", [*kd_lines(), *sdd_lines()])
    assert summarize.main(["fashion", f"--output={tmp_path}/out"], folder=tmp_path) == 0
    printed = capsys.readouterr().out
    names = {"fashion.md", "fashion.csv", "fashion_differences.csv", "fashion.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert (tmp_path / "out" / "fashion.md").read_text() in printed
    picture = (tmp_path / "out" / "fashion.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


@pytest.mark.parametrize("name", [table.name for table in tables.OF_STUDY])
def test_the_committed_pages_are_what_the_committed_lines_say(name):
    """Also that each committed line still belongs to a row."""
    lines, path = results.read(results.RESULTS), results.RESULTS / f"{name}.jsonl"
    made = summary.summarize(tables.TABLES[name], lines, results.read_file(path) if path.exists() else [])
    assert (results.RESULTS / f"{name}.md").read_text() == summarize.markdown(made) and not made.remarks
    for ending, text in ((".csv", summarize.cells_csv(made)), ("_differences.csv", summarize.differences_csv(made))):
        assert (results.RESULTS / f"{name}{ending}").read_text() == text


def test_a_plot_without_matplotlib_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[experiments\]"'):
        plot.draw(summarized(FASHION), tmp_path / "a.png")
    with pytest.raises(SystemExit) as ended:
        summarize.main(["fashion", f"--output={tmp_path}"], folder=tmp_path)
    assert ended.value.code == 2 and "needs matplotlib" in capsys.readouterr().err


def test_lines_are_found_again_by_what_was_run():
    one = kd_lines()[0]
    key = results.run_key(json.loads(json.dumps(one)))
    assert key == (recipes.key(recipes.settings(KD, RELEASED)), one["teacher"]["id"])
    assert results.index([one, *sdd_lines()])[key, 0] == one
    assert statistics.fmean(line["last"]["accuracy"] for line in kd_lines()) == pytest.approx(0.889)
