"""The built-in world as a place to act in: an agent pushed through rooms with walls, doors and an object. No pixels.

Units are those of the demo videos (jepa.data.synthetic.world): the square is 1 wide and 1 high, x grows to the right
and y downwards. The motion is of first order (what is not pushed stands still), so that positions are the whole state
and a goal image says everything that there is to reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from jepa.data.synthetic.world import Bounds

Array = NDArray[np.floating]

Goal = Literal["agent", "object"]
Variety = Literal["fixed", "random"]

TOUCH = 1e-6  # how deep two things may overlap: rounding to float32, not physics
PASSES = 4  # a disc in a corner is free of both walls after two
FIXED_DOOR = 0.35  # where the only door of the fixed layout is: off the middle, so that it has to be found
JITTER = 0.08  # of the walls of a random layout about the middle


@dataclass(frozen=True, kw_only=True, slots=True)
class RoomsConfig:
    """Rooms in a square of ``side`` pixels. Lengths are in units of the square's side.

    ``rooms``: 1, 2 (a wall with a door) or 4 (two walls, four doors). ``step_length``: the way that an action of 1
    moves the agent along an axis in one step, of which there are ``fps`` a second. ``object``: a disc that the agent
    can push. ``goal``: who must be brought within ``tolerance`` of the goal, the agent or the object; the agent's
    goal lies at least ``min_distance`` away, and in another room in a share ``cross`` of the episodes; the object's
    lies in its own room, at least half of ``min_distance`` away. ``layout``: walls and doors are ``fixed`` or drawn for
    every seed; ``looks``: so are colours and textures.
    ``max_steps``: steps of an episode.
    """

    side: int = 48
    rooms: int = 2
    door_width: float = 0.22
    wall_width: float = 0.04
    agent_radius: float = 0.05
    object_radius: float = 0.06
    step_length: float = 0.04
    object: bool = True
    goal: Goal = "agent"
    layout: Variety = "fixed"
    looks: Variety = "fixed"
    tolerance: float = 0.06
    min_distance: float = 0.35
    cross: float = 0.5
    max_steps: int = 64
    fps: float = 10.0

    def __post_init__(self) -> None:
        for name, options in (("goal", get_args(Goal)), ("layout", get_args(Variety)), ("looks", get_args(Variety))):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}, not {getattr(self, name)!r}")
        if self.rooms not in (1, 2, 4):
            raise ValueError(f"rooms must be 1, 2 or 4, not {self.rooms}")
        if self.side < 16:
            raise ValueError(f"side must be at least 16 pixels, not {self.side}")
        names = ("door_width", "wall_width", "agent_radius", "object_radius", "step_length", "tolerance", "fps")
        for name in (*names, "max_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.step_length > 0.25:
            raise ValueError(f"step_length must be at most 0.25 of the square, not {self.step_length}")
        if not 0 <= self.cross <= 1:
            raise ValueError(f"cross is a share of the goals, 0 to 1, not {self.cross}")
        if not 2 * self.tolerance < self.min_distance < 0.8:
            raise ValueError(
                f"min_distance must lie between twice the tolerance ({self.tolerance}) and 0.8, not {self.min_distance}"
            )
        if self.goal == "object" and not self.object:
            raise ValueError("goal 'object' needs an object: set object true, or goal agent")
        self._check_sizes()

    def _check_sizes(self) -> None:
        largest = max(self.agent_radius, self.object_radius if self.object else 0.0)
        if self.rooms > 1 and self.door_width < 2.2 * largest:
            raise ValueError(f"door_width {self.door_width} is too narrow for a disc of radius {largest}: widen it")
        smallest_room = (1.0 if self.rooms == 1 else 0.5 - JITTER - self.wall_width / 2) - self.wall_width
        if self.rooms > 1 and self.door_width + 0.02 > (smallest_room if self.rooms == 4 else 1 - 2 * self.wall_width):
            raise ValueError(f"door_width {self.door_width} does not fit into a wall of {self.rooms} rooms")
        free = 2 * (self.object_radius + (2 * self.agent_radius if self.goal == "object" else 0.0))
        if smallest_room < max(4 * self.agent_radius, free + 0.01 if self.object else 0.0):
            raise ValueError(
                f"agent_radius {self.agent_radius} and object_radius {self.object_radius} are too large for "
                f"{self.rooms} rooms: make them smaller"
            )

    @property
    def state_names(self) -> tuple[str, ...]:
        agent = ("agent_x", "agent_y")
        return (*agent, "object_x", "object_y") if self.object else agent


class Layout(NamedTuple):
    """``walls [W, 4]`` and ``rooms [R, 4]`` as (left, top, right, bottom), ``doors [D, 2]`` their middles."""

    walls: Array
    rooms: Array
    doors: Array


def draw_layout(config: RoomsConfig, rng: np.random.Generator) -> Layout:
    """The walls of one episode. ``fixed`` layouts draw nothing from ``rng``."""
    wall, half = config.wall_width, config.wall_width / 2
    if config.rooms == 1:
        return Layout(np.zeros((0, 4)), np.array([[wall, wall, 1 - wall, 1 - wall]]), np.zeros((0, 2)))
    random = config.layout == "random"
    lines = 0.5 + (rng.uniform(-JITTER, JITTER, 2) if random else np.zeros(2))  # x of the upright wall, y of the other
    spans = [(wall, 1 - wall)] * 2 if config.rooms == 2 else [(wall, lines[1] - half), (lines[1] + half, 1 - wall)]
    upright = _wall(config, rng, lines[0], spans[:1] if config.rooms == 2 else spans)
    boxes, doors = upright
    if config.rooms == 2:
        rooms = [[wall, wall, lines[0] - half, 1 - wall], [lines[0] + half, wall, 1 - wall, 1 - wall]]
        layout = Layout(np.array(boxes), np.array(rooms), np.array(doors))
        return _turned(layout) if random and rng.random() < 0.5 else layout
    across = [(wall, lines[0] - half), (lines[0] + half, 1 - wall)]
    more_boxes, more_doors = _wall(config, rng, lines[1], across)
    flat = _turned(Layout(np.array(more_boxes), np.zeros((0, 4)), np.array(more_doors)))
    rooms = [[left, top, right, bottom] for top, bottom in spans for left, right in across]
    return Layout(np.concatenate([boxes, flat.walls]), np.array(rooms), np.concatenate([doors, flat.doors]))


def _wall(
    config: RoomsConfig, rng: np.random.Generator, x: float, spans: list[tuple[float, float]]
) -> tuple[list[list[float]], list[list[float]]]:
    """An upright wall about ``x`` from top to bottom with a door in each of its ``spans`` (from, to)."""
    half, gap = config.wall_width / 2, config.door_width / 2
    boxes, doors, top = [], [], 0.0
    for low, high in spans:
        fixed = FIXED_DOOR if len(spans) == 1 and low + gap < FIXED_DOOR < high - gap else (low + high) / 2
        y = rng.uniform(low + gap, high - gap) if config.layout == "random" else fixed
        boxes.append([x - half, top, x + half, y - gap])
        doors.append([x, y])
        top = y + gap
    return [*boxes, [x - half, top, x + half, 1.0]], doors


def _turned(layout: Layout) -> Layout:
    """The layout with x and y exchanged."""
    order = [1, 0, 3, 2]
    return Layout(layout.walls[:, order], layout.rooms[:, order], layout.doors[:, ::-1])


class RoomsWorld:
    """The physics of one layout, for one state or a batch of them.

    A state is float32 ``[B, 4]``: x and y of the agent and of the object (``[B, 2]`` without one). Agent and object are
    discs. The agent slides along walls and pushes the object by contact; where the object cannot give way, neither can
    the agent. Nothing ever enters a wall, and agent and object overlap by less than ``TOUCH``.
    """

    def __init__(self, config: RoomsConfig, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self._walls = tuple(layout.walls.T[..., None].astype(np.float64))  # left, top, right, bottom, each [W, 1]
        radii = (config.agent_radius, config.object_radius) if config.object else (config.agent_radius,)
        sides = np.array([config.wall_width, 1 - config.wall_width])
        self._bounds = {r: Bounds(np.full(2, sides[0] + r), np.full(2, sides[1] - r)) for r in radii}
        # a centre that moves less than its radius at a time cannot pass a wall, nor end up within one
        self.substeps = int(np.ceil(config.step_length * 2**0.5 / (0.75 * min(radii))))

    def advance(self, states: Array, actions: Array) -> NDArray[np.float32]:
        """States ``[B, S]`` one step later, under ``actions [B, 2]`` (clipped to -1..1), as float32.

        Every row is moved by itself: a batch gives what its rows give one by one.
        """
        bodies: Array = np.array(np.asarray(states).T, dtype=np.float64, order="C")  # [S, B]: a row per coordinate
        push = np.minimum(np.maximum(np.asarray(actions, dtype=np.float64).T, -1.0), 1.0)
        push = push * (self.config.step_length / self.substeps)
        for _ in range(self.substeps):
            bodies = self._move(bodies, push)
        return bodies.T.astype(np.float32, order="C")

    def _move(self, bodies: Array, push: Array) -> Array:
        """One substep of ``bodies [S, B]`` under ``push [2, B]``."""
        moved = bodies.copy()
        moved[:2] += push
        free = self._leave_walls(moved[:2], self.config.agent_radius)
        if self.config.object:
            x, y = moved[2] - moved[0], moved[3] - moved[1]
            rows = np.flatnonzero(x * x + y * y < (self.config.agent_radius + self.config.object_radius) ** 2)
            if len(rows):
                pair = moved[:, rows]
                free[rows] &= self._push(pair)
                moved[:, rows] = pair
        if not free.all():
            moved[:, ~free] = bodies[:, ~free]  # wedged: nothing moves
        return moved

    def _push(self, pair: Array) -> NDArray[np.bool_]:
        """Part agents and objects that overlap, in place in ``pair [4, B]``: the object gives way, and where a wall
        holds it the agent does. False ``[B]`` where neither can."""
        agent, thing = pair[:2], pair[2:]
        thing += self._overlap(pair)
        free = self._leave_walls(thing, self.config.object_radius)
        agent -= self._overlap(pair)
        free &= self._leave_walls(agent, self.config.agent_radius)
        deep = self._overlap(pair)
        return np.asarray(free & (deep[0] * deep[0] + deep[1] * deep[1] <= TOUCH * TOUCH))

    def _overlap(self, pair: Array) -> Array:
        """How deep agents overlap objects, as vectors ``[2, B]`` from agent to object; 0 where they do not."""
        x, y = pair[2] - pair[0], pair[3] - pair[1]
        distance = np.sqrt(x * x + y * y)
        deep = np.maximum(self.config.agent_radius + self.config.object_radius - distance, 0.0)
        scale = deep / np.maximum(distance, 1e-12)
        return np.stack([x * scale, y * scale])

    def _leave_walls(self, centres: Array, radius: float) -> NDArray[np.bool_]:
        """Move discs out of the walls by the shortest way, out of the deepest wall first; in place in ``centres
        [2, B]``. False ``[B]`` for those that are still in one."""
        bounds = self._bounds[radius]
        np.maximum(centres, bounds.low[:, None], out=centres)
        np.minimum(centres, bounds.high[:, None], out=centres)
        free = np.ones(centres.shape[1], dtype=bool)
        rows: NDArray[np.int64] | slice = slice(None)
        for turn in range(PASSES + 1):
            part = centres[:, rows]
            nearest_x, nearest_y, squared = self._nearest(part)
            if not squared.size or squared.min() >= radius * radius:
                return free
            deepest = squared.argmin(axis=0)
            columns = np.arange(part.shape[1])
            gap = squared[deepest, columns]
            stuck = np.flatnonzero(gap < radius * radius).astype(np.int64)
            rows = stuck if isinstance(rows, slice) else rows[stuck]
            gap = np.sqrt(gap[stuck])
            if turn == PASSES:
                free[rows] = radius - gap <= TOUCH
                return free
            scale = radius / np.maximum(gap, 1e-12)
            near = np.stack([nearest_x[deepest[stuck], stuck], nearest_y[deepest[stuck], stuck]])
            freed = near + (part[:, stuck] - near) * scale
            centres[:, rows] = np.minimum(np.maximum(freed, bounds.low[:, None]), bounds.high[:, None])
        raise AssertionError("the last turn returns")

    def _nearest(self, centres: Array) -> tuple[Array, Array, Array]:
        """x and y of the nearest point of every wall to ``centres [2, B]``, and its squared distance, ``[W, B]``."""
        left, top, right, bottom = self._walls
        x, y = np.minimum(np.maximum(centres[0], left), right), np.minimum(np.maximum(centres[1], top), bottom)
        dx, dy = centres[0] - x, centres[1] - y
        return x, y, dx * dx + dy * dy

    def _depth(self, centres: Array, radius: float) -> Array:
        """How deep discs ``[2, B]`` are in the walls ``[B]``; 0 or less where they are free."""
        bounds = self._bounds[radius]
        outside = np.maximum(bounds.low[:, None] - centres, centres - bounds.high[:, None]).max(axis=0)
        if not len(self.layout.walls):
            return np.asarray(outside)
        return np.maximum(outside, radius - np.sqrt(self._nearest(centres)[2].min(axis=0)))

    def penetration(self, states: Array) -> Array:
        """The deepest overlap in each of the states ``[B, S]``: with a wall, or of agent and object. 0 or less is none.
        """
        bodies = np.asarray(states, dtype=np.float64).T
        depth = self._depth(bodies[:2], self.config.agent_radius)
        if not self.config.object:
            return depth
        away = bodies[2:] - bodies[:2]
        touch = self.config.agent_radius + self.config.object_radius - np.sqrt((away * away).sum(axis=0))
        return np.maximum(np.maximum(depth, self._depth(bodies[2:], self.config.object_radius)), touch)

    def room_of(self, points: Array) -> NDArray[np.int64]:
        """Number of the room of every point ``[B, 2]``; one in a doorway belongs to the nearest room."""
        rooms = self.layout.rooms
        away = np.maximum(np.maximum(rooms[None, :, :2] - points[:, None], points[:, None] - rooms[None, :, 2:]), 0.0)
        return np.asarray((away * away).sum(axis=2).argmin(axis=1))
