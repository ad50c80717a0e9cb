"""Modules that users might bring: a task, policies, and a package that registers a gymnasium environment."""

from __future__ import annotations

import gymnasium
import numpy as np

from jepa.envs.base import Observation


class Line:
    """A dot on a line of 16 pixels, moved by the action; its goal is pixel 12. Ends by itself after ``length``."""

    fps = 5.0
    state_names = ("place",)
    goes_on = False

    def __init__(self, length: int = 8) -> None:
        self.length, self.place, self.steps = length, 0.0, 0
        self.action_low, self.action_high = np.array([-1.0], np.float32), np.array([1.0], np.float32)

    def _see(self) -> Observation:
        frame = np.zeros((16, 16, 3), np.uint8)
        frame[:, int(np.clip(self.place, 0, 15))] = 255
        goal, state = np.zeros_like(frame), np.array([self.place], np.float32)
        return Observation(frame, state, goal, np.array([12.0], np.float32), False, self.steps >= self.length)

    def reset(self, seed: int) -> Observation:
        self.place, self.steps = float(seed % 8), 0
        return self._see()

    def step(self, action: object) -> Observation:
        self.place, self.steps = self.place + float(np.asarray(action)[0]), self.steps + 1
        return self._see()

    def close(self) -> None:
        pass


def half(task: object, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    return lambda observation: np.array([0.5], np.float32)


def huge(task: object, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    return lambda observation: np.array([7.0], np.float32)


def wrong(task: object, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    return lambda observation: np.array([0.5, np.nan], np.float32)


def nothing(**options: object) -> object:
    return object()


class Flat(gymnasium.Env):  # type: ignore[type-arg]
    """Renders what it is told to: for the errors of ``GymTask``."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, shape: tuple[int, ...] = (12, 16, 3), axes: int = 1) -> None:
        self.render_mode, self.shape = render_mode, shape
        self.observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,) * axes, np.float32)

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):  # type: ignore[no-untyped-def]
        self.steps += 1
        return np.zeros(3, np.float32), 0.0, self.steps >= 4, False, {"is_success": self.steps == 2}

    def render(self):  # type: ignore[no-untyped-def]
        return np.full(self.shape, 9, np.uint8)


gymnasium.register(id="tests/Flat-v0", entry_point=Flat)
