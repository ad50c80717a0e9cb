"""The samples of tar shards as items of a source."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from jepa.config import ConfigError
from jepa.data.listing import label_ids
from jepa.data.tar_files import ShardFiles, expand_shards
from jepa.data.tar_index import TarIndex, open_index

log = logging.getLogger("jepa")


class TarItems(Sequence[str]):
    """Samples by number: their names (SHARD/MEMBER) and their bytes. ``rows``: item -> row of the index (None: all).

    However many samples there are, a worker process holds nothing for each: the index is mapped from the disk.
    """

    def __init__(self, path: str, table: TarIndex, files: ShardFiles, rows: NDArray[np.int64] | None = None) -> None:
        self.path, self.table, self.files, self.rows = path, table, files, rows

    def __len__(self) -> int:
        return len(self.table.entries) if self.rows is None else len(self.rows)

    def _row(self, item: int) -> int:
        if not 0 <= item < len(self):
            raise IndexError(f"{self.path} has {len(self)} samples, asked for number {item}")
        return item if self.rows is None else int(self.rows[item])

    @overload
    def __getitem__(self, item: int) -> str: ...
    @overload
    def __getitem__(self, item: slice) -> list[str]: ...
    def __getitem__(self, item: int | slice) -> str | list[str]:
        if isinstance(item, slice):
            return [self[number] for number in range(*item.indices(len(self)))]
        row = self._row(item)
        return f"{self.files.shards[self.table.entries['shard'][row]]}/{self.table.name(row)}"

    def file(self, item: int) -> BinaryIO:
        """What the sample's video, image or array holds. Raises ``VideoError`` naming the shard."""
        entry = self.table.entries[self._row(item)]
        return self.files.member(int(entry["shard"]), int(entry["offset"]), int(entry["size"]))

    def size(self, item: int) -> int:
        """Bytes of that."""
        return int(self.table.entries["size"][self._row(item)])

    def place(self, item: int) -> tuple[str, int]:
        """The shard and the offset at which the sample's data begin in it."""
        entry = self.table.entries[self._row(item)]
        return self.files.shards[entry["shard"]], int(entry["offset"])

    def subset(self, items: NDArray[np.int64]) -> TarItems:
        """Only these samples, in this order."""
        rows = items if self.rows is None else self.rows[items]
        return TarItems(self.path, self.table, self.files, rows)

    def _column(self, name: str) -> NDArray:
        values = self.table.entries[name]
        return np.ascontiguousarray(values if self.rows is None else values[self.rows])

    def shard_sizes(self) -> NDArray[np.int64]:
        """How many samples in a row come from the same shard, all along ``[S]``."""
        shards = self._column("shard")
        ends = np.flatnonzero(np.diff(shards, append=-1)) + 1
        return np.diff(ends, prepend=0)

    def labels(self, class_names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Class ids ``[N]`` (-1: none) and names, by the rules for folders and CSV files."""
        ids, classes = label_ids(self.table.labels, class_names, Path(self.path))
        return np.append(ids, -1)[self._column("label")], classes

    def spans(self) -> NDArray[np.float64] | None:
        """The seconds that each sample is confined to ``[N, 2]``, where there are any."""
        spans = self._column("span_s")
        return None if np.isnan(spans).all() else np.where(np.isnan(spans), (0.0, np.inf), spans)

    def identify(self, digest: hashlib._Hash) -> None:
        """Add shards, places and sizes, but not the folder, to a hash."""
        shards, sizes = self._column("shard"), self.shard_sizes()
        names = [os.path.basename(self.files.shards[shards[first]]) for first in np.cumsum(sizes) - sizes]
        digest.update(repr(list(zip(names, sizes.tolist(), strict=True))).encode())
        for name in ("offset", "size"):
            digest.update(self._column(name).tobytes())


def open_tar(path: str, cache_gb: float, label_key: str | None = None, member: str | None = None) -> TarItems:
    """The samples of the shards that ``path`` means; damaged shards and samples left out are named in the log.

    Raises ``ConfigError`` for missing shards, for shards without a single usable sample, without a wanted label.
    """
    shards = expand_shards(path)
    index, numbers = open_index(shards, cache_gb, label_key, member)
    folder = os.path.dirname(shards[0])
    addresses = [record["name"] for record in index.shards]
    if numbers is not None or any(os.path.dirname(name) != folder for name in addresses):
        addresses = [name if name in shards else os.path.join(folder, name) for name in addresses]
    for shard, reason in index.broken.items():
        log.warning("shard %s is damaged: %s; the samples after that are left out", shard, reason)
    for sample, reason in list(index.skipped.items())[:10]:
        log.warning("left out: %s: %s", sample, reason)
    if index.num_skipped > 10:
        log.warning("left out: %d samples in all; %s names them", index.num_skipped, index.folder / "index.json")
    if index.num_crowded:
        log.warning(
            "%d members are not used, the first: %s. Members make one sample if their names agree up to the first dot; "
            "of several videos in one the first by name is used ('member' of the source names another)",
            index.num_crowded, index.crowded[0],
        )  # fmt: skip
    items = TarItems(path, index, ShardFiles(addresses, cache_gb), _rows(index, numbers))
    if not len(items):
        reasons = [*index.broken.items(), *index.skipped.items()]
        first = f"; the first problem: {reasons[0][0]}: {reasons[0][1]}" if reasons else ""
        raise ConfigError(f"data source {path}: none of its {len(shards)} shards holds a sample{first}")
    if label_key is not None and not index.labels:
        raise ConfigError(f"data source {path}: no sample has a .json member with {label_key!r} (label_column)")
    return items


def _rows(index: TarIndex, numbers: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    if numbers is None:
        return None
    ends = np.cumsum([record["samples"] for record in index.shards])
    parts = [np.arange(ends[n] - index.shards[n]["samples"], ends[n]) for n in numbers]
    return np.concatenate(parts).astype(np.int64)
