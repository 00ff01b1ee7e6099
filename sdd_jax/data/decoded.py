"""The images of a set on disk, decoded once, in processes, into array files that later starts map.

A folder of the user's cache holds the images of one set at one size, uint8 ``[N, S, S, 3]``, and their labels, sealed
(`sdd_jax.sealed`) as those of these very files: names, labels, sizes and times. It is whole or not there. One that is
damaged, or of files that have changed since, is made again. Every image is brought to its size by a box filter.
"""

import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from sdd_jax import sealed
from sdd_jax.data import images
from sdd_jax.data.dataset import Raw
from sdd_jax.data.folders import Listed, Records
from sdd_jax.files import cache_folder, size_text
from sdd_jax.processes import end_with_parent, memory_bytes, processors, without_script

KIND = "decoded images"
PARTS = "parts.pickle"  # while they are made: which images there are
FORM = 1  # of the files, and of how an image is brought to its size: another number makes all of them again
WORTH_A_PROCESS = 500  # images: about as many are decoded while a process starts
AT_A_TIME = 250  # images of one task
Task = tuple[str, int, int]  # a part, and its images from one number to another


def array_bytes(examples: int, size: int) -> int:
    """What so many images take, decoded."""
    return examples * size * size * 3


def read(listed: Listed, *, name: str, place: Path, size: int, workers: int) -> Raw:
    """The set's images and labels, mapped from their files, which are made if they are not there.

    ``ValueError`` if they do not fit in the memory or on the disk, or names the first image that cannot be decoded.
    """
    parts = {"train": listed.train, "test": listed.test}
    counts = [len(records) for records in parts.values()]
    if not all(counts):
        raise ValueError(f"{name} needs training and test images, got {' and '.join(map(str, counts))}")
    needed = array_bytes(sum(counts), size)
    takes = f"{name}: {sum(counts):,} images of {size}x{size} take {size_text(needed)} decoded"
    if 2 * needed > memory_bytes():  # as mapped, and what of them is on the device
        raise ValueError(
            f"{takes} and twice that in memory, which is {size_text(memory_bytes())}: data.in_memory=false reads them "
            "from disk, a smaller data.image_size takes less"
        )
    stamps = {part: records.fingerprint(times=True) for part, records in parts.items()}
    owner = sealed.digest({"form": FORM, "size": size, **stamps})
    where = sealed.digest([name, os.fspath(place.resolve()), size])[:12]
    folder = cache_folder("decoded") / f"{re.sub(r'[^0-9A-Za-z]', '_', name)}-{size}-{where}"
    files = [f"{part}{of}.npy" for part in parts for of in ("", "_labels")]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, name):  # another process may be making them: this one waits, and maps them
            if (problem := _problem(folder, owner)) is not None:
                _make_room(folder, needed, takes)
                print(f"{problem}\n" * bool(problem) + f"{takes}, in {folder}", file=sys.stderr, flush=True)
                _make(parts, folder, owner, name, size, workers)
            train, train_labels, test, test_labels = (np.load(folder / file, mmap_mode="r") for file in files)
    except PermissionError as error:
        refused = Path(error.filename or "")
        if not (refused.is_relative_to(folder.parent) or folder.is_relative_to(refused)):
            raise  # that of an image
        raise PermissionError(f"{folder} cannot be written (XDG_CACHE_HOME says where): {error.strerror}") from error
    return train, train_labels, test, test_labels


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{name}: waiting for another process, which makes {folder}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _problem(folder: Path, owner: str) -> str | None:
    """Why ``folder`` does not serve; None if it does, and nothing to say if it is not there."""
    if not folder.exists():
        return ""
    try:
        facts = sealed.read(folder / sealed.MANIFEST, KIND, None)
        if facts["owner"] != owner:
            return f"the files are others than those of {folder}, or have changed: it is made again"
        sealed.check_files(folder, facts)
    except sealed.Damaged as error:
        return f"{error}: it is made again"
    return None


def _make_room(folder: Path, needed: int, takes: str) -> None:
    """Removes what killed processes left, and arrays that do not serve where their room is needed."""
    for left in folder.parent.glob(f"{folder.name}.*/"):  # the lock, a file, is ours
        shutil.rmtree(left, ignore_errors=True)
    if needed > shutil.disk_usage(folder.parent).free:
        shutil.rmtree(folder, ignore_errors=True)
    if needed > (free := shutil.disk_usage(folder.parent).free):
        raise ValueError(f"{takes}, and {folder.parent} has {size_text(free)} free (XDG_CACHE_HOME says where)")


