"""What the loop reads, of a data set in memory or of one on disk: the same interface for both.

``train_data(...)`` has ``shared``, ``own(step)``, ``batch_function(dtype)`` and ``close()``; ``eval_data(...)`` has
``batches()`` and ``batch_function(dtype)``. See :mod:`sdd_jax.data.memory` and :mod:`sdd_jax.data.grain_source`.
"""

from typing import Any

from jax.sharding import Mesh

from sdd_jax.data.dataset import Dataset
from sdd_jax.data.memory import MemoryData, MemoryEval
from sdd_jax.data.streamed import StreamedDataset

AnyDataset = Dataset | StreamedDataset


def train_data(dataset: AnyDataset, **arguments: Any) -> Any:
    """The training batches of runs; ``arguments`` as ``MemoryData`` has them."""
    if isinstance(dataset, Dataset):
        return MemoryData(dataset, **arguments)
    from sdd_jax.data.grain_source import GrainData  # Grain takes a second to import: only those who need it wait

    return GrainData(dataset, **arguments)


def eval_data(dataset: AnyDataset, split: Any, *, batch_size: int, mesh: Mesh) -> Any:
    """The batches that cover ``split`` once."""
    if isinstance(dataset, Dataset):
        return MemoryEval(dataset, split, batch_size=batch_size, mesh=mesh)
    from sdd_jax.data.grain_source import GrainEval

    return GrainEval(dataset, split, batch_size=batch_size, mesh=mesh)
