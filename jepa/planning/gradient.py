"""Planning by gradients through the model: Adam on the action sequences themselves, from several starts.

Shape legend: N starts, H steps, A action axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.planning.search import Plan, PlanningError, Search

_BETAS = (0.9, 0.999)


def gradient(search: Search) -> Plan:
    """The first start is the warm one, the others are uniform; every step is followed by a clip into the space. The
    plan is the best sequence that any start has passed through.

    Adam (arXiv 1412.6980) is spelled out: PyTorch's reads its step counter on the host.
    """
    config, space = search.config, search.space
    with torch.no_grad():
        others = space.sample(config.starts - 1, config.horizon, search.generator)
        actions = torch.cat((search.start[None], others))
        unit = torch.where(space.half_range > 0, space.half_range, 1.0)
        first, second = torch.zeros_like(actions), torch.zeros_like(actions)
        for step in range(1, config.iterations + 1):
            slope = _slope(search, actions) * unit  # per half-width of the box
            first.lerp_(slope, 1 - _BETAS[0])
            second.lerp_(slope.square(), 1 - _BETAS[1])
            move = first / (1 - _BETAS[0] ** step) / ((second / (1 - _BETAS[1] ** step)).sqrt() + 1e-8)
            actions = space.clip(actions - config.lr * unit * move)
        search.tried(actions)
        return search.plan_best()


def _slope(search: Search, actions: Tensor) -> Tensor:
    """Derivative of every start's cost by its own actions ``[N, H, A]``; the costs are noted."""
    with torch.enable_grad():
        tried = actions.detach().requires_grad_()
        costs = search.costs(tried)
        if not costs.requires_grad:
            raise PlanningError(
                "the gradient planner needs an energy that is differentiable in the actions, and this one has no "
                "gradient: use cem, icem, mppi or random"
            )
        (slope,) = torch.autograd.grad(costs.sum(), [tried])
    search.note(actions, costs.detach())
    return slope
