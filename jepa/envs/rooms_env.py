"""The rooms as a ``gymnasium`` environment (``jepa/Rooms-v0``) and as a task with goals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jepa.config import from_dict
from jepa.envs.base import Frame, Observation, Policy, TaskError, Vector, check_action, check_actions, check_hold
from jepa.envs.rooms import RoomsConfig, RoomsWorld, draw_layout
from jepa.envs.rooms_draw import RoomsPicture, draw_looks
from jepa.envs.rooms_explore import RoomsExplorer
from jepa.envs.rooms_goals import Episode, draw_episode


def rooms_config(options: Mapping[str, Any]) -> RoomsConfig:
    """The config from plain options; ``ConfigError`` names an unknown key with a suggestion."""
    return from_dict(RoomsConfig, dict(options))


class RoomsScene:
    """One episode: its world, its picture, its start and its goal, all from one random stream."""

    def __init__(self, config: RoomsConfig, rng: np.random.Generator) -> None:
        layout = draw_layout(config, rng)
        self.config = config
        self.world = RoomsWorld(config, layout)
        self.picture = RoomsPicture(config, layout, draw_looks(config, rng))
        self.episode: Episode = draw_episode(config, layout, rng)
        self.goal_frame = self.picture.render(self.episode.goal)

    def distance(self, states: ArrayLike) -> Vector:
        """How far states ``[..., S]`` are from the goal: of the agent or the object, as the config's ``goal`` says."""
        part = slice(2, 4) if self.config.goal == "object" else slice(0, 2)
        away = np.asarray(states)[..., part] - self.episode.goal[part]
        return np.sqrt((away * away).sum(axis=-1)).astype(np.float32)

    def success(self, state: ArrayLike) -> bool:
        return bool(self.distance(state) <= self.config.tolerance)


class RoomsEnv(gymnasium.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """The rooms for any program that speaks ``gymnasium``: pictures in, pushes out.

    Observations are frames uint8 ``[S, S, 3]``; an action ``[2]`` in -1..1 pushes the agent by that many step lengths.
    ``info`` holds ``state`` and ``goal_state`` (float32 ``[S]``, docs/environments.md), ``goal_frame``, ``success``. An
    episode ends (terminated) with the goal, whose reward is 1, or is cut off (truncated) after ``max_steps``.
    ``config`` or ``options``, the keys of ``RoomsConfig``, but not both.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self, render_mode: str | None = "rgb_array", config: RoomsConfig | None = None, **options: Any
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise TaskError(f"render_mode must be 'rgb_array', not {render_mode!r}")
        if config is not None and options:
            raise TaskError(f"give the rooms a config or options, not both ({', '.join(options)})")
        self.config = config if config is not None else rooms_config(options)
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self.config.fps}
        side = self.config.side
        self.observation_space = gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.scene: RoomsScene | None = None
        self._state = np.zeros(0, np.float32)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        self.scene = RoomsScene(self.config, self.np_random)
        self._state, self._steps = self.scene.episode.start, 0
        return self._frame(), self._info(self.scene)

    def step(self, action: ArrayLike) -> tuple[Frame, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        if self.scene is None:
            raise TaskError("the rooms must be reset before they are stepped")
        push = check_action(action, self.action_space.low, self.action_space.high)  # type: ignore[attr-defined]
        self._state = self.scene.world.advance(self._state[None], push[None])[0]
        self._steps += 1
        info = self._info(self.scene)
        return self._frame(), float(info["success"]), info["success"], self._steps >= self.config.max_steps, info

    def render(self) -> Frame | None:  # type: ignore[override]
        return None if self.render_mode is None else self._frame()

    def _frame(self) -> Frame:
        assert self.scene is not None
        return self.scene.picture.render(self._state)

    def _info(self, scene: RoomsScene) -> dict[str, Any]:
        return {
            "state": self._state.copy(), "goal_state": scene.episode.goal.copy(),
            "goal_frame": scene.goal_frame.copy(), "success": scene.success(self._state),
        }  # fmt: skip


class RoomsTask:
    """The rooms as a ``GoalTask`` whose simulator can be asked: see ``simulate``."""

    goes_on = True

    def __init__(self, config: RoomsConfig | None = None) -> None:
        self.env = RoomsEnv(config=config or RoomsConfig())
        self.config = self.env.config
        self.fps = self.config.fps
        self.action_low, self.action_high = np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32)
        self.state_names = self.config.state_names

    @property
    def scene(self) -> RoomsScene:
        """The episode at hand; ``TaskError`` before the first reset."""
        if self.env.scene is None:
            raise TaskError("the rooms must be reset before anything else")
        return self.env.scene

    def reset(self, seed: int) -> Observation:
        """A new episode, the same for the same seed."""
        frame, info = self.env.reset(seed=seed)
        return self._observe(frame, info, False)

    def step(self, action: ArrayLike) -> Observation:
        """Push the agent by ``action [2]``. ``TaskError`` for another width or NaN."""
        frame, _, terminated, truncated, info = self.env.step(action)
        return self._observe(frame, info, terminated or truncated)

    def _observe(self, frame: Frame, info: dict[str, Any], done: bool) -> Observation:
        return Observation(frame, info["state"], self.scene.goal_frame, info["goal_state"], info["success"], done)

    def simulate(self, state: ArrayLike, actions: ArrayLike, hold: int = 1) -> Vector:
        """What would follow ``state [S]`` under ``actions [N, H, 2]``, each held for ``hold`` steps: states float32
        ``[N, H, S]``, equal to those that stepping through them shows. The episode itself does not move."""
        pushes = check_actions(actions, 2)
        start = np.asarray(state, dtype=np.float32)
        if start.shape != (len(self.state_names),):
            raise TaskError(f"a state of these rooms has {len(self.state_names)} numbers, not {list(start.shape)}")
        states = np.repeat(start[None], len(pushes), axis=0)
        seen = np.empty((*pushes.shape[:2], len(start)), dtype=np.float32)
        for number in range(pushes.shape[1]):
            for _ in range(check_hold(hold)):
                states = self.scene.world.advance(states, pushes[:, number])
            seen[:, number] = states
        return seen

    def distance(self, states: ArrayLike) -> Vector:
        """How far states ``[..., S]`` are from the goal, in units of the square's side; success is within
        ``config.tolerance``."""
        return self.scene.distance(states)

    def explorer(self, rng: np.random.Generator) -> Policy:
        """The policy that recordings call ``random``: it gets around (jepa.envs.rooms_explore)."""
        return RoomsExplorer(self, rng)

    def close(self) -> None:
        self.env.close()
