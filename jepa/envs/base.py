"""What every environment looks like from outside: a task with a goal, and what it shows after every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jepa.config import ConfigError

Frame = NDArray[np.uint8]
Vector = NDArray[np.float32]


class TaskError(ConfigError):
    """An environment cannot be opened, or was given an action or a goal that does not fit; says what to do."""


class Observation(NamedTuple):
    """What a task shows: ``frame`` uint8 ``[H, W, 3]``, ``state`` float32 ``[S]`` (S may be 0), the ``goal`` picture of
    the same size and ``goal_state`` where there are any, whether the goal is reached now (``success``), and whether the
    episode is over (``done``)."""

    frame: Frame
    state: Vector
    goal: Frame | None
    goal_state: Vector | None
    success: bool
    done: bool


Policy = Callable[[Observation], Vector]


@runtime_checkable
class GoalTask(Protocol):
    """An environment with goals. One step takes ``1 / fps`` seconds and one action ``[A]`` within ``action_low`` and
    ``action_high`` (float32 ``[A]``). ``state_names``: a name for every number of the state.
    ``goes_on``: whether it may be stepped beyond ``done``, as a recording does."""

    fps: float
    action_low: Vector
    action_high: Vector
    state_names: tuple[str, ...]
    goes_on: bool

    def reset(self, seed: int) -> Observation: ...

    def step(self, action: ArrayLike) -> Observation: ...

    def close(self) -> None: ...


@runtime_checkable
class SimulatedTask(GoalTask, Protocol):
    """A task whose simulator can be asked what would happen, for the planner that is the upper bound of all others."""

    def simulate(self, state: ArrayLike, actions: ArrayLike, hold: int = 1) -> Vector: ...

    def distance(self, states: ArrayLike) -> Vector: ...


def check_action(action: ArrayLike, low: Vector, high: Vector) -> Vector:
    """The action as float32 ``[A]``, clipped to the bounds. Raises ``TaskError`` for another width or NaN."""
    values = np.asarray(action, dtype=np.float32)
    if values.shape != low.shape:
        raise TaskError(f"an action of this environment has {len(low)} numbers, not the shape {list(values.shape)}")
    if np.isnan(values).any():
        raise TaskError(f"action {values.tolist()} is not a number")
    return np.asarray(np.clip(values, low, high))


def check_actions(actions: ArrayLike, width: int) -> Vector:
    """Sequences of actions as float32 ``[N, H, A]``. Raises ``TaskError`` for another shape or NaN."""
    values = np.asarray(actions, dtype=np.float32)
    if values.ndim != 3 or values.shape[2] != width:
        raise TaskError(f"actions to simulate must be [N, H, {width}], not {list(values.shape)}")
    if np.isnan(values).any():
        n, h = np.argwhere(np.isnan(values))[0][:2].tolist()
        raise TaskError(f"actions to simulate are not numbers in sequence {n} at step {h}")
    return values


def check_hold(hold: int) -> int:
    if hold < 1:
        raise TaskError(f"an action is held for at least 1 step, not {hold}")
    return hold
