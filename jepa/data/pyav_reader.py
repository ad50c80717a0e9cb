"""PyAV behind ``VideoReader``: an index of the packets' times, then seek to a key frame and decode forward."""

from __future__ import annotations

import bisect
import os
import re
import threading
from collections.abc import Iterator
from typing import BinaryIO, cast

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import Interpolation as Scaling
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from jepa.data.video import VideoError, VideoReader, one_line, scaled_size
from jepa.types import Interpolation

av.logging.set_level(av.logging.PANIC)  # FFmpeg's own lines on stderr; what matters comes as an exception


class PyavReader(VideoReader):
    """Frame-accurate reading by presentation time; files without usable times are decoded from the start."""

    backend = "pyav"

    def __init__(
        self, path: str, short_side: int | None = None, interpolation: Interpolation = "bicubic",
        file: BinaryIO | None = None,
    ) -> None:  # fmt: skip
        self.path, self._interpolation = path, interpolation
        try:
            # else FFmpeg asks for the second range on a connection that the server closed after the first
            options = {"multiple_requests": "1"} if path.lower().startswith(("http://", "https://")) else {}
            self._container = av.open(path if file is None else file, mode="r", options=options)
        except (FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path} cannot be opened as a video (PyAV): {one_line(error)}") from None
        try:
            stream = cast("av.VideoStream | None", self._container.streams.best("video"))
            if stream is None or stream.disposition & Disposition.attached_pic:
                raise VideoError(f"{path} holds no video stream" + (" but a cover picture" if stream else ""))
            self._stream = stream
            self._stream.thread_type = "NONE"  # loader workers are what runs in parallel
            self._frames: Iterator[av.VideoFrame] = iter(())
            self._position: int | None = None  # time (or, without times, number) of the last decoded frame
            self._index()
            self._probe(short_side)
        except (FFmpegError, OSError, ValueError) as error:
            self._container.close()
            if isinstance(error, VideoError):
                raise
            raise VideoError(f"{path} cannot be decoded (PyAV): {one_line(error)}") from None

    def _index(self) -> None:
        """Display times of all frames and of the key frames, read from the packets without decoding."""
        times: list[int | None] = []
        keys: list[int] = []
        discarded, last, max_time = 0, 0, 0  # last: how long the frame that is shown last stays
        for packet in self._container.demux(self._stream):
            discarded += packet.is_discard
            if packet.size == 0 or packet.is_discard or packet.is_corrupt:
                continue
            if packet.pts is not None and (not times or packet.pts >= max_time):
                max_time, last = packet.pts, packet.duration or 0
            times.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
        known = sorted({t for t in times if t is not None})
        # every packet has a time of its own; AVI stores none, and FFmpeg's guesses go astray with B-frames
        self._exact = len(known) == len(times) and "avi" not in self._container.format.name
        self._times, self._keys, self.num_frames = known, sorted(keys), len(times)
        if not self.num_frames:
            raise VideoError(f"{self.path} holds no video frames")
        if self.num_frames < 0.9 * (self._stream.frames - discarded):  # else an edit list or a rounded header
            raise VideoError(f"{self.path} is cut off: {self.num_frames} of {self._stream.frames} frames are there")
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0.0)
        if not rate and self._exact and self.num_frames > 1 and self._stream.time_base:
            rate = float((self.num_frames - 1) / ((known[-1] - known[0]) * self._stream.time_base))
        self.fps = rate or 1.0  # a still picture has no rate; any positive one will do
        self._check_length(known, last)
        if self._exact and self._stream.time_base:
            base = float(self._stream.time_base)
            end_s = (known[-1] + last) * base if last else known[-1] * base + 1 / self.fps
            self._show_evenly(np.array(known) * base, end_s)

    def _check_length(self, known: list[int], last: int) -> None:
        """Matroska has no frame count, but says how long its video is."""
        told = re.fullmatch(r"(\d+):(\d+):([\d.]+)", self._stream.metadata.get("DURATION", ""))
        if told is None or not known or not self._stream.time_base:
            return
        expected = 3600 * int(told[1]) + 60 * int(told[2]) + float(told[3])
        there = float((known[-1] + last) * self._stream.time_base)
        if there < 0.9 * expected:
            raise VideoError(f"{self.path} is cut off: {there:.1f} of {expected:.1f} seconds are there")

    def _probe(self, short_side: int | None) -> None:
        """Size of the pictures after rotation, from the first frame that decodes."""
        self._container.seek(0, stream=self._stream, any_frame=False)
        first = next(self._container.decode(self._stream), None)
        if first is None:
            raise VideoError(f"{self.path} holds no frame that can be decoded")
        self._turns = (round(getattr(first, "rotation", 0) / 90)) % 4
        self.rotation = 90 * self._turns
        self.native = (first.width, first.height) if self._turns % 2 else (first.height, first.width)
        self.height, self.width = scaled_size(*self.native, short_side)

    def _picture(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        height, width = (self.width, self.height) if self._turns % 2 else (self.height, self.width)
        return rgb_picture(frame, height, width, self._turns, self._interpolation)

    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        try:
            return self._read_by_time(indices) if self._exact and self._keys else self._read_by_count(indices)
        except (FFmpegError, OSError, ValueError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(f"{self.path} cannot be decoded (PyAV): {one_line(error)}") from None

    def _read_by_time(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        out = np.empty((len(indices), self.height, self.width, 3), dtype=np.uint8)
        targets = [self._times[i] for i in indices]
        if self._position is not None and self._position >= targets[0]:
            self._position = None  # backwards; forwards, reading goes on where it stopped
        done, sought = 0, None
        while done < len(targets):
            key = self._keys[max(0, bisect.bisect_right(self._keys, targets[done]) - 1)]
            # seek only over whole groups of pictures
            if (self._position is None or key > self._position) and key != sought:
                self._container.seek(min(key, targets[done]), stream=self._stream, backward=True)
                self._frames, sought = self._container.decode(self._stream), key
            frame = next(self._frames, None)
            if frame is None:
                break
            self._position = frame.pts if frame.pts is not None else frame.dts
            if self._position is None or self._position > targets[done]:
                raise VideoError(f"{self.path}: frame {indices[done]} cannot be decoded (PyAV)")
            if self._position == targets[done]:
                out[done] = self._picture(frame)
                done += 1
        return out[:done]

    def _read_by_count(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._position is None or self._position >= indices[0]:  # here the position is the frame's number
            self._container.seek(0, stream=self._stream)
            self._frames, self._position = self._container.decode(self._stream), -1
        out = np.empty((len(indices), self.height, self.width, 3), dtype=np.uint8)
        done = 0
        while done < len(indices):
            frame = next(self._frames, None)
            if frame is None:
                break
            self._position += 1
            if self._position == indices[done]:
                out[done] = self._picture(frame)
                done += 1
        return out[:done]

    def close(self) -> None:
        self._container.close()


def rgb_picture(
    frame: av.VideoFrame, height: int, width: int, turns: int, interpolation: Interpolation = "bicubic"
) -> NDArray[np.uint8]:
    """``frame`` as uint8 ``[H, W, 3]``, scaled to ``height`` x ``width`` and then turned ``turns`` quarters.

    Where it is scaled, colour is interpolated as finely as brightness: without that, edges are up to 25 grey levels
    from those of a frame that is converted first and scaled afterwards (with it, on the same film, 5).
    """
    method = Scaling[interpolation.upper()]
    if (height, width) != (frame.height, frame.width):
        method |= Scaling.ACCURATE_RND | Scaling.FULL_CHR_H_INT | Scaling.FULL_CHR_H_INP
    scaled = _scaler().reformat(frame, width, height, format="rgb24", interpolation=method, threads=1)
    picture = scaled.to_ndarray()
    return cast("NDArray[np.uint8]", np.rot90(picture, turns) if turns else picture)


class _Scalers(threading.local):
    """One scaler for each thread of each process.

    PyAV keeps one per thread itself, with threads of its own if anybody's frame asked for them; a process that is
    forked afterwards (a loader's worker) would wait forever for those threads, which it does not have.
    """

    pid = -1
    scaler: VideoReformatter


_scalers = _Scalers()


def _scaler() -> VideoReformatter:
    if _scalers.pid != os.getpid():
        _scalers.pid, _scalers.scaler = os.getpid(), VideoReformatter()
    return _scalers.scaler
