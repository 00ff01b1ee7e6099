"""What is to run: teachers first and once, what has its line not again, rows by pattern."""

import json

import pytest
from experiment_lines import line

from experiments import plan, run, tables
from experiments.recipes import PAPER, RELEASED
from sdd_jax.training import run_dir

FASHION = tables.TABLES["fashion"]
COLUMN = "RN20 -> RN8"


def planned(tmp_path, table, *, rows=(), preset=RELEASED, seeds=(0,), lines=(), **given):
    """The plan and its jobs."""
    cells = plan.chosen([table], rows)
    made = plan.make(cells, preset=preset, seeds=seeds, lines=lines, workdir=tmp_path / "runs", **given)
    return made, list(made.jobs.values())


def test_a_teacher_comes_first_and_once(tmp_path):
    _, jobs = planned(tmp_path, FASHION, rows=["SD-KD", "SD-DKD", "KD"], seeds=(0, 1, 2))
    names = [job.name for job in jobs]
    assert names[0] == "fashion teacher resnet20, seed 0" and len(names) == 1 + 3 * 3
    teacher = jobs[0]
    assert all(job.needs == job.fields["teacher.run"] == teacher.folder for job in jobs[1:])
    assert "--config.data.train_examples=20000" in teacher.flags() and "--config.seed=0" in teacher.flags()
    flags = jobs[-1].flags()
    assert f"--config.teacher.run={teacher.folder}" in flags and "--config.seed=2" in flags
    assert "--config.data.train_examples=10000" in flags and flags[0].endswith("method=sdd_dkd,preset=released")
    assert len({job.folder for job in jobs}) == len(jobs)


def test_what_has_its_line_is_not_run(tmp_path):
    kd = FASHION.find("KD", COLUMN).recipe
    lines = [line(kd, 1, 89.0), line(kd, 2, 89.0, **{"data.train_examples": 500})]
    made, jobs = planned(tmp_path, FASHION, rows=["KD"], seeds=(0, 1, 2), lines=lines)
    assert [job.seed for job in jobs[1:]] == [0, 2] and len(made.done) == 1
    assert not planned(tmp_path, FASHION, rows=["KD"], preset=PAPER, seeds=(1,), lines=lines)[0].done
    assert planned(tmp_path, FASHION, rows=["KD"], seeds=(1,), lines=lines)[1] == []


def test_a_teacher_with_a_line_and_no_folder_is_trained_where_its_row_is_named(tmp_path):
    lines = [line(FASHION.find("teacher", COLUMN).recipe, 0, 91.9)]
    made, jobs = planned(tmp_path, FASHION, rows=["teacher"], lines=lines)
    assert jobs == [] and len(made.done) == 1
    made, jobs = planned(tmp_path, FASHION, rows=["teacher"], lines=lines, named=True)
    assert [job.name for job in jobs] == ["fashion teacher resnet20, seed 0"] and not made.done
    assert any("is trained first, again: at another accuracy its students are a row" in text for text in made.remarks)


def test_the_seed_that_chooses_settings_is_run_in_its_table_alone(tmp_path):
    tuning = tables.TABLES["tiny_tuning"]
    for table, row, seed in ((FASHION, "KD", 0), (tuning, "KD 0.9", 5)):
        made, jobs = planned(tmp_path, table, rows=[row], seeds=(0, 5))
        assert [job.seed for job in jobs[1:]] == [seed]
        text = f"{table.name}: no runs at seed {5 - seed}; seed 5 chooses settings"
        assert text in made.remarks


def test_runs_that_tables_share_are_run_once(tmp_path):
    cells = plan.chosen(tables.choose("all"), ["RN32x4 -> ShuffleNetV1/*"])
    cells = [(table, cell) for table, cell in cells if cell.recipe.file == "cifar100"]
    made = plan.make(cells, preset=RELEASED, seeds=(0,), lines=[], workdir=tmp_path)
    # teacher, student, six methods, two of ours; consistent and complementary only; {1,2}, {1,4}; beta 1, 4, 6, 8; SP,
    # CRD and SDD-KD with each; FitNet, ReviewKD
    assert len(made.jobs) == 2 + 6 + 2 + 2 + 2 + 4 + 4 + 2
    lines = [line(tables.TABLES["table8"].find("beta = 2", "RN32x4 -> ShuffleNetV1").recipe, 0, 76.0)]
    again = plan.make(cells, preset=RELEASED, seeds=(0,), lines=lines, workdir=tmp_path)
    assert len(again.jobs) == len(made.jobs) - 1 and len(again.done) == 1


