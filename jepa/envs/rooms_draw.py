"""Draws a state of the rooms as a picture. No physics here."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jepa.data.synthetic.draw import enlarge
from jepa.envs.rooms import Array, Layout, RoomsConfig

Frame = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Looks:
    """Colours ``[3]`` in 0..1, and the ``grain`` of the floor's texture ``[S, S, 3]`` that is added to its colour."""

    floor: Array
    wall: Array
    agent: Array
    thing: Array
    grain: Array


def draw_looks(config: RoomsConfig, rng: np.random.Generator) -> Looks:
    """The looks of one episode. ``fixed`` ones draw nothing from ``rng``; agent and object are always the brightest
    things, of colours far from each other."""
    if config.looks == "fixed":
        colours = ([0.10, 0.12, 0.16], [0.52, 0.52, 0.56], [1.0, 0.45, 0.10], [0.15, 0.85, 1.0])
        floor, wall, agent, thing = (np.array(colour) for colour in colours)
        return Looks(floor, wall, agent, thing, np.zeros((config.side, config.side, 3)))
    hue = rng.random()
    other = (hue + rng.uniform(0.3, 0.7)) % 1.0
    agent, thing = (np.array(colorsys.hsv_to_rgb(h, rng.uniform(0.75, 1.0), 1.0)) for h in (hue, other))
    floor = rng.uniform(0.08, 0.2) + rng.uniform(-0.05, 0.05, 3)
    wall = rng.uniform(0.42, 0.58) + rng.uniform(-0.06, 0.06, 3)
    cells = int(rng.integers(3, 7))
    grain = np.stack([enlarge(rng.uniform(-1, 1, (cells, cells)), config.side) for _ in range(3)], axis=-1)
    return Looks(floor, wall, agent, thing, 0.06 * grain)


class RoomsPicture:
    """The pictures of one layout with one set of looks; floor and walls are drawn once."""

    def __init__(self, config: RoomsConfig, layout: Layout, looks: Looks) -> None:
        side = config.side
        self._config, self._looks, self._colours = config, looks, (looks.agent * 255, looks.thing * 255)
        cover = np.ones((side, side))
        inner = _share(side, config.wall_width, 1 - config.wall_width)
        cover -= inner[:, None] * inner[None, :]
        for left, top, right, bottom in layout.walls:
            cover = np.maximum(cover, _share(side, top, bottom)[:, None] * _share(side, left, right)[None, :])
        floor = np.clip(looks.floor + looks.grain, 0, 1)
        picture = floor + cover[..., None] * (looks.wall - floor)
        self._ground = (picture * 255).astype(np.float32)
        self._ground8 = (self._ground + np.float32(0.5)).astype(np.uint8)
        self._centres = ((np.arange(side) + 0.5) / side).astype(np.float32)

    def render(self, state: Array) -> Frame:
        """``[S, S, 3]`` uint8 of one state ``[4]`` (``[2]`` without an object); edges are smooth, so that a move of a
        fraction of a pixel shows."""
        frame = self._ground8.copy()
        if self._config.object:
            self._disc(frame, state[2:], self._config.object_radius, self._colours[1])
        self._disc(frame, state[:2], self._config.agent_radius, self._colours[0])
        return frame

    def _disc(self, frame: Frame, centre: Array, radius: float, colour: Array) -> None:
        side = self._config.side
        x, y = float(centre[0]), float(centre[1])
        left, right = max(int((x - radius) * side) - 1, 0), min(int((x + radius) * side) + 2, side)
        top, bottom = max(int((y - radius) * side) - 1, 0), min(int((y + radius) * side) + 2, side)
        dx, dy = self._centres[left:right] - np.float32(x), self._centres[top:bottom] - np.float32(y)
        distance = np.sqrt((dx * dx)[None, :] + (dy * dy)[:, None])
        ink = np.clip((radius - distance) * side + 0.5, 0.0, 1.0)[..., None]
        under = frame[top:bottom, left:right].astype(np.float32)
        frame[top:bottom, left:right] = (under + ink * (colour.astype(np.float32) - under) + 0.5).astype(np.uint8)


def _share(side: int, low: float, high: float) -> Array:
    """Which share of every pixel ``[S]`` of a line lies between ``low`` and ``high``."""
    edges = np.arange(side + 1) / side
    covered = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.asarray(np.clip(covered, 0, None) * side)
