"""A replayable cache of a teacher: its logits for every (example, view), computed once and read by every later run.

Crop and flip make few pictures of an image (162 at a padding of four pixels), each with a number, its *view*. A run's
order and views are functions of its seed, so what it will ask the teacher is known beforehand.

A folder: ``cache.json`` says of which teacher, data and views it is; ``00000/`` and so on are shards: keys and their
values, sealed together (`sdd_jax.sealed`) as that cache's. One process at a time adds shards.
"""

import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import sealed
from sdd_jax.models import Outputs
from sdd_jax.regions import Regions
from sdd_jax.sealed import Damaged
from sdd_jax.training.run_dir import differing, holds_more, lock_folder, unlock_folder

HEADER = "cache.json"
STORES = ("float32", "float16", "int8", "float64")
SHARD_BYTES = 2**26


class Layout(NamedTuple):
    """Which rows are kept of an image: row 0 of the whole, then the cells of the finest grid of regions.

    Coarser regions are averaged from the grid, as they are live. Where no grid serves (None: direct pooling of a map
    that the scales do not tile), every region is kept.
    """

    regions: Regions
    grid: int | None  # of the teacher's map, by `Regions.grid`
    class_token: bool = False  # whether the teacher has one: then region 0 is row 0

    @property
    def rows(self) -> int:
        return 1 + (self.grid**2 if self.grid else self.regions.count)

    def cache_key(self) -> dict[str, Any]:
        """Fields that decide whether a cache fits."""
        if self.grid:
            return {"grid": self.grid}
        return {"scales": list(self.regions.scales), "pooling": self.regions.pooling}


def teacher_rows(model: Any, variables: Any, images: jax.Array, layout: Layout) -> jax.Array:
    """The rows ``[B, layout.rows, K]`` of ``images``, to be called inside ``jit``."""
    regions, grid = layout.regions, layout.grid
    if grid:
        regions = Regions((1, grid) if grid > 1 else (1,), regions.pooling)
    outputs = model.apply(variables, images, train=False, regions=regions)
    cells = outputs.region_logits[:, -(grid**2) :] if grid else outputs.region_logits
    return jnp.concatenate([outputs.logits[:, None], cells], axis=1)


def outputs_of_rows(rows: jax.Array, layout: Layout) -> Outputs:
    """What a live teacher would give, without maps: logits, and the layout's regions."""
    cells = rows[:, 1:]
    if layout.grid:
        cells = layout.regions.pool(cells.reshape(rows.shape[0], layout.grid, layout.grid, rows.shape[-1]))
    if layout.class_token:
        cells = jnp.concatenate([rows[:, :1], cells[:, 1:]], axis=1)
    return Outputs(rows[:, 0], None, cells, {})


