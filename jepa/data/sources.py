"""Data sources: a folder, a CSV or an array of clips, behind one class that hands out single clips."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jepa.config import ConfigError
from jepa.data.array_reader import ArrayReader
from jepa.data.image import open_pictures
from jepa.data.listing import MANIFEST, label_ids, list_folder, read_rows
from jepa.data.sampling import frame_indices, parse_span
from jepa.data.source_config import ClipRequest, RawClip, ReadOptions, SourceConfig
from jepa.data.tar_files import names_shards
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.video import VideoReader, is_url, open_video
from jepa.types import ClipConfig

if TYPE_CHECKING:
    from jepa.data.tar_source import TarItems
    from jepa.data.trajectories.base import Trajectories

__all__ = ["ClipRequest", "RawClip", "ReadOptions", "Source", "SourceConfig", "open_source"]


@dataclass(kw_only=True)
class Source:
    """Items (a video, or a span of one) with labels: int64 ``[N]``, -1 where there is none."""

    config: SourceConfig
    options: ReadOptions
    paths: Sequence[str]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = ()
    spans: NDArray[np.float64] | None = None  # [N, 2] seconds
    arrays: NDArray[np.uint8] | None = None  # [K, T, H, W, 3]
    rows: NDArray[np.int64] | None = None  # item -> row of arrays, or number of the episode
    slots: NDArray[np.int64] | None = None  # item -> slot of the cache
    tar: TarItems | None = None  # the samples of shards, which are then the paths too
    trajectories: Trajectories | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, items: Sequence[int] | NDArray[np.int64]) -> Source:
        """The same source with only these items, in this order."""
        ids = np.asarray(items, dtype=np.int64)

        def pick(values: NDArray | None) -> NDArray | None:
            return None if values is None else values[ids]

        tar = None if self.tar is None else self.tar.subset(ids)
        return replace(
            self, paths=[self.paths[i] for i in ids] if tar is None else tar, labels=self.labels[ids],
            spans=pick(self.spans), rows=pick(self.rows), slots=pick(self.slots), tar=tar,
        )  # fmt: skip

    def file_ids(self) -> NDArray[np.int64]:
        """For every item the number of its file among the source's files in the order of their names ``[N]``."""
        if self.tar is not None:
            return np.arange(len(self))
        numbers = {path: number for number, path in enumerate(sorted(set(self.paths)))}
        return np.fromiter((numbers[path] for path in self.paths), np.int64, len(self.paths))

    def identify(self, digest: hashlib._Hash) -> None:
        """Add what the items are, but not where they lie, to a hash."""
        digest.update(repr((self.config.weight, self.class_names)).encode())
        if self.tar is not None:
            digest.update(repr(self.config.shuffle_shards).encode())
            self.tar.identify(digest)
        else:
            root = self.config.path
            digest.update("\n".join(path.removeprefix(root) for path in self.paths).encode())
        if self.trajectories is not None:
            self.trajectories.identify(digest, self.episodes())
        digest.update(self.labels.tobytes())

    def episodes(self) -> list[int]:
        """The items' numbers among the episodes of ``trajectories``."""
        assert self.rows is not None
        return self.rows.tolist()

    def load_clip(
        self, item: int, clip: ClipConfig, rng: np.random.Generator | None = None, segment: tuple[int, int] = (0, 1)
    ) -> RawClip:
        """One clip. Raises ``VideoError`` (the file) or ``ShortVideoError`` (the rule ``skip``), naming the file."""
        return self.load_clips(item, clip, [ClipRequest(rng, segment)])[0]

    def load_clips(self, item: int, clip: ClipConfig, requests: Sequence[ClipRequest]) -> list[RawClip]:
        """Several clips of one item; its file is opened once. Raises like ``load_clip``."""
        with self.open(item) as reader:
            return [self._cut(item, reader, clip, request) for request in requests]

    def span_s(self, item: int) -> tuple[float, float] | None:
        """The seconds that the item is confined to."""
        return None if self.spans is None else (float(self.spans[item, 0]), float(self.spans[item, 1]))

    def open(self, item: int) -> VideoReader:
        """The item's video, image, folder of images or array. Raises ``VideoError`` naming the file."""
        path = self.paths[item]
        if self.arrays is not None:
            side, how = self.options.short_side, self.options.interpolation
            return ArrayReader(path, self.arrays[self._row(item)], self.config.fps, side, how)
        cache = self.options.cache if self.slots is not None else None
        known = cache.get(int(self.slots[item])) if cache is not None and self.slots is not None else None
        if known is not None:
            return ArrayReader(path, *known)
        reader = self._open_file(item)
        if cache is None or self.slots is None or not cache.has_room(math.prod((reader.num_frames, *reader.size, 3))):
            return reader
        with reader:
            frames = reader.read(range(reader.num_frames))
        cache.put(int(self.slots[item]), frames, reader.fps)
        return ArrayReader(path, frames, reader.fps)

    def _row(self, item: int) -> int:
        assert self.rows is not None
        return int(self.rows[item])

    def _open_file(self, item: int) -> VideoReader:
        if self.trajectories is not None:
            return self.trajectories.open(self._row(item), self.options)
        path, side, how = self.paths[item], self.options.short_side, self.options.interpolation
        file = None if self.tar is None else self.tar.file(item)
        pictures = open_pictures(path, self.config.fps, side, how, file)
        return pictures if pictures is not None else open_video(path, self.options.backend, side, how, file)

    def _cut(self, item: int, video: VideoReader, clip: ClipConfig, request: ClipRequest) -> RawClip:
        if self.trajectories is not None:
            return self.trajectories.cut(self._row(item), video, clip, request)
        choice = frame_indices(
            video.num_frames, video.rate, clip, request.rng, request.segment, span_s=self.span_s(item),
            where=self.config.span, short_video=self.options.short_video, name=self.paths[item],
        )  # fmt: skip
        frames = video.read(choice.indices)
        distinct = len(np.unique(choice.indices))
        return RawClip(frames, choice.start_s, choice.end_s, int(self.labels[item]), video.info, distinct)