def imported(folder, digest):
    """The folder of an imported network, as far as planning looks at it."""
    folder.mkdir(parents=True)
    config = {
        "imported": {"sha256": digest},
        "model": {"student": "resnet32x4", "stem": "cifar", "dtype": "float32"},
        "num_classes": 100,
    }
    (folder / "config.json").write_text(json.dumps(config))
    run_dir.write_sealed(folder, "done.json", {"last": {"step": 0}})


def test_a_given_teacher_is_taken_and_another_one_makes_another_run(tmp_path):
    table = tables.TABLES["table7"]
    imported(tmp_path / "teachers" / "cifar100" / "resnet32x4", "ab" * 32)
    _, jobs = planned(tmp_path, table, teachers=tmp_path / "teachers", data_path=tmp_path)
    assert len(jobs) == 8 and all(job.needs is None for job in jobs)
    assert {job.fields["teacher.run"] for job in jobs} == {tmp_path / "teachers" / "cifar100" / "resnet32x4"}
    assert {job.key.teacher for job in jobs} == {"imported abababababab"}
    assert f"--config.data.path={tmp_path}" in jobs[0].flags()
    _, own = planned(tmp_path, table)
    assert len(own) == 9 and not {job.folder for job in own} & {job.folder for job in jobs}
    (tmp_path / "cifar100").mkdir()
    _, within = planned(tmp_path, table, data_path=tmp_path)
    assert f"--config.data.path={tmp_path}/cifar100" in within[0].flags()
    (tmp_path / "teachers" / "cifar100" / "resnet32x4" / "done.json").unlink()
    with pytest.raises(ValueError, match="resnet32x4 has not finished"):
        planned(tmp_path, table, teachers=tmp_path / "teachers")


def test_workers_are_handed_on_and_make_no_other_run(tmp_path):
    table = tables.TABLES["table5"]
    without, eight = (planned(tmp_path, table, workers=workers)[1] for workers in (None, 8))
    assert all("--config.data.workers=8" in job.flags() for job in eight)
    assert [job.folder for job in eight] == [job.folder for job in without]
    assert not any(flag.startswith("--config.data.workers") for job in without for flag in job.flags())


def test_a_cache_is_handed_to_the_runs_that_it_serves_and_makes_no_other_run(tmp_path):
    table = tables.TABLES["appendix1"]
    column = next(cell.column for cell in table.cells if cell.row == "SP")
    teacher = table.find("SP", column).recipe.teacher
    cache = tmp_path / "caches" / "cifar100" / teacher
    cache.mkdir(parents=True)
    rows = [f"{column}/{row}" for row in ("SDD-KD", "SDD-KD + SP", "SP", "CRD")]
    flag = f"--config.teacher.cache={cache}"
    without, given = (planned(tmp_path, table, rows=rows, caches=caches)[1] for caches in (None, cache.parents[1]))
    assert [job.recipe.method for job in given if flag in job.flags()] == ["sdd_kd"]
    assert {job.recipe.method for job in given if job.needs} == {"sdd_kd", "sdd_kd+sp", "sp", "crd"}
    assert [job.folder for job in given] == [job.folder for job in without]
    assert not any(flag in job.flags() for job in without)
    made, _ = planned(tmp_path, table, rows=rows, caches=cache)  # a folder too deep
    assert f"no cache in {cache}/cifar100/{teacher}: runs of {teacher} ask the network" in made.remarks


def test_each_row_may_be_named_with_its_scales():
    rows = {cell.row for table in tables.TABLES.values() for cell in table.cells if cell.recipe is not None}
    assert "SD-KD {1,2}" in rows
    for row in rows:
        assert run.patterns([f"KD,{row}", "DKD"]) == ["KD", row, "DKD"]


def test_rows_are_chosen_by_pattern():
    cells = [cell for _, cell in plan.chosen([tables.TABLES["table2"]], ["sd-*", "*VGG8/kd"])]
    assert len(cells) == 4 * 6 + 1 and {cell.row for cell in cells} >= {"SD-NKD with NKD's loss", "KD"}
    with pytest.raises(
        ValueError, match="--rows=MGD: no row that is run fits; rows are teacher, student, FitNet, ReviewKD, KD"
    ):
        plan.chosen([tables.TABLES["table2"]], ["MGD"])
