"""Made-up result lines for the tests of runner and summary."""

from experiments import recipes, results
from experiments.recipes import RELEASED
from experiments.results import NO_TEACHER


def line(
    recipe, seed, last, best=None, *, preset=RELEASED, teacher=None, top5=None, rate=1000.0, held_out=None, **settings
):
    """A line as the runner writes it, of a run with these test accuracies, and held-out accuracy, in percent."""
    what = recipes.identity({**recipes.settings(recipe, preset), **settings})
    own = recipes.teacher_recipe(recipe)
    if recipe.teacher == "none":
        identity, accuracy = NO_TEACHER, None
    else:
        identity = teacher or results.trained_identity(recipes.key(recipes.settings(own, RELEASED)), 0)
        accuracy = 0.9
    return {
        "config": f"configs/{recipe.file}.py",
        "argument": recipes.argument(recipe, preset),
        "overrides": recipes.overrides(recipe, preset),
        "config_hash": recipes.digest(what),
        "seed": seed,
        "last": score(last, 240.0, top5),
        "best": score(last if best is None else best, 200.0, top5),
        "select_on": what["data.select_on"],
        "held_out": None if held_out is None else score(held_out, 240.0, None),
        "train_examples": what["data.train_examples"] or 50_000,
        "teacher": {"id": identity, "accuracy": accuracy},
        "seconds": 60.0,
        "images_per_second": rate,
        "device": "1 x cpu",
        "commit": "0123abc",
        "starts": 1,
        "started": "2026-01-01T00:00:00Z",
        "python": "3.11.0",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "settings": what,
    }


def score(accuracy, epoch, top5):
    """A part of a line."""
    part = {"step": 1, "epoch": epoch, "accuracy": accuracy / 100, "examples": 10_000}
    return part | ({} if top5 is None else {"top5": top5 / 100})


def seeded(*values):
    """Values by the seeds 0, 1, 2, ..."""
    return dict(enumerate(values))
