"""Degraded copies of clips, as queries of copy detection: made while reading, the same at every call."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evals.task_configs import Degrade
from jepa.data.sources import ClipRequest, RawClip, Source
from jepa.types import ClipConfig

Frames = NDArray[np.uint8]


@dataclass(kw_only=True)
class DegradedSource(Source):
    """A source whose clips are degraded copies. Item i is degraded by a random stream of its own."""

    kind: Degrade
    seed: int = 0

    def load_clips(self, item: int, clip: ClipConfig, requests: Sequence[ClipRequest]) -> list[RawClip]:
        """The copies of the clips that the plain source would give. Raises like ``Source.load_clips``."""
        shift = shift_frames(clip) if self.kind in ("shift", "combined") else 0
        raws = super().load_clips(item, lengthened(clip, 2 * shift), requests)
        copies = []
        for number, raw in enumerate(raws):
            rng = np.random.default_rng((self.seed, zlib.crc32(self.kind.encode()), item, number))
            copies.append(raw._replace(frames=degrade(raw.frames[2 * shift :], self.kind, rng)))
        return copies


def degraded(source: Source, kind: Degrade, seed: int) -> DegradedSource:
    """``source`` read through a degradation."""
    known = {field.name: getattr(source, field.name) for field in fields(Source)}
    return DegradedSource(**known, kind=kind, seed=seed)


def shift_frames(clip: ClipConfig) -> int:
    """Temporal shift in frames of the clip: a quarter of it, and at least 1; 0 for images."""
    return 0 if clip.num_frames == 1 else max(1, clip.num_frames // 4)


def lengthened(clip: ClipConfig, frames: int) -> ClipConfig:
    """``clip`` with so many more frames at the same spacing. Its last frames are a clip that starts later by half as
    many (by as many, where the video ends: then the last frame is held)."""
    if not frames:
        return clip
    length = clip.num_frames + frames
    duration = None if clip.duration_s is None else clip.duration_s * length / clip.num_frames
    return replace(clip, num_frames=length, duration_s=duration)


def degrade(frames: Frames, kind: Degrade, rng: np.random.Generator) -> Frames:
    """``[T, H, W, 3]`` to a degraded copy (smaller where it is cropped); "shift" leaves the pixels alone."""
    if kind in ("crop", "combined"):
        frames = crop(frames, rng)
    if kind in ("brightness", "combined"):
        frames = brighten(frames, rng)
    if kind in ("noise", "combined"):
        frames = reencode(frames, rng)
    return frames


def crop(frames: Frames, rng: np.random.Generator) -> Frames:
    """A box of 50 to 70 % of the area, of the picture's shape, anywhere; the same for all frames."""
    share = math.sqrt(rng.uniform(0.5, 0.7))
    places = rng.random(2)
    (height, width), (full_h, full_w) = (max(1, round(side * share)) for side in frames.shape[1:3]), frames.shape[1:3]
    top, left = (int(place * (full - side + 1)) for place, full, side in zip(places, (full_h, full_w), (height, width)))
    return frames[:, top : top + height, left : left + width]


def brighten(frames: Frames, rng: np.random.Generator) -> Frames:
    """All values times 0.5 to 0.7, or 1.4 to 1.8."""
    factor = rng.uniform(0.5, 0.7) if rng.random() < 0.5 else rng.uniform(1.4, 1.8)
    return (frames * factor).round().clip(0, 255).astype(np.uint8)


def reencode(frames: Frames, rng: np.random.Generator) -> Frames:
    """Gaussian noise of 4 to 10 grey levels, then JPEG of quality 10 to 30, frame by frame."""
    noisy = frames + rng.normal(0, rng.uniform(4, 10), frames.shape)
    quality = int(rng.integers(10, 31))
    copies = []
    for frame in noisy.round().clip(0, 255).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        copies.append(np.asarray(Image.open(file).convert("RGB")))
    return np.stack(copies)
