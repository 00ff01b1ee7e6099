"""Fills a cache with what the teacher says of every view that a config's runs will see.

sdd cache --config=quickstart:run=sdd_kd --config.teacher.run=runs/quickstart/teacher \\
    --workdir=runs/quickstart/cache
sdd train --config=quickstart:run=sdd_kd --config.teacher.run=runs/quickstart/teacher \\
    --config.teacher.cache=runs/quickstart/cache --workdir=runs/quickstart/cached

The cache knows nothing of student, method, loss or seed: any run with the same teacher, data, sdd.pooling and grid of
regions reads it, if the views that its seed and epochs need are in it. The command again, with another seed,
--config.seeds or more epochs, adds what is missing; interrupted, it goes on where it was.

--teacher=MODULE:FUNCTION asks a function of yours instead, whatever stands behind it (PyTorch, ONNX Runtime), and
students learn from the cache alone: docs/foreign_teacher.md.

sdd cache --teacher=mine:teacher --config=quickstart:method=sdd_kd,teacher=cache \\
    --workdir=runs/mine
sdd train --config=quickstart:method=sdd_kd,teacher=cache --config.teacher.cache=runs/mine \\
    --workdir=runs/of_mine

Of images in memory views are shared by runs. Of images read from disk each has one for every epoch of every seed.

--store=float16 and --store=int8 take a half and a quarter of the room, --store=top32 keeps the 32 largest logits of a
region; the error that this adds is printed. --verify
checks every file and asks the teacher again for a sample.
"""

import errno
import shutil
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from sdd_jax.build import check, load_data, make_parts
from sdd_jax.build_teacher import (
    MEASURED,
    cache_header,
    check_needs,
    fill_by_function,
    fill_by_network,
    foreign_accuracies,
    measure_teacher,
    read_teacher,
)
from sdd_jax.config import CACHE, ENSEMBLE, Settings, refuse_mixed_cache, regions
from sdd_jax.saved import seen_by
from sdd_jax.sealed import Damaged
from sdd_jax.training.foreign import read_foreign
from sdd_jax.training.teacher_cache import STORES, Cache, ask, filling, largest_error, packed_arrays, read_header
from sdd_jax.training.views import needed_keys

BATCH = 256
SAMPLE = 1024


