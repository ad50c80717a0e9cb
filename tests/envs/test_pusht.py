"""PushT: states are set exactly, goals come from trajectories that happened, success as DINO-WM counts it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="the extra [pusht] cannot be imported", exc_type=ImportError)  # or its libGL

from jepa.envs.base import SimulatedTask
from jepa.envs.pusht import PushTConfig, PushTTask
from jepa.envs.pusht_table import NAMES, Table
from jepa.envs.tasks import open_task


@pytest.fixture(scope="module")
def task() -> PushTTask:
    opened = open_task("gym_pusht/PushT-v0", side=64)
    assert isinstance(opened, PushTTask)
    assert isinstance(opened, SimulatedTask)
    return opened


def test_an_episode(task: PushTTask) -> None:
    seen = task.reset(2)
    assert (seen.frame.shape, seen.frame.dtype, seen.state.shape, task.fps) == ((64, 64, 3), np.uint8, (7,), 10.0)
    assert seen.goal is not None
    assert seen.goal_state is not None
    assert (seen.success, seen.done) == (False, False)
    again = task.reset(2)
    assert np.array_equal(again.frame, seen.frame)
    assert np.array_equal(again.goal, seen.goal)
    assert np.array_equal(again.state, seen.state)
    assert not np.array_equal(task.reset(3).state, seen.state)
    assert np.linalg.norm((seen.state - seen.goal_state)[2:5] * [1, 1, 60]) > 15  # something is to be done


def test_states_are_set_exactly_and_shown(task: PushTTask) -> None:
    task.reset(0)
    wanted = np.array([100, 120, 300, 250, 2.5, 3, -4], np.float32)
    task.table.place(wanted)
    assert np.abs(task.table.state() - wanted).max() < 1e-4
    seen = task.reset_to(wanted, wanted)
    assert np.array_equal(seen.frame, seen.goal)
    assert seen.success
    assert seen.done
    blue = (seen.frame[..., 2] > 180) & (seen.frame[..., 0] < 120)
    rows, columns = np.nonzero(blue)
    assert [columns.mean() * 8 + 4, rows.mean() * 8 + 4] == pytest.approx([100, 120], abs=8)  # a pixel is 8 units


def test_simulate_is_what_stepping_shows(task: PushTTask) -> None:
    seen = task.reset(1)
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 5, 2)).astype(np.float32)
    states = task.simulate(seen.state, actions, hold=2)
    assert np.array_equal(task.table.state(), seen.state)  # nothing has moved
    for k, action in enumerate(actions[1]):
        task.step(action)
        assert np.array_equal(task.step(action).state, states[1, k])
    assert task.distance(states).shape == (2, 5)


def test_the_package_moves_the_same_way(task: PushTTask) -> None:
    """Our steps against the package's own: the same places from the same actions."""
    absolute = PushTTask(PushTConfig(relative=False))
    absolute.reset(1)
    begin, places = absolute.table.state(), np.random.default_rng(1).uniform(100, 400, (6, 2)).astype(np.float32)
    ours = absolute.simulate(begin, places[None])[0]
    absolute.table.place(begin)
    for place, state in zip(places, ours, strict=True):
        absolute.table.sim.step(place.astype(np.float64))
        assert np.abs(absolute.table.state() - state).max() < 1e-3
    absolute.close()


def test_goals_are_reached_by_the_trajectory_that_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    task = PushTTask(PushTConfig(side=32, goal_steps=10))
    done: list[np.ndarray] = []
    act = PushTTask._act

    def noted(self: PushTTask, table: Table, action: np.ndarray) -> None:
        done.append(np.array(action))
        act(self, table, action)

    for seed in range(4):
        done.clear()
        monkeypatch.setattr(PushTTask, "_act", noted)
        task.reset(seed)
        way = done[-10:]
        monkeypatch.setattr(PushTTask, "_act", act)
        seen = [task.step(action) for action in way]
        assert np.array_equal(seen[-1].state, seen[-1].goal_state)
        assert seen[-1].success
        assert not seen[0].success


def test_success_has_three_conditions(task: PushTTask) -> None:
    goal = np.array([100, 100, 300, 300, 6.2, 0, 0], np.float32)
    for change, expected in (
        ([10, 0, 10, 0, 0, 90, 90], True),  # speed does not count
        ([15, 0, 0, 15, 0, 0, 0], False),  # 21 units away, of tip and block together
        ([0, 0, 0, 0, 0.34, 0, 0], True),  # 19.5 degrees, across the end of the circle
        ([0, 0, 0, 0, 0.36, 0, 0], False),
    ):
        moved = goal + np.array(change, np.float32)
        assert task.reset_to(moved, goal).success is expected


def test_the_pusher_moves_the_block() -> None:
    task, moved = PushTTask(PushTConfig(side=32)), 0
    for seed in range(8):
        task.table.shuffle(seed)
        push, begin = task.explorer(np.random.default_rng(seed)), task.table.state()
        for _ in range(60):
            task._act(task.table, push(task._bare()))
        moved += float(np.abs(task.table.state() - begin)[2:4].max()) > 20
    assert moved >= 6


def test_bad_input(task: PushTTask) -> None:
    for call, message in (
        (lambda: PushTTask().distance(np.zeros(7)), "gym_pusht/PushT-v0 must be reset before it has a goal"),
        (lambda: PushTTask().step([0, 0]), "gym_pusht/PushT-v0 must be reset before it is stepped"),
        (lambda: task.reset(0) and task.step([0.0]), "an action of this environment has 2 numbers, not the shape [1]"),
        (lambda: task.step([np.nan, 0]), "action [nan, 0.0] is not a number"),
        (
            lambda: task.table.place([1.0, 2.0]),
            f"a state of PushT has 7 finite numbers ({', '.join(NAMES)}), not [1.0, 2.0]",
        ),
        (lambda: open_task("gym_pusht/PushT-v0", sides=3), "unknown config key 'sides', did you mean 'side'?"),
        (lambda: PushTConfig(reach=0.0), "reach must be positive, not 0.0"),
        (lambda: PushTConfig(side=4), "side must be at least 16 pixels, not 4"),
        (lambda: PushTConfig(min_push=500.0), "min_push must lie between 0 and 200, not 500.0"),
        (
            lambda: PushTTask(PushTConfig(goal_steps=1, min_push=199.0)).reset(0),
            "no push of 1 goal_steps moves the block by min_push 199.0: make it smaller, or goal_steps larger",
        ),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == message
