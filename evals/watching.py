"""How videos are watched by predictors: windows, context lengths, rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jepa.predictive import Measure
from jepa.types import ClipConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Watching:
    """How videos are watched. ``context_frames`` of 16 are seen: the protocol's lengths, scaled to the model's windows
    and rounded to whole tubelets. ``num_frames``: length of the windows (None: the model's clip); ``clip_fps``: frames
    per second (None: as the model samples its clips). ``stride_tubelets``, ``mask_token`` and ``measure`` as in
    ``jepa.surprise``; ``batch_size`` in windows.

    ``pairs``: how many are rendered for each condition, where no others are given (a few CPU minutes for 100).
    """

    context_frames: tuple[int, ...] = (2, 4, 6, 8, 10)
    num_frames: int | None = None
    clip_fps: float | None = None
    stride_tubelets: int = 1
    mask_token: int = 0
    measure: Measure = "l1"
    batch_size: int = 16
    pairs: int = 100

    def __post_init__(self) -> None:
        if not self.context_frames or not all(0 < seen < 16 for seen in self.context_frames):
            raise ValueError(f"context_frames must lie between 1 and 15 (of 16), not {self.context_frames}")
        if self.stride_tubelets < 1 or self.batch_size < 1:
            raise ValueError(
                f"stride_tubelets and batch_size must be at least 1, not {self.stride_tubelets} and {self.batch_size}"
            )

    def contexts(self, tubelets: int) -> tuple[int, ...]:
        """The different context lengths in tubelets, at least 1 and at most one less than a window has.

        Raises ``ValueError`` for windows of one tubelet (images)."""
        if tubelets < 2:
            raise ValueError("the model's clip is one tubelet long (an image): it expects nothing of what follows")
        scaled = (math.floor(seen * tubelets / 16 + 0.5) for seen in self.context_frames)
        return tuple(sorted({min(max(1, seen), tubelets - 1) for seen in scaled}))


def watched_clip(clip: ClipConfig, watching: Watching) -> ClipConfig:
    """The model's clip with the windows' own length and rate, where they have one; otherwise at the clip's spacing."""
    length = watching.num_frames or clip.num_frames
    if watching.clip_fps is not None:
        return replace(clip, num_frames=length, fps=watching.clip_fps, frame_step=None, duration_s=None)
    duration = None if clip.duration_s is None else clip.duration_s * length / clip.num_frames
    return replace(clip, num_frames=length, duration_s=duration)
