"""Reading frames of video files: one small interface over decord, torchcodec and PyAV.

``open_video`` gives a ``VideoReader``; ``read`` takes frame numbers in display order and returns uint8 RGB. A file
whose frames come at irregular times looks like one of a constant rate (that of its densest frames): frame k is the one
on screen k frame times after the first.

Readers decode only the frames between the nearest key frame and the ones asked for, on one thread (parallelism comes
from loader workers), and scale while decoding, so that a 1080p file never becomes a 1080p array. Reading on from where
the last ``read`` stopped decodes nothing twice.

Each library lives in one ``*_reader.py``, imported when it is chosen. Everything that it raises arrives here as
``VideoError``.
"""

from __future__ import annotations

import functools
import importlib
import io
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from jepa.types import Interpolation

log = logging.getLogger("jepa")

Backend = Literal["auto", "decord", "torchcodec", "pyav"]
_ORDER: tuple[Literal["decord", "torchcodec", "pyav"], ...] = ("decord", "torchcodec", "pyav")
_MODULES = {name: f"jepa.data.{name}_reader" for name in _ORDER}


class VideoError(ValueError):
    """A video or image file cannot be used; the message names the file and what is wrong with it."""


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width with the shorter side brought down to ``short_side`` (never up; ``None``: unchanged)."""
    short = min(height, width)
    if short_side is None or short <= short_side:
        return height, width
    return max(1, round(height * short_side / short)), max(1, round(width * short_side / short))


def resize_frames(
    frames: NDArray[np.uint8], height: int, width: int, interpolation: Interpolation = "bilinear"
) -> NDArray[np.uint8]:
    """uint8 ``[T, H, W, 3]`` to ``[T, height, width, 3]``: antialiased, on the uint8 values."""
    if frames.shape[1:3] == (height, width):
        return frames
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)  # channels last in memory, where the uint8 kernel is fast
    scaled = F.interpolate(pictures, size=(height, width), mode=interpolation, antialias=True)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


class FileInfo(NamedTuple):
    """A file as it is: ``height`` x ``width`` pixels, turned upright by ``rotation`` degrees (None: not known), and
    ``num_frames`` at ``fps`` on average, at irregular times where ``variable_rate``."""

    height: int
    width: int
    fps: float
    num_frames: int
    rotation: int | None
    variable_rate: bool


class VideoReader(ABC):
    """Frames of one file. ``num_frames`` frames at ``fps`` per second, ``height`` x ``width`` after scaling."""

    backend: str
    path: str
    num_frames: int
    fps: float
    height: int
    width: int
    native: tuple[int, int]  # height and width before scaling
    rotation: int | None = None
    _shown: NDArray[np.int64] | None = None  # frame at a constant rate -> frame of the file
    _in_file: tuple[int, float] | None = None  # the file's own number of frames and average rate, where it varies

    @property
    def rate(self) -> float | None:
        """Frames per second, None where nobody knows."""
        return self.fps

    @property
    def info(self) -> FileInfo:
        """What the file holds, before scaling."""
        frames, fps = self._in_file or (self.num_frames, self.fps)
        return FileInfo(*self.native, fps, frames, self.rotation, self._in_file is not None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that ``read`` gives."""
        return self.height, self.width

    def _show_evenly(self, times_s: NDArray[np.float64], end_s: float) -> None:
        """Make a file with these display times, the last frame lasting until ``end_s``, look like one of ``fps``."""
        since, count = times_s - times_s[0], len(times_s)
        if count < 2 or np.abs(since - np.arange(count) / self.fps).max() <= 0.5 / self.fps:
            return
        step = since[-1] / (count - 1)
        if np.abs(since - np.arange(count) * step).max() <= 0.5 * step:  # even, but for how long the last one stays
            self.fps = float(1 / step)
            return
        length_s = end_s - times_s[0]
        self._in_file = (count, float(count / length_s))
        self.fps = float(min(120.0, 1 / max(np.percentile(np.diff(since), 10), 1e-3)))
        self.num_frames = max(1, round(length_s * self.fps))
        instants = np.arange(self.num_frames) / self.fps + 1e-4
        self._shown = np.searchsorted(since, instants, side="right").astype(np.int64) - 1

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Frames by number, in any order and with repeats: uint8 ``[len(indices), H, W, 3]``.

        Raises ``VideoError`` if a frame cannot be decoded, ``IndexError`` for a number outside the file.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or wanted.size == 0:
            raise ValueError(f"indices must be a non-empty list of frame numbers, not shape {wanted.shape}")
        if wanted.min() < 0 or wanted.max() >= self.num_frames:
            raise IndexError(f"{self.path} has {self.num_frames} frames, asked for {wanted.min()}..{wanted.max()}")
        if self._shown is not None:
            wanted = self._shown[wanted]
        distinct, back = np.unique(wanted, return_inverse=True)  # every frame decoded once, in file order
        frames = self._read_sorted(distinct)
        if frames.shape[0] != distinct.size:
            raise VideoError(f"{self.path}: only {frames.shape[0]} of {distinct.size} frames could be decoded")
        return frames if distinct.size == wanted.size and (distinct == wanted).all() else frames[back]

    @abstractmethod
    def _read_sorted(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Distinct, ascending frame numbers to ``[n, H, W, 3]``."""

    def close(self) -> None:  # noqa: B027 - a reader without resources has nothing to close
        """Free the file and the decoder."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.cache
def available_backends() -> tuple[str, ...]:
    """Names of the decoding libraries that import on this machine, best first."""
    found = []
    for name in _ORDER:
        try:
            importlib.import_module(_MODULES[name])
        except (ImportError, OSError, RuntimeError):  # the package, or a library that it loads, is missing
            continue
        found.append(name)
    return tuple(found)


@functools.cache
def _name_once(backend: str) -> None:
    log.info("video reader: %s (available: %s)", backend, ", ".join(available_backends()))


def choose_backend(backend: Backend = "auto") -> str:
    """The library that ``backend`` means here. Raises ``VideoError`` when it cannot be imported."""
    available = available_backends()
    if backend == "auto":
        if not available:
            raise VideoError("no video reader is installed: pip install one of decord, torchcodec, av")
        backend = available[0]  # type: ignore[assignment]
    elif backend not in _ORDER:
        raise VideoError(f"unknown video reader {backend!r}; known: auto, {', '.join(_ORDER)}")
    elif backend not in available:
        raise VideoError(f"video reader {backend!r} is not installed; available: {', '.join(available) or 'none'}")
    return backend


def open_video(
    path: str | Path, backend: Backend = "auto", short_side: int | None = None,
    interpolation: Interpolation = "bicubic", file: BinaryIO | None = None,
) -> VideoReader:  # fmt: skip
    """Open ``path`` for reading; frames come with their shorter side at most ``short_side`` pixels.

    ``auto`` takes the first library that is installed (decord, torchcodec, PyAV) and, for a file that this one cannot
    open (decord knows neither GIF nor AV1), the next; AVI files, which carry no frame times, go to PyAV first, because
    the others' seeks in them are not exact. ``path`` may be a URL (``http://``, ``file://``); the server must allow
    requests of ranges. ``file``: what ``path`` holds, in memory or open, where it is no file of its own (a member of a
    tar shard). ``interpolation``: how PyAV scales; the other libraries have one way of their own (bicubic).
    Raises ``VideoError`` naming the file.
    """
    path = local_path(os.fspath(path))
    if file is None and not is_url(path):
        _check_file(path)
    first = choose_backend(backend)
    names = available_backends() if backend == "auto" else (first,)
    # the other libraries would first copy a long member of a shard into memory
    if path.lower().endswith(".avi") or (file is not None and not isinstance(file, io.BytesIO)):
        names = tuple(sorted(names, key=lambda name: name != "pyav"))
    _name_once(first)
    errors: list[str] = []
    for name in names:
        try:
            return _open_with(name, path, short_side, interpolation, file)
        except VideoError as error:
            errors.append(str(error))
    raise VideoError(errors[0])


def _open_with(
    name: str, path: str, short_side: int | None, interpolation: Interpolation, file: BinaryIO | None
) -> VideoReader:
    if file is not None:
        file.seek(0)
    if name == "decord":
        from jepa.data.decord_reader import DecordReader

        return DecordReader(path, short_side, file)
    if name == "torchcodec":
        from jepa.data.torchcodec_reader import TorchcodecReader

        return TorchcodecReader(path, short_side, file)
    from jepa.data.pyav_reader import PyavReader

    return PyavReader(path, short_side, interpolation, file)


def is_url(path: str) -> bool:
    """Whether ``path`` starts with a scheme like ``http://``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def local_path(path: str) -> str:
    """The path that a ``file://`` URL names; anything else as it is."""
    return unquote(urlsplit(path).path) if path.lower().startswith("file://") else path


def _check_file(path: str) -> None:
    """The mistakes that every library reports in its own, worse words."""
    if os.path.isdir(path):
        raise VideoError(f"{path} is a folder, not a video file")
    try:
        if os.path.getsize(path) == 0:
            raise VideoError(f"{path} is empty (0 bytes)")
    except FileNotFoundError:
        raise VideoError(f"{path} does not exist") from None
    except OSError as error:
        raise VideoError(f"{path} cannot be opened: {error.strerror}") from None
    if not os.access(path, os.R_OK):
        raise VideoError(f"{path} cannot be opened: no permission to read it")


def one_line(error: Any) -> str:
    """The readable part of a library's exception: decord adds the time and a stack trace, FFmpeg an errno."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = re.sub(r"^\[\d+:\d+:\d+\] \S+:\d+: ", "", text)  # decord's clock: the same file, the same words
    text = re.sub(r"^\[Errno -?\d+\] ", "", text.rpartition("Check failed: ")[2])
    return re.sub(r": '[^']*'$", "", text).strip()[:200]
