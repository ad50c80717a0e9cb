"""Long videos: clips that slide over a video from start to end, and the rows that come of them.

A video is sampled on a uniform time grid, the clip's own (``sample`` k of a file is frame ``floor(k * spacing)``).
Window k covers T consecutive samples and starts k strides after the first one; a stride is a whole number of tubelets.
The last window starts where it ends with the video, rounded up to a whole tubelet, so that at most a tubelet's frames
less one are held. A video shorter than a window is one window, its last frame held.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.data.sampling import check_span, frame_spacing
from jepa.data.sources import ClipRequest, Source
from jepa.data.video import FileInfo, VideoReader
from jepa.types import ClipConfig

Merge = Literal["none", "mean", "latest"]


class Window(NamedTuple):
    """``frames`` uint8 ``[T, H, W, 3]`` that cover ``start_s`` to ``end_s``. ``first`` is the number of its first
    tubelet in its video, ``valid`` how many of its tubelets hold frames of the video (the others hold its last frame),
    ``distinct`` how many different frames it shows."""

    frames: NDArray[np.uint8]
    start_s: float
    end_s: float
    first: int
    valid: int
    distinct: int
    info: FileInfo | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowRule:
    """Windows of ``num_frames`` samples that share ``overlap`` of their length, rounded so that the stride is at least
    one tubelet of ``tubelet`` frames."""

    num_frames: int
    tubelet: int
    overlap: float

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be a share of the window, at least 0 and below 1, not {self.overlap}")
        if self.num_frames % self.tubelet:
            raise ValueError(f"num_frames {self.num_frames} must be a multiple of the tubelet of {self.tubelet} frames")

    @property
    def stride(self) -> int:
        """Samples from one window's start to the next one's."""
        return self.tubelet * max(1, round(self.num_frames / self.tubelet * (1 - self.overlap)))

    def last(self, samples: int) -> int:
        """Where the last window of so many samples starts."""
        return max(0, math.ceil((samples - self.num_frames) / self.tubelet) * self.tubelet)

    def starts(self, samples: int) -> list[int]:
        """The first sample of every window."""
        last = self.last(samples)
        return [*range(0, last, self.stride), last]

    def valid(self, start: int, samples: int) -> int:
        """How many tubelets of the window that starts there hold at least one of the samples."""
        return math.ceil((min(samples, start + self.num_frames) - start) / self.tubelet)


def sample_spacing(rate: float | None, clip: ClipConfig) -> float:
    """Frames of the file from one sample to the next; for images every frame, or as many per second as ``clip.fps``."""
    if clip.num_frames == 1 and clip.fps is not None and rate is not None:
        return rate / clip.fps
    return frame_spacing(rate, clip)


def file_windows(source: Source, item: int, clip: ClipConfig, rule: WindowRule, skip: int = 0) -> Iterator[Window]:
    """The windows of one video, without the first ``skip``; what neighbours share is decoded once.

    Raises ``VideoError`` naming the file, also after some windows.
    """
    with source.open(item) as video:
        check_span(source.span_s(item), video.num_frames, video.rate, source.paths[item])
        rate = video.rate or clip.fps or 1.0
        spacing, (low, high) = sample_spacing(video.rate, clip), _bounds(video, rate, source.span_s(item))
        samples = max(1, math.ceil((high - low - 1e-6) / spacing))
        kept: NDArray[np.uint8] | None = None  # the frames of samples before ``upto`` that the next window needs
        upto = 0
        for start in rule.starts(samples)[skip:]:
            end = min(start + rule.num_frames, samples)
            if kept is None or start >= upto:
                kept, upto = None, start
            ids = low + np.floor(np.arange(upto, end) * spacing + 1e-6).astype(np.int64)
            fresh = video.read(ids) if len(ids) else None
            parts = [part for part in (kept, fresh) if part is not None]
            # kept ends at ``upto``: what it has before ``start`` was the last window's alone
            frames = np.concatenate(parts)[-(end - start) :] if len(parts) > 1 else parts[0][-(end - start) :]
            kept, upto = frames, end
            distinct = len(np.unique(np.floor(np.arange(start, end) * spacing + 1e-6)))
            yield Window(
                _hold(frames, rule.num_frames), (low + start * spacing) / rate,
                (low + (start + rule.num_frames) * spacing) / rate, start // rule.tubelet, rule.valid(start, samples),
                distinct, video.info,
            )  # fmt: skip


def _bounds(video: VideoReader, rate: float, span_s: tuple[float, float] | None) -> tuple[int, int]:
    """First frame and frame after the last one of the item."""
    if span_s is None:
        return 0, video.num_frames
    low = min(max(0, round(span_s[0] * rate)), video.num_frames - 1)
    return low, min(max(low + 1, round(min(span_s[1] * rate, video.num_frames))), video.num_frames)


def _hold(frames: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    missing = length - len(frames)
    return frames if not missing else np.concatenate((frames, np.repeat(frames[-1:], missing, axis=0)))


def spread_clips(
    source: Source, item: int, clip: ClipConfig, segments: int, tubelets: int, skip: int
) -> Iterator[Window]:
    """``segments`` clips spread over a video (1: the middle), without the first ``skip``; raises as ``load_clips``."""
    requests = [ClipRequest(None, (k, segments)) for k in range(segments)]
    for raw in source.load_clips(item, clip, requests)[skip:]:
        yield Window(raw.frames, raw.start_s, raw.end_s, 0, tubelets, raw.distinct, raw.info)


def stream_windows(
    frames: Iterator[NDArray[np.uint8]], fps: float | None, clip: ClipConfig, rule: WindowRule
) -> Iterator[Window]:
    """The windows of frames ``[H, W, 3]`` as they come, the same as those of a file with these frames.

    At most ``rule.num_frames`` frames are held. A window is given as soon as its last frame is there.
    """
    rate = fps or clip.fps or 1.0
    spacing = sample_spacing(fps, clip)
    buffer: deque[tuple[int, NDArray[np.uint8]]] = deque(maxlen=rule.num_frames)  # frame number, frame
    samples, start, given = 0, 0, -1

    def window(start: int) -> Window:
        held = list(buffer)[-(samples - start) :]
        pictures = _hold(np.stack([frame for _, frame in held]), rule.num_frames)
        return Window(
            pictures, start * spacing / rate, (start + rule.num_frames) * spacing / rate, start // rule.tubelet,
            rule.valid(start, samples), len({number for number, _ in held}),
        )  # fmt: skip

    for number, frame in enumerate(frames):
        while math.floor(samples * spacing + 1e-6) == number:  # below a spacing of 1, frames repeat
            buffer.append((number, frame))
            samples += 1
            if samples == start + rule.num_frames:
                yield window(start)
                given, start = start, start + rule.stride
    if samples and rule.last(samples) > given:
        yield window(rule.last(samples))


@dataclass(slots=True)
class Merger:
    """One row per tubelet from windows that overlap: their mean, or the last window's.

    ``add`` and ``finish`` return (number of the first tubelet, rows ``[n, ...]``) that no later window can change.
    """

    merge: Merge
    first: int = 0
    sums: Tensor | None = None  # [n, ...] from tubelet ``first`` on
    counts: list[int] = field(default_factory=list)

    def add(self, first: int, rows: Tensor) -> tuple[int, Tensor]:
        """``rows`` ``[n, ...]`` of a window whose first tubelet is ``first`` (never before an earlier window's)."""
        done = self._take(first - self.first)
        known = len(self.counts)
        if self.sums is None or known == 0:
            self.first, self.sums, self.counts = first, rows.clone(), [1] * len(rows)
            return done
        shared = min(known, len(rows))
        self.sums = torch.cat((self.sums, rows[shared:]))
        if self.merge == "mean":
            self.sums[:shared] += rows[:shared]
            self.counts[:shared] = [count + 1 for count in self.counts[:shared]]
        else:
            self.sums[:shared] = rows[:shared]
        self.counts += [1] * (len(rows) - shared)
        return done

    def finish(self) -> tuple[int, Tensor]:
        """The rest; ready for the next video."""
        done = self._take(len(self.counts))
        self.first, self.sums, self.counts = 0, None, []
        return done

    def _take(self, count: int) -> tuple[int, Tensor]:
        count = min(count, len(self.counts))
        first = self.first
        if self.sums is None:
            return first, torch.empty(0)
        counts = torch.tensor(self.counts[:count], dtype=self.sums.dtype)
        rows = self.sums[:count] / counts.view(-1, *[1] * (self.sums.dim() - 1))
        self.first, self.sums, self.counts = first + count, self.sums[count:], self.counts[count:]
        return first, rows
