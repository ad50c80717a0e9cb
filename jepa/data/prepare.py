"""Writing videos, and re-encoding a folder of them for fast random access (``jepa data prepare``)."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from jepa.data.video import VideoError


def encoder_options(gop: int, crf: int) -> dict[str, str]:
    """x264 settings for random access: a key frame every ``gop`` frames exactly, no frame that needs a later one."""
    return {
        "preset": "veryfast",
        "tune": "fastdecode",
        "crf": str(crf),
        "g": str(gop),
        "keyint_min": str(gop),
        "sc_threshold": "0",
        "bf": "0",
    }


def write_video(path: str | Path, frames: NDArray[np.uint8], fps: float, gop: int = 8, crf: int = 20) -> None:
    """Write uint8 RGB ``[T, H, W, 3]`` as h264 mp4; height and width must be even.

    The file appears complete or not at all (temporary name, then rename). Raises ``ValueError`` for frames of another
    shape or type, ``VideoError`` naming ``path`` when it cannot be written.
    """
    path = Path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.shape[0]:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"h264 needs an even height and width, not {height}x{width}: crop or pad the frames")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    try:
        with av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=encoder_options(gop, crf))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1  # threads would split one tiny picture; files are what runs in parallel
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        os.replace(temporary, path)
    except (OSError, FFmpegError) as error:
        temporary.unlink(missing_ok=True)
        raise VideoError(f"{path} cannot be written: {error}") from None
