"""How recordings of the rooms explore: directions held for a while, and now and then a walk to a door or the object.

Directions alone seldom find a door or the object, and a world model cannot know what it has never seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jepa.envs.base import Observation, Vector
from jepa.envs.policies import HELD_STEPS, NOISE, direction
from jepa.envs.rooms import Array

if TYPE_CHECKING:
    from jepa.envs.rooms_env import RoomsTask

TO_DOOR, TO_OBJECT = 0.2, 0.25  # shares of the new ways that lead through a door, and to (then past) the object
PATIENCE = 1 / 25  # chance in a step that such a walk is given up


class RoomsExplorer:
    """A policy: ``explorer(observation) -> action [2]``, from one random stream, for one episode of ``task``."""

    def __init__(self, task: RoomsTask, rng: np.random.Generator) -> None:
        self._task, self._rng = task, rng
        self._way: Array | None = None  # the direction that is held
        self._places: list[Array] = []  # or else the places that are still to be visited
        self._pace = 1.0

    def __call__(self, observation: Observation) -> Vector:
        config, agent = self._task.config, observation.state[:2].astype(np.float64)
        while self._places and np.abs(self._places[0] - agent).max() < config.step_length:
            self._places.pop(0)
        stop = PATIENCE if self._places else 1 / HELD_STEPS
        if (self._way is None and not self._places) or self._rng.random() < stop:
            self._choose(observation, agent)
        if self._places:
            self._way = (self._places[0] - agent) / config.step_length
            self._way = self._way / max(np.abs(self._way).max(), 1.0) * self._pace
        assert self._way is not None
        action = self._way + NOISE * self._rng.standard_normal(2)
        if self._places:
            self._way = None  # at the end of the walk a new choice is due
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _choose(self, observation: Observation, agent: Array) -> None:
        doors, kind = self._task.scene.world.layout.doors, self._rng.random()
        self._places, self._way, self._pace = [], None, self._rng.uniform(0.5, 1.0)
        if kind < TO_DOOR and len(doors):
            self._places = self._through(doors, agent)
        elif kind > 1 - TO_OBJECT and self._task.config.object:
            thing = observation.state[2:].astype(np.float64)
            self._places = [thing, thing + (thing - agent) * self._rng.uniform(0.3, 1.0)]
        if not self._places:
            self._way = direction(self._rng, 2)

    def _through(self, doors: Array, agent: Array) -> list[Array]:
        """Before and behind one of the doors of the agent's own room; nothing where it has none."""
        world, config = self._task.scene.world, self._task.config
        home = world.room_of(agent[None])[0]
        reach = config.wall_width / 2 + 2 * config.agent_radius
        for number in self._rng.permutation(len(doors)):
            for axis in np.eye(2):
                sides = np.stack([doors[number] - axis * reach, doors[number] + axis * reach])
                rooms = world.room_of(sides)
                if rooms[0] != rooms[1] and home in rooms:
                    return [*(sides if rooms[0] == home else sides[::-1])]
        return []
