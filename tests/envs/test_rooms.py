"""The physics of the rooms: nothing enters a wall, pushes are passed on, and a batch is its rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jepa.envs.rooms import FIXED_DOOR, PASSES, TOUCH, Layout, RoomsConfig, RoomsWorld, draw_layout
from jepa.envs.rooms_goals import draw_episode

CONFIGS = [
    RoomsConfig(rooms=1), RoomsConfig(), RoomsConfig(rooms=4), RoomsConfig(object=False), RoomsConfig(step_length=0.2),
    RoomsConfig(rooms=2, layout="random"), RoomsConfig(rooms=4, layout="random", goal="object"),
]  # fmt: skip
NAMES = ["one", "two", "four", "no object", "long steps", "two random", "four random"]


def made(config: RoomsConfig, seed: int = 0, count: int = 64) -> tuple[RoomsWorld, np.ndarray]:
    """A world and ``count`` starts in it."""
    rng = np.random.default_rng(seed)
    layout = draw_layout(config, rng)
    starts = [draw_episode(config, layout, rng).start for _ in range(count)]
    return RoomsWorld(config, layout), np.stack(starts)


def pushes(steps: int, count: int, seed: int = 1, held: int = 8) -> np.ndarray:
    """Held actions ``[steps, count, 2]``, some beyond the bounds."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.uniform(-1.3, 1.3, (math.ceil(steps / held), count, 2)), held, axis=0)[:steps]


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_nothing_enters_anything_and_nothing_jumps(config: RoomsConfig) -> None:
    world, states = made(config)
    furthest = config.step_length * 2**0.5
    moved = 0.0
    for action in pushes(1000 if config.step_length < 0.1 else 300, len(states)):
        after = world.advance(states, action)
        assert after.dtype == np.float32
        assert world.penetration(after).max() <= 1.2 * TOUCH  # float32 rounds by 6e-8
        # no jump: a wall or the object turns a push aside, and adds little to its length
        step = np.linalg.norm((after - states)[:, :2].astype(np.float64), axis=1).max()
        assert step <= 1.2 * furthest
        if config.object:
            moved += np.abs((after - states)[:, 2:]).sum()
        states = after
    assert moved > 1 or not config.object


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_a_batch_is_its_rows(config: RoomsConfig) -> None:
    world, states = made(config, count=16)
    single = states.copy()
    for action in pushes(100, len(states)):
        states = world.advance(states, action)
        single = np.concatenate([world.advance(single[i : i + 1], action[i : i + 1]) for i in range(len(single))])
        assert np.array_equal(states, single)


def test_rooms_are_left_by_doors_only() -> None:
    world, states = made(RoomsConfig(rooms=4), count=128)
    crossed = 0
    for action in pushes(400, len(states)):
        after = world.advance(states, action)
        for part in (slice(0, 2), slice(2, 4)):
            changed = np.flatnonzero(world.room_of(after[:, part]) != world.room_of(states[:, part]))
            at_door = np.abs(after[changed][:, None, part] - world.layout.doors).max(axis=2).min(axis=1, initial=9)
            assert (at_door < 0.11 + 1e-6).all()  # half the width of a door
            crossed += len(changed)
        states = after
    assert crossed > 100


def nearest_gap(x: float, y: float, walls: np.ndarray) -> tuple[float, float, float]:
    """The distance to the nearest wall, and the nearest point on it."""
    best = (math.inf, 0.0, 0.0)
    for left, top, right, bottom in walls.tolist():
        near_x, near_y = min(max(x, left), right), min(max(y, top), bottom)
        gap = math.sqrt((x - near_x) ** 2 + (y - near_y) ** 2)
        if gap < best[0]:
            best = (gap, near_x, near_y)
    return best


def leave(x: float, y: float, radius: float, config: RoomsConfig, walls: np.ndarray) -> tuple[float, float, bool]:
    low, high = config.wall_width + radius, 1 - config.wall_width - radius
    x, y = min(max(x, low), high), min(max(y, low), high)
    for _ in range(PASSES):
        gap, near_x, near_y = nearest_gap(x, y, walls)
        if gap >= radius:
            return x, y, True
        x, y = near_x + (x - near_x) * radius / gap, near_y + (y - near_y) * radius / gap
        x, y = min(max(x, low), high), min(max(y, low), high)
    return x, y, nearest_gap(x, y, walls)[0] >= radius - TOUCH


def slow(world: RoomsWorld, state: list[float], action: list[float]) -> list[float]:
    """One step of one state, in plain Python: every body by itself, every wall by itself."""
    config, walls = world.config, world.layout.walls
    reach = config.agent_radius + config.object_radius
    dx, dy = (min(max(a, -1.0), 1.0) * config.step_length / world.substeps for a in action)
    for _ in range(world.substeps):
        ax, ay, free = leave(state[0] + dx, state[1] + dy, config.agent_radius, config, walls)
        ox, oy = state[2:]
        away = math.dist((ax, ay), (ox, oy))
        if away < reach:
            ox, oy, fits = leave(
                ox + (ox - ax) / away * (reach - away), oy + (oy - ay) / away * (reach - away), config.object_radius,
                config, walls,
            )  # fmt: skip
            left = math.dist((ax, ay), (ox, oy))
            deep = max(reach - left, 0.0)
            ax, ay, clear = leave(
                ax - (ox - ax) / left * deep, ay - (oy - ay) / left * deep, config.agent_radius, config, walls
            )
            free = free and fits and clear and math.dist((ax, ay), (ox, oy)) >= reach - TOUCH
        state = [ax, ay, ox, oy] if free else state
    return state