def open_source(config: SourceConfig, options: ReadOptions | None = None, class_names: Sequence[str] = ()) -> Source:
    """List a source's items. ``class_names`` fixes the class ids (give a test set those of its training set).

    Raises ``ConfigError`` naming the path when there is nothing there that could be read.
    """
    options = options or ReadOptions()
    if config.trajectory is not None:
        return _open_trajectories(config, config.trajectory, options, class_names)
    if not Path(config.path, MANIFEST).is_file() and names_shards(config.path):
        return _open_tar(config, options, class_names)
    path = Path(config.path)
    if not path.exists():
        raise ConfigError(f"data source {path} does not exist")
    if path.is_dir() and (path / MANIFEST).is_file():
        path = path / MANIFEST
    if path.is_dir():
        paths, names = list_folder(path)
        labels, classes = label_ids(names, class_names, path)
        return Source(config=config, options=options, paths=paths, labels=labels, class_names=classes)
    if path.suffix.lower() in (".npy", ".npz"):
        return _open_array(config, options, path, class_names)
    if path.suffix.lower() in (".csv", ".txt", ".tsv"):
        return _open_csv(config, options, path, class_names)
    raise ConfigError(f"data source {path} is neither a folder nor a .csv, .npy, .npz or .tar file")


def _open_trajectories(
    config: SourceConfig, trajectory: TrajectoryConfig, options: ReadOptions, class_names: Sequence[str]
) -> Source:
    from jepa.data.trajectories.opening import open_trajectories  # it brings h5py and pyarrow along

    episodes = open_trajectories(config.path, trajectory)
    return Source(
        config=config, options=options, paths=episodes.names, labels=np.full(len(episodes), -1),
        class_names=tuple(class_names), rows=np.arange(len(episodes)), trajectories=episodes,
    )  # fmt: skip


