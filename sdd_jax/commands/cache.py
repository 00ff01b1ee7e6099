"""Fills a cache with what the teacher says of every view that a config's runs will see.

sdd cache --config=quickstart:run=sdd_kd --config.teacher.run=runs/quickstart/teacher \\
    --workdir=runs/quickstart/cache
sdd train --config=quickstart:run=sdd_kd --config.teacher.run=runs/quickstart/teacher \\
    --config.teacher.cache=runs/quickstart/cache --workdir=runs/quickstart/cached

The cache knows nothing of student, method, loss or seed: any run with the same teacher, data, sdd.pooling and grid of
regions reads it, if the views that its seed and epochs need are in it. The command again, with another seed,
--config.seeds or more epochs, adds what is missing; interrupted, it goes on where it was.

--store=float16 and --store=int8 take a half and a quarter of the room; the error that this adds is printed. --verify
checks every file and asks the teacher again for a sample.
"""

from functools import partial
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from sdd_jax.build import check, load_data, make_parts, refuse_cache
from sdd_jax.build_teacher import cache_header, cache_layout, folded_variables, measure_teacher, read_teacher
from sdd_jax.config import Settings, image_dtype
from sdd_jax.data import Dataset
from sdd_jax.sealed import Damaged
from sdd_jax.training.teacher import make_compute, run_keys
from sdd_jax.training.teacher_cache import STORES, Cache, ask, filling, read_header, unpack

BATCH = 256
SAMPLE = 1024


def define_flags() -> None:
    """The flags of this command."""
    own = {"lock_config": False, "accept_new_attributes": True}  # `sdd_jax.config` refuses unknown fields
    config_flags.DEFINE_config_file("config", None, "The config of the runs that are to read it.", **own)
    flags.DEFINE_string("workdir", None, "The cache's folder; made if it is not there.")
    flags.DEFINE_enum("store", "float32", STORES, "How a logit is kept; int8 has a scale for each region.")
    flags.DEFINE_bool("verify", False, "Check every file and a sample of the values; fill nothing.")
    flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Runs the command."""
    fill(check(flags.FLAGS.config.to_dict()), Path(flags.FLAGS.workdir), flags.FLAGS.store, flags.FLAGS.verify)


def fill(settings: Settings, folder: Path, store: str, verifies: bool = False) -> None:
    """Adds to the cache in ``folder`` what the runs of ``settings`` will ask; or, instead, checks what is there."""
    if settings["model.teacher"] == "none":
        raise ValueError("this config has no teacher: there is nothing to keep")
    refuse_cache(settings)
    teacher, variables, stated = read_teacher(settings)
    dataset = load_data(settings)
    assert isinstance(dataset, Dataset)  # others were refused
    network = make_parts(settings, dataset.num_classes).teacher
    measure_teacher(settings, network, teacher, variables, stated, dataset)
    layout = cache_layout(settings, network, dataset)
    options = {"epochs": settings["epochs"], "batch_size": settings["batch_size"]}
    header = partial(cache_header, settings, variables, dataset, layout)
    folded = folded_variables(settings, network, variables, dataset)
    compute = make_compute(network, folded, dataset, layout, image_dtype(settings), BATCH)
    if verifies:
        print(verify(Cache(folder, header(read_header(folder)["store"])), compute), flush=True)
        return
    with filling(folder, header(store)) as cache:
        cache.check_files()
        seeds = settings["seeds"] or (settings["seed"],)
        wanted = np.unique(np.concatenate([run_keys(dataset, seed=seed, **options) for seed in seeds]))
        for done, of in cache.add(wanted, compute, BATCH):
            print(f"{done} of {of} views", flush=True)
        print(describe(cache, len(wanted)), flush=True)


def describe(cache: Cache, needed: int) -> str:
    """What is in the cache, in two lines."""
    size = sum(path.stat().st_size for path in cache.folder.rglob("*")) / 2**20
    error = cache.error()
    return (
        f"{cache.folder}: {len(cache.keys())} views, {cache.rows} x {cache.classes} logits of each in {cache.store}, "
        f"{size:.1f} MiB; all {needed} that these runs need\n"
        f"error added by {cache.store}: at most {error['max_logit']:.2g} to a logit, "
        f"{error['mean_kl']:.2g} nats of KL divergence on average"
    )


def verify(cache: Cache, compute) -> str:
    """Checks the files and a sample; raises ``Damaged``, or says what was found."""
    cache.check_files()
    keys = cache.keys()
    if not len(keys):
        raise ValueError(f"{cache.folder} holds no views yet")
    slots = np.sort(np.random.default_rng(0).choice(len(keys), min(SAMPLE, len(keys)), replace=False))
    kept = unpack(**cache.read(slots))
    rows = ask(compute, keys[slots], cache.views, BATCH)
    largest, allowed = float(np.abs(rows - kept).max()), cache.error()["max_logit"]
    rounding = 1e-5 * float(np.abs(rows).max())  # of another machine or device
    if not largest <= allowed + rounding:
        raise Damaged(
            f"{cache.folder} is not this teacher's: a logit of the sample is off by {largest:.3g}, expected at most "
            f"{allowed + rounding:.3g}"
        )
    exact = "bit for bit" if largest == 0 else f"to {largest:.2g}, {cache.store} allows {allowed:.2g}"
    return f"{cache.folder}: all files whole; {len(slots)} of {len(keys)} views asked again, equal {exact}"
