"""Settings of the objective ``policy``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from jepa.models.policy import Distance, PolicyNetConfig
from jepa.objectives.controller import ControllerConfig
from jepa.objectives.world_config import WorldModelConfig
from jepa.planning.config import PlannerConfig
from jepa.planning.energy import DISTANCES
from jepa.types import ClipConfig

Mode = Literal["imagination", "distil"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyBase:
    """What a run wrote down about the world model that ``model`` named."""

    objective: WorldModelConfig | ControllerConfig
    clip: ClipConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig:
    """``model``: the run (or checkpoint) of a world_model or controller objective. ``base`` is written by the run.

    Of every clip ``pairs`` frames are drawn as starts. A start's goal is a later frame of the clip, at most
    ``goal_steps`` ahead (None: as far as the clip goes), or, with the share ``far_goals``, any frame of another clip of
    the batch.

    ``mode`` "imagination": the policy acts in the model for ``horizon`` steps, and the sum over the steps of the
    ``energy`` to the goal's latents is made small, plus ``action_weight`` times the mean squared action (in half-widths
    of the bounds, from their middle). ``action_noise``: standard deviation of noise on its actions, in half-widths.
    ``mode`` "distil": ``planner`` plans for ``plans_per_step`` of the pairs, by the same energy, and the policy
    imitates the first ``plan_steps`` actions of every plan, each from what the model imagined before it, by mean
    squared error in half-widths; ``horizon`` is then only how long the policy acts for the monitor.

    ``action_low`` and ``action_high`` replace the bounds that the world model has from its data. ``net``: the network.
    """

    kind: Literal["policy"] = "policy"
    model: str = ""
    mode: Mode = "imagination"
    horizon: int = 8
    energy: Distance = "l2"
    pairs: int = 4
    goal_steps: int | None = None
    far_goals: float = 0.25
    action_noise: float = 0.0
    action_weight: float = 0.0
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    plans_per_step: int = 8
    plan_steps: int = 4
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    net: PolicyNetConfig = field(default_factory=PolicyNetConfig)
    base: PolicyBase | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must name a run of the objective world_model or controller")
        if self.mode not in get_args(Mode) or self.energy not in DISTANCES:
            raise ValueError(
                f"mode must be 'imagination' or 'distil' and energy one of {', '.join(DISTANCES)}, not {self.mode!r} "
                f"and {self.energy!r}"
            )
        for name in ("horizon", "pairs", "goal_steps", "plans_per_step", "plan_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.far_goals <= 1:
            raise ValueError(f"far_goals must be a share between 0 and 1, not {self.far_goals:g}")
        for name in ("action_noise", "action_weight"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must not be negative, but is {value:g}")
            if value and self.mode == "distil":
                raise ValueError(f"{name} has no meaning with mode 'distil': leave it out")
        if self.mode == "distil" and self.plan_steps > self.planner.horizon:
            raise ValueError(f"plan_steps {self.plan_steps} is more than planner.horizon {self.planner.horizon}")
