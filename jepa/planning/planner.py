"""``plan``: the action sequence of least cost, by one of five planners.

A planner knows nothing of models: ``cost`` maps action sequences ``[N, H, A]`` to costs ``[N]``, all on one device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jepa.planning.cem import cem, icem
from jepa.planning.config import PlannerConfig
from jepa.planning.gradient import gradient
from jepa.planning.mppi import mppi
from jepa.planning.search import Cost, Plan, PlanningError, Search
from jepa.planning.shooting import shooting
from jepa.planning.space import ActionSpace

PLANNERS: dict[str, Callable[[Search], Plan]] = {
    "cem": cem, "mppi": mppi, "icem": icem, "gradient": gradient, "random": shooting,
}  # fmt: skip


def plan(
    config: PlannerConfig,
    cost: Cost,
    space: ActionSpace,
    generator: torch.Generator,
    warm: Plan | Tensor | None = None,
) -> Plan:
    """The action sequence of least ``cost`` that the planner finds.

    ``generator`` is on the device of the work, and all randomness comes from it. ``warm``: where to begin, either
    actions ``[H, A]`` or what is left of an earlier plan (``Plan.shifted()``), whose elites iCEM tries again.
    The sampling planners run in inference mode: ``cost`` needs no gradient; "gradient" needs one.

    Raises ``PlanningError`` for a warm start of another shape, a cost of another shape, and a cost without gradient
    where one is needed.
    """
    if isinstance(warm, Tensor):
        nothing = warm.new_zeros(())
        warm = Plan(actions=warm, cost=nothing, elites=warm[None], history=nothing[None], wrong=nothing)
    if warm is not None and tuple(warm.actions.shape) != (config.horizon, space.dim):
        raise PlanningError(
            f"the warm start has shape {list(warm.actions.shape)}, but a plan has {config.horizon} steps of "
            f"{space.dim} actions"
        )
    search = Search(config, cost, space, generator, warm)
    with torch.inference_mode(mode=config.kind != "gradient"):
        return PLANNERS[config.kind](search)
