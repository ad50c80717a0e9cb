"""Which frames of a file make up a clip: pure functions of numbers, no files."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa.types import ClipConfig

ShortVideo = Literal["hold", "loop", "skip"]
Span = Literal["inside", "centred", "ending"]


class ShortVideoError(ValueError):
    """The video is shorter than the clip and the rule is ``skip``, or it is over before its span begins."""


class FrameChoice(NamedTuple):
    """``indices`` int64 ``[T]``: frame numbers of the file; the clip covers ``start_s`` to ``end_s``, in seconds."""

    indices: NDArray[np.int64]
    start_s: float
    end_s: float


def frame_spacing(file_fps: float | None, clip: ClipConfig) -> float:
    """Distance between a clip's frames in frames of the file (below 1: frames repeat).

    ``file_fps`` None means that the file's rate is unknown: its frames are then taken to be at the clip's rate.
    """
    if clip.frame_step is not None:
        return float(clip.frame_step)
    if file_fps is None or clip.num_frames == 1:
        return 1.0
    if clip.fps is not None:
        return file_fps / clip.fps
    assert clip.duration_s is not None  # ClipConfig requires one of the three
    return clip.duration_s * file_fps / clip.num_frames


def parse_span(start_s: str, end_s: str) -> tuple[float, float]:
    """The seconds that two cells of a table name; an empty one is the video's start or end. Raises ``ValueError``."""
    span = float(start_s or 0), float(end_s or "inf")
    if not span[0] <= span[1]:
        raise ValueError(f"{start_s} is after {end_s}")
    return span


def check_span(span_s: tuple[float, float] | None, num_frames: int, file_fps: float | None, name: str) -> None:
    """Raises ``ShortVideoError`` when the file ends before the span begins, whose frames are not there."""
    if span_s is not None and file_fps is not None and span_s[0] * file_fps >= num_frames:
        raise ShortVideoError(f"{name} is over after {num_frames / file_fps:.2f} s, its span begins at {span_s[0]:g} s")


def frame_indices(
    num_frames: int,
    file_fps: float | None,
    clip: ClipConfig,
    rng: np.random.Generator | None = None,
    segment: tuple[int, int] = (0, 1),
    span_s: tuple[float, float] | None = None,
    where: Span = "inside",
    short_video: ShortVideo = "hold",
    name: str = "video",
) -> FrameChoice:
    """Choose the frames of one clip from a file of ``num_frames`` frames at ``file_fps``.

    ``rng`` None gives the middle clip, else the start is uniform. ``segment`` (k, K) divides the possible starts into
    K equal parts and takes clip k from the k-th: K clips spread over the video. ``span_s`` keeps the clip inside these
    seconds; with ``where`` "centred" the clip is instead centred on the span (on a random instant of it, given
    ``rng``) and may reach beyond it, but not beyond the file; with "ending" it stays inside and ends where the span
    ends, whatever ``rng`` (of K clips the last one does: what comes before an event, but nothing of the event).

    A clip longer than what it may use follows ``short_video``: ``hold`` repeats the last frame, ``loop`` starts again
    from the first, ``skip`` raises ``ShortVideoError`` (with ``name``). ``end_s`` counts the clip's nominal length in
    either case.
    """
    check_span(span_s, num_frames, file_fps, name)
    rate = file_fps or clip.fps or 1.0
    spacing = frame_spacing(file_fps, clip)
    offsets = np.floor(np.arange(clip.num_frames) * spacing + 1e-6).astype(np.int64)
    needed = int(offsets[-1]) + 1
    low, high = 0, num_frames
    if span_s is not None and where != "centred":
        low = min(max(0, round(span_s[0] * rate)), num_frames - 1)
        high = min(max(low + 1, round(min(span_s[1] * rate, num_frames))), num_frames)
    room = high - low - needed  # how far the start can move
    if room < 0 and short_video == "skip":
        raise ShortVideoError(f"{name} has {high - low} usable frames, the clip needs {needed}")
    if span_s is not None and where == "ending":
        start = low + max(0, room) * (segment[0] + 1) // segment[1]
    elif span_s is not None and where == "centred":
        at = 0.5 if rng is None else float(rng.random())
        middle = (span_s[0] + at * (min(span_s[1], num_frames / rate) - span_s[0])) * rate
        start = int(np.clip(round(middle - needed / 2), 0, max(0, room)))
    else:
        part, parts = segment
        at = 0.5 if rng is None else float(rng.random())
        start = low + min(int((max(0, room) + 1) * (part + at) / parts), max(0, room))
    indices = start + offsets
    if room < 0:
        usable = high - start
        indices = start + (offsets % usable if short_video == "loop" else np.minimum(offsets, usable - 1))
    return FrameChoice(indices, start / rate, (start + clip.num_frames * spacing) / rate)