def define_flags() -> None:
    """The flags of this command."""
    own = {"lock_config": False, "accept_new_attributes": True}  # `sdd_jax.config` refuses unknown fields
    config_flags.DEFINE_config_file("config", None, "The config of the runs that are to read it.", **own)
    flags.DEFINE_string("workdir", None, "The cache's folder; made if it is not there.")
    stores = f"{', '.join(STORES)}, or topN: the N largest of each region"
    flags.DEFINE_string("store", "float32", f"How logits are kept: {stores}; int8 has a scale for each region.")
    flags.DEFINE_string("teacher", None, "MODULE:FUNCTION to ask instead of a network; the config has teacher=cache.")
    flags.DEFINE_bool("verify", False, "Check every file and a sample of the values; fill nothing.")
    flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Runs the command."""
    given = flags.FLAGS
    fill(check(given.config.to_dict()), Path(given.workdir), given.store, given.verify, given.teacher)


def fill(settings: Settings, folder: Path, store: str, verifies: bool = False, function: str | None = None) -> None:
    """Adds to the cache in ``folder`` what the runs of ``settings`` will ask; or, instead, checks what is there.

    The teacher is the one of ``teacher.run``, or the ``function`` called MODULE:FUNCTION.
    """
    if (named := settings["model.teacher"]) == "none":
        raise ValueError("this config has no teacher: there is nothing to keep")
    if named == ENSEMBLE:
        raise ValueError(f"the teacher is {ENSEMBLE!r}: fill a cache of each by itself, and name them as teacher.cache")
    if (named == CACHE) != (function is not None):
        told = f"the config's teacher is {named!r}, --teacher is {'not given' if function is None else function}"
        raise ValueError(f"--teacher=MODULE:FUNCTION and a config with teacher={CACHE} go together: {told}")
    refuse_mixed_cache(settings)
    if verifies:
        store = read_header(folder)["store"]
    packed_arrays(store, 1, settings["data.num_classes"])  # which refuses a store that there is not
    run = read_teacher(settings) if function is None else None
    dataset = load_data(settings)
    parts, foreign = make_parts(settings, dataset.num_classes), None
    if run is not None:
        teacher, variables, stated = run
        dataset = seen_by(teacher, dataset)
        measure_teacher(settings, parts.teacher, teacher, variables, stated, dataset)
        filler = fill_by_network(settings, parts.teacher, variables, dataset, store, BATCH)
    else:
        foreign = read_foreign(str(function), dataset.num_classes, regions(settings))
        filler = fill_by_function(settings, foreign, dataset, store, BATCH)
        check_needs(settings, parts.objective.needs, filler.layout)
    options = {"epochs": settings["epochs"], "batch_size": settings["batch_size"]}
    header, compute = cache_header(filler.key, dataset, filler.layout, store), filler.compute
    if verifies:
        print(verify(Cache(folder, header), compute), flush=True)
        return
    accuracies = foreign_accuracies(settings, foreign, folder, header, dataset, BATCH) if foreign is not None else {}
    with filling(folder, header) as cache:
        cache.check_files()
        if foreign is not None:
            cache.note(MEASURED, {"results": accuracies})
            print(f"{foreign.name}: {100 * accuracies[dataset.fingerprint('test')]:.2f}% on the test set", flush=True)
        seeds = settings["seeds"] or (settings["seed"],)
        wanted = np.unique(np.concatenate([needed_keys(dataset, seed=seed, **options) for seed in seeds]))
        check_room(cache, wanted)
        for done, of in cache.add(wanted, compute, BATCH):
            print(f"{done} of {of} views", flush=True)
        print(describe(cache, len(wanted)), flush=True)


def check_room(cache: Cache, wanted: np.ndarray) -> None:
    """Says what the views take that are to be added; ``OSError`` if the disk has less than that."""
    missing, free = len(np.setdiff1d(wanted, cache.keys())), shutil.disk_usage(cache.folder).free
    size = missing * cache.view_bytes
    told = f"{missing} views of {cache.view_bytes} bytes: {size / 2**30:.3g} GiB ({free / 2**30:.3g} GiB are free)"
    if size > free:
        told = f"No space left on device for {told}; --store=int8 or --store=top32 take less"
        raise OSError(errno.ENOSPC, told, str(cache.folder))
    print(f"to be added: {told}", flush=True)


def describe(cache: Cache, needed: int) -> str:
    """What is in the cache, in two lines."""
    size = sum(path.stat().st_size for path in cache.folder.rglob("*")) / 2**20
    error = cache.error()
    return (
        f"{cache.folder}: {len(cache.keys())} views, {cache.rows} x {cache.classes} logits of each in {cache.store}, "
        f"{size:.1f} MiB; all {needed} that these runs need\n"
        f"error added by {cache.store}: at most {error['max_logit']:.2g} to a logit that is kept, "
        f"{error['mean_kl']:.2g} nats of KL divergence on average"
    )


def verify(cache: Cache, compute) -> str:
    """Checks the files and a sample; raises ``Damaged``, or says what was found."""
    cache.check_files()
    keys = cache.keys()
    if not len(keys):
        raise ValueError(f"{cache.folder} holds no views yet")
    slots = np.sort(np.random.default_rng(0).choice(len(keys), min(SAMPLE, len(keys)), replace=False))
    rows = np.concatenate(list(ask(compute, keys[slots], cache.views, BATCH)))
    largest, allowed = largest_error(rows, cache.read(slots)), cache.error()["max_logit"]
    rounding = 1e-5 * float(np.abs(rows).max())  # of another machine or device
    if not largest <= allowed + rounding:
        raise Damaged(
            f"{cache.folder} is not this teacher's: a logit of the sample is off by {largest:.3g}, expected at most "
            f"{allowed + rounding:.3g}"
        )
    exact = "bit for bit" if largest == 0 else f"to {largest:.2g}, {cache.store} allows {allowed:.2g}"
    return f"{cache.folder}: all files whole; {len(slots)} of {len(keys)} views asked again, equal {exact}"
