"""A replayable cache of a teacher: its logits for every (example, view), computed once and read by every later run.

A view is a number, see `sdd_jax.training.views`. A run's order and views are functions of its seed, so what it will ask
the teacher is known beforehand.

A folder: ``cache.json`` says of which teacher, data and views it is; ``00000/`` and so on are shards: keys and their
values, sealed together (`sdd_jax.sealed`) as that cache's. One process at a time adds shards.
"""

import io
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import sealed
from sdd_jax.files import check_fields
from sdd_jax.models import Outputs
from sdd_jax.regions import Regions
from sdd_jax.sealed import Damaged
from sdd_jax.training.run_dir import differing, holds_more, lock_folder, unlock_folder

HEADER = "cache.json"
STORES = ("float32", "float16", "int8", "float64")
EXACT = ("float64", "float32", "float16")  # as good as the teacher: float16 moves a logit of 60 by 0.016 at most
TOP = re.compile(r"top([1-9]\d{0,6})")  # a store that keeps the largest logits alone
SHARD_BYTES = 2**26


class Layout(NamedTuple):
    """Which rows are kept of an image: row 0 of the whole, then the cells of the finest grid of regions.

    Coarser regions are averaged from the grid, as they are live. Where no grid serves (None: direct pooling of a map
    that the scales do not tile, or a store that keeps the largest logits alone, which averages of cells would lose),
    every region is kept. A grid of 0: the teacher has no regions, row 0 is all.
    """

    regions: Regions
    grid: int | None  # of the teacher's map, by `Regions.grid`
    class_token: bool = False  # whether the teacher has one: then region 0 is row 0

    @classmethod
    def of_map(cls, regions: Regions, sides: tuple[int, int], store: str, class_token: bool = False) -> "Layout":
        """What a cache with this ``store`` keeps of a logit map of these ``sides``."""
        return cls(regions, None if TOP.fullmatch(store) else regions.grid(*sides), class_token)

    @property
    def rows(self) -> int:
        return 1 + (self.regions.count if self.grid is None else self.grid**2)

    @property
    def kept(self) -> Regions:
        """The regions that the teacher is asked for: the grid's cells are the last of them."""
        if not self.grid:
            return self.regions
        return Regions((1, self.grid) if self.grid > 1 else (1,), self.regions.pooling)

    @property
    def has_regions(self) -> bool:
        """Whether the regions can be had from the rows; the image itself is one."""
        return self.grid != 0 or self.regions.scales == (1,)

    def cache_key(self) -> dict[str, Any]:
        """Fields that decide whether a cache fits."""
        if self.grid is not None:
            return {"grid": self.grid}
        return {"scales": list(self.regions.scales), "pooling": self.regions.pooling}


def teacher_rows(model: Any, variables: Any, images: jax.Array, layout: Layout) -> jax.Array:
    """The rows ``[B, layout.rows, K]`` of ``images``, to be called inside ``jit``."""
    outputs = model.apply(variables, images, train=False, regions=layout.kept)
    return join_rows(outputs.logits, outputs.region_logits, layout)


def join_rows(logits: Any, region_logits: Any, layout: Layout) -> jax.Array:
    """The rows of ``logits`` [B,K] and ``region_logits`` [B,R,K] of ``layout.kept``."""
    return jnp.concatenate([logits[:, None], region_logits[:, region_logits.shape[1] + 1 - layout.rows :]], axis=1)


def outputs_of_rows(rows: jax.Array, layout: Layout) -> Outputs:
    """What a live teacher would give, without maps: logits, and the layout's regions."""
    cells = rows[:, 1:]
    if layout.grid == 0:
        cells = rows if layout.has_regions else None
    elif layout.grid:
        cells = layout.regions.pool(cells.reshape(rows.shape[0], layout.grid, layout.grid, rows.shape[-1]))
    if layout.class_token and cells is not None:
        cells = jnp.concatenate([rows[:, :1], cells[:, 1:]], axis=1)
    return Outputs(rows[:, 0], None, cells, {})


