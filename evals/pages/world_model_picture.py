"""Decoded against true states: from latents of frames, and from predicted latents."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from evals.pages.drawing import COLOURS, INK

if TYPE_CHECKING:
    from torch import Tensor

    from evals.world_models.rows import Decoded

_DOTS = 1500  # frames that are drawn, evenly
_COLUMNS, _MOST = 4, 12  # panels in a row, and at all


def draw_states(decoded: Decoded, names: list[str]) -> bytes:
    """A PNG with a panel for each state that moves (the first twelve): what is read over what is true, of encoded
    latents and of the latents predicted for the longest horizon."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    moving = [k for k, name in enumerate(names) if decoded.decoding[0]["states"][name] is not None][:_MOST]
    rows = -(-len(moving) // _COLUMNS)
    columns = min(len(moving), _COLUMNS)
    figure = Figure(figsize=(3.4 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).flat
    for axes, k in zip(places[: len(moving)], moving, strict=True):
        _dots(axes, decoded.states[:, k], decoded.read[:, k], COLOURS[0], "encoded")
        if decoded.predicted:
            horizon = max(decoded.predicted)
            true, read = decoded.predicted[horizon]
            _dots(axes, true[:, k], read[:, k], COLOURS[1], f"predicted, {horizon} ahead")
        low, high = float(decoded.states[:, k].min()), float(decoded.states[:, k].max())
        axes.plot([low, high], [low, high], color=INK, linewidth=1)
        axes.set_title(names[k], color=INK, fontsize=10, loc="left", fontweight="bold")
        axes.set_xlabel("true", color=INK, fontsize=8)
        axes.set_ylabel("decoded", color=INK, fontsize=8)
        axes.tick_params(colors=INK, labelsize=8)
        axes.legend(fontsize=7, frameon=False, labelcolor=INK, markerscale=2)
    for axes in list(figure.axes)[len(moving) :]:
        axes.set_visible(False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90)
    return data.getvalue()


def _dots(axes: Any, true: Tensor, read: Tensor, colour: str, label: str) -> None:
    shown: NDArray[np.int64] = np.linspace(0, len(true) - 1, min(len(true), _DOTS)).round().astype(np.int64)
    rows = torch.from_numpy(shown)
    axes.scatter(true[rows].numpy(), read[rows].numpy(), s=4, color=colour, alpha=0.6, label=label)
