"""Surprise drawn under the frames of its video."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.thumbnails import Clip, middle_frame
from evals.pages.drawing import COLOURS, INK, Frames, enlarge
from jepa.surprise_curve import Event, SurpriseCurve

STILLS = 12
_HEIGHT = 96  # pixels of a still


def stills(curve: SurpriseCurve, count: int = STILLS) -> Frames:
    """Frames from the middle of equal parts of the video, side by side: uint8 ``[H, W, 3]``. Raises ``VideoError``."""
    count = min(count, len(curve))
    edges = np.linspace(float(curve.start_s[0]), float(curve.end_s[-1]), count + 1)
    rate = curve.metadata["clip"]["fps"]
    parts = []
    for start, end in itertools.pairwise(edges):
        still = enlarge(middle_frame(Clip(curve.source, start, end), rate, _HEIGHT), _HEIGHT)
        parts.append(np.pad(still, ((0, 0), (1, 1), (0, 0)), constant_values=255))
    return np.concatenate(parts, axis=1)


def picture(curves: Sequence[SurpriseCurve], names: Sequence[str], quantile: float | None) -> bytes:
    """A PNG: per video its frames, and below them the mean surprise, each context length
    where there are several, and the trivial predictors as thin lines. Events above ``quantile`` are shaded."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5 * len(curves)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2 * len(curves), 1, squeeze=False, height_ratios=[1, 2.2] * len(curves))[:, 0]
    for number, (curve, name) in enumerate(zip(curves, names, strict=True)):
        above, below = rows[2 * number], rows[2 * number + 1]
        reach = (float(curve.start_s[0]), float(curve.end_s[-1]))
        shown = stills(curve)
        above.imshow(shown, aspect="auto", extent=(*reach, 0, 1))
        above.set_axis_off()
        above.set_title(name, color=INK, fontsize=10, loc="left", fontweight="bold")
        _draw(below, curve, curve.events(quantile) if quantile is not None else [])
        for axes in (above, below):
            axes.set_xlim(*reach)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def _draw(axes: Any, curve: SurpriseCurve, events: Sequence[Event]) -> None:
    middle = ((curve.start_s + curve.end_s) / 2).numpy()
    for event in events:
        axes.axvspan(event.start_s, event.end_s, color=COLOURS[1], alpha=0.18, linewidth=0)
    several = len(curve.context_tubelets) > 1
    frames = int(curve.metadata["tubelet_frames"])
    for row, seen in enumerate(curve.context_tubelets if several else ()):
        label = f"{seen * frames} frames seen" if row in (0, len(curve.context_tubelets) - 1) else None
        share = 0.2 + 0.35 * row / (len(curve.context_tubelets) - 1)
        axes.plot(middle, curve.surprise[row], color=COLOURS[0], linewidth=0.9, alpha=share, label=label)
    for values, colour, label in (
        (curve.copy_last, COLOURS[2], "last tubelet stays"), (curve.context_mean, COLOURS[5], "mean of the context"),
    ):  # fmt: skip
        axes.plot(middle, values.mean(dim=0), color=colour, linewidth=0.9, linestyle="--", label=label)
    axes.plot(middle, curve.mean(), color=COLOURS[0], linewidth=2, marker="o", markersize=2.5, label="surprise")
    axes.set_xlabel("seconds", color=INK, fontsize=8)
    axes.set_ylabel({"cosine": "1 - cosine"}.get(curve.metadata["measure"], "error"), color=INK, fontsize=8)
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, ncols=5, loc="upper left", bbox_to_anchor=(0, 1.16))
