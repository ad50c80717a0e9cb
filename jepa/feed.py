"""From videos to batches for the device: decoded by worker processes, put together by a thread, always in order."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa.data.batches import Failure, collate, read_ahead
from jepa.data.sampling import ShortVideoError
from jepa.data.sources import RawClip
from jepa.data.video import FileInfo, VideoError
from jepa.inputs import Camera, Video
from jepa.types import Batch, ClipConfig
from jepa.windows import Window, WindowRule, file_windows, spread_clips, stream_windows


class Origin(NamedTuple):
    """Where a clip came from: number ``window`` of video number ``video``; see ``Window`` for the rest. ``share`` of
    the video lies behind it at its end (progress)."""

    video: int
    window: int
    start_s: float
    end_s: float
    first: int
    valid: int
    share: float = 1.0


class End(NamedTuple):
    """A video is through; ``reason`` says why not all of it ('' when it is), ``about`` what is known of its file."""

    video: int
    reason: str
    about: dict[str, Any]


class Work(NamedTuple):
    """A batch: uint8, or floats that are the encoder's input already, or None; and what ended with it."""

    clips: Batch | Tensor | None
    origins: list[Origin]
    ends: list[End]


class Task(NamedTuple):
    """Number ``video`` of the inputs, without its first ``skip`` windows."""

    number: int
    video: Video
    skip: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How videos become clips: windows by ``rule``, or (None) ``segments`` clips spread over each.

    ``normalised``: float clips of the user's are the encoder's input already.
    """

    clip: ClipConfig
    tubelet: int
    segments: int
    rule: WindowRule | None
    normalised: bool

    def windows(self, task: Task) -> Iterator[Window | Failure]:
        """The clips of one video, and last what is wrong with it, if anything."""
        origin = task.video.origin
        assert not isinstance(origin, Tensor)
        try:
            if isinstance(origin, Camera):
                rule = self.rule or WindowRule(num_frames=self.clip.num_frames, tubelet=self.tubelet, overlap=0.0)
                yield from stream_windows(iter(origin), origin.fps, self.clip, rule)
            elif self.rule is not None:
                yield from file_windows(origin, task.video.item, self.clip, self.rule, task.skip)
            else:
                tubelets = self.clip.num_frames // self.tubelet
                yield from spread_clips(origin, task.video.item, self.clip, self.segments, tubelets, task.skip)
        except (VideoError, ShortVideoError) as error:
            yield Failure(task.video.name, str(error))


class Feed:
    """Batches of ``batch_size`` clips of all ``tasks``, in order; the last of each size may be smaller."""

    def __init__(self, tasks: Sequence[Task], cut: Cut, batch_size: int, workers: int, pin: bool) -> None:
        self.tasks, self.cut, self.batch_size, self.pin = tasks, cut, batch_size, pin
        in_files = [task for task in tasks if task.video.in_file]
        # workers start here, in the main thread and before the device works
        self._files = read_ahead(in_files, functools.partial(Cut.windows, cut), workers)

    def __iter__(self) -> Iterator[Work]:
        return in_background(self._batches(), depth=2)

    def _batches(self) -> Iterator[Work]:
        clips: list[Window | Tensor] = []
        origins: list[Origin] = []
        ends: list[End] = []
        kind: object = None
        for task in self.tasks:
            about: dict[str, Any] = {}
            reason = ""
            for number, window in enumerate(self._windows(task), task.skip):
                if isinstance(window, Failure):
                    reason = window.reason
                    continue
                new = self._kind(window)
                if clips and (new != kind or len(clips) == self.batch_size):
                    yield self._work(clips, origins, ends)
                    clips, origins, ends = [], [], []
                kind = new
                clips.append(window)
                origins.append(self._origin(task.number, number, window))
                if isinstance(window, Window):
                    _note(about, window)
            end = End(task.number, reason, about)
            if clips:
                ends.append(end)
            else:
                yield Work(None, [], [end])
        if clips:
            yield self._work(clips, origins, ends)

    def _windows(self, task: Task) -> Iterator[Window | Failure | Tensor]:
        if isinstance(task.video.origin, Tensor):
            return iter([] if task.skip else [_checked(task.video.origin, self.cut.normalised)])
        return next(self._files) if task.video.in_file else self.cut.windows(task)

    def _kind(self, window: Window | Tensor) -> object:
        """Clips of one kind go into one batch; where pictures keep their shape, so must a batch."""
        if isinstance(window, Tensor):
            return window.shape, window.dtype
        return tuple(window.frames.shape) if self.cut.clip.fit == "keep" else len(window.frames)

    def _origin(self, video: int, number: int, window: Window | Tensor) -> Origin:
        if isinstance(window, Tensor):
            frames = window.shape[2]
            return Origin(video, number, 0.0, duration_s(self.cut.clip, frames), 0, frames // self.cut.tubelet)
        share = 1.0
        if window.info is not None:
            share = min(1.0, window.end_s * window.info.fps / window.info.num_frames)
        return Origin(video, number, window.start_s, window.end_s, window.first, window.valid, share)

    def _work(self, clips: list[Any], origins: list[Origin], ends: list[End]) -> Work:
        if isinstance(clips[0], Tensor):
            joined = torch.cat(clips)
            return Work(joined if self.cut.normalised else Batch(clip=joined), origins, ends)
        raw = [RawClip(window.frames, window.start_s, window.end_s, -1) for window in clips]
        collated = collate(raw, [origin.video for origin in origins], [0] * len(raw))
        batch = Batch(clip=collated.clip, size=collated.size)
        return Work(batch.pin_memory() if self.pin else batch, origins, ends)


def _note(about: dict[str, Any], window: Window) -> None:
    """What metadata says of the file: its own format, and how far its frames filled the clips."""
    if not about and window.info is not None:
        about.update(_plain(window.info))
    about["distinct_frames"] = min(int(window.distinct), about.get("distinct_frames", window.distinct))


def _plain(info: FileInfo) -> dict[str, Any]:
    known = info._asdict()
    return {"native_size": [known.pop("height"), known.pop("width")], **known}


def _checked(clips: Tensor, normalised: bool) -> Tensor:
    """Clips of the user's own as the transform, or the encoder, takes them. Raises ``ValueError``."""
    if normalised:
        if not clips.is_floating_point():
            raise ValueError("normalised=True is for float clips, these are uint8")
        return clips.float()
    if clips.dtype == torch.uint8:
        return clips
    if not (clips.min() >= 0 and clips.max() <= 1):  # also where they are NaN
        raise ValueError(
            f"float clips hold pixel values in [0, 1]; these reach from {clips.min():.3g} to {clips.max():.3g}. "
            "Pass uint8 for values in 0..255, or normalised=True for clips that are normalised already"
        )
    return clips.float().mul(255).round().to(torch.uint8)  # what a file would have held