def _make(parts: Mapping[str, Records], folder: Path, owner: str, name: str, size: int, workers: int) -> None:
    counts = {part: len(records) for part, records in parts.items()}
    examples = sum(counts.values())
    temporary = folder.with_name(f"{folder.name}.tmp")
    temporary.mkdir()
    try:
        for part, count in counts.items():
            path = temporary / f"{part}.npy"
            np.lib.format.open_memmap(path, "w+", np.uint8, (count, size, size, 3))
            if hasattr(os, "posix_fallocate"):  # macOS has none
                with open(path, "r+b") as file:  # a full disk is an error here, and would be a signal later
                    try:
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
                    except OSError as error:  # of a quota, say
                        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        tasks = [
            (part, start, min(start + AT_A_TIME, count))
            for part, count in counts.items()
            for start in range(0, count, AT_A_TIME)
        ]
        labels: dict[str, list[np.ndarray]] = {part: [] for part in parts}
        count = min(workers or processors(), examples // WORTH_A_PROCESS)
        with _decoding(parts, temporary, count) as decode, _bar(name, examples) as bar:
            for (part, start, stop), found in zip(tasks, decode(tasks), strict=True):
                labels[part].append(found)
                bar.update(stop - start)
        for part, found in labels.items():
            np.save(temporary / f"{part}_labels.npy", np.concatenate(found).astype(np.int32))
        sealed.seal(temporary, KIND, owner, {"name": name, "size": size})
        before = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        if folder.exists():
            folder.replace(before)  # aside: NFS keeps a file that a process has mapped
        temporary.rename(folder)
        shutil.rmtree(before, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _bar(name: str, examples: int) -> tqdm:
    between = 0.1 if sys.stderr.isatty() else 30.0  # seconds: a log gets a line now and then
    return tqdm(total=examples, unit=" images", desc=name, mininterval=between)


class Decoder:
    """Decodes images of the parts into the files of ``folder``, and returns their labels."""

    def __init__(self, parts: Mapping[str, Records], folder: Path):
        self._parts = parts
        self._arrays = {part: np.load(folder / f"{part}.npy", mmap_mode="r+") for part in parts}

    def __call__(self, task: Task) -> np.ndarray:
        part, start, stop = task
        records, array, labels = self._parts[part], self._arrays[part], []
        for number in range(start, stop):
            data, label = records.read(number)
            array[number] = images.whole_image(images.decode(data, records.name(number)), array.shape[1])
            labels.append(label)
        return np.asarray(labels)


_decoders: list[Decoder] = []  # of a worker process: its one


def _begin(folder: Path) -> None:
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job: the first one decides
        signal.signal(number, signal.SIG_IGN)
    _decoders.append(Decoder(pickle.loads((folder / PARTS).read_bytes()), folder))


def _decode(task: Task) -> np.ndarray:
    return _decoders[0](task)


@contextmanager
def _decoding(parts: Mapping[str, Records], folder: Path, count: int) -> Iterator:
    """``decode(tasks) -> labels of each``, in order, in ``count`` processes, or in this one for fewer than two."""
    if count < 2:
        decoder = Decoder(parts, folder)
        yield lambda tasks: map(decoder, tasks)
        return

    others = active_children()
    # Not an argument: where it is long, each process would start when the one before has read it.
    listed = folder / PARTS
    listed.write_bytes(pickle.dumps(parts))
    pool = ProcessPoolExecutor(count, get_context("spawn"), _begin, (folder,))

    def decode(tasks: Iterable[Task]) -> Iterator[np.ndarray]:
        try:
            with without_script():  # they start as the tasks are handed over, all of which that is
                found = pool.map(_decode, tasks)
            yield from found
        except BrokenProcessPool as error:
            raise ChildProcessError(f"a process that decodes images was lost: {error}") from error

    try:
        yield decode
    except BaseException:
        # The pool would end them by a signal that they ignore, or, interrupted as they start, not at all.
        for worker in set(active_children()).difference(others):
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        listed.unlink()