def _open_tar(config: SourceConfig, options: ReadOptions, class_names: Sequence[str]) -> Source:
    from jepa.data.tar_source import open_tar  # it brings webdataset along

    if config.where:
        raise ConfigError(f"data source {config.path}: 'where' chooses rows of a CSV, not samples of shards")
    tar = open_tar(config.path, options.shard_cache_gb, config.label_column, config.member)
    labels, classes = tar.labels(class_names)
    return Source(
        config=config, options=options, paths=tar, labels=labels, class_names=classes, spans=tar.spans(), tar=tar
    )


def _open_array(config: SourceConfig, options: ReadOptions, path: Path, class_names: Sequence[str]) -> Source:
    """``.npy``: uint8 ``[K, T, H, W, 3]``, mapped from disk. ``.npz``: the same under any key, and ``labels`` [K]."""
    try:
        loaded = np.load(path, mmap_mode="r")
        if isinstance(loaded, np.ndarray):
            clips, names = loaded, [""] * len(loaded)
        else:
            key = next((k for k in loaded.files if loaded[k].ndim == 5 and loaded[k].dtype == np.uint8), None)
            if key is None:
                raise ConfigError(f"{path} has no uint8 array [K, T, H, W, 3] (keys: {', '.join(loaded.files)})")
            clips = loaded[key]
            names = [str(x) for x in loaded["labels"]] if "labels" in loaded.files else [""] * len(clips)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"data source {path} cannot be read as a numpy file: {error}") from None
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or 0 in clips.shape:
        raise ConfigError(f"{path} must hold uint8 clips [K, T, H, W, 3], not {clips.dtype} {list(clips.shape)}")
    if len(names) != len(clips):
        raise ConfigError(f"{path} has {len(clips)} clips but {len(names)} labels")
    labels, classes = label_ids(names, class_names, path)
    return Source(
        config=config, options=options, paths=[f"{path}[{i}]" for i in range(len(clips))], labels=labels,
        class_names=classes, arrays=clips, rows=np.arange(len(clips)),
    )  # fmt: skip


def _open_csv(config: SourceConfig, options: ReadOptions, path: Path, class_names: Sequence[str]) -> Source:
    columns, rows = read_rows(path)
    label = (config.label_column or "label").lower()
    for name in [*config.where, *([label] if config.label_column else [])]:
        if name.lower() not in columns:
            raise ConfigError(f"{path} has no column {name!r}; its columns: {', '.join(columns)}")
    keep = {columns.index(name.lower()): value for name, value in config.where.items()}
    at, label_at = columns.index("path"), columns.index(label) if label in columns else None
    spans_at = (columns.index("start_s"), columns.index("end_s")) if {"start_s", "end_s"} <= set(columns) else None
    paths, names, spans = [], [], []
    for number, row in enumerate(rows, 1):
        row = [cell.strip() for cell in row] + [""] * (len(columns) - len(row))
        if any(row[i] != value for i, value in keep.items()):
            continue
        paths.append(row[at] if is_url(row[at]) else os.path.join(path.parent, row[at]))
        names.append("" if label_at is None else row[label_at])
        if spans_at:
            try:
                spans.append(parse_span(row[spans_at[0]], row[spans_at[1]]))
            except ValueError:
                what = "start_s and end_s must be numbers of seconds, start_s not the larger one"
                raise ConfigError(f"{path}, row {number}: {what}") from None
    if not paths:
        raise ConfigError(f"data source {path} has no rows" + (f" where {config.where}" if config.where else ""))
    if not any(is_url(p) or os.path.exists(p) for p in paths[:10]):
        raise ConfigError(f"data source {path}: {paths[0]} does not exist (paths are relative to the CSV's folder)")
    labels, classes = label_ids(names, class_names, path)
    return Source(
        config=config, options=options, paths=paths, labels=labels, class_names=classes,
        spans=np.array(spans) if spans_at else None,
    )  # fmt: skip
