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
from jepa.envs.gym_task import make
from jepa.envs.pusht_push import Pusher

PUSHT = "gym_pusht/PushT-v0"
NAMES = ("tip_x", "tip_y", "block_x", "block_y", "block_angle", "tip_vx", "tip_vy")
FIELD = 512.0
NEAR, TURN = 20.0, np.pi / 9
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
        side = {"observation_width": self.config.side, "observation_height": self.config.side}
        self.env = make(PUSHT, {"obs_type": "pixels_agent_pos", **side})
        self.sim: Any = self.env.unwrapped
        self.fps = float(self.sim.metadata["render_fps"])
        low, high = (-1.0, 1.0) if self.config.relative else (0.0, FIELD)
        self.action_low, self.action_high = np.full(2, low, np.float32), np.full(2, high, np.float32)
        self.state_names: tuple[str, ...] = NAMES
        self._goal: tuple[Frame, Vector] | None = None
        self._steps = 0

    def reset(self, seed: int) -> Observation:
        """A start and a goal ``goal_steps`` later on one trajectory of the pushing policy, the same for the same seed.
        """
        rng = np.random.default_rng([seed, 29])
        for _ in range(TRIES):
            self.env.reset(seed=int(rng.integers(2**31)))
            push, start = self.explorer(rng), int(rng.integers(25))
            for _ in range(start):
                self._act(push(self._bare()))
            begin = self.state()
            self.set_state(begin)  # what the picture cannot show is forgotten here, as it is when the episode begins
            for _ in range(self.config.goal_steps):
                self._act(push(self._bare()))
            goal = self.state()
            if _moved(begin, goal) >= self.config.min_push and goal[2:4].min() > 5 and goal[2:4].max() < FIELD - 5:
                return self.reset_to(begin, goal)
        raise TaskError(
            f"no push of {self.config.goal_steps} goal_steps moves the block by min_push {self.config.min_push}: make "
            "it smaller, or goal_steps larger"
        )

    def reset_to(self, state: ArrayLike, goal_state: ArrayLike) -> Observation:
        """An episode from ``state [7]`` to ``goal_state [7]``, whose picture is taken with everything placed there."""
        goal = _checked(goal_state)
        if self._goal is None:
            self.env.reset(seed=0)
        self.set_state(goal)
        self._goal = self._frame(), goal
        self.set_state(_checked(state))
        self._steps = 0
        return self._observe()

    def state(self) -> Vector:
        """The state ``[7]`` now."""
        tip, block = self.sim.agent, self.sim.block
        return np.array([*tip.position, *block.position, block.angle % (2 * np.pi), *tip.velocity], np.float32)

    def set_state(self, state: ArrayLike) -> None:
        """Put tip and block exactly to ``state [7]`` (the package's own ``reset_to_state`` moves the block aside)."""
        values = _checked(state).astype(np.float64).tolist()
        tip, block = self.sim.agent, self.sim.block
        tip.position, tip.velocity = values[:2], values[5:]
        block.angle = values[4]  # first: it turns about the centre of mass, which moves the position
        block.position = values[2:4]
        block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
        for body in (tip, block):
            self.sim.space.reindex_shapes_for_body(body)

    def step(self, action: ArrayLike) -> Observation:
        """Draw the tip for 0.1 s. ``TaskError`` for an action of another width or NaN."""
        if self._goal is None:
            raise TaskError(f"{PUSHT} must be reset before it is stepped")
        self._act(check_action(action, self.action_low, self.action_high))
        self._steps += 1
        return self._observe()

    def simulate(self, state: ArrayLike, actions: ArrayLike, hold: int = 1) -> Vector:
        """What would follow ``state [7]`` under ``actions [N, H, 2]``, each held for ``hold`` steps: float32
        ``[N, H, 7]``. One sequence after the other (0.1 ms a step); the episode itself does not move."""
        sequences, begin, here = check_actions(actions, 2), _checked(state), self.state()
        seen = np.empty((*sequences.shape[:2], len(NAMES)), np.float32)
        for n, sequence in enumerate(sequences):
            self.set_state(begin)
            for h, action in enumerate(np.clip(sequence, self.action_low, self.action_high)):
                for _ in range(check_hold(hold)):
                    self._act(action)
                seen[n, h] = self.state()
        self.set_state(here)
        return seen

    def distance(self, states: ArrayLike) -> Vector:
        """How far states ``[..., 7]`` are from the goal in units: tip and block as one vector, plus 60 units for every
        radian that the block is turned."""
        assert self._goal is not None
        away = np.asarray(states) - self._goal[1]
        return np.sqrt((away[..., :4] ** 2).sum(axis=-1) + (60 * _turned(away[..., 4])) ** 2).astype(np.float32)

    def explorer(self, rng: np.random.Generator) -> Policy:
        """The policy that recordings call ``random``: it walks about and pushes the block (jepa.envs.pusht_push)."""
        return Pusher(rng, self.config.reach if self.config.relative else None)

    def close(self) -> None:
        self.env.close()

    def _act(self, action: NDArray[Any]) -> None:
        """One step of the package's own control, without its score: a spring and a damper draw the tip to a place."""
        tip, sim = self.sim.agent, self.sim
        place = np.array(action, dtype=np.float64)
        if self.config.relative:
            place = np.array(tip.position) + place * self.config.reach
        x, y = np.clip(place, 0.0, FIELD).tolist()
        for _ in range(int(1 / (sim.dt * sim.control_hz))):
            (px, py), (vx, vy) = tip.position, tip.velocity
            pull_x, pull_y = sim.k_p * (x - px) - sim.k_v * vx, sim.k_p * (y - py) - sim.k_v * vy
            tip.velocity = (vx + pull_x * sim.dt, vy + pull_y * sim.dt)
            sim.space.step(sim.dt)

    def _frame(self) -> Frame:
        return np.ascontiguousarray(self.sim.get_obs()["pixels"])

    def _bare(self) -> Observation:
        """An observation without pictures, for policies that look at the state alone."""
        return Observation(np.zeros((0, 0, 3), np.uint8), self.state(), None, None, False, False)

    def _observe(self) -> Observation:
        assert self._goal is not None
        state, (picture, goal) = self.state(), self._goal
        away = state - goal
        success = bool(np.sqrt((away[:4] ** 2).sum()) < NEAR and _turned(away[4]) < TURN)
        done = success or self._steps >= self.config.max_steps
        return Observation(self._frame(), state, picture, goal, success, done)


def _checked(state: ArrayLike) -> Vector:
    values = np.asarray(state, dtype=np.float32)
    if values.shape != (len(NAMES),) or not np.isfinite(values).all():
        raise TaskError(f"a state of PushT has {len(NAMES)} finite numbers ({', '.join(NAMES)}), not {values.tolist()}")
    return values


def _turned(angle: Any) -> Any:
    """The size of an angle, the short way round: 0 to pi."""
    return np.abs((angle + np.pi) % (2 * np.pi) - np.pi)


def _moved(begin: Vector, goal: Vector) -> float:
    return float(np.sqrt(((goal[2:4] - begin[2:4]) ** 2).sum()) + 60 * _turned(goal[4] - begin[4]))
