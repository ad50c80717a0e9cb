"""What users give to ``encode``, as a list of videos: files, folders, tables, arrays, cameras."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.data.settings import eval_options
from jepa.data.sources import ReadOptions, Source, SourceConfig, open_source
from jepa.data.tar_files import names_shards
from jepa.data.video import VideoError, is_url, local_path
from jepa.types import ClipConfig

Item: TypeAlias = str | Path | SourceConfig | NDArray[Any] | Tensor | Iterator[Any]
Inputs: TypeAlias = Item | Sequence[Item]
_LISTS = (".csv", ".tsv", ".txt", ".npy", ".npz")


@dataclass(frozen=True, slots=True)
class Camera:
    """Frames ``[H, W, 3]`` as they come, ``fps`` per second (None: at the clip's rate)."""

    frames: Iterator[Any]
    fps: float | None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """The frames. Raises ``ValueError`` for one that is no uint8 ``[H, W, 3]``, or of another size."""
        shape: tuple[int, ...] | None = None
        for number, frame in enumerate(self.frames):
            array = frame.cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
            shape = shape or array.shape
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.shape != shape:
                expected = list(shape) if number else "[H, W, 3]"
                raise ValueError(f"frame {number} is {array.dtype} {list(array.shape)}, not uint8 {expected}")
            yield array
        if shape is None:
            raise VideoError("the iterator gave no frames")


@dataclass(frozen=True, slots=True)
class Video:
    """One input, its ``name``, and where it comes from: an item of a ``Source``, a clip ``[1, C, T, H, W]`` that is
    encoded as it is, or a camera."""

    name: str
    origin: Source | Tensor | Camera
    item: int = 0

    @property
    def in_file(self) -> bool:
        """Whether it is decoded from a file."""
        return isinstance(self.origin, Source) and self.origin.arrays is None

    def identity(self) -> list[object]:
        """What tells this input from another or changed one: the file's size and time, or a hash of the array.

        Raises ``ValueError`` for a camera, which cannot be asked again.
        """
        if isinstance(self.origin, Camera):
            raise ValueError("an iterator of frames cannot be read a second time")
        if isinstance(self.origin, Tensor):
            return [list(self.origin.shape), _hash(self.origin.contiguous().cpu().view(torch.uint8).numpy())]
        source = self.origin
        if source.trajectories is not None:
            return [source.trajectories.size(source.episodes()[self.item])]
        span = source.span_s(self.item)
        if source.arrays is not None and not os.path.exists(source.config.path):
            assert source.rows is not None
            return [source.config.fps, _hash(np.ascontiguousarray(source.arrays[source.rows[self.item]]))]
        file = self.name if source.arrays is None else source.config.path
        try:
            status = os.stat(file)
        except OSError:  # a URL, or missing: reported when it is its turn
            return [span]
        return [status.st_size, status.st_mtime_ns, span]


def _hash(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.data).hexdigest()[:16]


def list_inputs(inputs: Inputs, clip: ClipConfig, fps: float | None = None) -> list[Video]:
    """Everything in ``inputs``, in order. ``fps``: the rate of arrays and iterators, which carry none.

    Raises ``ValueError`` for what cannot be encoded, for patterns and folders without files, and for an ``fps`` that
    would be given to no input.
    """
    options = eval_options(clip, "pyav")  # exact in every file, where decord misses frames behind open groups
    videos = _list(inputs, clip, options, fps)
    if not videos:
        raise ValueError("inputs is an empty list: nothing to encode")
    if fps is not None and all(video.in_file for video in videos):
        raise ValueError(
            f"fps {fps:g} is the rate of arrays and iterators of frames; files know theirs: to sample clips at another "
            "rate, set clip_fps (jepa encode --fps)"
        )
    return videos


def _list(inputs: Inputs, clip: ClipConfig, options: ReadOptions, fps: float | None) -> list[Video]:
    if isinstance(inputs, (str, Path)):
        return _open_path(local_path(os.fspath(inputs)), options, fps)
    if isinstance(inputs, SourceConfig):
        return _of_source(open_source(inputs, options))
    if isinstance(inputs, (np.ndarray, Tensor)):
        return _open_array(inputs, options, fps)
    if isinstance(inputs, Iterator):
        return [Video("camera", Camera(inputs, fps))]
    if not isinstance(inputs, Sequence):
        kinds = "a path, an array, a tensor, an iterator of frames or a list of these"
        raise ValueError(f"inputs must be {kinds}, not {type(inputs).__name__}")
    return [video for part in inputs for video in _list(part, clip, options, fps)]


def _of_source(source: Source) -> list[Video]:
    return [Video(path, source, item) for item, path in enumerate(source.paths)]


def _open_path(path: str, options: ReadOptions, fps: float | None) -> list[Video]:
    if os.path.isdir(path) or names_shards(path) or (path.lower().endswith(_LISTS) and os.path.exists(path)):
        rate = fps if path.lower().endswith((".npy", ".npz")) else None
        return _of_source(open_source(SourceConfig(path=path, fps=rate), options))
    paths = [path]
    if glob.has_magic(path) and not os.path.exists(path) and not is_url(path):
        paths = sorted(found for found in glob.glob(path, recursive=True) if os.path.isfile(found))
        if not paths:
            raise VideoError(f"pattern {path} matches no file")
    nothing = np.full(len(paths), -1, dtype=np.int64)
    return _of_source(Source(config=SourceConfig(path=path), options=options, paths=paths, labels=nothing))


def _open_array(array: NDArray[Any] | Tensor, options: ReadOptions, fps: float | None) -> list[Video]:
    tensor = torch.as_tensor(array)
    shape = list(tensor.shape)
    described = f"{str(tensor.dtype).removeprefix('torch.')} {shape}"
    if 0 in shape:
        raise ValueError(f"an input array is empty: {described}")
    bytes_last = tensor.dtype == torch.uint8 and shape[-1] == 3 and tensor.dim() in (3, 4, 5)
    if tensor.dim() == 5 and shape[1] == 3 and not bytes_last and (
        tensor.dtype == torch.uint8 or tensor.is_floating_point()
    ):  # fmt: skip
        return [Video("array", clip) for clip in tensor.split(1)]
    if bytes_last:
        frames = tensor.cpu().numpy().reshape(-1, *([1] if len(shape) == 3 else []), *shape[-4:])
        source = Source(
            config=SourceConfig(path="array", fps=fps), options=options, paths=["array"] * len(frames),
            labels=np.full(len(frames), -1, dtype=np.int64), arrays=frames, rows=np.arange(len(frames)),
        )  # fmt: skip
        return _of_source(source)
    raise ValueError(
        f"cannot encode an array {described}: give uint8 [T, H, W, 3] (a video), [H, W, 3] (an image) or "
        "[B, T, H, W, 3], or a batch [B, 3, T, H, W], uint8 or float"
    )
