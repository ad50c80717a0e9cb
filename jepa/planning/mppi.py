"""Model predictive path integral control: the mean of all samples, weighted by the exponential of their cost.

Source: Williams et al., arXiv 1509.01149; temperature relative to the spread of the costs, so that it does not depend
on the unit of the energy. Shape legend: N samples, H steps, A action axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.planning.search import Plan, Search


def mppi(search: Search) -> Plan:
    """Gaussian samples around the mean; the mean moves to their weighted mean, and the spread falls by ``std_decay``.
    The plan is the last mean."""
    config, space = search.config, search.space
    mean, std = search.start, search.spread
    actions = mean[None]
    for _ in range(config.iterations):
        actions = space.clip(mean + std * search.normal(config.samples))
        shares = weights(search.tried(actions), config.temperature)
        mean = space.clip(torch.einsum("n,nha->ha", shares, actions))
        std = torch.maximum(std * config.std_decay, config.min_std * space.half_range)
    return search.plan_mean(mean, search.best[None])


def weights(costs: Tensor, temperature: float) -> Tensor:
    """``[N]``, sum 1: exp(-(c - min c) / (temperature * std c)), normalised."""
    scale = temperature * costs.std(correction=0).clamp_min(1e-12)
    return torch.softmax(-(costs - costs.min()) / scale, dim=0)