@contextmanager
def filling(folder: Path, header: dict[str, Any]) -> Iterator["Cache"]:
    """The cache in ``folder``, made if it is new, for its one writer; ``ValueError`` names another, or what is there.

    ``header`` says of what it is, JSON-ready.
    """
    if (folder / HEADER).exists():
        Cache(folder, header)  # refused before a lock is left there
    elif folder.exists() and holds_more(folder):
        raise ValueError(f"{folder} is not empty and holds no cache: give --workdir a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder)
    try:
        if not (folder / HEADER).exists():
            sealed.write(folder / HEADER, "cache", sealed.digest(header), {"header": header})
        cache = Cache(folder, header)
        for path in folder.glob("*.shard"):  # of a killed process
            shutil.rmtree(path)
        yield cache
    finally:
        unlock_folder(folder, lock)


class Cache:
    """The cache in ``folder``, to be read; `filling` gives one to be added to.

    ``ValueError`` if the folder holds none, or one of something else than ``header``; the message names what differs.
    """

    def __init__(self, folder: Path, header: dict[str, Any]):
        if wrong := differing(read_header(folder), header):
            raise ValueError(f"{folder / HEADER} is another's ({wrong})")
        self.folder, self.owner = folder, sealed.digest(header)
        self.views, self.rows = header["views"]["count"], header["rows"]["count"]
        self.classes, self.store = header["num_classes"], header["store"]
        self.view_bytes = self.rows * self.classes * np.dtype(self.store).itemsize  # of one view

    def shards(self) -> list[int]:
        """The numbers of the shards, in order."""
        return sorted(int(path.name) for path in self.folder.iterdir() if re.fullmatch(r"\d{5,}", path.name))

    def keys(self) -> np.ndarray:
        """The key, ``index * views + view``, of every slot: int64, in the order of the slots."""
        return np.concatenate([np.zeros(0, np.int64), *(self._load(shard, "keys") for shard in self.shards())])

    def add(self, wanted: np.ndarray, compute: Callable[[np.ndarray, np.ndarray], np.ndarray], batch: int) -> Iterator:
        """Computes and writes the rows of the keys ``wanted`` that are not there yet; yields ``(done, of)`` by shard.

        ``compute(index [batch], view [batch]) -> rows``; the last batch is filled up by repeating its last key.
        """
        missing = np.setdiff1d(wanted, self.keys())
        size = max(SHARD_BYTES // self.view_bytes // batch, 1) * batch
        new = max(self.shards(), default=-1) + 1
        for number, start in enumerate(range(0, len(missing), size), new):
            keys = missing[start : start + size]
            self._write(number, keys, ask(compute, keys, self.views, batch))
            yield start + len(keys), len(missing)

    def _write(self, number: int, keys: np.ndarray, rows: np.ndarray) -> None:
        packed = pack(rows, self.store)
        stored = unpack(**packed)
        if not np.isfinite(stored).all():
            raise FloatingPointError(f"the teacher's logits are not finite in {self.store}: nothing of them is kept")
        files = {f"{name}.npy": _npy(array) for name, array in {"keys": keys, **packed}.items()}
        content = {"number": number, "slots": len(keys), "error": added_error(rows, stored)}
        temporary = Path(tempfile.mkdtemp(suffix=".shard", dir=self.folder))  # a name that no other process has
        try:
            sealed.seal(temporary, "shard", self.owner, content, files)
            temporary.chmod(self.folder.stat().st_mode)
            temporary.rename(self._path(number))  # an error if another process has written one
        except OSError:
            shutil.rmtree(temporary)
            raise

    def check_files(self) -> None:
        """``Damaged`` names a file that is not as it was written, or a shard that is another's."""
        for shard in self.shards():
            try:
                sealed.check_files(self._path(shard), self._facts(shard))
            except Damaged as error:
                again = f"remove {self._path(shard)} and fill the cache again"
                raise Damaged(f"{error}; {again}") from error

    def error(self) -> dict[str, float]:
        """The largest error that storing added, over all shards; zero in the teacher's own precision."""
        errors = [self._facts(shard)["error"] for shard in self.shards()]
        return {name: max(error[name] for error in errors) for name in errors[0]} if errors else {}

    def read(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """What `pack` made of ``slots``, in their order, from the memory-mapped files."""
        shards = self.shards()
        starts = np.cumsum([0, *(self._facts(shard)["slots"] for shard in shards)])
        arrays = {"values": np.empty((len(slots), self.rows, self.classes), self.store)}
        if self.store == "int8":
            arrays["scales"] = np.empty((len(slots), self.rows), np.float32)
        home = np.searchsorted(starts, slots, side="right") - 1
        for position in np.unique(home):
            here = home == position
            for name, array in arrays.items():
                array[here] = self._load(shards[position], name)[slots[here] - starts[position]]
        return arrays

    def _facts(self, number: int) -> dict[str, Any]:
        return sealed.read(self._path(number) / sealed.MANIFEST, "shard", self.owner, number=number)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}"

    def _load(self, number: int, name: str) -> np.ndarray:
        return np.load(self._path(number) / f"{name}.npy", mmap_mode="r")


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def ask(compute: Callable[..., np.ndarray], keys: np.ndarray, views: int, batch: int) -> np.ndarray:
    """The rows that ``compute`` gives for ``keys``, a batch at a time."""
    padded = np.pad(keys, (0, -len(keys) % batch), mode="edge").reshape(-1, batch)
    return np.concatenate([compute(*np.divmod(some, views)) for some in padded])[: len(keys)]


def read_header(folder: Path) -> dict[str, Any]:
    """Of what the cache in ``folder`` is; ``ValueError`` if there is none."""
    if not (folder / HEADER).is_file():
        raise ValueError(f"{folder} holds no cache: the cache command fills one")
    return sealed.read(folder / HEADER, "cache", None)["header"]


def slot_table(keys: np.ndarray, num_indices: int, views: int) -> np.ndarray:
    """int32 ``[num_indices, views]``: the slot of every (example, view), -1 where there is none."""
    table = np.full(num_indices * views, -1, np.int32)
    table[keys] = np.arange(len(keys), dtype=np.int32)
    return table.reshape(num_indices, views)


def pack(rows: np.ndarray, store: str) -> dict[str, np.ndarray]:
    """``rows`` [S,R,K] as they are stored: ``values``, and for int8 ``scales`` of the rows, float32 [S,R].

    int8 keeps ``round(row / scale)`` with ``scale = max |row| / 127``: an error of at most half a scale.
    """
    if store != "int8":
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused where it is written
            return {"values": rows.astype(store)}
    scales = (np.abs(rows).max(-1) / 127).astype(np.float32)
    safe = np.where(scales > 0, scales, 1)
    return {"values": np.clip(np.rint(rows / safe[..., None]), -127, 127).astype(np.int8), "scales": scales}


def unpack(values: Any, scales: Any = None) -> Any:
    """The rows of ``pack``, at least float32; NumPy or JAX arrays."""
    if scales is not None:
        return values.astype(np.float32) * scales[..., None]
    return values.astype(np.promote_types(values.dtype, np.float32))


def added_error(rows: np.ndarray, stored: np.ndarray) -> dict[str, float]:
    """What storing changed: the largest difference of a logit, and the mean KL divergence in nats."""
    exact, kept = jax.nn.log_softmax(rows, -1), jax.nn.log_softmax(jnp.asarray(stored, rows.dtype), -1)
    divergence = jnp.mean(jnp.sum(jnp.exp(exact) * (exact - kept), -1))
    return {"max_logit": float(np.abs(rows - stored).max()), "mean_kl": max(float(divergence), 0.0)}
