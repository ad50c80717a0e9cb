"""The rooms as an environment and a task: gymnasium's own checks, seeds, goals, pictures, the simulator's answers."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from jepa.envs.base import SimulatedTask, TaskError
from jepa.envs.policies import POLICIES
from jepa.envs.rooms import RoomsConfig, draw_layout
from jepa.envs.rooms_draw import RoomsPicture, draw_looks
from jepa.envs.rooms_env import RoomsEnv, RoomsTask
from jepa.envs.rooms_goals import draw_episode

VARIANTS = [
    RoomsConfig(), RoomsConfig(rooms=4, layout="random", looks="random"), RoomsConfig(rooms=1, object=False, side=64),
    RoomsConfig(rooms=4, goal="object"),
]  # fmt: skip


def test_gymnasium_finds_nothing_to_complain_about() -> None:
    env = gymnasium.make("jepa/Rooms-v0", rooms=4, side=32)
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 10.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not been wrapped|.*different from the unwrapped version")
        check_env(env.unwrapped)
    assert env.reset(seed=0)[0].shape == (32, 32, 3)


@pytest.mark.parametrize("config", VARIANTS)
def test_the_same_seed_and_actions_give_the_same_frames(config: RoomsConfig) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 2))

    def played(seed: int) -> np.ndarray:
        task = RoomsTask(config)
        first = task.reset(seed)
        return np.stack([first.goal, first.frame, *(task.step(action).frame for action in actions)])

    assert np.array_equal(played(3), played(3))
    assert not np.array_equal(played(3), played(4))


@pytest.mark.parametrize("config", VARIANTS)
def test_simulate_is_what_stepping_shows(config: RoomsConfig) -> None:
    task = RoomsTask(config)
    assert isinstance(task, SimulatedTask)
    seen = task.reset(5)
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 6, 2)).astype(np.float32)
    states = task.simulate(seen.state, actions, hold=2)
    assert states.shape == (3, 6, len(task.state_names))
    for k, action in enumerate(actions[1]):
        task.step(action)
        assert np.array_equal(task.step(action).state, states[1, k])
    assert np.allclose(task.distance(states)[1, -1], task.distance(states[1, -1]))


def test_goals_of_the_agent() -> None:
    config = RoomsConfig()
    rng, layout = np.random.default_rng(0), draw_layout(RoomsConfig(), np.random.default_rng(0))
    world = RoomsTask(config)
    world.reset(0)
    episodes = [draw_episode(config, layout, rng) for _ in range(2000)]
    starts, goals = (np.stack([getattr(e, name) for e in episodes]) for name in ("start", "goal"))
    rooms = world.scene.world.room_of
    crosses = rooms(starts[:, :2]) != rooms(goals[:, :2])
    assert np.array_equal(crosses, [e.crosses for e in episodes])
    assert 0.46 < crosses.mean() < 0.54
    assert np.linalg.norm((starts - goals)[:, :2], axis=1).min() >= config.min_distance - 1e-6
    assert np.array_equal(starts[:, 2:], goals[:, 2:])  # the picture asks for the agent alone
    assert max(world.scene.world.penetration(starts).max(), world.scene.world.penetration(goals).max()) < 0


@pytest.mark.parametrize("rooms", [1, 2, 4])
def test_goals_of_the_object(rooms: int) -> None:
    config = RoomsConfig(rooms=rooms, goal="object")
    for seed in range(50):
        task = RoomsTask(config)
        seen = task.reset(seed)
        assert seen.goal_state is not None
        assert np.linalg.norm(seen.goal_state[2:] - seen.state[2:]) >= config.min_distance / 2 - 1e-6
        assert task.scene.world.penetration(seen.goal_state[None])[0] < 1e-6
        # an agent behind the object brings it there by a straight push
        way = (seen.goal_state[2:] - seen.state[2:]).astype(np.float64)
        way /= np.linalg.norm(way)
        state = np.concatenate([seen.state[2:] - 0.111 * way, seen.state[2:]]).astype(np.float32)
        assert task.scene.world.penetration(state[None])[0] < 1e-6
        states = task.simulate(state, np.tile(0.7 * way, (1, 40, 1)))
        assert task.distance(states).min() < 0.03


@pytest.mark.parametrize(("rooms", "layout"), [(1, "fixed"), (2, "fixed"), (2, "random"), (4, "fixed")])
def test_goals_can_be_reached_in_time(rooms: int, layout: str) -> None:
    """By somebody who knows the doors: straight to the goal, or before, through and behind a door on the way."""
    task = RoomsTask(RoomsConfig(rooms=rooms, layout=layout))  # type: ignore[arg-type]
    reached = sum(_walk_there(task, seed) for seed in range(60))
    assert reached >= 54  # the object may stand in the way, which this walker does not see


def _walk_there(task: RoomsTask, seed: int) -> bool:
    seen = task.reset(seed)
    world = task.scene.world
    assert seen.goal_state is not None
    goal = seen.goal_state[:2]
    while not seen.done:
        here, there = world.room_of(seen.state[None, :2])[0], world.room_of(goal[None])[0]
        aim = goal if here == there else _next_place(world, seen.state[:2], here, there)
        way = (aim - seen.state[:2]) / 0.04
        seen = task.step(way / max(np.abs(way).max(), 1.0))
    return seen.success


def _next_place(world, agent: np.ndarray, here: int, there: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    choices = []
    for door in world.layout.doors:
        for axis in np.eye(2):
            sides = np.stack([door - 0.1 * axis, door + 0.1 * axis])
            rooms = world.room_of(sides).tolist()
            if here in rooms and rooms[0] != rooms[1]:
                before, behind = sides if rooms[0] == here else sides[::-1]
                across = np.abs((agent - door) * (1 - axis)).max()
                far = 0.0 if there in rooms else 0.5  # in four rooms every other one is at most two doors away
                choices.append((np.linalg.norm(agent - door) + far, behind if across < 0.05 else before))
    return min(choices, key=lambda choice: choice[0])[1]


def test_chance_alone_seldom_reaches_a_goal() -> None:
    task = RoomsTask()
    shares = {}
    for name in ("held", "uniform"):
        wins = 0
        for seed in range(60):
            seen = task.reset(seed)
            policy = POLICIES[name](task.action_low, task.action_high, np.random.default_rng(seed))
            while not seen.done:
                seen = task.step(policy(seen))
            wins += seen.success
        shares[name] = wins / 60
    assert shares["held"] < 0.2
    assert shares["uniform"] < 0.1


def test_the_explorer_goes_through_doors_and_touches_the_object() -> None:
    task, through, touched = RoomsTask(), 0, 0
    for seed in range(60):
        seen = task.reset(seed)
        act, states = task.explorer(np.random.default_rng(seed)), [seen.state]
        for _ in range(100):
            seen = task.step(act(seen))
            states.append(seen.state)
        path = np.stack(states)
        through += len(np.unique(task.scene.world.room_of(path[:, :2]))) > 1
        touched += np.abs(np.diff(path[:, 2:], axis=0)).max() > 1e-4
    assert through >= 36  # 60 %
    assert touched >= 33


def test_pictures_show_where_things_are() -> None:
    """The middle of the agent's colour is the agent's place, to a tenth of a pixel, anywhere."""
    config = RoomsConfig(rooms=1, side=48)
    rng = np.random.default_rng(0)
    picture = RoomsPicture(config, draw_layout(config, rng), draw_looks(config, rng))
    for _ in range(50):
        agent, thing = rng.uniform([0.1, 0.12], [0.45, 0.88]), rng.uniform([0.62, 0.12], [0.88, 0.88])
        frame = picture.render(np.concatenate([agent, thing])).astype(np.float64)
        for place, ink in ((agent, frame[..., 0] - 150), (thing, frame[..., 1] - 170)):
            ink = np.maximum(ink, 0)[3:-3, 3:-3]
            y, x = (np.arange(3, 45) + 0.5) @ ink.sum(1), (np.arange(3, 45) + 0.5) @ ink.sum(0)
            assert np.abs(np.array([x, y]) / ink.sum() - place * 48).max() < 0.35
    assert picture.render(np.array([0.3, 0.3, 0.7, 0.7]))[14, 14].tolist() == [255, 115, 26]


def test_an_episode_ends_with_success_or_out_of_steps() -> None:
    env = RoomsEnv(rooms=1, object=False, max_steps=5)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]
    assert env.scene is not None
    env._state = env.scene.episode.goal
    assert env.step(np.zeros(2))[1:4] == (1.0, True, True)


def test_wrong_actions_and_uses() -> None:
    task = RoomsTask()
    for call, message in (
        (lambda: task.step([0, 0]), "the rooms must be reset before they are stepped"),
        (lambda: task.scene, "the rooms must be reset before anything else"),
        (
            lambda: task.reset(0) and task.step([0, 0, 0]),
            "an action of this environment has 2 numbers, not the shape [3]",
        ),
        (lambda: task.step([0, np.nan]), "action [0.0, nan] is not a number"),
        (
            lambda: task.simulate(np.zeros(4), np.zeros((2, 3, 1))),
            "actions to simulate must be [N, H, 2], not [2, 3, 1]",
        ),
        (
            lambda: task.simulate(np.zeros(4), np.array([[[0, 0], [np.nan, 0]]])),
            "actions to simulate are not numbers in sequence 0 at step 1",
        ),
        (lambda: task.simulate(np.zeros(2), np.zeros((1, 1, 2))), "a state of these rooms has 4 numbers, not [2]"),
        (lambda: task.simulate(np.zeros(4), np.zeros((1, 1, 2)), 0), "an action is held for at least 1 step, not 0"),
        (lambda: RoomsEnv(render_mode="human"), "render_mode must be 'rgb_array', not 'human'"),
        (lambda: RoomsEnv(config=RoomsConfig(), side=32), "give the rooms a config or options, not both (side)"),
        (lambda: RoomsEnv(wide=3), "unknown config key 'wide', did you mean 'side'?"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == message
        assert isinstance(error.value, TaskError) or "config key" in message
