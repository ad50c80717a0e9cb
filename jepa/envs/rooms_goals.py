"""Where an episode in the rooms begins and what it is to reach."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa.envs.rooms import Array, Layout, RoomsConfig

DRAWS = 4096
GAP = 0.01  # kept free at the start between discs, and between discs and walls


class Episode(NamedTuple):
    """``start`` and ``goal`` are states float32 ``[S]``; ``crosses``: the agent's goal lies in another room."""

    start: NDArray[np.float32]
    goal: NDArray[np.float32]
    crosses: bool


def draw_episode(config: RoomsConfig, layout: Layout, rng: np.random.Generator) -> Episode:
    """A start and a goal that can be reached from it.

    All rooms hang together by doors that both discs fit through, and the object never stands where it narrows one, so
    the agent gets everywhere. The object's goal is a straight push away, in its own room.
    Raises ``ValueError`` for a ``min_distance`` that the rooms do not have.
    """
    crosses = config.goal == "agent" and len(layout.rooms) > 1 and bool(rng.random() < config.cross)
    for _ in range(DRAWS):  # whether it crosses is not drawn again: what is hard to draw would become rare
        home = int(rng.integers(len(layout.rooms)))
        agent = _point(rng, layout.rooms[home], config.agent_radius + GAP)
        if config.goal == "object":
            episode = _push(config, layout, rng, agent)
        else:
            others = [room for room in range(len(layout.rooms)) if room != home]
            there = layout.rooms[int(rng.choice(others))] if crosses else layout.rooms[home]
            episode = _walk(config, layout, rng, agent, _point(rng, there, config.agent_radius + GAP), crosses)
        if episode is not None:
            return episode
    raise ValueError(f"no goal lies min_distance {config.min_distance} away in {config.rooms} rooms: make it smaller")


def _walk(
    config: RoomsConfig, layout: Layout, rng: np.random.Generator, agent: Array, goal: Array, crosses: bool
) -> Episode | None:
    """A goal for the agent; the object of the goal stays where it was, so that the picture asks for the agent alone."""
    if _distance(goal, agent) < config.min_distance:
        return None
    if not config.object:
        return Episode(agent.astype(np.float32), goal.astype(np.float32), crosses)
    apart = config.agent_radius + config.object_radius + GAP
    thing = _point(rng, layout.rooms[int(rng.integers(len(layout.rooms)))], config.object_radius + GAP)
    if min(_distance(thing, agent), _distance(thing, goal)) < apart or not _clear(config, layout, thing):
        return None
    return Episode(_state(agent, thing), _state(goal, thing), crosses)


def _push(config: RoomsConfig, layout: Layout, rng: np.random.Generator, agent: Array) -> Episode | None:
    """A goal for the object; the agent of the goal stands behind it, as after a straight push."""
    room = layout.rooms[int(rng.integers(len(layout.rooms)))]
    # the agent fits behind the object wherever it starts, and then all the way: rooms are convex
    thing = _point(rng, room, config.object_radius + 2 * config.agent_radius)
    goal = _point(rng, room, config.object_radius + GAP)
    apart = config.agent_radius + config.object_radius
    length = _distance(thing, goal)
    if length < config.min_distance / 2 or _distance(thing, agent) < apart + GAP:
        return None
    behind = goal - (goal - thing) / length * apart
    return Episode(_state(agent, thing), _state(behind, goal), False)


def _clear(config: RoomsConfig, layout: Layout, thing: Array) -> bool:
    """Whether the agent gets through every door past an object at ``thing``."""
    away = np.sqrt(((layout.doors - thing) ** 2).sum(axis=1))
    return bool((away > config.object_radius + 2 * config.agent_radius + config.wall_width / 2).all())


def _point(rng: np.random.Generator, room: Array, margin: float) -> Array:
    return np.asarray(rng.uniform(room[:2] + margin, room[2:] - margin))


def _distance(a: Array, b: Array) -> float:
    return float(np.sqrt(((a - b) ** 2).sum()))


def _state(agent: Array, thing: Array) -> NDArray[np.float32]:
    return np.concatenate([agent, thing]).astype(np.float32)
