"""``jepa data record``: episodes are a pure function of seed and number, and a recording goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import error_of

from app.cli import main
from jepa.data.trajectories.opening import open_trajectories
from jepa.envs.base import TaskError
from jepa.envs.record import RecordConfig, record, record_episode
from jepa.envs.tasks import open_task


def episode(folder: Path, number: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"episode_{number:05d}.npz") as file:
        return dict(file)


def same(one: Path, other: Path, count: int) -> bool:
    pairs = [(episode(one, k), episode(other, k)) for k in range(count)]
    return all(np.array_equal(a[name], b[name]) for a, b in pairs for name in ("frames", "actions", "states"))


def test_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rooms"
    arguments = ["data", "record", "rooms", "--episodes", "3", "--steps", "7", "--seed", "5", "--workers", "1"]
    assert main([*arguments, "--set", "side=32", "--set", "rooms=4", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: 3 episodes written (24 frames), 0 were there already" in printed
    assert "trajectory: {}}]'" in printed
    data = episode(out, 2)
    assert {name: (a.shape, a.dtype.str[1:]) for name, a in data.items()} == {
        "frames": ((8, 32, 32, 3), "u1"), "actions": ((7, 2), "f4"), "states": ((8, 4), "f4"),
    }  # fmt: skip
    meta = json.loads((out / "trajectories.json").read_text())
    assert (meta["fps"], meta["action_low"], meta["action_high"]) == (10.0, [-1.0, -1.0], [1.0, 1.0])
    assert meta["state_names"] == ["agent_x", "agent_y", "object_x", "object_y"]
    assert (meta["env"], meta["policy"], meta["seed"], meta["options"]["rooms"]) == ("rooms", "random", 5, 4)


def test_actions_lead_from_state_to_state(tmp_path: Path) -> None:
    config = RecordConfig(env="rooms", episodes=1, steps=12, hold=2, options={"rooms": 2})
    record(config, tmp_path / "out", progress=False)
    data, task = episode(tmp_path / "out", 0), open_task("rooms", rooms=2)
    task.reset(0)  # a fixed layout: any episode's world will do
    for k, action in enumerate(data["actions"]):
        after = task.simulate(data["states"][k], action[None, None], hold=2)  # type: ignore[attr-defined]
        assert np.array_equal(after[0, 0], data["states"][k + 1])
    assert json.loads((tmp_path / "out" / "trajectories.json").read_text())["fps"] == 5.0


def test_episodes_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    def config(episodes: int, seed: int = 0) -> RecordConfig:
        options = {"side": 32, "layout": "random", "looks": "random"}
        return RecordConfig(env="rooms", episodes=episodes, steps=10, seed=seed, options=options)

    first = record(config(4), tmp_path / "a", workers=2, progress=False)
    assert (first.written, first.kept, first.frames, first.short) == (4, 0, 44, 0)
    (tmp_path / "a" / "episode_00001.npz").unlink()  # as if it had been interrupted
    second = record(config(6), tmp_path / "a", progress=False)
    assert (second.written, second.kept) == (3, 3)
    record(config(6), tmp_path / "b", progress=False)
    assert same(tmp_path / "a", tmp_path / "b", 6)
    record(config(6, seed=1), tmp_path / "c", progress=False)
    assert not np.array_equal(episode(tmp_path / "c", 0)["states"], episode(tmp_path / "a", 0)["states"])
    assert not np.array_equal(episode(tmp_path / "a", 0)["states"], episode(tmp_path / "a", 1)["states"])
    with pytest.raises(ValueError, match=r"holds episodes of other settings \(seed: 0 -> 1\)"):
        record(config(6, seed=1), tmp_path / "a", progress=False)


def test_episodes_that_end_by_themselves(tmp_path: Path) -> None:
    config = RecordConfig(env="envs.fake_task:Line", episodes=2, policy="envs.fake_task:half", steps=20)
    result = record(config, tmp_path, progress=False)
    assert (result.short, result.frames) == (2, 18)
    data = episode(tmp_path, 0)
    assert np.allclose(np.diff(data["states"][:, 0]), 0.5)
    assert data["actions"].tolist() == [[0.5]] * 8


def test_stored_actions_are_those_in_force() -> None:
    task = open_task("rooms")
    config = RecordConfig(env="rooms", episodes=1, policy="envs.fake_task:huge", steps=3)
    with pytest.raises(ValueError, match=r"has 2 numbers, not the shape \[1\]"):
        record_episode(task, config, 0)
    with pytest.raises(ValueError, match=r"^action \[0.5, nan\] is not a number$"):
        record_episode(task, RecordConfig(env="rooms", episodes=1, policy="envs.fake_task:wrong"), 0)
    line = open_task("envs.fake_task:Line")
    assert record_episode(line, config, 0).actions.tolist() == [[1.0]] * 3


def test_pusht_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="the extra [pusht] cannot be imported", exc_type=ImportError)
    result = record(
        RecordConfig(env="gym_pusht/PushT-v0", episodes=1, steps=60, options={"side": 32}), tmp_path, progress=False
    )
    data = episode(tmp_path, 0)
    assert (result.frames, data["states"].shape, data["actions"].shape) == (61, (61, 7), (60, 2))
    assert np.abs(data["actions"]).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["romms", "--episodes", "1"], "unknown environment 'romms', did you mean 'rooms'?"),
        (["rooms", "--episodes", "0"], "episodes must be at least 1, not 0"),
        (["rooms", "--episodes", "1", "--fps-step", "0"], "hold must be at least 1, not 0"),
        (["rooms", "--episodes", "1", "--seed", "-1"], "seed must be 0 or more, not -1"),
        (["rooms", "--episodes", "1", "--set", "rooms"], "override 'rooms' must look like key.sub_key=value"),
        (["rooms", "--episodes", "1", "--set", "sid=3"], "unknown config key 'sid', did you mean 'side'?"),
        (
            ["Pendulum-v1", "--episodes", "1", "--set", "fps=abc"],
            "environment 'Pendulum-v1': option fps must be a positive number, not 'abc'",
        ),
        (
            ["Pendulum-v1", "--episodes", "1", "--set", "goal=3"],
            "environment 'Pendulum-v1': option goal must be the path of an image, not 3",
        ),
        (["rooms", "--episodes", "1", "--workers", "-1"], "workers must be at least 1, not -1"),
        (
            ["rooms", "--episodes", "1", "--policy", "smoth"],
            "unknown policy 'smoth', did you mean 'smooth'?; or give MODULE:FUNCTION",
        ),
    ],
)
def test_wrong_command_lines(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = error_of(["data", "record", *arguments, "--out", str(tmp_path / "out")], capsys)
    assert printed == f"jepa: error: {message}"
    assert not (tmp_path / "out").exists()


def test_frames_after_an_end_in_the_middle_of_a_held_action_have_times(tmp_path: Path) -> None:
    options = {"length": 8}  # 5 frames per second; held for 3 steps: frames after 3, 6 and 8 steps
    config = RecordConfig(
        env="envs.fake_task:Line", episodes=1, steps=5, hold=3, policy="envs.fake_task:half", options=options
    )
    record(config, tmp_path, progress=False)
    data = episode(tmp_path, 0)
    assert np.allclose(data["times"], [0.0, 0.6, 1.2, 1.6], atol=1e-12)
    track = open_trajectories(str(tmp_path)).track(0)
    assert np.allclose(track.action_edges, [0.0, 0.6, 1.2, 1.6], atol=1e-12)
    record(replace(config, hold=2), tmp_path / "even", progress=False)
    assert "times" not in episode(tmp_path / "even", 0)


def test_settings_with_which_nothing_was_recorded_do_not_bind(tmp_path: Path) -> None:
    wrong = RecordConfig(env="envs.fake_task:Line", episodes=1, policy="envs.fake_task:wrong")
    with pytest.raises(TaskError, match="an action of this environment has 1 numbers"):
        record(wrong, tmp_path, progress=False)
    record(replace(wrong, policy="envs.fake_task:half"), tmp_path, progress=False)
    assert json.loads((tmp_path / "trajectories.json").read_text())["policy"] == "envs.fake_task:half"
    with pytest.raises(ValueError, match="holds episodes of other settings"):
        record(wrong, tmp_path, progress=False)
    (tmp_path / "episode_00000.npz").rename(tmp_path / "mine.npz")  # what somebody else wrote is not taken over
    with pytest.raises(ValueError, match="holds episodes of other settings"):
        record(wrong, tmp_path, progress=False)
