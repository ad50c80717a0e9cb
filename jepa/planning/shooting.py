"""Random shooting: the best of many uniform sequences. The baseline that a planner has to beat."""

from __future__ import annotations

import torch

from jepa.planning.search import Plan, Search


def shooting(search: Search) -> Plan:
    """``samples`` uniform sequences in every round; the warm start is among the first."""
    config = search.config
    for iteration in range(config.iterations):
        actions = search.space.sample(config.samples, config.horizon, search.generator)
        if iteration == 0 and search.warm is not None:
            actions = torch.cat((search.start[None], actions[1:]))
        search.tried(actions)
    return search.plan_best()
