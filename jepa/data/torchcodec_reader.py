"""torchcodec behind ``VideoReader``."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from torchcodec.decoders import VideoDecoder

from jepa.data.video import VideoError, VideoReader, one_line, resize_frames, scaled_size

try:  # the package imports without FFmpeg's shared libraries and fails at the first use: ask now
    VideoDecoder(b"")
except RuntimeError as error:
    raise ImportError(f"torchcodec does not work here: {one_line(error)}") from None
except ValueError:  # an empty buffer is no video: the libraries are there
    pass


class TorchcodecReader(VideoReader):
    """Frames through torchcodec; it does not scale while decoding, so frames are scaled here."""

    backend = "torchcodec"

    def __init__(self, path: str, short_side: int | None = None, file: BinaryIO | None = None) -> None:
        self.path = path
        try:
            self._decoder = VideoDecoder(
                path if file is None else file.read(), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
            native = self._decoder[0].shape[:2]  # the header's size is the one before rotation
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise VideoError(f"{path} cannot be opened as a video (torchcodec): {one_line(error)}") from None
        self.native = (int(native[0]), int(native[1]))
        self.height, self.width = scaled_size(*self.native, short_side)
        self.num_frames = len(self._decoder)
        self.fps = float(self._decoder.metadata.average_fps or 0)
        if not self.fps > 0:
            raise VideoError(f"{path} has no frame rate (torchcodec)")

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        try:
            frames = self._decoder.get_frames_at(indices.tolist()).data
        except (RuntimeError, ValueError, IndexError) as error:
            raise VideoError(f"{self.path} cannot be decoded (torchcodec): {one_line(error)}") from None
        return resize_frames(frames.numpy(), self.height, self.width)
