"""The labelled clips of online probes: chosen once, class by class, and decoded once as far as they fit into memory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.config import ConfigError
from jepa.data.batches import Failure, eval_batches
from jepa.data.listing import MANIFEST, read_rows
from jepa.data.loader import DataConfig, eval_options, open_data
from jepa.data.sources import Source, SourceConfig, open_source
from jepa.observer import OnlineConfig
from jepa.types import Batch, ClipConfig
from jepa.watch import take

log = logging.getLogger("jepa")


class Side(NamedTuple):
    """The training or the test clips: ``sources`` hold nothing else, in order; ids int64 ``[N]`` of every label (-1: it
    has none)."""

    sources: list[Source]
    labels: dict[str, Tensor]


class Sides(NamedTuple):
    """Clips to fit probes on and to score them on, and the class names of every label."""

    train: Side
    test: Side
    classes: dict[str, tuple[str, ...]]


def open_sides(online: OnlineConfig, data: DataConfig, clip: ClipConfig) -> Sides:
    """Choose the clips. Raises ``ConfigError`` naming the key when they cannot be probed."""
    columns: tuple[str | None, ...] = online.labels or (None,)
    opened = [_open(online, data, clip, column) for column in columns]
    own = (online.train or data.sources[0]).label_column or "label"
    classes, ids = {}, []
    for column, pair in zip(columns, opened, strict=True):
        names = tuple(dict.fromkeys(name for listed in pair for source in listed for name in source.class_names))
        classes[column or own] = names
        ids.append([_ids(listed, names) for listed in pair])
    chosen: list[Side] = []
    for number, count in enumerate((online.train_clips, online.test_clips)):
        labels = np.stack([pair[number] for pair in ids])
        items = choose(labels, count, online.seed * 2 + number)
        parts = take([_plain(source, data, clip) for source in opened[0][number]], items)
        chosen.append(Side(parts, dict(zip(classes, torch.from_numpy(labels[:, items]), strict=True))))
    sides = Sides(chosen[0], chosen[1], classes)
    _check(sides, online)
    return sides


def choose(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Up to ``count`` sorted columns of ``labels`` ``[L, N]`` that have a label (not -1), every class of the first
    label in proportion to its size (then, as far as that goes, of the next), at random within the classes."""
    rng = np.random.default_rng(seed)
    known = np.flatnonzero((labels >= 0).any(axis=0))
    order = known[np.lexsort((rng.random(len(known)), *labels[::-1, known]))]
    count = min(count, len(known))
    places = (np.arange(count) + rng.random()) * (len(known) / max(count, 1))
    return np.sort(order[places.astype(np.int64)])


def _open(
    online: OnlineConfig, data: DataConfig, clip: ClipConfig, column: str | None
) -> tuple[list[Source], list[Source]]:
    """Sources to fit and to score on, labelled by ``column`` (None: by their own label)."""

    def labelled(config: SourceConfig) -> SourceConfig:
        if column is None:
            return config
        _check_column(Path(config.path), column)
        return replace(config, label_column=column)

    def opened(configs: Sequence[SourceConfig], key: str) -> list[Source]:
        try:
            return [open_source(labelled(config), eval_options(clip)) for config in configs]
        except ConfigError as error:
            raise ConfigError(f"config key '{key}': {error}") from None

    if online.test is None and not data.validation and not data.holdout:
        raise ConfigError("config key 'online.test': the run has neither data.validation nor data.holdout to score on")
    train: list[Source] = []
    test: list[Source] = []
    if online.train is None or (online.test is None and not data.validation):
        # as the run opens them, so that held-out clips are those that training never sees
        sources, holdout = [labelled(config) for config in data.sources], 0 if data.validation else data.holdout
        train, test = open_data(replace(data, sources=sources, validation=[], holdout=holdout, cache_mb=0.0), clip)
    if online.train is not None:
        train = opened([online.train], "online.train")
    if online.test is not None or data.validation:
        test = opened(data.validation if online.test is None else [online.test], "online.test")
    return train, test


