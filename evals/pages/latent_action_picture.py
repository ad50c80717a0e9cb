"""What inferred actions mean: which code goes with which true direction, or where continuous actions lie."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.latent_actions.agreement import contingency
from evals.pages.drawing import INK

_DOTS = 2000  # transitions drawn of continuous actions


class Panel(NamedTuple):
    """One model: its ``title``, actions ``[N, Z]``, and the numbers of their codes, ``ids`` int64 ``[N]``, out of
    ``num_codes`` (None and 0: they are continuous)."""

    title: str
    actions: NDArray[np.float64]
    ids: NDArray[np.int64] | None
    num_codes: int = 0


def draw_panels(panels: Sequence[Panel], classes: NDArray[np.int64], names: Sequence[str]) -> bytes:
    """A PNG with a panel for each model. ``classes`` ``[N]``: the true directions (``names``) of the N transitions.

    Codes: of each code's transitions the share that went in each direction, and under its number how often it is used.
    Continuous actions: their first two principal components, coloured by direction.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set_title(panel.title, color=INK, fontsize=10, loc="left", fontweight="bold")
        axes.tick_params(colors=INK, labelsize=8)
        if panel.ids is None:
            _scatter(axes, panel.actions, classes, names)
        else:
            _heat(axes, panel.ids, panel.num_codes, classes, names)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90)
    return data.getvalue()


def code_table(ids: NDArray[np.int64], num_codes: int, classes: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Of the transitions of each code, the share in each of ``count`` classes: ``[count, num_codes]``; a code that is
    never used has zeros."""
    counts = contingency(classes, ids, (count, num_codes))
    return counts / counts.sum(axis=0).clip(min=1)


def _heat(axes: Any, ids: NDArray[np.int64], num_codes: int, classes: NDArray[np.int64], names: Sequence[str]) -> None:
    table = code_table(ids, num_codes, classes, len(names))
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    used = np.bincount(ids, minlength=num_codes) / len(ids)
    axes.set_xticks(range(num_codes), [f"{k}\n{100 * share:.0f} %" for k, share in enumerate(used)])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("code, and how often it is used", color=INK, fontsize=8)
    axes.set_ylabel("true action", color=INK, fontsize=8)
    if num_codes > 16:
        return
    for (row, column), share in np.ndenumerate(table):
        if share >= 0.05:
            colour = "white" if share > 0.5 else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=7)


def _scatter(axes: Any, actions: NDArray[np.float64], classes: NDArray[np.int64], names: Sequence[str]) -> None:
    import matplotlib

    places = principal(actions)
    shown = np.linspace(0, len(places) - 1, min(len(places), _DOTS)).round().astype(np.int64)
    turn = matplotlib.colormaps["hsv"]
    for number, name in enumerate(names):
        own = shown[classes[shown] == number]
        colour = INK if name == "still" else turn(number / (len(names) - 1))
        axes.scatter(places[own, 0], places[own, 1], s=5, color=colour, label=name)
    axes.set_xlabel("first principal component of actions", color=INK, fontsize=8)
    axes.set_ylabel("second", color=INK, fontsize=8)
    axes.legend(fontsize=7, frameon=False, labelcolor=INK, markerscale=2)


def principal(actions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first two principal components of ``[N, Z]``: ``[N, 2]`` (zeros where Z is 1)."""
    centred = actions - actions.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    places = centred @ axes[:2].T
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
