"""An agent that acts by a policy: one forward pass for an action, no search.

Shape legend: H steps, n tokens of a frame, D width, A action axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jepa.envs.base import Observation
from jepa.models.policy import Policy, dream
from jepa.planning.agents import Frame, PlanningAgent, SubgoalConfig, Vector
from jepa.planning.config import PlannerConfig
from jepa.planning.energy import EnergyConfig
from jepa.planning.imagination import Imagination
from jepa.planning.search import PlanningError
from jepa.planning.space import ActionSpace
from jepa.precision import mixed


class PolicyAgent(PlanningAgent):
    """Does what ``policy`` says of the present frame and the goal, brought into the action space.

    It sees, steps through ``subgoals`` and holds its actions as ``PlanningAgent`` does. ``imagine``: after every
    decision the policy is followed through its world model for as many steps as it was trained for, which is not part
    of the timing.
    """

    name = "policy"

    def __init__(
        self,
        policy: Policy,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        space: ActionSpace | None = None,
        subgoals: Sequence[Frame] = (),
        subgoal: SubgoalConfig | None = None,
        imagine: bool = False,
    ) -> None:
        super().__init__(
            policy.world, PlannerConfig(horizon=policy.horizon), EnergyConfig(kind=policy.energy, over="sum"),
            device=device, precision=precision, context=1, space=space, subgoals=subgoals, subgoal=subgoal,
            imagine=imagine,
        )  # fmt: skip
        self.policy = policy.to(self.device).eval()
        self._dreamt: Vector | None = None

    def act(self, observation: Observation) -> Vector:
        """The action ``[A]``. With ``imagine`` a decision's actions are the ones that the policy expects to do."""
        count = len(self.decisions)
        action = super().act(observation)
        if len(self.decisions) > count and self._dreamt is not None:
            self.decisions[-1] = self.decisions[-1]._replace(actions=self._dreamt)
        return action

    @torch.no_grad()
    def _decide(self, observation: Observation) -> tuple[Vector, float | None]:
        self._look(observation)
        self._next_goal()
        goal, latents = self.goals[self._goal], self._latents[-1]
        with mixed(self.precision, self.device):
            action = self.space.clip(self.policy(latents[None], goal[None]))
        chosen = action.cpu().numpy()
        if not np.isfinite(chosen).all():
            raise PlanningError(f"the policy's action is {chosen[0].tolist()}: its weights are not finite")
        return chosen, None

    @property
    def _state(self) -> Tensor | None:
        return torch.stack(list(self._states)) if self.model.state_dim else None

    @torch.no_grad()
    def _imagine(self) -> Tensor | None:
        """Also gives ``cost``, the energies of actions from here, which landscapes are drawn of."""
        self._dreamt = None
        if not self.imagine:
            return None
        goal, latents, state = self.goals[self._goal], self._latents[-1], self._state
        none = torch.zeros(0, self.space.dim, device=self.device)
        imagination = Imagination(self.model, latents[None], none, state, self.precision)
        self.cost = imagination.cost(self.energy, goal, self.space)
        with mixed(self.precision, self.device):
            rolled = dream(self.model, self.policy.net, latents[None], goal[None], state, self.config.horizon)
        self._dreamt = self.space.clip(rolled.actions[0]).cpu().numpy()
        return rolled.latents[0].cpu()
