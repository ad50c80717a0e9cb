"""The layout ``lerobot``, versions 2.0, 2.1 and 3.0: ``meta/info.json``, tables of rows in parquet, and videos.

Up to version 2.1 every episode has a table and videos of its own; from 3.0 on files hold several episodes, and the
tables in ``meta/episodes`` say which rows and which seconds of a video are an episode's.
"""

from __future__ import annotations

import json
import math
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jepa.config import ConfigError, suggest
from jepa.data.source_config import ReadOptions
from jepa.data.trajectories.assemble import closed
from jepa.data.trajectories.base import Trajectories, TrajectoryError
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.trajectories.pictures import ColumnReader, SpanReader
from jepa.data.trajectories.timeline import Track
from jepa.data.video import VideoReader, open_video

ACTION, STATE, IMAGES = "action", "observation.state", "observation.images."


def open_lerobot(path: str, config: TrajectoryConfig) -> LeRobot:
    """The data set in the folder ``path``. Raises ``ConfigError`` for a version that nobody here can read."""
    file = Path(path, "meta", "info.json")
    try:
        info = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {error}") from None
    missing = [key for key in ("codebase_version", "features", "fps") if key not in info]
    if missing:
        raise ConfigError(f"{file} has no {missing[0]!r}: it is not that of a LeRobot data set")
    version = str(info["codebase_version"]).removeprefix("v")
    if version.startswith("2."):
        return LeRobot2(path, config, info)
    if version.startswith("3."):
        return LeRobot3(path, config, info)
    raise ConfigError(f"{file}: version {version} of LeRobot's layout is not known; 2.0, 2.1 and 3.0 are")


class LeRobot(Trajectories):
    """What the versions have in common. ``numbers`` and ``lengths`` ``[E]`` of the episodes are set by them."""

    def __init__(self, path: str, config: TrajectoryConfig, info: Mapping[str, Any], names: list[str]) -> None:
        super().__init__(path, config, names)
        self.features: dict[str, dict[str, Any]] = info["features"]
        self.fps = float(info["fps"])
        self.lengths: list[int] = []
        self.camera = self._choose_camera(config.camera)
        self.actions = config.actions or [ACTION]
        self.states = config.states or ([STATE] if STATE in self.features else [])
        self.states = [] if self.states == ["none"] else self.states
        needed = [*self.states, *(self.actions if self.rules.action != "state_difference" else [])]
        for name in needed:
            if name not in self.features:
                raise ConfigError(f"data source {path} has no column {name!r}{suggest(name, self.features)}")
        self.state_names = self._column_names(self.states)

    def _choose_camera(self, wanted: str | None) -> str:
        cameras = [name for name, feature in self.features.items() if feature.get("dtype") in ("video", "image")]
        if not cameras:
            raise ConfigError(f"data source {self.path} has no camera (features: {', '.join(self.features)})")
        chosen = [name for name in cameras if wanted in (None, name, name.removeprefix(IMAGES))]
        if not chosen:
            raise ConfigError(f"data source {self.path} has no camera {wanted!r}; it has: {', '.join(cameras)}")
        return chosen[0]

    def _column_names(self, features: Sequence[str]) -> tuple[str, ...]:
        """Names of all columns, none where the data set does not name each: some name only the feature itself."""
        found: list[str] = []
        width = 0
        for feature in features:
            names = self.features[feature].get("names")
            lists = list(names.values()) if isinstance(names, Mapping) else [names]
            found += [str(name) for part in lists if isinstance(part, list) for name in part]
            width += math.prod(self.features[feature].get("shape", ()))
        return tuple(found) if len(found) == width else ()

    @property
    def has_videos(self) -> bool:
        """Whether pictures are in videos, not in the tables."""
        return self.features[self.camera].get("dtype") == "video"

    def size(self, number: int) -> int:
        return self.lengths[number]

    @abstractmethod
    def _rows(self, number: int, columns: list[str]) -> pa.Table:
        """These columns of the episode's rows."""

    def _load(self, number: int) -> Track:
        name = self.names[number]
        wanted = [*self.states, *(self.actions if self.rules.action != "state_difference" else [])]
        table = self._rows(number, [*dict.fromkeys([*wanted, "timestamp", "frame_index"])])
        if len(table) != self.lengths[number]:
            raise TrajectoryError(f"{name} has {len(table)} rows, but meta says {self.lengths[number]}")
        frame = table["frame_index"].to_numpy() if "frame_index" in table.column_names else np.arange(len(table))
        if (frame != np.arange(len(table))).any():
            raise TrajectoryError(f"{name}: its rows are not the frames 0 to {len(table) - 1} in order")
        times = numbers(name, "timestamp", table["timestamp"], np.float64)[:, 0]
        if self.config.fps is not None:
            times = np.arange(len(table)) / self.config.fps
        states = self._values(name, table, self.states) if self.states else None
        actions = None
        if self.rules.action != "state_difference":
            actions = self._values(name, table, self.actions)
        return Track(
            name=name, frame_times=times, states=states, state_times=None if states is None else times,
            actions=actions, action_edges=None if actions is None else closed(times),
        )  # fmt: skip

    def _values(self, name: str, table: pa.Table, columns: Sequence[str]) -> NDArray[np.float32]:
        return np.concatenate([numbers(name, column, table[column], np.float32) for column in columns], axis=1)