def _check_column(path: Path, column: str) -> None:
    """Raise ``ConfigError`` where ``path`` has no such column, or no columns at all."""
    table = path / MANIFEST if (path / MANIFEST).is_file() else path
    if table.is_dir() or table.suffix.lower() in (".npy", ".npz"):
        raise ConfigError(
            f"config key 'online.labels': {path} has no columns, so no {column!r}; leave online.labels out to probe "
            "the label that its folders or its array give, or set online.train and online.test"
        )
    columns = read_rows(table)[0] if table.is_file() else [column]
    if column.lower() not in columns:
        raise ConfigError(
            f"config key 'online.labels': {table} has no column {column!r}; its columns: {', '.join(columns)}"
        )


def _ids(sources: Sequence[Source], names: tuple[str, ...]) -> NDArray[np.int64]:
    """Class ids among ``names`` of all items, -1 where there is none."""
    places = {name: number for number, name in enumerate(names)}
    tables = [np.array([*(places[name] for name in source.class_names), -1], dtype=np.int64) for source in sources]
    return np.concatenate([table[source.labels] for table, source in zip(tables, sources, strict=True)])


def _plain(source: Source, data: DataConfig, clip: ClipConfig) -> Source:
    """Read as an eval reads: scaled for the centred crop, without the training's cache."""
    return replace(source, options=eval_options(clip, data.reader, data.short_video), slots=None)


def _check(sides: Sides, online: OnlineConfig) -> None:
    """Raise ``ConfigError`` for labels that cannot be probed, and for the same video on both sides."""
    for label, names in sides.classes.items():
        for key, side in (("online.train", sides.train), ("online.test", sides.test)):
            if int((side.labels[label] >= 0).sum()) < 2:
                where = ", ".join(source.config.path for source in side.sources) or "the source"
                raise ConfigError(
                    f"config key '{key}': fewer than two of the clips chosen from {where} have a label {label!r}; "
                    "name a column by online.labels, or labelled clips by online.train and online.test"
                )
        ids = sides.train.labels[label]
        counts = torch.bincount(ids[ids >= 0], minlength=len(names))
        if int((counts > 0).sum()) < 2:
            raise ConfigError(
                f"config key 'online.labels': all chosen training clips have the {label} "
                f"{names[int(counts.argmax())]!r}; a probe needs at least two classes"
            )
        if int(counts.max()) < 2:
            raise ConfigError(
                f"config key 'online.train_clips': {online.train_clips} leaves one clip of each {label}, and nothing "
                "to choose a probe's head on: raise it"
            )
    paths = [{os.path.realpath(p) for source in side.sources for p in source.paths} for side in sides[:2]]
    both = sorted(paths[0] & paths[1])
    if both and "leak" not in online.allow:
        raise ConfigError(
            f"config key 'online.test': {len(both)} of its videos are among the training clips too, the first: "
            f"{both[0]}; choose others, or set online.allow=[leak]"
        )


@dataclass(slots=True, kw_only=True)
class Clips:
    """Batches of one side. The first pass keeps as many decoded clips as fit into ``most_bytes``; later ones read only
    the others again."""

    sources: list[Source]
    clip: ClipConfig
    batch_size: int
    workers: int
    most_bytes: float
    kept: list[Batch] | None = None
    saved_s: float = 0.0  # what decoding the kept clips took: later passes save it
    _first: int = 0  # item after the last one that is kept

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def batches(self) -> Iterator[Batch]:
        """uint8 batches in order; ``index``: which clip of this side."""
        if self.kept is None:
            yield from self._read_and_keep()
            return
        yield from self.kept
        if self._first < len(self):
            yield from self._read(self._first, [])

    def _read_and_keep(self) -> Iterator[Batch]:
        kept: list[Batch] = []
        failures: list[Failure] = []
        room, full, began = self.most_bytes, False, time.perf_counter()
        for batch in self._read(0, failures):
            room -= batch.clip.numel()
            full = full or room < 0
            if not full and batch.index is not None:
                kept.append(batch)
                self._first = int(batch.index[-1]) + 1
                self.saved_s += time.perf_counter() - began
            yield batch
            began = time.perf_counter()
        self.kept = kept
        self._first = self._first if full else len(self)
        for failure in failures:
            log.warning("left out of the online probes: %s", failure.reason)

    def _read(self, first: int, failures: list[Failure]) -> Iterator[Batch]:
        rest = take(self.sources, np.arange(first, len(self)))
        for batch in eval_batches(rest, self.clip, self.batch_size, workers=self.workers, failures=failures):
            assert batch.index is not None
            batch.index += first
            yield batch
