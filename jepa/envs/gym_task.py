"""Any ``gymnasium`` environment that renders pictures, as a task; its goal, if any, comes from an image file."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import error as gym_errors
from numpy.typing import ArrayLike
from PIL import Image, UnidentifiedImageError

from jepa.config import suggest
from jepa.envs.base import Frame, Observation, TaskError, check_action

EXTRAS = {"gym_pusht": "pusht"}  # the extra that installs the package of a namespace


class GymTask:
    """The environment ``name`` of gymnasium's registry, made with ``render_mode="rgb_array"``.

    ``goal``: an image file of the frames' size. ``fps``: where the environment does not say its own. Other options are
    the environment's own. The state is the observation, where that is a row of numbers, else empty. Success is what
    ``info`` calls ``is_success`` or ``success``. Raises ``TaskError`` where any of this does not work out.
    """

    goes_on = False

    def __init__(self, name: str, goal: str | None = None, fps: float | None = None, **options: Any) -> None:
        self.name = name
        if fps is not None and not (isinstance(fps, int | float) and fps > 0):
            raise TaskError(f"environment {name!r}: option fps must be a positive number, not {fps!r}")
        if goal is not None and not isinstance(goal, str):
            raise TaskError(f"environment {name!r}: option goal must be the path of an image, not {goal!r}")
        self.env = make(name, options)
        space = self.env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            self.env.close()
            raise TaskError(f"environment {name!r} takes actions of {space}: only a Box of one axis is supported")
        rate = fps or self.env.metadata.get("render_fps")
        if not rate or not rate > 0:
            self.env.close()
            raise TaskError(f"environment {name!r} does not say how many steps a second has: give option fps")
        self.fps = float(rate)
        self.action_low, self.action_high = space.low.astype(np.float32), space.high.astype(np.float32)
        observed = self.env.observation_space
        plain = isinstance(observed, gymnasium.spaces.Box) and len(observed.shape) == 1
        width = observed.shape[0] if plain and observed.shape else 0
        self.state_names = tuple(f"observation_{i}" for i in range(width))
        self._goal_path, self._goal = goal, None if goal is None else read_goal(goal)

    def reset(self, seed: int) -> Observation:
        """A new episode, as the environment makes it from ``seed``."""
        observed, info = self.env.reset(seed=seed)
        frame = self._frame()
        if self._goal is not None and self._goal.shape != frame.shape:
            raise TaskError(
                f"goal image {self._goal_path} is {self._goal.shape[1]} x {self._goal.shape[0]} pixels, but the frames "
                f"of {self.name!r} are {frame.shape[1]} x {frame.shape[0]}: scale the image"
            )
        return self._observe(frame, observed, info, False)

    def step(self, action: ArrayLike) -> Observation:
        """One step. ``TaskError`` for an action of another width or NaN."""
        checked = check_action(action, self.action_low, self.action_high)
        observed, _, terminated, truncated, info = self.env.step(checked)
        return self._observe(self._frame(), observed, info, bool(terminated or truncated))

    def _observe(self, frame: Frame, observed: Any, info: dict[str, Any], done: bool) -> Observation:
        state = np.asarray(observed, dtype=np.float32) if self.state_names else np.zeros(0, np.float32)
        success = bool(info.get("is_success", info.get("success", False)))
        return Observation(frame, state, self._goal, None, success, done)

    def _frame(self) -> Frame:
        try:  # some import what they draw with only now
            frame: Any = self.env.render()
        except gym_errors.DependencyNotInstalled as error:
            raise TaskError(f"environment {self.name!r} needs another package: {error}") from None
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            what = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise TaskError(f"environment {self.name!r} renders {what}: frames must be uint8 [H, W, 3]")
        return np.ascontiguousarray(frame)

    def close(self) -> None:
        self.env.close()


def make(name: str, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """``gymnasium.make`` without surprises: ``TaskError`` says which package or option is missing or wrong."""
    namespace = name.split("/")[0] if "/" in name else None
    if namespace is not None and not any(key.startswith(f"{namespace}/") for key in gymnasium.registry):
        if importlib.util.find_spec(namespace) is not None:
            importlib.import_module(namespace)  # registers its environments
        elif namespace in EXTRAS:
            raise TaskError(
                f"environment {name!r} needs another package: pip install 'jepa-toolkit[{EXTRAS[namespace]}]'"
            )
    if name not in gymnasium.registry:
        try:  # gymnasium itself takes Name for the newest Name-v3
            gymnasium.spec(name)
        except (gym_errors.Error, ModuleNotFoundError):
            raise TaskError(f"unknown environment {name!r}{_suggested(name)}") from None
    try:
        return gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True, **options)  # we look ourselves
    except gym_errors.DependencyNotInstalled as error:
        raise TaskError(f"environment {name!r} needs another package: {error}") from None
    except (TypeError, gym_errors.Error) as error:
        raise TaskError(f"environment {name!r} cannot be made with options {options}: {error}") from None


def _suggested(name: str) -> str:
    """A suggestion, or what a name may be: the registry is too long to be listed."""
    near = suggest(name, {"rooms", *gymnasium.registry})
    return near if near.startswith(", did") else "; it is rooms, an id of gymnasium's registry, or MODULE:FUNCTION"


def read_goal(path: str) -> Frame:
    """The goal image uint8 ``[H, W, 3]``. ``TaskError`` names a file that is not one."""
    try:
        with Image.open(Path(path)) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise TaskError(f"goal image {path} does not exist") from None
    except (OSError, UnidentifiedImageError) as error:
        raise TaskError(f"goal image {path} cannot be read: {error}") from None
