"""Which regions of a network are complementary: numbers counted by hand, and those of a run's own test images."""

import csv
from functools import partial

import jax
import numpy as np
import pytest
from served import variables

from experiments import complementary
from experiments.complementary import Verdicts, shares
from sdd_jax import data, saved
from sdd_jax.models import create_model
from sdd_jax.regions import Regions

REGIONS = Regions((1, 2), "direct")
PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_shares_are_those_counted_by_hand():
    right = np.array([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], bool)
    by_class = np.array([[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]], bool)
    verdicts = Verdicts({"label": right != right[:, :1], "class": by_class}, right, np.array([0, 0, 0, 1]))
    found = {one[:3]: one[3:] for one in shares(verdicts, REGIONS, ("cat", "dog", "fish"))}
    assert found["complementary by label", "2", "all"] == (100 * 3 / 16, 4)
    assert found["complementary by class", "2", "row 0 column 1"] == (50.0, 4)
    assert found["complementary by class", "2", "row 1 column 0"] == (0.0, 4)
    assert found["complementary by class", "any", "images of cat"] == (25.0, 3)
    assert found["complementary by label", "any", "images of dog"] == (25.0, 1)
    assert not any("fish" in where for _, _, where in found)  # no image of it
    assert found["right somewhere, wrong as a whole", "2", "all"] == (50.0, 2)
    certain = Verdicts({"label": ~right[:1]}, np.ones((1, 5), bool), np.array([0]))
    assert not any(one.what.startswith("right") for one in shares(certain, REGIONS, ("cat",)))


def test_the_command_tells_of_the_runs_own_test_images(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(complementary, "BATCH", 100)  # of 359: the last batch is a part
    model, run, output = create_model("resnet8", 10), tmp_path / "run", tmp_path / "regions.csv"
    values = variables(model, (32, 32, 1))
    saved.write_imported(run, name="resnet8", stem="cifar", num_classes=10, variables=values, source={})
    complementary.main([str(run), "--data=digits", "--scales=1,2", "--pooling=direct", f"--output={output}"])
    rows = {tuple(row[:3]): row[3:] for row in csv.reader(output.read_text().splitlines())}
    digits, head = data.load("digits", select_on="test"), values["params"]["head"]
    pixels = (digits.test.images.astype(np.float32) / 255 - digits.mean[0]) / digits.std[0]
    features = np.asarray(jax.jit(partial(model.apply, train=False))(values, pixels).feature_maps["head"])
    half = features.shape[1] // 2
    quarters = {
        (row, column): features[:, row * half :][:, :half, column * half :][:, :, :half] for row, column in PLACES
    }
    verdicts = {
        place: (part.mean((1, 2)) @ head["kernel"] + head["bias"]).argmax(-1)
        for place, part in {None: features, **quarters}.items()
    }
    for row, column in PLACES:
        percent = 100 * (verdicts[row, column] != verdicts[None]).mean()
        assert 1 < percent < 99
        assert rows["complementary by class", "2", f"row {row} column {column}"] == [f"{percent:.2f}", "359"]
    assert "| complementary by class | 2 | all |" in capsys.readouterr().out
    for given, said in (([tmp_path], "is not a run's folder"), ([run, "--scales=1"], "needs a scale above 1")):
        with pytest.raises(SystemExit) as ended:
            complementary.main([*map(str, given)])
        assert ended.value.code == 2 and said in capsys.readouterr().err
