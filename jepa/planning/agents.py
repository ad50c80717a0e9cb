"""Agents: they see an observation and choose an action. By a world model, by the true simulator, or by chance.

Shape legend: N samples, T frames of context, H steps, n tokens of a frame, D width, A action axes, S state width.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa.envs.base import SimulatedTask
from jepa.planning.config import PlannerConfig
from jepa.planning.energy import Energy, EnergyConfig
from jepa.planning.imagination import Eyes, Imagination, check_frame
from jepa.planning.planner import plan
from jepa.planning.search import Plan, PlanningError
from jepa.planning.space import ActionSpace, action_space, check_units
from jepa.types import ClipConfig

if TYPE_CHECKING:
    from jepa.envs.base import GoalTask, Observation
    from jepa.models.world_model import WorldModel

Frame = NDArray[np.uint8]
Vector = NDArray[np.float32]


class Decision(NamedTuple):
    """One planned action: at which ``step`` of the environment, the time it took, the planned ``actions`` ``[H, A]``,
    their energy, and the imagined latents ``[H, n, D]`` (None where the agent has none)."""

    step: int
    seconds: float
    actions: Vector
    energy: float | None
    imagined: Tensor | None


class Agent(ABC):
    """Decides every ``frame_skip`` steps of the environment and holds the action in between.

    ``decisions``: those of the episode so far, timed. ``name``: for tables.
    """

    name: str
    frame_skip = 1

    def begin(self, goal: Frame | None, task: GoalTask) -> None:
        """An episode begins. ``goal``: uint8 ``[H, W, 3]``, or None where the environment shows none."""
        self.decisions: list[Decision] = []
        self._step, self._held = 0, np.zeros(0, dtype=np.float32)

    def act(self, observation: Observation) -> Vector:
        """The action ``[A]`` of the next step of the environment."""
        if self._step % self.frame_skip == 0:
            started = time.perf_counter()
            actions, energy = self._decide(observation)
            seconds = time.perf_counter() - started
            self._held = actions[0]
            self.decisions.append(Decision(self._step, seconds, actions, energy, self._imagine()))
        self._step += 1
        return self._held

    @abstractmethod
    def _decide(self, observation: Observation) -> tuple[Vector, float | None]:
        """The planned actions ``[H, A]`` and their energy. The first is held."""

    def _imagine(self) -> Tensor | None:
        """What the plan leads to ``[H, n, D]``, where that is known; not part of the timing."""
        return None


def frame_skip_of(clip: ClipConfig, task_fps: float) -> int:
    """Steps of an environment at ``task_fps`` in one step of a model that was trained on ``clip``."""
    if clip.fps is not None:
        return max(1, round(task_fps / clip.fps))
    return clip.frame_step or 1


def task_space(task: GoalTask) -> ActionSpace:
    """The bounds of a task's actions. Raises ``ValueError`` where they are not finite."""
    bounds = (task.action_low, task.action_high)
    low, high = (torch.as_tensor(np.asarray(bound), dtype=torch.float32) for bound in bounds)
    return action_space(low, high)


class RandomAgent(Agent):
    """Uniform actions, each held for ``frame_skip`` steps: what luck alone reaches. ``space``: instead of the task's
    bounds."""

    name = "random"

    def __init__(self, frame_skip: int = 1, seed: int = 0, space: ActionSpace | None = None) -> None:
        self.frame_skip, self._given_space = frame_skip, space
        self._generator = torch.Generator().manual_seed(seed)

    def begin(self, goal: Frame | None, task: GoalTask) -> None:
        super().begin(goal, task)
        self._space = self._given_space or task_space(task)

    def _decide(self, observation: Observation) -> tuple[Vector, float | None]:
        return self._space.sample(1, 1, self._generator)[0].numpy(), None


class SimulatorAgent(Agent):
    """Plans through the true simulator, by the task's own distance of states to the goal (sum over the horizon): what
    the same planner reaches with a model that makes no mistakes. ``space``: instead of the task's bounds."""

    name = "simulator"

    def __init__(
        self, config: PlannerConfig, frame_skip: int = 1, seed: int = 0, space: ActionSpace | None = None
    ) -> None:
        self.config, self.frame_skip, self._given_space = config, frame_skip, space
        self._generator = torch.Generator().manual_seed(seed)

    def begin(self, goal: Frame | None, task: GoalTask) -> None:
        super().begin(goal, task)
        if not isinstance(task, SimulatedTask):
            raise PlanningError(f"{type(task).__name__} cannot be simulated from a state: leave the simulator out")
        self._task, self._space = task, self._given_space or task_space(task)
        self._warm: Plan | None = None

    def _decide(self, observation: Observation) -> tuple[Vector, float | None]:
        task, skip = self._task, self.frame_skip

        def cost(actions: Tensor) -> Tensor:
            states = task.simulate(observation.state, actions.numpy(), hold=skip)
            return torch.from_numpy(np.asarray(task.distance(states))).sum(dim=1)

        found = plan(self.config, cost, self._space, self._generator, self._warm)
        actions = found.on_host()
        self._warm = found.shifted()
        return actions, float(found.cost)