def duration_s(clip: ClipConfig, num_frames: int) -> float:
    """Seconds that so many frames cover at the clip's own rate (a rate of 1 where the clip names none)."""
    if clip.duration_s is not None:
        return clip.duration_s * num_frames / clip.num_frames
    return num_frames / (clip.fps or 1.0)


def choose_workers(workers: int | str, tasks: Sequence[Task], windowed: bool, on_cpu: bool, processes: int) -> int:
    """The number of decoding processes that ``workers`` means. Raises ``ValueError``."""
    if workers != "auto":
        if not isinstance(workers, int) or workers < 0:
            raise ValueError(f"workers must be 'auto' or a number of at least 0, not {workers!r}")
        return workers
    files = sum(task.video.in_file for task in tasks)
    if files < 4 and not windowed:
        return 0  # over before a process has started
    available = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if available else os.cpu_count() or 1
    return min(files, 16, max(1, cores // processes - on_cpu))


def in_background(items: Iterator[Work], depth: int) -> Iterator[Work]:
    """``items`` made by a thread, up to ``depth`` ahead."""
    with ThreadPoolExecutor(1, "jepa-feed") as thread:
        pending = deque(thread.submit(next, items, None) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not None:
                pending.append(thread.submit(next, items, None))
                yield item
        finally:
            for future in pending:
                future.cancel()
