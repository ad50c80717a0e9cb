"""``open_task``: every kind of environment by name, and what is said of those that cannot be opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from envs import fake_task
from PIL import Image

from jepa.envs import gym_task
from jepa.envs.base import GoalTask
from jepa.envs.gym_task import GymTask
from jepa.envs.policies import open_policy
from jepa.envs.rooms_env import RoomsTask
from jepa.envs.tasks import open_task


def refused(message: str, name: str, **options: object) -> None:
    with pytest.raises(ValueError) as error:
        open_task(name, **options)
    assert str(error.value) == message


def test_rooms_by_name() -> None:
    task = open_task("rooms", rooms=4, side="32", looks="random")
    assert isinstance(task, RoomsTask)
    assert isinstance(task, GoalTask)
    assert (task.config.rooms, task.config.side, task.config.looks, task.fps) == (4, 32, "random", 10.0)
    assert task.state_names == ("agent_x", "agent_y", "object_x", "object_y")
    refused("unknown config key 'room', did you mean 'rooms'?", "rooms", room=4)
    refused("config key 'rooms' must be a whole number, not 'many' (str)", "rooms", rooms="many")
    refused("config: rooms must be 1, 2 or 4, not 5", "rooms", rooms=5)


def test_a_gymnasium_environment() -> None:
    pytest.importorskip("pygame", reason="gymnasium draws its pendulum with pygame")
    task = open_task("Pendulum-v1")
    assert isinstance(task, GoalTask)
    first = task.reset(3)
    assert (task.fps, task.action_low.tolist(), task.action_high.tolist()) == (30.0, [-2.0], [2.0])
    assert (first.frame.shape, first.frame.dtype, first.goal, first.success) == ((500, 500, 3), np.uint8, None, False)
    assert task.state_names == ("observation_0", "observation_1", "observation_2")
    assert np.linalg.norm(first.state[:2]) == pytest.approx(1.0, abs=1e-6)  # cosine and sine
    assert np.array_equal(task.reset(3).state, first.state)
    assert not np.array_equal(task.step([2.0]).frame, first.frame)
    task.close()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    task = open_task("Pendulum-v1")
    monkeypatch.setitem(sys.modules, "pygame", None)  # as if it were not installed: it is imported by the first frame
    with pytest.raises(ValueError, match="environment 'Pendulum-v1' needs another package: pygame is not installed"):
        task.reset(3)


def test_success_and_the_end_come_from_the_environment() -> None:
    task = open_task("tests/Flat-v0", fps=4)
    task.reset(0)
    seen = [task.step([0.0, 0.0]) for _ in range(4)]
    assert [s.success for s in seen] == [False, True, False, False]
    assert [s.done for s in seen] == [False, False, False, True]


def test_a_goal_from_an_image_file(tmp_path: Path) -> None:
    for size, name in (((16, 12), "right.png"), ((12, 16), "wrong.png")):
        Image.new("RGB", size, (1, 2, 3)).save(tmp_path / name)
    (tmp_path / "text.png").write_text("no image")
    seen = open_task("tests/Flat-v0", fps=4, goal=str(tmp_path / "right.png")).reset(0)
    assert seen.goal is not None
    assert (seen.goal.shape, seen.goal[0, 0].tolist()) == ((12, 16, 3), [1, 2, 3])
    with pytest.raises(ValueError) as error:
        open_task("tests/Flat-v0", fps=4, goal=str(tmp_path / "wrong.png")).reset(0)
    assert str(error.value) == (
        f"goal image {tmp_path}/wrong.png is 12 x 16 pixels, but the frames of 'tests/Flat-v0' are 16 x 12: scale the "
        "image"
    )
    refused(f"goal image {tmp_path}/none.png does not exist", "tests/Flat-v0", fps=4, goal=f"{tmp_path}/none.png")
    with pytest.raises(ValueError, match=r"text\.png cannot be read: cannot identify image file"):
        open_task("tests/Flat-v0", fps=4, goal=str(tmp_path / "text.png"))


def test_a_task_of_ones_own() -> None:
    task = open_task("envs.fake_task:Line", length=3)
    assert isinstance(task, fake_task.Line)
    assert task.reset(5).state.tolist() == [5.0]
    refused(
        "environment 'envs.fake_task:Lin': envs.fake_task has no function 'Lin', did you mean 'Line'?",
        "envs.fake_task:Lin",
    )
    refused("environment 'envs.fakes:Line': there is no module 'envs.fakes'", "envs.fakes:Line")
    refused(
        "environment 'envs.fake_task:nothing' must return a GoalTask, but it has no fps, action_low, action_high, "
        "state_names, reset, step, close",
        "envs.fake_task:nothing",
    )
    with pytest.raises(ValueError, match=r"'envs.fake_task:Line' cannot be made with .*unexpected keyword argument"):
        open_task("envs.fake_task:Line", lenght=3)


def test_unknown_and_unfit_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    refused("unknown environment 'Pendulun-v1', did you mean 'Pendulum-v1'?", "Pendulun-v1")
    refused("unknown environment 'room', did you mean 'rooms'?", "room")
    refused(
        "unknown environment 'zzz/qqq'; it is rooms, an id of gymnasium's registry, or MODULE:FUNCTION", "zzz/qqq"
    )
    refused(
        "environment 'CartPole-v1' takes actions of Discrete(2): only a Box of one axis is supported", "CartPole-v1"
    )
    with pytest.raises(ValueError, match=r"of Box\(-1.0, 1.0, \(2, 2\), float32\): only a Box of one axis"):
        open_task("tests/Flat-v0", fps=4, axes=2)
    refused(
        "environment 'tests/Flat-v0' does not say how many steps a second has: give option fps", "tests/Flat-v0"
    )
    with pytest.raises(ValueError, match=r"'tests/Flat-v0' cannot be made with options .*'shap'"):
        open_task("tests/Flat-v0", shap=3)
    with pytest.raises(ValueError) as error:
        open_task("tests/Flat-v0", fps=4, shape=(5, 5)).reset(0)
    assert str(error.value) == "environment 'tests/Flat-v0' renders uint8 [5, 5]: frames must be uint8 [H, W, 3]"
    monkeypatch.setattr(gym_task.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gym_task.gymnasium, "registry", {})
    refused(
        "environment 'gym_pusht/PushT-v0' needs another package: pip install 'jepa-toolkit[pusht]'",
        "gym_pusht/PushT-v0",
    )


def test_wrong_actions() -> None:
    task = GymTask("tests/Flat-v0", fps=4)
    task.reset(0)
    with pytest.raises(ValueError, match=r"^an action of this environment has 2 numbers, not the shape \[1\]$"):
        task.step([0.0])
    with pytest.raises(ValueError, match=r"^action \[0.5, nan\] is not a number$"):
        task.step([0.5, np.nan])


def test_policies() -> None:
    task = open_task("envs.fake_task:Line")
    seen = task.reset(0)
    for name, likeness in (("uniform", (-0.1, 0.1)), ("held", (0.75, 0.97)), ("smooth", (0.75, 0.9))):
        policy = open_policy(name, task, np.random.default_rng(0))
        actions = np.array([policy(seen)[0] for _ in range(4000)])
        assert np.abs(actions).max() <= 1
        assert 0.35 < actions.std() < 0.75
        low, high = likeness
        assert low < np.corrcoef(actions[1:], actions[:-1])[0, 1] < high
    for name, message in (
        ("randm", "unknown policy 'randm', did you mean 'random'?; or give MODULE:FUNCTION"),
        (
            "envs.fake_task:hal",
            "policy 'envs.fake_task:hal': envs.fake_task has no function 'hal', did you mean 'half'?",
        ),
        (
            "envs.fake_task:nothing",
            "policy 'envs.fake_task:nothing' must be a function of (task, rng): nothing() takes 0 positional arguments "
            "but 2 were given",
        ),
    ):
        with pytest.raises(ValueError) as error:
            open_policy(name, task, np.random.default_rng(0))
        assert str(error.value) == message


def test_modules_of_the_folder_at_hand_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_world.py").write_text("from envs.fake_task import Line as make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert isinstance(open_task("my_own_world:make"), fake_task.Line)


def test_environments_draw_after_videos_were_read() -> None:
    """In a process of its own: which library of two finds which symbols depends on what is loaded first."""
    code = (
        "from jepa.data.video import available_backends; from jepa.envs.tasks import open_task; available_backends(); "
        "print(open_task('Pendulum-v1').reset(0).frame.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["(500, 500, 3)"], done.stderr