class LeRobot2(LeRobot):
    """An episode, a table."""

    def __init__(self, path: str, config: TrajectoryConfig, info: Mapping[str, Any]) -> None:
        file = Path(path, "meta", "episodes.jsonl")
        try:
            rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
            self.numbers = [int(row["episode_index"]) for row in rows]
            lengths = [int(row["length"]) for row in rows]
            self._data, self._videos = str(info["data_path"]), str(info.get("video_path"))
            self._per_chunk = int(info.get("chunks_size", 1000))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} or info.json beside it cannot be read: {error!r}") from None
        super().__init__(path, config, info, [os.path.join(path, self._file(self._data, n)) for n in self.numbers])
        self.lengths = lengths

    def _file(self, pattern: str, number: int, camera: str = "") -> str:
        return pattern.format(episode_chunk=number // self._per_chunk, episode_index=number, video_key=camera)

    def _rows(self, number: int, columns: list[str]) -> pa.Table:
        return read_rows(self.names[number], columns)

    def open(self, number: int, options: ReadOptions) -> VideoReader:
        if not self.has_videos:
            pictures = self._rows(number, [self.camera])[self.camera]
            return ColumnReader(self.names[number], pictures, self.fps, options, self.path)
        video = os.path.join(self.path, self._file(self._videos, self.numbers[number], self.camera))
        return open_video(video, options.backend, options.short_side, options.interpolation)


class LeRobot3(LeRobot):
    """Several episodes in a file."""

    def __init__(self, path: str, config: TrajectoryConfig, info: Mapping[str, Any]) -> None:
        files = sorted(Path(path, "meta", "episodes").glob("*/*.parquet"))
        if not files:
            raise ConfigError(f"data source {path} has no meta/episodes/chunk-000/file-000.parquet")
        super().__init__(path, config, info, [])
        camera = [
            f"videos/{self.camera}/{what}" for what in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        ]
        columns = [
            "episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"
        ]  # fmt: skip
        wanted = [*columns, *(camera if self.has_videos else [])]
        tables = [read_rows(str(file), wanted) for file in files]
        found = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in wanted}
        self.names = []
        self.lengths = found["length"].tolist()
        self._files, self._spans = [], []
        chunks = np.stack((found["data/chunk_index"], found["data/file_index"]), axis=1)
        first_rows: dict[tuple[int, int], int] = {}  # of the first episode in each file
        for key, first in zip(map(tuple, chunks.tolist()), found["dataset_from_index"].tolist(), strict=True):
            first_rows[key] = min(first, first_rows.get(key, first))
        for row, key in enumerate(map(tuple, chunks.tolist())):
            table = info["data_path"].format(chunk_index=key[0], file_index=key[1])
            self._files.append(os.path.join(path, table))
            begin, end = (int(found[f"dataset_{side}_index"][row]) - first_rows[key] for side in ("from", "to"))
            self._spans.append((begin, end))
            self.names.append(f"{self._files[-1]}[{int(found['episode_index'][row])}]")
        self._videos: list[tuple[str, float, float]] = []
        if self.has_videos:
            for chunk, file, begin_s, end_s in zip(*(found[name].tolist() for name in camera), strict=True):
                video = info["video_path"].format(video_key=self.camera, chunk_index=int(chunk), file_index=int(file))
                self._videos.append((os.path.join(path, video), begin_s, end_s))

    def _rows(self, number: int, columns: list[str]) -> pa.Table:
        name, (begin, end) = self.names[number], self._spans[number]
        table = read_rows(self._files[number], [*columns, "episode_index"], begin, end)
        if len(np.unique(table["episode_index"].to_numpy())) > 1:
            raise TrajectoryError(f"{name}: rows {begin} to {end - 1} of its file are not of one episode")
        return table

    def open(self, number: int, options: ReadOptions) -> VideoReader:
        if not self.has_videos:
            pictures = self._rows(number, [self.camera])[self.camera]
            return ColumnReader(self.names[number], pictures, self.fps, options, self.path)
        video, begin_s, end_s = self._videos[number]
        frames, length = (end_s - begin_s) * self.fps, self.lengths[number]
        if abs(frames - length) >= 1:  # containers round the length of a video
            raise TrajectoryError(
                f"{self.names[number]} has {length} rows, but {begin_s:g} to {end_s:g} s of {video}, which are "
                f"{frames:.0f} frames"
            )
        reader = open_video(video, options.backend, options.short_side, options.interpolation)
        return SpanReader(reader, round(begin_s * reader.fps), length)


