"""``SurpriseCurve``: surprise over the time of one video, and how it is summed up.

Shape legend: K context lengths, W windows, t tubelets (of the video, or t' of a window).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.data.video import VideoError
from jepa.feed import Origin

KINDS = ("surprise", "copy_last", "context_mean")
Floats = NDArray[np.float64]


class Event(NamedTuple):
    """A stretch of a video that surprises: its seconds, the middle of its most surprising tubelet, and that one's
    surprise."""

    start_s: float
    end_s: float
    peak_s: float
    surprise: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SurpriseCurve:
    """Surprise per tubelet of a video, for each of the K ``context_tubelets``; NaN where no window predicted.

    ``surprise`` ``[K, t]``: mean over the windows that predicted the tubelet; ``peak`` ``[K, t]``: the largest of
    them; ``windows`` int64 ``[K, t]``: how many they were. ``copy_last`` and ``context_mean`` ``[K, t]``: the error,
    in the same windows, of two predictors without weights, which say that the last seen tubelet stays as it is, and
    that everything is the mean of what was seen. They take these from the target encoder's look at the whole window
    and so know a little of what follows; a model that does not beat them adds nothing. ``window_start`` int64 ``[W]``
    (tubelets) and ``window_surprise`` ``[K, W]``: the mean error of all that a window predicted. ``start_s``,
    ``end_s`` float64 ``[t]``.
    """

    context_tubelets: tuple[int, ...]
    surprise: Tensor
    peak: Tensor
    windows: Tensor
    copy_last: Tensor
    context_mean: Tensor
    window_start: Tensor
    window_surprise: Tensor
    start_s: Tensor
    end_s: Tensor
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start_s)

    def mean(self) -> Tensor:
        """Mean surprise over windows and context lengths, ``[t]``; NaN where not every context length has predicted.

        Short contexts err more, so a mean over other lengths could not be compared.
        """
        return self.surprise.mean(dim=0)

    def max(self) -> Tensor:
        """Largest surprise over windows and context lengths, ``[t]``."""
        return _nanmax(self.peak)

    def score(self, over: Literal["mean", "max"] = "mean") -> float:
        """The video in one number: the mean, or the largest, of its windows' surprise.

        Of a possible and an impossible video, the one with the higher mean is called impossible (arXiv 2502.11831);
        the largest is for judging a video alone.
        """
        if over not in ("mean", "max"):
            raise ValueError(f"score is over 'mean' or 'max', not {over!r}")
        return float(self.window_surprise.mean() if over == "mean" else self.window_surprise.max())

    def skill(self) -> Tensor:
        """1 - surprise / the better trivial predictor's error, ``[K]``; 0 or less: the model adds nothing."""
        errors = torch.stack([getattr(self, kind).nanmean(dim=1) for kind in KINDS])
        return 1 - errors[0] / errors[1:].amin(dim=0).clamp(min=1e-12)

    def events(self, quantile: float) -> list[Event]:
        """Stretches where ``mean()`` lies above this quantile of itself, in (0, 1), the most surprising first."""
        if not 0 < quantile < 1:
            raise ValueError(f"threshold must be a quantile between 0 and 1, for example 0.95, not {quantile}")
        curve = self.mean()
        above = (curve > curve.nanquantile(quantile)).int()
        change = torch.diff(above, prepend=above.new_zeros(1), append=above.new_zeros(1))
        first, past = (change == 1).nonzero()[:, 0].tolist(), (change == -1).nonzero()[:, 0].tolist()
        return sorted((self._event(a, b) for a, b in zip(first, past, strict=True)), key=lambda event: -event.surprise)

    def highest(self) -> Event:
        """The most surprising tubelet."""
        top = int(self.mean().nan_to_num(nan=-1.0).argmax())
        return self._event(top, top + 1)

    def _event(self, first: int, past: int) -> Event:
        part = self.mean()[first:past]
        top = first + int(part.argmax())
        middle = float(self.start_s[top] + self.end_s[top]) / 2
        return Event(float(self.start_s[first]), float(self.end_s[past - 1]), middle, float(part.max()))


def _nanmax(values: Tensor) -> Tensor:
    """Largest over the first dimension, NaN where all are."""
    largest = values.nan_to_num(nan=-float("inf")).amax(dim=0)
    return largest.masked_fill(largest.isinf(), float("nan"))


class Totals:
    """Sums per tubelet over the windows so far: of a video of any length, a few numbers per tubelet are kept."""

    def __init__(self, context_tubelets: tuple[int, ...]) -> None:
        self.context_tubelets = context_tubelets
        count = len(context_tubelets)
        self.sums = np.zeros((0, len(KINDS), count))  # [t, 3, K]
        self.peak = np.zeros((0, count))
        self.windows = np.zeros((0, count), dtype=np.int64)
        self.times = np.zeros((0, 2))
        self.length = 0
        self.starts: list[int] = []
        self.scores: list[Floats] = []

    def add(self, window: Origin, errors: Floats) -> None:
        """``errors`` ``[3, K, t']`` of one window; tubelets without frames of their own are left out."""
        edges = np.linspace(window.start_s, window.end_s, errors.shape[2] + 1)
        valid = errors[:, :, : window.valid].transpose(2, 0, 1)
        self.length = max(self.length, window.first + window.valid)
        self._grow()
        rows, known = slice(window.first, window.first + window.valid), ~np.isnan(valid[:, 0])
        self.sums[rows] += np.nan_to_num(valid)
        self.windows[rows] += known
        self.peak[rows] = np.fmax(self.peak[rows], valid[:, 0])
        self.times[rows] = np.stack((edges[:-1], edges[1:]), axis=1)[: window.valid]
        self.starts.append(window.first)
        counts = known.sum(axis=0)
        self.scores.append(np.where(counts, np.nansum(valid[:, 0], axis=0) / np.maximum(counts, 1), np.nan))

    def _grow(self) -> None:
        missing = self.length - len(self.sums)
        if missing > 0:  # doubled, so that adding windows stays cheap however long the video
            more = max(missing, len(self.sums))
            self.sums, self.windows, self.times = (_longer(a, more, 0) for a in (self.sums, self.windows, self.times))
            self.peak = _longer(self.peak, more, np.nan)

    def curve(self, source: str, metadata: dict[str, Any]) -> SurpriseCurve:
        """What came of it. Raises ``VideoError`` when no window predicted anything."""
        windows = self.windows[: self.length]
        if not windows.any():
            raise VideoError(
                f"{source} is too short: it ends within the {min(self.context_tubelets)} tubelets of context; use a "
                "shorter context or a shorter window (num_frames)"
            )
        counts = np.where(windows, windows, 1)[:, None]
        means = np.where(windows[:, None] > 0, self.sums[: self.length] / counts, np.nan)
        parts = {kind: torch.from_numpy(means[:, row].T.copy()).float() for row, kind in enumerate(KINDS)}
        times = torch.from_numpy(self.times[: self.length].copy())
        return SurpriseCurve(
            context_tubelets=self.context_tubelets, **parts,
            peak=torch.from_numpy(self.peak[: self.length].T.copy()).float(),
            windows=torch.from_numpy(windows.T.copy()), window_start=torch.tensor(self.starts),
            window_surprise=torch.from_numpy(np.stack(self.scores, axis=1)).float(), start_s=times[:, 0],
            end_s=times[:, 1], source=source, metadata=metadata,
        )  # fmt: skip


def _longer(array: NDArray[Any], more: int, value: float) -> NDArray[Any]:
    return np.concatenate((array, np.full((more, *array.shape[1:]), value, dtype=array.dtype)))
