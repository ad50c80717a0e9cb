"""The table of PushT: the simulator of the package ``gym-pusht``, put to any state and stepped, exactly repeatable."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jepa.envs.base import Frame, TaskError, Vector
from jepa.envs.gym_task import make

PUSHT = "gym_pusht/PushT-v0"
NAMES = ("tip_x", "tip_y", "block_x", "block_y", "block_angle", "tip_vx", "tip_vy")
FIELD = 512.0
_EMPTY = [50.0, 50.0, 256.0, 256.0, 0.0]  # nothing touches anything


class Table:
    """One simulator. ``state()``, ``place(state)``, ``act(place of the tip)``, ``frame()``."""

    def __init__(self, side: int) -> None:
        self.env = make(PUSHT, {"obs_type": "state", "observation_width": side, "observation_height": side})
        self.sim: Any = self.env.unwrapped
        self.sim.reset(options={"reset_to_state": _EMPTY})

    def state(self) -> Vector:
        """The state ``[7]`` now."""
        tip, block = self.sim.agent, self.sim.block
        return np.array([*tip.position, *block.position, block.angle % (2 * np.pi), *tip.velocity], np.float32)

    def shuffle(self, seed: int) -> None:
        """A random state, drawn as the package does."""
        self.sim.reset(seed=seed)

    def place(self, state: ArrayLike) -> None:
        """Put tip and block exactly to ``state [7]``. (The package's own ``reset_to_state`` moves the block aside.)

        On a new table: contacts of the past, which the physics engine remembers, would change what follows, and the
        order in which things are drawn.
        """
        values = checked_state(state).astype(np.float64).tolist()
        self.sim.reset(options={"reset_to_state": _EMPTY})
        tip, block = self.sim.agent, self.sim.block
        tip.position, tip.velocity = values[:2], values[5:]
        block.angle = values[4]  # first: it turns about the centre of mass, which moves the position
        block.position = values[2:4]
        block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
        for body in (tip, block):
            self.sim.space.reindex_shapes_for_body(body)

    def act(self, place: NDArray[Any]) -> None:
        """One step of the package's own control, without its score: a spring and a damper draw the tip to ``place``."""
        tip, sim = self.sim.agent, self.sim
        x, y = np.clip(np.asarray(place, dtype=np.float64), 0.0, FIELD).tolist()
        for _ in range(int(1 / (sim.dt * sim.control_hz))):
            (px, py), (vx, vy) = tip.position, tip.velocity
            pull_x, pull_y = sim.k_p * (x - px) - sim.k_v * vx, sim.k_p * (y - py) - sim.k_v * vy
            tip.velocity = (vx + pull_x * sim.dt, vy + pull_y * sim.dt)
            sim.space.step(sim.dt)

    def frame(self) -> Frame:
        """The picture uint8 ``[side, side, 3]``, without the cross that the package's ``render`` puts to the action."""
        self.sim.obs_type = "pixels"
        picture = self.sim.get_obs()
        self.sim.obs_type = "state"
        return np.ascontiguousarray(picture)


def checked_state(state: ArrayLike) -> Vector:
    """The state as float32 ``[7]``; ``TaskError`` for anything else."""
    values = np.asarray(state, dtype=np.float32)
    if values.shape != (len(NAMES),) or not np.isfinite(values).all():
        raise TaskError(f"a state of PushT has {len(NAMES)} finite numbers ({', '.join(NAMES)}), not {values.tolist()}")
    return values
