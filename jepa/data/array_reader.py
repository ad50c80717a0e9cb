"""Frames in memory behind ``VideoReader``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jepa.data.video import VideoReader, resize_frames, scaled_size
from jepa.types import Interpolation


class ArrayReader(VideoReader):
    """uint8 ``[T, H, W, 3]``; ``fps`` None: the rate is not known."""

    backend = "array"

    def __init__(
        self, path: str, frames: NDArray[np.uint8], fps: float | None, short_side: int | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> None:  # fmt: skip
        self.path, self._frames, self._interpolation = path, frames, interpolation
        self.fps, self._known = fps or 1.0, fps is not None
        self.num_frames = len(frames)
        self.native = (frames.shape[1], frames.shape[2])
        self.height, self.width = scaled_size(*self.native, short_side)

    @property
    def rate(self) -> float | None:
        return self.fps if self._known else None

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return resize_frames(self._frames[indices], self.height, self.width, self._interpolation)
