"""The cross-entropy method, and its sample-efficient form iCEM.

Sources: Rubinstein and Kroese, The Cross-Entropy Method (2004); iCEM: Pinneri et al., arXiv 2008.06389.
Shape legend: N samples, K elites, H steps, A action axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.planning.noise import coloured
from jepa.planning.search import Plan, Search


def cem(search: Search) -> Plan:
    """Gaussian samples; mean and spread move to those of the elites. The plan is the last mean (as V-JEPA 2-AC's)."""
    config, space = search.config, search.space
    mean, std = search.start, search.spread
    elites = mean[None]
    for _ in range(config.iterations):
        actions = space.clip(mean + std * search.normal(config.samples))
        elites = best_of(actions, search.tried(actions), config.elites)
        mean, std = refit(search, elites, mean, std)
    return search.plan_mean(mean, elites)


def icem(search: Search) -> Plan:
    """CEM with coloured noise, elites that are tried again (shifted ones from the last plan too), fewer samples from
    round to round, the mean among the last samples, and the best sequence seen as the plan."""
    config, space = search.config, search.space
    mean, std = search.start, search.spread
    keep = round(config.keep * config.elites)
    kept = search.start[:0] if search.warm is None else space.clip(search.warm.elites[:keep])
    kept = kept.reshape(-1, *search.shape)
    elites = mean[None]
    for iteration in range(config.iterations):
        noise = coloured(search.normal(config.samples_in(iteration)), config.noise_beta)
        tried = [space.clip(mean + std * noise), kept]
        if iteration == config.iterations - 1 or (iteration == 0 and search.warm is not None):
            tried.append(mean[None])
        actions = torch.cat(tried)
        elites = best_of(actions, search.tried(actions), config.elites)
        mean, std = refit(search, elites, mean, std)
        kept = elites[:keep]
    return search.plan_best(elites)


def best_of(actions: Tensor, costs: Tensor, count: int) -> Tensor:
    """The ``count`` sequences of least cost, best first: ``[K, H, A]``."""
    return actions.index_select(0, costs.topk(count, largest=False).indices)


def refit(search: Search, elites: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread ``[H, A]`` of the elites, blended with the old ones."""
    config = search.config
    spread, middle = torch.std_mean(elites, dim=0, correction=0)
    mean = torch.lerp(middle, mean, config.momentum)
    std = torch.lerp(spread, std, config.std_momentum)
    return search.space.clip(mean), torch.maximum(std, config.min_std * search.space.half_range)
