"""Schedules: pure functions of the step, so that resuming replays nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

RampKind = Literal["constant", "linear", "cosine"]


def ramp(kind: RampKind, start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at progress 1 (clamped); ``constant`` stays at ``start``."""
    progress = min(max(progress, 0.0), 1.0)
    if kind == "constant":
        return start
    if kind == "cosine":
        progress = (1.0 - math.cos(math.pi * progress)) / 2.0
    return start + (end - start) * progress


def warmup_cosine(
    step: int, total_steps: float, *, start: float, peak: float, final: float, warmup_steps: int
) -> float:
    """Linear from ``start`` to ``peak`` over ``warmup_steps``, then a half cosine to ``final`` at ``total_steps``.

    The schedule of I-JEPA (arXiv 2301.08243) and V-JEPA (arXiv 2404.08471, table of pretraining settings).
    """
    if step < warmup_steps:
        return ramp("linear", start, peak, step / warmup_steps)
    return ramp("cosine", peak, final, (step - warmup_steps) / max(total_steps - warmup_steps, 1))


def constant_cooldown(
    step: int, total_steps: float, *, start: float, peak: float, final: float, warmup_steps: int, cooldown_steps: int
) -> float:
    """Linear warm-up to ``peak``, constant, then linear to ``final`` over the last ``cooldown_steps``.

    The schedule of V-JEPA 2 (arXiv 2506.09985, section 2).
    """
    if step < warmup_steps:
        return ramp("linear", start, peak, step / warmup_steps)
    if cooldown_steps == 0:
        return peak
    return ramp("linear", peak, final, (step - (total_steps - cooldown_steps)) / cooldown_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """A quantity that warms up from ``start`` to ``peak`` over ``warmup_steps`` and ends at ``final``.

    ``cosine`` and ``linear`` decay over all the steps that are left; ``constant`` stays at ``peak`` until the last
    ``cooldown_steps``, over which it falls linearly. ``stretch`` lengthens the schedule beyond the end of training
    without training longer (the official recipes use 1.25), so that a decay stops short of ``final``.
    """

    kind: RampKind = "cosine"
    start: float = 0.0
    peak: float = 1e-3
    final: float = 0.0
    warmup_steps: int = 0
    cooldown_steps: int = 0
    stretch: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "peak", "final", "warmup_steps", "cooldown_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.stretch < 1:
            raise ValueError(f"stretch must be at least 1, not {self.stretch}")
        if self.cooldown_steps and self.kind != "constant":
            raise ValueError(f"cooldown_steps goes with kind 'constant', not {self.kind!r}; set it to 0")

    def value(self, step: int, total_steps: int) -> float:
        """The quantity at ``step`` (counted from 0) of ``total_steps``."""
        total = total_steps * self.stretch
        ends = {"start": self.start, "peak": self.peak, "final": self.final, "warmup_steps": self.warmup_steps}
        if self.kind == "constant":
            return constant_cooldown(step, total, **ends, cooldown_steps=self.cooldown_steps)  # type: ignore[arg-type]
        if self.kind == "cosine" or step < self.warmup_steps:
            return warmup_cosine(step, total, **ends)  # type: ignore[arg-type]
        return ramp("linear", self.peak, self.final, (step - self.warmup_steps) / max(total - self.warmup_steps, 1))