def read_rows(path: str, columns: list[str], begin: int = 0, end: int | None = None) -> pa.Table:
    """These columns of rows ``begin`` to ``end`` of a parquet file, of which only the groups with these rows are read.

    Raises ``TrajectoryError`` for a missing column, file or row.
    """
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                there = ", ".join(file.schema_arrow.names[:20])
                raise TrajectoryError(f"{path} has no column {missing[0]!r}; it has: {there}")
            sizes = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
            end = sum(sizes) if end is None else end
            if end > sum(sizes):
                raise TrajectoryError(f"{path} has {sum(sizes)} rows, but meta says that there are {end}")
            ends = np.cumsum([0, *sizes])
            groups = [k for k in range(len(sizes)) if ends[k] < end and ends[k + 1] > begin]
            table = file.read_row_groups(groups, columns=columns) if groups else file.schema_arrow.empty_table()
            return table.slice(begin - (int(ends[groups[0]]) if groups else 0), end - begin)
    except (OSError, pa.ArrowException) as error:
        raise TrajectoryError(f"{path} cannot be read as parquet: {error}") from None


def numbers(name: str, column: str, values: pa.ChunkedArray, dtype: type[Any]) -> NDArray[Any]:
    """A column of numbers, or of lists of equally many, as ``[N, W]``. Raises ``TrajectoryError`` for any other."""
    array = values.combine_chunks()
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        flat = array.flatten()
        if array.null_count == 0 and len(array) and len(flat) % len(array) == 0:
            widths = np.diff(array.offsets.to_numpy()) if not pa.types.is_fixed_size_list(kind) else np.zeros(1)
            if (widths == widths[0]).all() and (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
                return flat.to_numpy(zero_copy_only=False).reshape(len(array), -1).astype(dtype)
    elif array.null_count == 0 and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return array.to_numpy(zero_copy_only=False).reshape(-1, 1).astype(dtype)
    raise TrajectoryError(f"{name}: the column {column!r} ({kind}) does not hold numbers, equally many in every row")
