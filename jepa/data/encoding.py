"""Writing h264 videos that are quick to read at random."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from jepa.data.video import VideoError, one_line

_SYSTEM_ERRORS = range(1, 134)  # FFmpeg passes the system's error numbers through; its own ones are far larger


class WriteError(VideoError):
    """The destination cannot be written (full disk, no permission): the whole run stops, unlike for a bad source."""


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
    shape or type, ``WriteError`` naming ``path`` when it cannot be written.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.shape[0]:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(
            f"h264 needs an even height and width, not {frames.shape[1]}x{frames.shape[2]}: crop or pad the frames"
        )
    encode_video(Path(path), frames, fps, gop, crf)


def encode_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float, gop: int, crf: int) -> None:
    """Encode frames ``[H, W, 3]`` of one even size as they come.

    A ``VideoError`` of the iterator passes through; what goes wrong with writing is a ``WriteError``.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    try:
        with av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate, options=encoder_options(gop, crf))
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1  # threads would split one tiny picture; files run in parallel instead
            for number, frame in enumerate(frames):
                if number == 0:
                    stream.height, stream.width = frame.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        os.replace(temporary, path)
    except VideoError:
        temporary.unlink(missing_ok=True)
        raise
    except (OSError, FFmpegError) as error:
        with contextlib.suppress(OSError):  # the folder itself may be the problem
            temporary.unlink(missing_ok=True)
        number = error.errno or 0
        reason = os.strerror(number) if number in _SYSTEM_ERRORS else one_line(error)
        raise WriteError(f"{path} cannot be written: {reason}") from None