@dataclass(frozen=True, kw_only=True, slots=True)
class SubgoalConfig:
    """When the next of several goals comes: at an energy below ``near`` (None: never), or after ``steps`` planned
    actions."""

    near: float | None = None
    steps: int = 10

    def __post_init__(self) -> None:
        if self.near is not None and not self.near > 0:
            raise ValueError(f"near must be positive, not {self.near:g}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


class PlanningAgent(Agent):
    """Receding horizon: plans through ``model``, does the first action, looks, and plans again from what is left.

    ``context``: how many of the last frames (and the actions between them) the model sees; None: up to 3, as many as
    leave room for the horizon in the model's clip. ``space``: instead of the environment's bounds. ``subgoals``: images
    to reach in turn before the environment's own goal. ``imagine``: keep what the plans lead to, for pictures.
    """

    name = "model"

    def __init__(
        self,
        model: WorldModel,
        config: PlannerConfig,
        energy: EnergyConfig,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        context: int | None = None,
        space: ActionSpace | None = None,
        subgoals: Sequence[Frame] = (),
        subgoal: SubgoalConfig | None = None,
        imagine: bool = False,
        seed: int = 0,
    ) -> None:
        if context is not None and context < 1:
            raise PlanningError(f"context must be at least 1 frame, not {context}")
        self.device, self.precision = torch.device(device), precision
        self.model, self.config, self.energy = model.to(self.device).eval(), config, Energy(energy)
        self.context = context or max(1, min(3, model.clip.num_frames - config.horizon))
        self.subgoals, self.subgoal, self.imagine = list(subgoals), subgoal or SubgoalConfig(), imagine
        self.eyes = Eyes(model, self.device, precision)
        self._given_space = space
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def begin(self, goal: Frame | None, task: GoalTask) -> None:
        super().begin(goal, task)
        self.frame_skip = frame_skip_of(self.model.clip, task.fps)
        self.space = (self._given_space or task_space(task)).to(self.device)
        if self.space.dim != self.model.action_dim:
            raise PlanningError(
                f"the environment's actions have {self.space.dim} axes, the model's {self.model.action_dim}: it was "
                "trained on another action space"
            )
        check_units(self.space, self.model.scaling.action_low, self.model.scaling.action_high)
        frames = [*self.subgoals, *([] if goal is None else [goal])]
        if not frames:
            raise PlanningError("the environment shows no goal image: give one (--goal IMAGE)")
        for frame in frames:
            check_frame(frame, "the goal")
        self.goal_frames = frames
        self.goals = [self.eyes(frame[None])[0] for frame in frames]
        self._goal, self._since = 0, 0
        self._latents: deque[Tensor] = deque(maxlen=self.context)
        self._states: deque[Tensor] = deque(maxlen=self.context)
        self._actions: deque[Tensor] = deque(maxlen=self.context)
        self._warm: Plan | None = None

    @property
    def goal_number(self) -> int:
        """Which of ``goal_frames`` is planned to."""
        return self._goal

    def _decide(self, observation: Observation) -> tuple[Vector, float | None]:
        self._look(observation)
        self._next_goal()
        past = len(self._latents) - 1
        actions = list(self._actions)[len(self._actions) - past :]
        imagination = Imagination(
            self.model, torch.stack(list(self._latents)),
            torch.stack(actions) if past else torch.zeros(0, self.space.dim, device=self.device),
            torch.stack(list(self._states)) if self.model.state_dim else None, self.precision,
        )  # fmt: skip
        cost = imagination.cost(self.energy, self.goals[self._goal], self.space)
        found = plan(self.config, cost, self.space, self._generator, self._warm)
        chosen = found.on_host()
        self._warm = found.shifted()
        self._actions.append(found.actions[0].clone())
        self._imagination, self._found, self.cost = imagination, found, cost
        return chosen, float(found.cost)

    def _imagine(self) -> Tensor | None:
        return self._imagination.follow(self._found.actions).cpu() if self.imagine else None

    def _look(self, observation: Observation) -> None:
        check_frame(observation.frame, "the observed frame")
        goal = self.goal_frames[self._goal]
        if goal.shape != observation.frame.shape:
            sizes = [" x ".join(map(str, frame.shape[:2])) for frame in (goal, observation.frame)]
            raise PlanningError(
                f"the goal image is {sizes[0]} pixels, the frames are {sizes[1]}: give one of the same size, or resize "
                "it (--resize-goal)"
            )
        self._latents.append(self.eyes(observation.frame[None])[0])
        if self.model.state_dim:
            state = torch.as_tensor(observation.state, dtype=torch.float32)
            if state.shape != (self.model.state_dim,):
                raise PlanningError(
                    f"the environment's states have {state.numel()} numbers, the model's {self.model.state_dim}: it "
                    "was trained on other states"
                )
            self._states.append(state.to(self.device))

    def _next_goal(self) -> None:
        """Go on to the next goal when the present one is near, or has been tried for long enough."""
        if self._goal < len(self.goals) - 1 and self._since:
            near = self.subgoal.near
            if self._since >= self.subgoal.steps or (near is not None and self._distance() < near):
                self._goal, self._since = self._goal + 1, 0
                self._warm = None
        self._since += 1

    def _distance(self) -> float:
        """Energy of the present at the present goal: of a single step, and of no action."""
        here, goal = self._latents[-1], self.goals[self._goal]
        if self.energy.distance is not None:
            return float(self.energy.distance(here, goal))
        return float(self.energy(here[None, None], goal, self.space.centre[None, None]))
