"""Which runs a report takes for seeds of one method, what it calls them, and which it refuses to compare."""

from pathlib import Path

import pytest

from sdd_jax.fields import FIELDS
from sdd_jax.reporting.groups import Run, baseline_of, group_runs

KD = {"seed": 0, "method": "kd", "model.student": "resnet8", "model.teacher": "resnet20", "data.name": "arrays"}
TRAINED, TESTED = "training images", "test images"


def run(name, inputs=None, **fields):
    return Run(Path(name), KD | fields, [], {}, True, {}, inputs or {})


def labels(*runs):
    return {group.label: [one.folder.name for one in group.runs] for group in group_runs(runs)}


def test_no_two_groups_have_one_label():
    places = [f"studies/{study}/teachers/resnet20/seed_0" for study in ("first", "other")]
    found = labels(*(run(place, **{"teacher.run": place}) for place in (*places, "runs/t")))
    assert list(found) == [
        "resnet8 KD (run …eachers/resnet20/seed_0) [1]",
        "resnet8 KD (run …eachers/resnet20/seed_0) [2]",
        "resnet8 KD (run runs/t)",
    ]


def test_seeds_are_of_one_method_on_the_same_images_alone():
    one, other = ({TRAINED: digit * 64, TESTED: "c" * 64} for digit in "ab")
    before = {"teacher": "x"}  # a run of before images were noted
    assert labels(run("a", one), run("b", one, seed=1), run("c", before, seed=2)) == {"resnet8 KD": ["a", "b", "c"]}
    assert labels(run("a", one), run("b", other, seed=1), run("c", one, seed=2)) == {
        "resnet8 KD (training images aaaaaaaa)": ["a", "c"],
        "resnet8 KD (training images bbbbbbbb)": ["b"],
    }
    few, all_of_them = {"data.train_examples": 20}, {"data.train_examples": None}  # the config says it: no other word
    named = ["resnet8 KD (train_examples 20)", "resnet8 KD (train_examples None)"]
    assert [*labels(run("a", one, **few), run("b", other, **all_of_them))] == named


@pytest.mark.parametrize("method, by_region", {"sdd_kd": True, "sdd_kd+sp": True, "kd+sdd_sp": False}.items())
def test_a_feature_loss_by_region_is_no_sdd(method, by_region):
    (group,) = group_runs([run("a", method=method)])
    assert group.by_region == by_region


def test_a_baseline_saw_the_same_images():
    one, other = {TRAINED: "a"}, {TRAINED: "b"}
    given = run("p", one, method="plain"), run("q", other, method="plain"), run("k", other)
    *plain, distilled = group_runs(given)
    assert baseline_of(distilled, plain).runs[0].folder == Path("q")
    assert baseline_of(distilled, plain[:1]) is None


def test_a_baseline_has_the_same_teacher_and_the_nearest_settings():
    cached = {"model.teacher": "cache", "loss.distill_weight": 14.4}
    given = [
        run("p", method="plain"),
        run("other", **cached | {"teacher.cache": "B"}),
        run("light", **cached | {"teacher.cache": "A", "loss.distill_weight": 0.9}),
        run("like", **cached | {"teacher.cache": "A"}),
        run("sdd", **cached | {"teacher.cache": "A", "method": "sdd_kd", "sdd.scales": [1, 2]}),
    ]
    groups = {group.runs[0].folder.name: group for group in group_runs(given)}
    assert baseline_of(groups["sdd"], [*groups.values()]) is groups["like"]
    del groups["like"], groups["light"]
    assert baseline_of(groups["sdd"], [*groups.values()]) is groups["p"]


def test_a_member_of_an_ensemble_that_has_no_name_is_told_apart_by_its_cache():
    def taught(name, runs, caches, **more):
        return run(name, **{"model.teacher": "ensemble", "teacher.runs": runs, "teacher.cache": caches} | more)

    assert labels(taught("a", "x,none", "none,A"), taught("b", "x,none", "none,B")) == {
        "resnet8 KD (cache none,A)": ["a"],
        "resnet8 KD (cache none,B)": ["b"],
    }
    assert len(labels(taught("a", "x,none", "A,B"), taught("b", "x,none", "none,B", seed=1))) == 1  # x is in its folder
    assert len(labels(taught("a", "x,y", "A,B"), taught("b", "x,y", None, seed=1))) == 1


def test_runs_that_were_tested_on_other_images_are_refused():
    with pytest.raises(ValueError, match="on the same data: the test images of b are not those of a"):
        labels(run("a", {TESTED: "a"}), run("b", {TESTED: "b"}, seed=1))
    assert len(labels(run("a", {TESTED: "a"}), run("b", {}, seed=1))) == 1


def test_a_field_that_came_after_a_run_makes_no_group_of_its_own():
    unset = {name: None for name, field in FIELDS.items() if field.default is None}
    whole = KD | unset
    runs = [Run(Path("whole"), whole, [], {}, True, {}, {})]
    for seed, name in enumerate(unset, 1):
        config = {field: value for field, value in whole.items() if field != name} | {"seed": seed}
        runs.append(Run(Path(name), config, [], {}, True, {}, {}))
    (group,) = group_runs(runs)
    assert group.label == "resnet8 KD" and len(group.runs) == 1 + len(unset) > 15
