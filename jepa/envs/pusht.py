"""PushT (the package ``gym-pusht``): push a T-shaped block with a round tip. Goals as DINO-WM has them.

An episode is a piece of a trajectory that really happened (arXiv 2411.04983, section on planning and its published
code): start in the state at some step of it, and reach the state that it has ``goal_steps`` later, given as a picture.
Every goal can therefore be reached in so many steps. Reached means: tip and block, as one vector of four numbers, less
than 20 away from the goal's, and the block turned by less than 20 degrees against it. The picture shows 512 x 512
units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jepa.config import from_dict
from jepa.envs.base import Frame, Observation, Policy, TaskError, Vector, check_action, check_actions, check_hold
from jepa.envs.pusht_push import Pusher
from jepa.envs.pusht_table import FIELD, NAMES, PUSHT, Table, checked_state

NEAR, TURN = 20.0, np.pi / 9
TURN_UNITS = 60.0  # what a radian counts: about the reach of the T's arms
TRIES = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class PushTConfig:
    """``side``: pixels. ``relative``: an action in -1..1 names a place up to ``reach`` units away from the tip that it
    is drawn to (DINO-WM); else the place itself, 0 to 512, as the package has it. ``goal_steps``: steps from start to
    goal (25 in DINO-WM), along a trajectory of the pushing policy; ``min_push``: how far the block must have moved or
    turned by then, in units (a turn counts as 60 units a radian), so that standing still is no solution.
    ``max_steps``: steps of an episode; one is 0.1 s.
    """

    side: int = 96
    relative: bool = True
    reach: float = 100.0
    goal_steps: int = 25
    min_push: float = 20.0
    max_steps: int = 50

    def __post_init__(self) -> None:
        if self.side < 16:
            raise ValueError(f"side must be at least 16 pixels, not {self.side}")
        for name in ("reach", "goal_steps", "max_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.min_push < 200:
            raise ValueError(f"min_push must lie between 0 and 200, not {self.min_push}")


def pusht_config(options: Mapping[str, Any]) -> PushTConfig:
    """The config from plain options; ``ConfigError`` names an unknown key with a suggestion."""
    return from_dict(PushTConfig, dict(options))


class PushTTask:
    """PushT as a ``GoalTask`` whose simulator can be asked (``simulate``).

    The state ``[7]``: place of the tip, place and angle (0 to 2 pi) of the block, velocity of the tip; units and units
    per second. The block keeps no speed from step to step worth speaking of: the package damps it fully.
    """

    goes_on = True

    def __init__(self, config: PushTConfig | None = None) -> None:
        self.config = config or PushTConfig()
        self.table = Table(self.config.side)
        self.fps = float(self.table.sim.metadata["render_fps"])
        low, high = (-1.0, 1.0) if self.config.relative else (0.0, FIELD)
        self.action_low, self.action_high = np.full(2, low, np.float32), np.full(2, high, np.float32)
        self.state_names: tuple[str, ...] = NAMES
        self._goal: tuple[Frame, Vector] | None = None
        self._imagined: Table | None = None
        self._steps = 0

    def reset(self, seed: int) -> Observation:
        """A start, and a goal ``goal_steps`` later on a trajectory of the pushing policy; one seed, one episode."""
        rng = np.random.default_rng([seed, 29])
        for _ in range(TRIES):
            self.table.shuffle(int(rng.integers(2**31)))
            push = self.explorer(rng)
            for _ in range(int(rng.integers(25))):
                self._act(self.table, push(self._bare()))
            begin = self.table.state()
            self.table.place(begin)  # what the state does not say is forgotten here, as when the episode begins
            for _ in range(self.config.goal_steps):
                self._act(self.table, push(self._bare()))
            goal = self.table.state()
            if _moved(begin, goal) >= self.config.min_push and goal[2:4].min() > 5 and goal[2:4].max() < FIELD - 5:
                return self.reset_to(begin, goal)
        raise TaskError(
            f"no push of {self.config.goal_steps} goal_steps moves the block by min_push {self.config.min_push}: make "
            "it smaller, or goal_steps larger"
        )

    def reset_to(self, state: ArrayLike, goal_state: ArrayLike) -> Observation:
        """An episode from ``state [7]`` to ``goal_state [7]``, whose picture is taken with everything placed there."""
        start, goal = checked_state(state), checked_state(goal_state)
        self.table.place(goal)
        self._goal = self.table.frame(), goal
        self.table.place(start)
        self._steps = 0
        return self._observe()

    def step(self, action: ArrayLike) -> Observation:
        """Draw the tip for 0.1 s. ``TaskError`` for an action of another width or NaN."""
        if self._goal is None:
            raise TaskError(f"{PUSHT} must be reset before it is stepped")
        self._act(self.table, check_action(action, self.action_low, self.action_high))
        self._steps += 1
        return self._observe()

    def simulate(self, state: ArrayLike, actions: ArrayLike, hold: int = 1) -> Vector:
        """What would follow ``state [7]`` under ``actions [N, H, 2]``, each held for ``hold`` steps: float32
        ``[N, H, 7]``. One sequence after the other (0.15 ms a step); the episode itself does not move. From a start it
        is what stepping shows, later so but for contacts that the engine remembers (hundredths of a unit)."""
        sequences, begin = check_actions(actions, 2), checked_state(state)
        table = self._imagined = self._imagined or Table(self.config.side)
        seen = np.empty((*sequences.shape[:2], len(NAMES)), np.float32)
        for n, sequence in enumerate(sequences):
            table.place(begin)
            for h, action in enumerate(np.clip(sequence, self.action_low, self.action_high)):
                for _ in range(check_hold(hold)):
                    self._act(table, action)
                seen[n, h] = table.state()
        return seen

    def distance(self, states: ArrayLike) -> Vector:
        """How far states ``[..., 7]`` are from the goal in units: tip and block as one vector, plus 60 units for every
        radian that the block is turned. ``TaskError`` before the first reset."""
        if self._goal is None:
            raise TaskError(f"{PUSHT} must be reset before it has a goal")
        away = np.asarray(states) - self._goal[1]
        turn = TURN_UNITS * _turned(away[..., 4])
        return np.asarray(np.sqrt((away[..., :4] ** 2).sum(axis=-1)) + turn, dtype=np.float32)

    def explorer(self, rng: np.random.Generator) -> Policy:
        """The policy that recordings call ``random``: it walks about and pushes the block (jepa.envs.pusht_push)."""
        return Pusher(rng, self.config.reach if self.config.relative else None)

    def close(self) -> None:
        for table in (self.table, self._imagined):
            if table is not None:
                table.env.close()

    def _act(self, table: Table, action: NDArray[Any]) -> None:
        place = np.array(action, dtype=np.float64)
        table.act(np.array(table.sim.agent.position) + place * self.config.reach if self.config.relative else place)

    def _bare(self) -> Observation:
        """An observation without pictures, for policies that look at the state alone."""
        return Observation(np.zeros((0, 0, 3), np.uint8), self.table.state(), None, None, False, False)

    def _observe(self) -> Observation:
        assert self._goal is not None
        state, (picture, goal) = self.table.state(), self._goal
        away = state - goal
        success = bool(np.sqrt((away[:4] ** 2).sum()) < NEAR and _turned(away[4]) < TURN)
        done = success or self._steps >= self.config.max_steps
        return Observation(self.table.frame(), state, picture, goal, success, done)


def _turned(angle: Any) -> Any:
    """The size of an angle, the short way round: 0 to pi."""
    return np.abs((angle + np.pi) % (2 * np.pi) - np.pi)


def _moved(begin: Vector, goal: Vector) -> float:
    return float(np.sqrt(((goal[2:4] - begin[2:4]) ** 2).sum()) + TURN_UNITS * _turned(goal[4] - begin[4]))
