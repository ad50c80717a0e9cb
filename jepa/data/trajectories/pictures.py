"""Pictures of an episode that shares its video with others, or that lie in a table, behind ``VideoReader``."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jepa.data.source_config import ReadOptions
from jepa.data.trajectories.base import TrajectoryError
from jepa.data.video import FileInfo, VideoReader, resize_frames, scaled_size


class SpanReader(VideoReader):
    """``count`` frames of a video from frame ``first`` on. Raises ``TrajectoryError`` where it ends before that."""

    def __init__(self, video: VideoReader, first: int, count: int) -> None:
        if first + count > video.num_frames:
            video.close()
            raise TrajectoryError(
                f"{video.path} has {video.num_frames} frames, but the episode should be its frames {first} to "
                f"{first + count - 1}"
            )
        self._video, self._first = video, first
        self.backend, self.path, self.num_frames, self.fps = video.backend, video.path, count, video.fps
        self.height, self.width, self.native, self.rotation = video.height, video.width, video.native, video.rotation

    @property
    def info(self) -> FileInfo:
        return self._video.info

    @property
    def size(self) -> tuple[int, int]:
        return self._video.size

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._video.read(indices + self._first)

    def close(self) -> None:
        self._video.close()


class ColumnReader(VideoReader):
    """Pictures as files in a column of structs with ``bytes``, or with a ``path`` below ``root``."""

    backend = "pillow"

    def __init__(self, path: str, column: pa.ChunkedArray, fps: float, options: ReadOptions, root: str) -> None:
        self.path, self._column, self._root, self.fps = path, column, root, fps
        self.num_frames = len(column)
        self._how = options.interpolation
        first = self._decode(0)
        self.native = (first.shape[0], first.shape[1])
        self.height, self.width = scaled_size(*self.native, options.short_side)

    def _decode(self, number: int) -> NDArray[np.uint8]:
        value: Any = self._column[number].as_py()
        try:
            file = io.BytesIO(value["bytes"]) if value["bytes"] else os.path.join(self._root, value["path"])
            with Image.open(file) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, TypeError, KeyError, UnidentifiedImageError) as error:
            raise TrajectoryError(f"{self.path}: picture {number} cannot be read: {error}") from None

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        pictures = [self._decode(int(number)) for number in indices]
        if any(picture.shape[:2] != self.native for picture in pictures):
            raise TrajectoryError(f"{self.path}: its pictures have different sizes")
        return resize_frames(np.stack(pictures), self.height, self.width, self._how)
