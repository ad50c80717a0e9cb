"""How far imagined latents are from a goal.

Shape legend: N samples, H steps, n tokens of a frame, D width, A action axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import suggest
from jepa.envs.policies import load_function
from jepa.planning.search import PlanningError

Over = Literal["last", "sum"]
UserEnergy = Callable[[Tensor, Tensor, Tensor], Tensor]


def l1(latents: Tensor, goal: Tensor) -> Tensor:
    """Mean absolute difference of ``[..., n, D]`` and ``[n, D]``: the energy of V-JEPA 2-AC."""
    return (latents - goal).abs().mean(dim=(-2, -1))


def l2(latents: Tensor, goal: Tensor) -> Tensor:
    """Mean squared difference, as DINO-WM plans (arXiv 2411.04983)."""
    return (latents - goal).square().mean(dim=(-2, -1))


def cosine(latents: Tensor, goal: Tensor) -> Tensor:
    """1 - cosine, mean over the tokens."""
    return 1 - F.cosine_similarity(latents, goal, dim=-1).mean(dim=-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2, "cosine": cosine}


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyConfig:
    """``kind``: "l1", "l2" or "cosine" (distance of predicted latents to the goal's), or ``MODULE:FUNCTION``, a
    function of latents ``[N, H, n, D]``, goal ``[n, D]`` and actions ``[N, H, A]`` that gives energies ``[N]``.

    ``over``: the distance of the "last" step, or the "sum" over steps, step k (from 0) times ``discount`` to the power
    of k; ``weights`` (one per step) replace both. ``action_weight`` times the mean squared action, in half-widths of
    the bounds, is added.
    """

    kind: str = "l1"
    over: Over = "last"
    discount: float = 1.0
    weights: tuple[float, ...] | None = None
    action_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in DISTANCES and ":" not in self.kind:
            hint = suggest(self.kind, DISTANCES)
            raise ValueError(f"energy {self.kind!r} is unknown{hint} (or MODULE:FUNCTION, a function of your own)")
        if self.over not in ("last", "sum"):
            raise ValueError(f"over must be 'last' or 'sum', not {self.over!r}")
        if not (self.discount > 0 and math.isfinite(self.discount)):
            raise ValueError(f"discount must be positive, not {self.discount:g}")
        if self.discount != 1 and self.over == "last":
            raise ValueError(f"discount {self.discount:g} has no meaning with over 'last': set over to 'sum'")
        if self.weights is not None and (not any(self.weights) or not all(map(math.isfinite, self.weights))):
            raise ValueError(f"weights must be finite and not all 0, not {list(self.weights)}")
        if not (self.action_weight >= 0 and math.isfinite(self.action_weight)):
            raise ValueError(f"action_weight must not be negative, not {self.action_weight:g}")
        if ":" in self.kind and (self.over != "last" or self.weights is not None):
            raise ValueError(f"energy {self.kind} weighs the steps itself: leave out over and weights")

    def step_weights(self, horizon: int) -> list[float]:
        """The weight of every step's distance. Raises ``PlanningError`` where ``weights`` are not one per step."""
        if self.weights is not None:
            if len(self.weights) != horizon:
                raise PlanningError(f"energy weights are {len(self.weights)} values, but a plan has {horizon} steps")
            return list(self.weights)
        if self.over == "last":
            return [0.0] * (horizon - 1) + [1.0]
        return [self.discount**step for step in range(horizon)]


class Energy:
    """Energies of imagined sequences. Raises ``ValueError`` for a user's function that cannot be found."""

    def __init__(self, config: EnergyConfig) -> None:
        self.config = config
        self.distance = DISTANCES.get(config.kind)
        self._user: UserEnergy | None = None if self.distance is not None else load_function(config.kind, "energy")

    def __call__(self, latents: Tensor, goal: Tensor, actions: Tensor, half_range: Tensor | None = None) -> Tensor:
        """Latents ``[N, H, n, D]``, goal ``[n, D]``, actions ``[N, H, A]`` to ``[N]``. ``half_range`` ``[A]``: the unit
        of the action cost (None: 1)."""
        steps = iter(latents.unbind(dim=1))
        return self.along(lambda _: next(steps), goal, actions, half_range)

    def along(
        self, step: Callable[[Tensor], Tensor], goal: Tensor, actions: Tensor, half_range: Tensor | None = None
    ) -> Tensor:
        """The same where ``step`` makes the next latents ``[N, n, D]`` from the step's actions ``[N, A]``: only those
        of one step are in memory, but for a user's function, which gets all."""
        count, horizon = actions.shape[:2]
        if self.distance is None:
            latents = torch.stack([step(action) for action in actions.unbind(dim=1)], dim=1)
            assert self._user is not None
            total = self._user(latents, goal, actions)
            if not isinstance(total, Tensor) or total.shape != (count,):
                shape = list(total.shape) if isinstance(total, Tensor) else type(total).__name__
                raise PlanningError(
                    f"energy {self.config.kind} must give [{count}] values, one per sample, not {shape}"
                )
        else:
            total = goal.new_zeros(count, dtype=torch.float32)
            for weight, action in zip(self.config.step_weights(horizon), actions.unbind(dim=1), strict=True):
                latents = step(action)
                if weight:
                    total = total + weight * self.distance(latents, goal).float()
        if self.config.action_weight:
            unit = torch.ones_like(actions[0, 0]) if half_range is None else half_range.clamp_min(1e-12)
            moving = torch.ones_like(unit) if half_range is None else (half_range > 0).to(unit)
            squares = (actions / unit).square() * moving
            total = total + self.config.action_weight * squares.mean(dim=(1, 2))
        return total
