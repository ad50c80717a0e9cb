"""Feature files as parquet."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jepa.features.store import Block, Rows, Times, rows_per_block


def write(
    file: IO[bytes], sources: Sequence[str], start_s: Times, end_s: Times, blocks: Iterable[Block], metadata: str,
    shape: tuple[int, ...],
) -> None:  # fmt: skip
    """Every block becomes a row group."""
    width = math.prod(shape)
    schema = pa.schema(
        [
            ("source", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64()),
            ("feature", pa.list_(pa.float32(), width)),
        ],
        metadata={"jepa": metadata},
    )  # fmt: skip
    # features are noise to a compressor: it would only cost time
    compression = {"source": "zstd", "start_s": "zstd", "end_s": "zstd", "feature.list.element": "none"}
    done = 0
    with pq.ParquetWriter(
        file, schema, compression=compression, use_dictionary=["source"], write_statistics=["start_s", "end_s"]
    ) as writer:
        for block in blocks:
            rows = slice(done, done + len(block))
            flat = pa.array(np.ascontiguousarray(block, dtype=np.float32).reshape(-1))
            columns = [
                pa.array(list(sources[rows]), pa.string()), pa.array(start_s[rows]), pa.array(end_s[rows]),
                pa.FixedSizeListArray.from_arrays(flat, width),
            ]  # fmt: skip
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(block))
            done += len(block)


@contextlib.contextmanager
def read(path: Path) -> Iterator[Rows]:
    """The labels at once, the features batch by batch."""
    with pq.ParquetFile(path, memory_map=True) as file:
        stored = (file.schema_arrow.metadata or {}).get(b"jepa")
        if stored is None:
            raise ValueError("it has no metadata 'jepa': it was not written by this toolkit")
        metadata: dict[str, Any] = json.loads(stored)
        shape = tuple(int(n) for n in metadata["shape"])
        labels = file.read(columns=["source", "start_s", "end_s"])

        def blocks() -> Iterator[Block]:
            for batch in file.iter_batches(rows_per_block(shape), columns=["feature"]):
                yield batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape)

        start_s, end_s = (labels.column(name).to_numpy() for name in ("start_s", "end_s"))
        yield Rows(labels.column("source").to_pylist(), start_s, end_s, shape, metadata, blocks)
