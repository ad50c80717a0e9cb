"""A point that is pushed over a square, seen as one colour: latents are states, and every answer is known.

``ToyTask`` has state (x, y) in [0, 1], actions of at most 0.06 per step; frames are filled with the colour (x, y, 0).
``ToyModel`` reads the colour: one token, two wide. Its clip is at half the task's rate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jepa.models.world_model import Scaling
from jepa.planning.agents import PlanningAgent
from jepa.types import ClipConfig

SIDE = 16


class Seen(NamedTuple):
    frame: NDArray[np.uint8]
    state: NDArray[np.float32]
    goal: NDArray[np.uint8] | None
    goal_state: NDArray[np.float32] | None
    success: bool
    done: bool


def picture(state: NDArray[np.float32], side: int = SIDE) -> NDArray[np.uint8]:
    frame = np.zeros((side, side, 3), dtype=np.uint8)
    frame[:, :, :2] = np.round(255 * np.asarray(state))
    return frame


class ToyTask:
    fps = 10.0
    state_names = ("x", "y")
    goes_on = True

    def __init__(self, limit: int = 60, goal: bool = True, axes: int = 2) -> None:
        self.action_low, self.action_high = np.full(axes, -0.06, np.float32), np.full(axes, 0.06, np.float32)
        self.limit, self.has_goal = limit, goal
        self.actions: list[NDArray[np.float32]] = []

    def reset(self, seed: int) -> Seen:
        rng = np.random.default_rng(seed)
        self.state = rng.uniform(0, 0.3, 2).astype(np.float32)
        self.goal = rng.uniform(0.6, 0.9, 2).astype(np.float32)
        self.steps = 0
        return self._seen()

    def step(self, action: NDArray[np.float32]) -> Seen:
        self.actions.append(action)
        self.state = (self.state + action[:2]).clip(0, 1).astype(np.float32)
        self.steps += 1
        return self._seen()

    def close(self) -> None: ...

    def _seen(self) -> Seen:
        success = bool(np.abs(self.state - self.goal).max() < 0.03)
        goal = picture(self.goal) if self.has_goal else None
        return Seen(picture(self.state), self.state, goal, self.goal, success, self.steps >= self.limit)


class SimulatedTask(ToyTask):
    def simulate(self, state: NDArray[np.float32], actions: NDArray[np.float32], hold: int = 1) -> NDArray[np.float32]:
        states = []
        now = np.repeat(state[None], len(actions), axis=0)
        for step in range(actions.shape[1]):
            now = (now + hold * actions[:, step]).clip(0, 1)
            states.append(now)
        return np.stack(states, axis=1)

    def distance(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.sqrt(((states - self.goal) ** 2).sum(axis=-1))


class Memory(NamedTuple):
    latents: Tensor
    state: Tensor | None
    seen: list[Tensor]

    def repeat(self, samples: int) -> Memory:
        return Memory(self.latents.expand(samples, -1, -1), self.state, self.seen)


class ToyModel(nn.Module):
    """One model step is two steps of the task: latents move by twice the action."""

    def __init__(self, action_dim: int = 2, state_dim: int = 0) -> None:
        super().__init__()
        self.action_dim, self.state_dim = action_dim, state_dim
        self.clip = ClipConfig(num_frames=8, fps=5.0, crop_size=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.scaling = Scaling(action_dim, state_dim)  # of actions between -1 and 1
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.begun: list[Any] = []

    def encode(self, frames: Tensor) -> Tensor:
        return frames.mean(dim=(3, 4)).transpose(1, 2)[:, :, None, :2]

    def begin(self, latents: Tensor, actions: Tensor, states: Tensor | None = None) -> Memory:
        self.begun.append((latents, actions, states))
        return Memory(latents[:, -1], None if states is None else states[:, -1], [])

    def step(self, memory: Memory, action: Tensor) -> tuple[Tensor, Memory]:
        latents = (memory.latents + self.gain * action[:, None, :2]).clamp(0, 1)
        return latents, memory._replace(latents=latents)


def walk(agent: PlanningAgent, task: ToyTask) -> tuple[list[int], list[NDArray[np.float32]]]:
    """An episode until its goal is reached: which goal the agent was planning to at every step, and where it came."""
    observation = task.reset(0)
    agent.begin(observation.goal, task)  # type: ignore[arg-type]
    numbers, places = [], []
    while not observation.success:
        observation = task.step(agent.act(observation))
        numbers.append(agent.goal_number)
        places.append(observation.state)
    return numbers, places
