"""DROID folders as V-JEPA 2-AC reads them, but by the cameras' clocks."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from made_trajectories import numbers_of, steps, tint_of, write_droid
from scipy.spatial.transform import Rotation

from jepa.config import ConfigError
from jepa.data.source_config import ReadOptions
from jepa.data.trajectories.base import Trajectories, TrajectoryError
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.trajectories.opening import open_trajectories
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=3, fps=5.0, crop_size=32)


def opened(path: Path, **config: object) -> Trajectories:
    return open_trajectories(str(path), TrajectoryConfig(**config))


def rows_of(folder: Path, name: str) -> np.ndarray:
    with h5py.File(folder / "trajectory.h5") as file:
        return np.asarray(file[name])


def test_states_and_actions_are_those_of_vjepa2_ac_at_the_clocks_rate(tmp_path):
    write_droid(tmp_path / "lab/a")
    write_droid(tmp_path / "lab/b", frames=20, rows=21)  # the last row has no picture
    found = opened(tmp_path)
    assert (len(found), found.widths(), found.length(1)) == (2, (7, 7), 20)
    episode = found.episode(0, CLIP)
    assert numbers_of(episode.frames) == list(range(0, 30, 3))  # 15 Hz by the clock, though the MP4 says 60
    assert tint_of(episode.frames) == 60  # "left"
    pose = rows_of(tmp_path / "lab/a", "observation/robot_state/cartesian_position")[::3]
    hand = rows_of(tmp_path / "lab/a", "observation/robot_state/gripper_position")[::3]
    np.testing.assert_allclose(episode.states, np.column_stack((pose, hand)), atol=1e-6)
    np.testing.assert_allclose(episode.actions[:, :3], np.diff(pose[:, :3], axis=0), atol=1e-6)
    turns = Rotation.from_euler("xyz", pose[:, 3:])
    np.testing.assert_allclose(episode.actions[:, 3:6], (turns[1:] * turns[:-1].inv()).as_euler("xyz"), atol=1e-5)
    np.testing.assert_allclose(episode.actions[:, 6], np.diff(hand), atol=1e-6)
    assert np.abs(episode.actions[:, 5]).max() < 1  # though the angle goes beyond pi on the way


def test_cameras_by_role_and_number(tmp_path):
    write_droid(tmp_path)
    for camera, tint in (("wrist", 0), ("left", 60), ("right", 120), ("33", 120)):
        assert tint_of(opened(tmp_path, camera=camera).read(0, [3], ReadOptions())) == tint
    with pytest.raises(TrajectoryError, match=r"no camera top in recordings/MP4; there are: left \(22\), right \(33\)"):
        opened(tmp_path, camera="top").track(0)


def test_recorded_actions_and_a_rate_that_is_set(tmp_path):
    write_droid(tmp_path)
    mean = opened(tmp_path, action_rule="mean").episode(0, CLIP)
    expected = steps(30, 6)[:27].reshape(9, 3, 6).mean(axis=1)
    np.testing.assert_allclose(mean.actions[:, :6], expected, atol=1e-2)  # clocks of whole milliseconds
    by_player = opened(tmp_path, fps=60).episode(0, ClipConfig(num_frames=2, fps=10, crop_size=32))
    assert numbers_of(by_player.frames) == [0, 6, 12, 18, 24]
    velocity = ["action/cartesian_velocity"]
    assert opened(tmp_path, action_rule="last", actions=velocity).widths() == (6, 7)


def test_poses_as_the_camera_sees_them(tmp_path):
    write_droid(tmp_path)
    track, seen = opened(tmp_path).track(0), opened(tmp_path, camera_frame=True).track(0)
    assert track.extrinsics is not None
    camera = Rotation.from_euler("xyz", track.extrinsics[0, 3:])
    expected = camera.inv().apply(track.states[:, :3] - track.extrinsics[0, :3])
    np.testing.assert_allclose(seen.states[:, :3], expected, atol=1e-5)
    np.testing.assert_array_equal(seen.states[:, 6], track.states[:, 6])
    with pytest.raises(ConfigError, match="camera_frame needs states that begin with x, y, z and euler 3, 4, 5"):
        opened(tmp_path, camera_frame=True, states=["observation/robot_state/gripper_position"])


def test_times_beside_the_video_say_which_pictures_are_missing(tmp_path):
    write_droid(tmp_path, frames=20, rows=30)
    with pytest.raises(TrajectoryError, match=r"22\.mp4 has 20 frames, but trajectory\.h5 30 rows, and .*_timestamps"):
        opened(tmp_path).track(0)
    clock = rows_of(tmp_path, "observation/timestamp/cameras/22_frame_received")
    there = np.delete(np.arange(30), np.arange(3, 30, 3))  # every third one from 3 on was dropped
    beside = tmp_path / "recordings/MP4/22_timestamps.json"
    beside.write_text(json.dumps(clock[there][:20].tolist()))
    episode = opened(tmp_path).episode(0, CLIP)
    pose = rows_of(tmp_path, "observation/robot_state/cartesian_position")
    np.testing.assert_allclose(episode.states[:, :6], pose[: 3 * len(episode.states) : 3], atol=1e-6)
    shown = there[numbers_of(episode.frames)]  # where the row's own picture is missing, the one before it
    rows = np.arange(len(episode.states)) * 3
    assert shown.tolist() == [row if row in there[:20] else row - 1 for row in rows]
    beside.write_text("[1, 2]")
    with pytest.raises(TrajectoryError, match=r"_timestamps\.json must hold 20 times, one for each frame of"):
        opened(tmp_path).track(0)


def test_a_table_of_folders_as_vjepa2_has_it(tmp_path):
    write_droid(tmp_path / "a")
    (tmp_path / "list.csv").write_text("a\n")
    assert opened(tmp_path / "list.csv").length(0) == 30
    (tmp_path / "list.csv").write_text("b\n")
    with pytest.raises(TrajectoryError, match=r"b has no trajectory\.h5"):
        opened(tmp_path / "list.csv").track(0)


def test_missing_arrays_are_named(tmp_path):
    write_droid(tmp_path)
    with h5py.File(tmp_path / "trajectory.h5", "a") as file:
        del file["observation/timestamp"]
    with pytest.raises(TrajectoryError, match=r"has no times \(observation/timestamp/cameras/22_frame_received or"):
        opened(tmp_path).track(0)
    assert opened(tmp_path, fps=15).length(0) == 30
    with h5py.File(tmp_path / "trajectory.h5", "a") as file:
        del file["observation/robot_state/gripper_position"]
    with pytest.raises(TrajectoryError, match=r"has no array 'observation/robot_state/gripper_position' \(states\)"):
        opened(tmp_path, fps=15).track(0)
    with pytest.raises(ConfigError, match="has no extrinsics: camera_frame is for layout droid"):
        opened(_npz(tmp_path / "x"), camera_frame=True)


def _npz(folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "a.npz", actions=np.zeros((1, 1)))
    return folder
