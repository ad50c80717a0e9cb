"""Surprise over time under the frames of a possible and an impossible video."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evals.pages.drawing import COLOURS, INK, Frames, enlarge
from evals.physics import Pair, Watched
from jepa.data.image import open_pictures
from jepa.data.video import open_video
from jepa.surprise_curve import SurpriseCurve

STILLS = 8
_HEIGHT = 96  # pixels of a still
_COLUMNS = 2


def draw_pairs(pairs: Sequence[Pair], watched: Watched, predictor: str) -> bytes:
    """A PNG with the first readable pair of every condition: frames of both videos, and below them what ``predictor``
    makes of them over time (the mean over context lengths), with the event as a vertical line. b'' for no pair."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = watched.curves[predictor]
    first: dict[str, Pair] = {}
    for pair in pairs:
        if pair.possible in curves and pair.impossible in curves:
            first.setdefault(pair.condition, pair)
    if not first:
        return b""
    rows = math.ceil(len(first) / _COLUMNS)
    figure = Figure(figsize=(6.4 * _COLUMNS, 3.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, part in zip(first.values(), figure.subfigures(rows, _COLUMNS, squeeze=False).flat):
        _draw_pair(part, place, curves)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    return data.getvalue()


def _draw_pair(figure: Any, pair: Pair, curves: dict[str, SurpriseCurve]) -> None:
    above, middle, below = figure.subplots(3, 1, height_ratios=[1, 1, 2.2])
    figure.suptitle(pair.condition, color=INK, fontsize=11, fontweight="bold", x=0.02, ha="left")
    reach = (float(curves[pair.possible].start_s[0]), float(curves[pair.possible].end_s[-1]))
    looks = (("possible", pair.possible, COLOURS[0], above), ("impossible", pair.impossible, COLOURS[1], middle))
    for name, path, colour, axes in looks:
        curve = curves[path]
        axes.imshow(stills(path, curve, pair.fps), aspect="auto", extent=(*reach, 0, 1))
        axes.set_ylabel(name, color=colour, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        middles = ((curve.start_s + curve.end_s) / 2).numpy()
        surprise = torch.nanmean(curve.surprise, dim=0).numpy()
        below.plot(middles, surprise, color=colour, linewidth=1.8, marker="o", markersize=3, label=name)
    if pair.event_s is not None:
        below.axvline(pair.event_s, color=INK, linewidth=1, linestyle="--", label="event")
    for axes in (above, middle, below):
        axes.set_xlim(*reach)
    below.set_xlabel("seconds", color=INK, fontsize=8)
    below.set_ylabel("surprise", color=INK, fontsize=8)
    below.grid(color=INK, alpha=0.2, linewidth=0.6)
    below.tick_params(colors=INK, labelsize=8)
    for side, spine in below.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    below.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left")


def stills(path: str, curve: SurpriseCurve, fps: float | None) -> Frames:
    """Frames from the middle of equal parts of the curve's time, side by side: uint8 ``[H, W, 3]``."""
    edges = np.linspace(float(curve.start_s[0]), float(curve.end_s[-1]), STILLS + 1)
    video = open_pictures(path, fps, _HEIGHT, "bilinear") or open_video(path, "pyav", _HEIGHT)
    with video:
        middles = (edges[:-1] + edges[1:]) / 2 * (video.rate or curve.metadata["clip"]["fps"] or 1.0)
        frames = video.read(np.minimum(middles.astype(np.int64), video.num_frames - 1))
    shown = enlarge(frames, _HEIGHT)
    return np.concatenate([np.pad(frame, ((0, 0), (1, 1), (0, 0)), constant_values=255) for frame in shown], axis=1)
