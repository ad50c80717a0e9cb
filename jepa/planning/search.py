"""A plan, and what all planners share while they search for one.

All samples of a round go through the cost as one batch, and nothing is copied to the host before the plan is read.

Shape legend: N samples, K elites, H steps, A action axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.planning.config import PlannerConfig
from jepa.planning.space import ActionSpace

Cost = Callable[[Tensor], Tensor]
_WORST = 1e15  # large, yet its square is a float32


class PlanningError(ValueError):
    """What was given to plan with cannot be planned with; the message says what to change."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """The chosen ``actions`` ``[H, A]`` and their ``cost`` (scalar); NaN where a cost was not finite.

    ``elites`` ``[K, H, A]``: the best sequences of the last round, best first. ``history`` ``[rounds]``: least cost of
    every round. ``wrong``: number of costs that were not finite. All are tensors on the planner's device.
    """

    actions: Tensor
    cost: Tensor
    elites: Tensor
    history: Tensor
    wrong: Tensor

    def shifted(self, steps: int = 1) -> Plan:
        """What is left of the plan ``steps`` model steps later, the last action held: the next warm start."""
        return replace(self, actions=_shift(self.actions, steps), elites=_shift(self.elites, steps))

    def on_host(self) -> NDArray[np.float32]:
        """The actions, float32 ``[H, A]``. Raises ``PlanningError`` if a cost was not finite."""
        values = torch.cat((self.actions.flatten().double(), self.wrong.double()[None])).cpu()  # one transfer
        if values[-1] > 0:
            raise PlanningError(
                f"the energy of {int(values[-1])} tried action sequences is not finite: the model, its states or "
                "actions, or the goal hold NaN or infinite values"
            )
        actions: NDArray[np.float32] = values[:-1].float().view(self.actions.shape).numpy()
        return actions


def _shift(actions: Tensor, steps: int) -> Tensor:
    """``[..., H, A]`` moved ``steps`` earlier, the last action repeated."""
    horizon = actions.shape[-2]
    later = torch.arange(horizon, device=actions.device).add(steps).clamp_max(horizon - 1)
    return actions.index_select(-2, later)


class Search:
    """What all planners share: the space on the device, the costs so far, the best sequence so far."""

    def __init__(
        self, config: PlannerConfig, cost: Cost, space: ActionSpace, generator: torch.Generator, warm: Plan | None
    ) -> None:
        self.config, self.space, self.generator, self.warm = config, space.to(generator.device), generator, warm
        self._cost = cost
        device = generator.device
        self.shape = (config.horizon, space.dim)
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        self.history: list[Tensor] = []
        self.best = torch.zeros(self.shape, device=device)
        self.best_cost = torch.full((), float("inf"), device=device)

    @property
    def start(self) -> Tensor:
        """``[H, A]``: the warm start, else the middle of the box."""
        begin = self.space.centre.expand(self.shape) if self.warm is None else self.warm.actions
        return self.space.clip(begin)

    @property
    def spread(self) -> Tensor:
        """``[H, A]``: the standard deviation that samples begin with."""
        return (self.config.init_std * self.space.half_range).expand(self.shape)

    def normal(self, samples: int) -> Tensor:
        """White standard normal noise ``[samples, H, A]``."""
        return torch.randn(samples, *self.shape, generator=self.generator, device=self.generator.device)

    def costs(self, actions: Tensor) -> Tensor:
        """Costs ``[N]`` of ``[N, H, A]``; one that is not finite is counted, and as bad as can be."""
        parts = actions.split(self.config.chunk or len(actions))
        values = torch.cat([self._checked(part) for part in parts])
        finite = values.isfinite()
        self.wrong = self.wrong + (~finite).sum()
        return torch.where(finite, values, torch.full_like(values, _WORST))

    def _checked(self, actions: Tensor) -> Tensor:
        values = self._cost(actions)
        if values.shape != (len(actions),):
            raise PlanningError(f"the cost of {len(actions)} action sequences has shape {list(values.shape)}")
        return values.float()

    def tried(self, actions: Tensor) -> Tensor:
        """``costs`` of a round that is remembered."""
        costs = self.costs(actions)
        self.note(actions, costs)
        return costs

    def note(self, actions: Tensor, costs: Tensor) -> None:
        """Remember a round, and the best sequence if it is better than all before."""
        with torch.no_grad():
            least, at = costs.min(dim=0)
            better = least < self.best_cost
            self.best = torch.where(better, actions.index_select(0, at[None])[0], self.best)
            self.best_cost = torch.where(better, least, self.best_cost)
            self.history.append(least)

    def plan(self, actions: Tensor, cost: Tensor, elites: Tensor) -> Plan:
        """The result; NaN if any cost was not finite, so that it cannot pass unnoticed."""
        spoiled = torch.where(self.wrong > 0, float("nan"), 0.0)
        return Plan(
            actions=actions + spoiled, cost=cost + spoiled, elites=elites, history=torch.stack(self.history),
            wrong=self.wrong,
        )  # fmt: skip

    def plan_best(self, elites: Tensor | None = None) -> Plan:
        """The best sequence of all rounds."""
        return self.plan(self.best, self.best_cost, self.best[None] if elites is None else elites)

    def plan_mean(self, mean: Tensor, elites: Tensor) -> Plan:
        """A mean of sequences, which still needs its cost."""
        return self.plan(mean, self.costs(mean[None])[0], elites)
