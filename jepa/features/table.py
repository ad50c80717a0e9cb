"""A feature file as a table of vectors: what search, plots and probes work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa.features.store import open_rows


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTable:
    """K rows: ``sources``, ``start_s`` and ``end_s`` float64 ``[K]`` (seconds), ``vectors`` float32 ``[K, D]``, and the
    file's ``metadata`` (model, clip, pool, layers, grid, ``shape`` of the rows in the file, ...).

    ``vectors`` of pooled ``.safetensors`` and ``.npz`` files are memory-mapped and read-only. Tokens are averaged.
    """

    sources: list[str]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    vectors: NDArray[np.float32]
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return len(self.sources)


def open_features(path: str | Path) -> FeatureTable:
    """The rows of a ``.parquet``, ``.safetensors`` or ``.npz`` feature file, read block by block.

    Raises ``ValueError`` naming the file when it is missing, damaged or was not written by this toolkit.
    """
    with open_rows(Path(path)) as rows:
        if rows.mapped is not None and len(rows.shape) == 1:
            vectors = rows.mapped
        else:
            vectors = np.empty((len(rows.sources), rows.shape[-1]), dtype=np.float32)
            filled = 0
            for block in rows.blocks():
                pooled = block if len(rows.shape) == 1 else block.mean(axis=1, dtype=np.float32)
                vectors[filled : filled + len(block)] = pooled
                filled += len(block)
            if filled != len(rows.sources):
                raise ValueError(f"it has {filled} features for {len(rows.sources)} sources")
    return FeatureTable(rows.sources, rows.start_s, rows.end_s, vectors, rows.metadata)
