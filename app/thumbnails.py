"""Small pictures of clips, read from the files that they were cut from."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from evals.pages import drawing
from jepa.config import ConfigError
from jepa.data.sources import ReadOptions, Source, SourceConfig, open_source
from jepa.data.video import VideoError, resize_frames, scaled_size
from jepa.types import ClipConfig

SHORT_SIDE = 80
_ROW_OF_ARRAY = re.compile(r"(.+\.np[yz])\[(\d+)\]")


class Clip(NamedTuple):
    """Seconds ``start_s`` to ``end_s`` of the file ``source``, as a table of features has them."""

    source: str
    start_s: float
    end_s: float


class Thumbnails(NamedTuple):
    """``uris``: a JPEG data URI per clip, '' where there is none. ``missing``: how many files are not there (any
    more); ``unreadable``: how many are there and cannot be read. Both count files, not clips."""

    uris: list[str]
    missing: int
    unreadable: int


def thumbnails(clips: Sequence[Clip], fps: float | None, short_side: int = SHORT_SIDE) -> Thumbnails:
    """The middle frame of every clip. ``fps``: of array files, which have no rate of their own."""

    def draw(clip: Clip) -> str | None:
        try:
            return drawing.jpeg(middle_frame(clip, fps, short_side))
        except (VideoError, ConfigError):
            return None

    threads = min(8, os.cpu_count() or 1)  # decoders release the interpreter
    with ThreadPoolExecutor(threads) as pool:
        uris = list(pool.map(draw, clips))
    failed = {file_of(clip.source) for clip, uri in zip(clips, uris, strict=True) if uri is None}
    missing = sum(not os.path.exists(path) for path in failed)
    return Thumbnails([uri or "" for uri in uris], missing, len(failed) - missing)


def file_of(source: str) -> str:
    """The file of a source: ``clips.npz[3]`` is row 3 of ``clips.npz``."""
    row = _ROW_OF_ARRAY.fullmatch(source)
    return row[1] if row else source


def middle_frame(clip: Clip, fps: float | None, short_side: int) -> drawing.Frames:
    """uint8 ``[H, W, 3]``. Raises ``VideoError`` or ``ConfigError`` naming the file."""
    row = _ROW_OF_ARRAY.fullmatch(clip.source)
    options = ReadOptions(short_side=short_side)
    if row:
        source = open_source(SourceConfig(path=row[1], fps=fps), options)
        if int(row[2]) >= len(source):
            raise VideoError(f"{row[1]} has {len(source)} clips, and no row {row[2]}")
        source = source.subset([int(row[2])])
    else:
        label = np.full(1, -1, dtype=np.int64)
        source = Source(config=SourceConfig(path=clip.source), options=options, paths=[clip.source], labels=label)
    if clip.end_s > clip.start_s:
        source.spans = np.array([[clip.start_s, clip.end_s]])
    frame = source.load_clip(0, ClipConfig(num_frames=1, fps=fps)).frames
    return resize_frames(frame, *scaled_size(frame.shape[1], frame.shape[2], short_side))[0]
