"""The built-in world: bodies that move under simple forces, bounce and pass behind things. No pixels here.

Units: the visible square is 1 wide and 1 high, x grows to the right and y downwards; time is in seconds. A *motion*
is a force law with a starting state, so that its label lives in how the state changes and not in any single state:
left and right, up and down, and both senses of the orbit visit the same places in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOTIONS = ("left", "right", "up", "down", "bounce", "swing", "orbit_cw", "orbit_ccw")

SUBSTEPS = 8  # integration steps per frame; a bounce is resolved to 1/8 of a frame
MARGIN = 0.14  # centres stay this far from the edges of the picture, so that the body stays in sight
MAX_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class State:
    """Position and velocity of one body, ``[2]`` each."""

    position: Array
    velocity: Array


@dataclass(frozen=True, slots=True)
class Forces:
    """Accelerations on a body: ``gravity [2]`` everywhere, and a spring of ``stiffness`` towards ``anchor [2]``."""

    gravity: Array
    anchor: Array
    stiffness: float = 0.0

    def acceleration(self, state: State) -> Array:
        return self.gravity - self.stiffness * (state.position - self.anchor)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The box in which centres move, and the share of speed kept by a bounce off its sides."""

    low: Array
    high: Array
    restitution: float = 0.9


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One simulated body: ``position`` and ``velocity`` ``[T, 2]``, ``radius``, its motion label, the height of the
    floor, the occluding bars ``[K, 4]`` as (left, top, right, bottom), and the frames at which it ``bounced``.
    """

    position: Array
    velocity: Array
    radius: float
    motion: int
    floor: float
    occluders: Array
    bounced: tuple[int, ...]


def step(state: State, forces: Forces, bounds: Bounds, dt: float, action: Array | None = None) -> tuple[State, bool]:
    """Advance one body by ``dt`` seconds (velocity Verlet); ``action [2]`` is an extra acceleration.

    Returns the new state and whether it bounced.
    """
    push = np.zeros(2) if action is None else action
    before = forces.acceleration(state) + push
    position = state.position + state.velocity * dt + 0.5 * before * dt * dt
    after = forces.acceleration(State(position, state.velocity)) + push
    velocity = state.velocity + 0.5 * (before + after) * dt
    outside = (position < bounds.low) | (position > bounds.high)
    if not outside.any():
        return State(position, velocity), False
    # mirror the overshoot back inside, so that no energy is gained at the wall
    position = np.where(position < bounds.low, 2 * bounds.low - position, position)
    position = np.where(position > bounds.high, 2 * bounds.high - position, position)
    inwards = ((position - bounds.low) < (bounds.high - position)) * 2.0 - 1.0
    velocity = np.where(outside, inwards * np.abs(velocity) * bounds.restitution, velocity)
    return State(np.clip(position, bounds.low, bounds.high), velocity), True


def rollout(
    state: State, forces: Forces, bounds: Bounds, num_frames: int, fps: float, actions: Array | None = None
) -> tuple[Array, Array, tuple[int, ...]]:
    """Positions and velocities ``[T, 2]`` of ``num_frames`` frames and the frames that saw a bounce.

    ``actions [T-1, 2]``: acceleration held from each frame to the next.
    """
    positions, velocities, bounced = [state.position], [state.velocity], []
    for frame in range(1, num_frames):
        action = None if actions is None else actions[frame - 1]
        hit = False
        for _ in range(SUBSTEPS):
            state, touched = step(state, forces, bounds, 1.0 / (fps * SUBSTEPS), action)
            hit = hit or touched
        positions.append(state.position)
        velocities.append(state.velocity)
        if hit:
            bounced.append(frame)
    return np.stack(positions), np.stack(velocities), tuple(bounced)


def simulate(rng: np.random.Generator, motion: int, num_frames: int, fps: float) -> Trajectory:
    """A random trajectory with motion ``MOTIONS[motion]``.

    Draws are rejected until the body stays in sight, and until only ``bounce`` bounces, so that the label is true of
    the whole clip.
    """
    for _ in range(MAX_DRAWS):
        radius = float(rng.uniform(0.23, 0.28))
        floor = float(rng.uniform(0.88, 0.98))
        low, high = np.array([MARGIN, MARGIN]), np.array([1 - MARGIN, floor - 0.6 * radius])
        bounds = Bounds(low, high, rng.uniform(0.8, 0.95))
        state, forces = _START[MOTIONS[motion]](rng, num_frames / fps)
        position, velocity, bounced = rollout(state, forces, bounds, num_frames, fps)
        wanted = 1 if MOTIONS[motion] == "bounce" else 0
        inside = np.all(position[0] >= bounds.low) and np.all(position[0] <= bounds.high)
        if inside and (len(bounced) >= wanted if wanted else not bounced):
            return Trajectory(position, velocity, radius, motion, floor, _occluders(rng), bounced)
    raise RuntimeError(f"no {MOTIONS[motion]!r} trajectory of {num_frames} frames at {fps} fps stays in sight")


def _occluders(rng: np.random.Generator) -> Array:
    """No bar, or one upright bar that the body may pass behind."""
    if rng.random() < 0.5:
        return np.zeros((0, 4))
    left, width = rng.uniform(0.05, 0.85), rng.uniform(0.06, 0.12)
    return np.array([[left, rng.uniform(0.0, 0.3), left + width, 1.0]])


def _glide(rng: np.random.Generator, duration_s: float, direction: Array) -> tuple[State, Forces]:
    """Constant velocity along ``direction``, a little oblique, centred in time on a random place."""
    travel = rng.uniform(0.35, 0.6)
    sideways = np.array([direction[1], direction[0]]) * rng.uniform(-0.3, 0.3)
    velocity = (direction + sideways) * travel / duration_s
    middle = rng.uniform(0.25, 0.75, size=2)
    return State(middle - velocity * duration_s / 2, velocity), Forces(np.zeros(2), np.zeros(2))


def _bounce(rng: np.random.Generator, duration_s: float) -> tuple[State, Forces]:
    """Gravity and a floor: dropped or thrown sideways."""
    gravity = rng.uniform(2.0, 4.0) / duration_s**2
    start = State(
        np.array([rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.5)]),
        np.array([rng.uniform(-0.35, 0.35), rng.uniform(-0.4, 0.4)]) / duration_s,
    )
    return start, Forces(np.array([0.0, gravity]), np.zeros(2))


def _swing(rng: np.random.Generator, duration_s: float) -> tuple[State, Forces]:
    """A spring along a random line through a random place, one to two periods per clip."""
    omega = 2 * np.pi * rng.uniform(1.0, 1.8) / duration_s
    angle, phase, amplitude = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.28)
    axis, anchor = np.array([np.cos(angle), np.sin(angle)]), rng.uniform(0.3, 0.7, size=2)
    start = State(anchor + axis * amplitude * np.sin(phase), axis * amplitude * omega * np.cos(phase))
    return start, Forces(np.zeros(2), anchor, omega**2)


def _orbit(rng: np.random.Generator, duration_s: float, sense: float) -> tuple[State, Forces]:
    """A spring with just the sideways speed that makes the orbit round; ``sense`` +1 is clockwise on the screen."""
    omega = 2 * np.pi * rng.uniform(0.8, 1.4) / duration_s
    phase, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.14, 0.24)
    centre, arm = rng.uniform(0.35, 0.65, size=2), np.array([np.cos(phase), np.sin(phase)])
    tangent = sense * np.array([-arm[1], arm[0]])
    return State(centre + arm * distance, tangent * distance * omega), Forces(np.zeros(2), centre, omega**2)


_START = {
    "left": lambda rng, duration_s: _glide(rng, duration_s, np.array([-1.0, 0.0])),
    "right": lambda rng, duration_s: _glide(rng, duration_s, np.array([1.0, 0.0])),
    "up": lambda rng, duration_s: _glide(rng, duration_s, np.array([0.0, -1.0])),
    "down": lambda rng, duration_s: _glide(rng, duration_s, np.array([0.0, 1.0])),
    "bounce": _bounce,
    "swing": _swing,
    "orbit_cw": lambda rng, duration_s: _orbit(rng, duration_s, 1.0),
    "orbit_ccw": lambda rng, duration_s: _orbit(rng, duration_s, -1.0),
}
