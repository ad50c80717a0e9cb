"""A policy that makes things happen in PushT: it walks around the block to a side of it, then pushes through it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jepa.envs.base import Observation, Vector

FIELD, EDGE = 512.0, 30.0
AROUND = 110.0  # from the block's middle, free of all of its arms
WANDER = 0.25  # share of the ways that lead anywhere
PATIENCE = 1 / 20  # chance in a step that a way is given up


class Pusher:
    """``pusher(observation) -> action [2]``, from one random stream, for one episode. ``reach``: of relative actions,
    in units; None for actions that are places."""

    def __init__(self, rng: np.random.Generator, reach: float | None) -> None:
        self._rng, self._reach = rng, reach
        self._places: list[NDArray[np.float64]] = []
        self._pace = 30.0

    def __call__(self, observation: Observation) -> Vector:
        state = observation.state.astype(np.float64)
        tip, block = state[:2], state[2:4]
        while self._places and np.abs(self._places[0] - tip).max() < 15:
            self._places.pop(0)
        if not self._places or self._rng.random() < PATIENCE:
            self._choose(tip, block)
        way = self._places[0] - tip
        way = way * min(1.0, self._pace / max(float(np.sqrt((way * way).sum())), 1e-9))
        way = way + self._rng.normal(0, 0.15 * self._pace, 2)
        if self._reach is None:
            return np.clip(tip + way, 0, FIELD).astype(np.float32)
        return np.clip(way / self._reach, -1, 1).astype(np.float32)

    def _choose(self, tip: NDArray[np.float64], block: NDArray[np.float64]) -> None:
        self._pace = float(self._rng.uniform(20, 60))
        if self._rng.random() < WANDER:
            self._places = [self._rng.uniform(EDGE, FIELD - EDGE, 2)]
            return
        angle = self._rng.uniform(0, 2 * np.pi)
        side = np.array([np.cos(angle), np.sin(angle)])
        aim = block + self._rng.normal(0, 25, 2)  # off the middle, so that the block turns too
        begin = np.clip(aim + side * AROUND, EDGE, FIELD - EDGE)
        corner = np.clip(block + _between(tip - block, side) * AROUND * 1.3, EDGE, FIELD - EDGE)
        self._places = [corner, begin, np.clip(aim - side * self._rng.uniform(20, 90), EDGE, FIELD - EDGE)]


def _between(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The direction half way between two, so that the walk does not lead through the block."""
    length = max(float(np.sqrt((one * one).sum())), 1e-9)
    middle = one / length + other
    size = float(np.sqrt((middle * middle).sum()))
    return middle / size if size > 0.1 else np.array([-other[1], other[0]])
