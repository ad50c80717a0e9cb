"""decord behind ``VideoReader``; its quirks are kept in this file."""

from __future__ import annotations

import ctypes
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jepa.data.video import VideoError, VideoReader, is_url, one_line, resize_frames, scaled_size

# decord retries a broken packet 10240 times before it gives up: minutes for one bad file. 256 are too few for the last
# frames of some sound files
os.environ.setdefault("DECORD_EOF_RETRY_MAX", "2048")

# decord shows the symbols of its libraries to all that are loaded later, and with its old zlib no environment of pygame
# could read a PNG any more
_shown, ctypes.RTLD_GLOBAL = ctypes.RTLD_GLOBAL, ctypes.RTLD_LOCAL  # type: ignore[misc]
try:
    import decord
    from decord._ffi.base import DECORDError
finally:
    ctypes.RTLD_GLOBAL = _shown  # type: ignore[misc]

decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's own lines on stderr; what matters comes as an exception


def _width_works(width: int) -> bool:
    """decord takes FFmpeg's padded row length for the row length when the padding is a pixel or more per pixel."""
    return -(-3 * width // 64) * 64 // width == 3


# decord tells a video's size only with its first frame, but wants the scaled size before: remembered, so that only the
# first visit opens a file twice
_sizes: dict[tuple[str, float], tuple[int, int]] = {}
_MOST_SIZES = 50_000  # a process that visits a million files must not remember them all


def _open(path: str, height: int = -1, width: int = -1, file: BinaryIO | None = None) -> Any:
    try:
        # one thread: loader workers are what runs in parallel, and a decoder's own threads lose on short reads
        if file is not None:
            file.seek(0)
        source = path if file is None else file
        return decord.VideoReader(source, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
    except (DECORDError, RuntimeError, AssertionError) as error:
        reason = "not a video, or damaged" if "Error reading" in str(error) else one_line(error)
        raise VideoError(f"{path} cannot be opened as a video (decord): {reason}") from None


class DecordReader(VideoReader):
    """Frames through decord, scaled by FFmpeg while decoding wherever decord gets the width right."""

    backend = "decord"

    def __init__(self, path: str, short_side: int | None = None, file: BinaryIO | None = None) -> None:
        self.path = path
        try:
            key = (path, 0.0 if is_url(path) else os.path.getmtime(path) if file is None else file.seek(0, os.SEEK_END))
            plain = None if key in _sizes else _open(path, file=file)
            if plain is not None:
                if len(_sizes) >= _MOST_SIZES:
                    _sizes.clear()
                height, width = plain[0].shape[:2]
                _sizes[key] = (int(height), int(width))
            native = self.native = _sizes[key]
            self.height, self.width = scaled_size(*native, short_side)
            scale = (self.height, self.width) != native and _width_works(self.width)
            if not scale and not _width_works(native[1]):
                raise VideoError(f"{path}: decord cannot deliver pictures {native[1]} pixels wide; use another reader")
            self._reader = _open(path, self.height, self.width, file) if scale else plain or _open(path, file=file)
            self.num_frames = len(self._reader)
            self.fps = float(self._reader.get_avg_fps())
        except (DECORDError, RuntimeError) as error:
            raise VideoError(f"{path} cannot be decoded (decord): {one_line(error)}") from None
        if not self.fps > 0:
            raise VideoError(f"{path} has no frame rate (decord)")
        times = np.asarray(self._reader.get_frame_timestamp(np.arange(self.num_frames)), dtype=np.float64)  # [n, 2]
        if np.isfinite(times).all() and (np.diff(times[:, 0]) > 0).all():  # AVI files carry none
            self._show_evenly(times[:, 0], float(times[-1, 1]))

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        try:
            frames = self._reader.get_batch(indices.tolist()).asnumpy()
        except (DECORDError, RuntimeError, IndexError) as error:
            raise VideoError(f"{self.path} cannot be decoded (decord): {one_line(error)}") from None
        if frames.shape[3] != 3:
            raise VideoError(f"{self.path}: decord returned {frames.shape[3]} channels")
        return resize_frames(frames, self.height, self.width)

    def close(self) -> None:
        self._reader = None