@pytest.mark.parametrize("number", [0, 1, 2, 4, 5, 6])
def test_against_plain_python(number: int) -> None:
    world, states = made(CONFIGS[number], seed=3, count=100)
    touched = 0
    for action in pushes(30, len(states), seed=4):
        expected = np.array([slow(world, s, a) for s, a in zip(states.tolist(), action.tolist(), strict=True)])
        after = world.advance(states, action)
        assert np.abs(after - expected).max() < 1e-6
        touched += int((np.abs(after - states)[:, 2:].max(axis=1) > 1e-4).sum())
        states = after
    assert touched > 10


def test_a_straight_push_by_hand() -> None:
    config = RoomsConfig(rooms=1)
    world = RoomsWorld(config, draw_layout(config, np.random.default_rng(0)))
    state = np.array([[0.30, 0.5, 0.45, 0.5]], np.float32)  # 0.04 of free way, then contact at 0.11
    state = world.advance(state, np.array([[1.0, 0.0]]))
    assert state[0].tolist() == pytest.approx([0.34, 0.5, 0.45, 0.5], abs=1e-6)
    state = world.advance(state, np.array([[1.0, 0.0]]))
    assert state[0].tolist() == pytest.approx([0.38, 0.5, 0.49, 0.5], abs=1e-6)
    for _ in range(20):  # to the wall at 0.96, with the object between
        state = world.advance(state, np.array([[1.0, 0.0]]))
    assert state[0].tolist() == pytest.approx([0.96 - 0.06 - 0.11, 0.5, 0.96 - 0.06, 0.5], abs=2e-6)


def test_the_agent_slides_along_a_wall() -> None:
    config = RoomsConfig(object=False)
    world = RoomsWorld(config, draw_layout(config, np.random.default_rng(0)))
    state = np.array([[0.42, 0.6]], np.float32)
    for _ in range(3):
        state = world.advance(state, np.array([[1.0, 0.5]]))
    assert state[0].tolist() == pytest.approx([0.5 - 0.02 - 0.05, 0.6 + 3 * 0.02], abs=1e-6)


def test_layouts() -> None:
    rng = np.random.default_rng(0)
    fixed = draw_layout(RoomsConfig(), rng)
    assert rng.random() == np.random.default_rng(0).random()  # a fixed layout draws nothing
    assert fixed.doors.tolist() == [[0.5, FIXED_DOOR]]
    assert np.allclose(fixed.walls, [[0.48, 0, 0.52, 0.24], [0.48, 0.46, 0.52, 1]])
    four = draw_layout(RoomsConfig(rooms=4), rng)
    assert np.allclose(sorted(four.doors.tolist()), [[0.26, 0.5], [0.5, 0.26], [0.5, 0.74], [0.74, 0.5]])
    assert (len(four.walls), len(four.rooms)) == (6, 4)
    for _ in range(200):
        layout: Layout = draw_layout(RoomsConfig(rooms=4, layout="random"), rng)
        world = RoomsWorld(RoomsConfig(rooms=4, object=False), layout)
        assert world.penetration(layout.doors).max() < 0  # the agent stands freely in every door
        assert np.array_equal(world.room_of((layout.rooms[:, :2] + layout.rooms[:, 2:]) / 2), np.arange(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rooms": 3}, "rooms must be 1, 2 or 4, not 3"),
        ({"side": 8}, "side must be at least 16 pixels, not 8"),
        ({"goal": "door"}, "goal must be one of agent, object, not 'door'"),
        ({"layout": "new"}, "layout must be one of fixed, random, not 'new'"),
        ({"step_length": 0.0}, "step_length must be positive, not 0.0"),
        ({"step_length": 0.5}, "step_length must be at most 0.25 of the square, not 0.5"),
        ({"cross": 1.5}, "cross is a share of the goals, 0 to 1, not 1.5"),
        ({"min_distance": 0.1}, "min_distance must lie between twice the tolerance (0.06) and 0.8, not 0.1"),
        ({"object": False, "goal": "object"}, "goal 'object' needs an object: set object true, or goal agent"),
        ({"door_width": 0.1}, "door_width 0.1 is too narrow for a disc of radius 0.06: widen it"),
        ({"door_width": 0.4, "rooms": 4}, "door_width 0.4 does not fit into a wall of 4 rooms"),
        (
            {"agent_radius": 0.08, "rooms": 4, "goal": "object"},
            "agent_radius 0.08 and object_radius 0.06 are too large for 4 rooms: make them smaller",
        ),
    ],
)
def test_wrong_configs(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        RoomsConfig(**options)
    assert str(error.value) == message
