"""The energy as a function of two action axes, on a grid.

Shape legend: N samples, H steps, A action axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.planning.search import Cost, PlanningError
from jepa.planning.space import ActionSpace

Hold = Literal["horizon", "first"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Landscape:
    """``energy`` ``[len(y), len(x)]`` over values ``x`` and ``y`` of the two ``axes``; ``plan``: the point that the
    planner chose, in the same coordinates."""

    axes: tuple[int, int]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    energy: NDArray[np.float32]
    plan: tuple[float, float]


def moving_axes(space: ActionSpace) -> int:
    """How many axes are not frozen."""
    return int((space.high > space.low).sum())


def check_axes(axes: tuple[int, int], space: ActionSpace) -> None:
    """Raises ``PlanningError`` for two axes of a landscape that are the same, do not exist or do not move."""
    moving = (space.high > space.low).tolist()
    free = [number for number, moves in enumerate(moving) if moves]
    for axis in axes:
        if axis not in free:
            raise PlanningError(f"axis {axis} cannot be drawn: the axes that move are {free}")
    if axes[0] == axes[1]:
        raise PlanningError(f"a landscape needs two different axes, not {list(axes)}")


@torch.no_grad()
def landscape(
    cost: Cost, space: ActionSpace, plan: Tensor, axes: tuple[int, int] = (0, 1), size: int = 21,
    hold: Hold = "horizon", chunk: int = 256,
) -> Landscape:  # fmt: skip
    """Energies where two axes take ``size`` values each between their bounds; the others are as in ``plan`` ``[H, A]``.

    ``hold`` "horizon": the two values are held for all steps, and the plan's point is its mean; "first": only the first
    action is changed, the rest of the plan follows, and the plan's point is its first action. Nothing is shortened to
    ``max_norm``. Raises ``PlanningError`` for axes that do not exist or do not move.
    """
    if hold not in get_args(Hold):
        raise PlanningError(f"hold must be 'horizon' or 'first', not {hold!r}")
    check_axes(axes, space)
    if size < 2:
        raise PlanningError(f"a landscape needs at least 2 values of an axis, not {size}")
    low, high = space.low.tolist(), space.high.tolist()
    x, y = (torch.linspace(low[axis], high[axis], size, device=plan.device) for axis in axes)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    tried = plan.detach().clone().expand(size * size, -1, -1).clone()
    steps = slice(None) if hold == "horizon" else slice(0, 1)
    tried[:, steps, axes[0]] = columns.reshape(-1, 1)
    tried[:, steps, axes[1]] = rows.reshape(-1, 1)
    energy = torch.cat([cost(part) for part in tried.split(chunk)]).view(size, size)
    point = plan.mean(dim=0) if hold == "horizon" else plan[0]
    return Landscape(
        axes=axes, x=x.cpu().numpy(), y=y.cpu().numpy(), energy=energy.float().cpu().numpy(),
        plan=(float(point[axes[0]]), float(point[axes[1]])),
    )  # fmt: skip