@contextmanager
def filling(folder: Path, header: dict[str, Any]) -> Iterator["Cache"]:
    """The cache in ``folder``, made if it is new, for its one writer; ``ValueError`` names another, or what is there.

    ``header`` says of what it is, JSON-ready.
    """
    packed_arrays(header["store"], header["rows"]["count"], header["num_classes"])  # refused before anything is made
    if (folder / HEADER).exists():
        Cache(folder, header)  # and before a lock is left there
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
            told = "the cache command fills the one that is needed, in a folder of its own"
            raise ValueError(f"{folder / HEADER} is another's ({wrong}): {told}")
        self.folder, self.owner = folder, sealed.digest(header)
        self.views, self.rows = header["views"]["count"], header["rows"]["count"]
        self.classes, self.store = header["num_classes"], header["store"]
        self.packed = packed_arrays(self.store, self.rows, self.classes)
        self.view_bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.packed.values())  # of one view
        self._slots: dict[int, int] = {}  # of each shard, which is never changed

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

    def _write(self, number: int, keys: np.ndarray, batches: Iterator[np.ndarray]) -> None:
        parts, errors, views = [], [], []
        for rows in batches:  # which are many times what is stored of them
            packed = pack(rows, self.store)
            if not all(np.isfinite(array).all() for array in packed.values()):
                raise FloatingPointError(f"the teacher's logits are not finite in {self.store}: none of them is kept")
            parts.append(packed)
            errors.append(added_error(rows, packed))
            views.append(len(rows))
        packed = {name: np.concatenate([part[name] for part in parts]) for name in self.packed}
        files = {f"{name}.npy": _npy(array) for name, array in {"keys": keys, **packed}.items()}
        error = {
            "max_logit": max(error["max_logit"] for error in errors),
            "mean_kl": float(np.average([error["mean_kl"] for error in errors], weights=views)),
        }
        content = {"number": number, "slots": len(keys), "error": error}
        temporary = Path(tempfile.mkdtemp(suffix=".shard", dir=self.folder))  # a name that no other process has
        try:
            sealed.seal(temporary, "shard", self.owner, content, files)
            temporary.chmod(self.folder.stat().st_mode)
            temporary.rename(self._path(number))  # an error if another process has written one
        except OSError:
            shutil.rmtree(temporary)
            raise

    def note(self, name: str, content: dict[str, Any]) -> None:
        """Keeps ``content`` as the sealed file ``name`` of this cache."""
        sealed.write(self.folder / name, name, self.owner, content)

    def noted(self, name: str) -> dict[str, Any] | None:
        """What was kept as ``name``; None if nothing was."""
        path = self.folder / name
        return sealed.read(path, name, self.owner) if path.exists() else None

    def check_files(self) -> None:
        """``Damaged`` names a file that is not as it was written, or a shard that is another's."""
        for shard in self.shards():
            try:
                sealed.check_files(self._path(shard), self._facts(shard))
            except Damaged as error:
                again = f"remove {self._path(shard)} and fill the cache again"
                raise Damaged(f"{error}; {again}") from error

    def error(self) -> dict[str, float]:
        """What storing added, over all shards: the largest error of a logit, the mean KL divergence; else nothing."""
        facts = [self._facts(shard) for shard in self.shards()]
        if not facts:
            return {}
        errors, slots = [shard["error"] for shard in facts], [shard["slots"] for shard in facts]
        mean = np.average([error["mean_kl"] for error in errors], weights=slots)
        return {"max_logit": max(error["max_logit"] for error in errors), "mean_kl": float(mean)}

    def read(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """What `pack` made of ``slots``, in their order."""
        shards = self.shards()
        self._slots |= {shard: self._facts(shard)["slots"] for shard in shards if shard not in self._slots}
        starts = np.cumsum([0, *(self._slots[shard] for shard in shards)])
        arrays = {name: np.empty((len(slots), *shape), dtype) for name, (shape, dtype) in self.packed.items()}
        home = np.searchsorted(starts, slots, side="right") - 1
        for position in np.unique(home):
            here = np.flatnonzero(home == position)
            rows = slots[here] - starts[position]
            cuts = np.flatnonzero((np.diff(here) != 1) | (np.diff(rows) != 1)) + 1  # else they are read as one
            blocks = list(zip(np.split(here, cuts), np.split(rows, cuts), strict=True))
            for name, array in arrays.items():
                self._read_blocks(shards[position], name, array, blocks)
        return arrays

    def _read_blocks(self, number: int, name: str, array: np.ndarray, blocks: list[Any]) -> None:
        """Reads rows of a shard's file to their places. A step may need hundreds of files: none is kept open."""
        path = self._path(number) / f"{name}.npy"
        with open(path, "rb", buffering=0) as file:
            first = 10 + int.from_bytes(file.read(10)[8:], "little")  # where the array begins, of np.save
            for places, rows in blocks:
                block = array[places[0] : places[-1] + 1]
                file.seek(first + int(rows[0]) * array[0].nbytes)
                if file.readinto(block.data) != block.nbytes:
                    raise Damaged(f"{path} ends before its row {rows[-1]}: it was changed")

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


def ask(compute: Callable[..., np.ndarray], keys: np.ndarray, views: int, batch: int) -> Iterator[np.ndarray]:
    """The rows that ``compute`` gives for ``keys``, a batch at a time; the last may be smaller."""
    padded = np.pad(keys, (0, -len(keys) % batch), mode="edge").reshape(-1, batch)
    for number, some in enumerate(padded):
        yield compute(*np.divmod(some, views))[: len(keys) - number * batch]


def read_header(folder: Path) -> dict[str, Any]:
    """Of what the cache in ``folder`` is; ``ValueError`` if there is none."""
    if not (folder / HEADER).is_file():
        raise ValueError(f"{folder} holds no cache: the cache command fills one")
    header = sealed.read(folder / HEADER, "cache", None)["header"]
    return check_fields(header, {"store": str}, str(folder / HEADER))


def slot_table(keys: np.ndarray, num_indices: int, views: int) -> np.ndarray:
    """int32 ``[num_indices, views]``: the slot of every (example, view), -1 where there is none."""
    table = np.full(num_indices * views, -1, np.int32)
    table[keys] = np.arange(len(keys), dtype=np.int32)
    return table.reshape(num_indices, views)


def packed_arrays(store: str, rows: int, classes: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of the arrays that `pack` makes of one view; ``ValueError`` for a ``store`` that there is not."""
    if store in STORES:
        scales = {"scales": ((rows,), np.dtype(np.float32))} if store == "int8" else {}
        return {"values": ((rows, classes), np.dtype(store)), **scales}
    count = int(found[1]) if (found := TOP.fullmatch(store)) else 0
    if not 0 < count < classes:
        known = f"{', '.join(STORES)}, or topN with N from 1 to {classes - 1}, such as top32"
        raise ValueError(f"a cache's store must be one of {known}; got {store!r}")
    numbers = np.dtype(np.uint16 if classes <= 2**16 else np.int32)
    single = np.dtype(np.float32)
    return {"values": ((rows, count), single), "classes": ((rows, count), numbers), "rest": ((rows,), single)}


def pack(rows: np.ndarray, store: str) -> dict[str, np.ndarray]:
    """``rows`` [S,R,K] as they are stored.

    int8 keeps ``round(row / scale)`` and ``scales``, ``max |row| / 127``: an error of at most half a scale. topN keeps
    the N largest logits of a row, which ``classes`` they are of, and as ``rest`` the one logit that all other classes
    get: with it their probabilities at temperature 1 add up to what they did, in equal shares ("A Fast Knowledge
    Distillation Framework for Visual Recognition", 2022: its code's marginal_smoothing_k10).
    """
    if found := TOP.fullmatch(store):
        of = np.argpartition(rows, -int(found[1]), -1)
        largest, others = of[..., -int(found[1]) :], np.take_along_axis(rows, of[..., : -int(found[1])], -1)
        rest = np.logaddexp.reduce(others, -1) - np.log(others.shape[-1])
        numbers = packed_arrays(store, *rows.shape[1:])["classes"][1]
        values = np.take_along_axis(rows, largest, -1).astype(np.float32)
        return {"values": values, "classes": largest.astype(numbers), "rest": rest.astype(np.float32)}
    if store != "int8":
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused where it is written
            return {"values": rows.astype(store)}
    scales = (np.abs(rows).max(-1) / 127).astype(np.float32)
    safe = np.where(scales > 0, scales, 1)
    return {"values": np.clip(np.rint(rows / safe[..., None]), -127, 127).astype(np.int8), "scales": scales}


def unpack(packed: Mapping[str, Any], num_classes: int) -> Any:
    """The rows ``[S,R,num_classes]`` that were packed, at least float32; NumPy or JAX arrays."""
    values = packed["values"]
    if "classes" in packed:
        whole = jnp.broadcast_to(packed["rest"][..., None], (*values.shape[:-1], num_classes))
        whole = jnp.put_along_axis(whole, packed["classes"].astype(np.int32), values, -1, inplace=False)
        return whole if isinstance(values, jax.Array) else np.asarray(whole)
    if "scales" in packed:
        return values.astype(np.float32) * packed["scales"][..., None]
    return values.astype(np.promote_types(values.dtype, np.float32))


def largest_error(rows: np.ndarray, packed: Mapping[str, np.ndarray]) -> float:
    """How far a logit that was stored is from that of ``rows`` at most; of topN, those that were kept."""
    if "classes" in packed:
        return float(np.abs(np.take_along_axis(rows, packed["classes"].astype(np.int64), -1) - packed["values"]).max())
    return float(np.abs(rows - unpack(packed, rows.shape[-1])).max())


def added_error(rows: np.ndarray, packed: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What storing changed: the largest difference of a logit, and the mean KL divergence in nats at temperature 1."""
    stored = jnp.asarray(unpack(packed, rows.shape[-1]), rows.dtype)
    exact, kept = jax.nn.log_softmax(rows, -1), jax.nn.log_softmax(stored, -1)
    divergence = jnp.mean(jnp.sum(jnp.exp(exact) * (exact - kept), -1))
    return {"max_logit": largest_error(rows, packed), "mean_kl": max(float(divergence), 0.0)}
