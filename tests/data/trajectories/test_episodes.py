"""Folders of .npz and HDF5, videos beside them, and one .npz of many episodes."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from made_trajectories import numbered, numbers_of, steps, tint_of, write_npz

from jepa.config import ConfigError
from jepa.data.encoding import write_video
from jepa.data.source_config import ClipRequest, ReadOptions
from jepa.data.trajectories.base import Trajectories, TrajectoryError
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.trajectories.opening import open_trajectories
from jepa.types import ClipConfig

CLIP = ClipConfig(num_frames=4, fps=5.0, crop_size=32)
BRIDGE = Path(__file__).parents[4] / "shared" / "data" / "bridge_debug.npz"


def opened(path: Path, **config: object) -> Trajectories:
    return open_trajectories(str(path), TrajectoryConfig(**config))


def first_error(path: Path, **config: object) -> str:
    with pytest.raises(TrajectoryError) as caught:
        opened(path, **config).track(0)
    return str(caught.value)


def test_an_episode_is_what_its_file_holds(tmp_path):
    found = opened(write_npz(tmp_path))
    assert [Path(name).name for name in found.names] == [f"episode_0000{k}.npz" for k in range(3)]
    assert [found.length(k) for k in range(3)] == [20, 21, 22]
    assert found.widths() == (2, 3)
    episode = found.episode(1, CLIP)
    assert numbers_of(episode.frames) == list(range(0, 21, 2))
    assert tint_of(episode.frames) == 10
    stored = np.load(tmp_path / "episode_00001.npz")
    np.testing.assert_allclose(episode.actions, stored["actions"].reshape(10, 2, 2).mean(1), atol=1e-6)
    np.testing.assert_array_equal(episode.states, stored["states"][::2])
    np.testing.assert_allclose(episode.times, np.arange(11) * 0.2)


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_are_mapped_where_they_are_not_compressed(tmp_path, compressed):
    folder = write_npz(tmp_path, episodes=1)
    if compressed:
        arrays = dict(np.load(folder / "episode_00000.npz"))
        np.savez_compressed(folder / "episode_00000.npz", **arrays)
    found = opened(folder)
    with found.open(0, ReadOptions()) as video:
        assert isinstance(video._frames, np.memmap) != compressed
        assert numbers_of(video.read([3, 1, 1, 19])) == [3, 1, 1, 19]
    assert numbers_of(found.read(0, [5, 2], ReadOptions(short_side=16))) == [5, 2]


def test_arrays_in_fortran_order_are_mapped_too(tmp_path):
    frames = np.asfortranarray(numbered(8))
    np.savez(tmp_path / "a.npz", frames=frames, actions=steps(7, 1))
    np.testing.assert_array_equal(opened(tmp_path, fps=10).read(0, range(8), ReadOptions()), frames)


def test_hdf5_with_groups_and_cameras(tmp_path):
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        file["observations/images/front"] = numbered(12, tint=10)
        file["observations/images/wrist"] = numbered(12, tint=90)
        file["observations/qpos"] = steps(12, 4)
        file["action"] = steps(12, 2, seed=1)
    found = opened(tmp_path, fps=10)
    assert found.widths() == (2, 4)
    assert tint_of(found.episode(0, CLIP).frames) == 10
    wrist = opened(tmp_path, fps=10, camera="wrist").episode(0, CLIP)
    assert (tint_of(wrist.frames), numbers_of(wrist.frames)) == (90, [0, 2, 4, 6, 8, 10])
    with opened(tmp_path, fps=10).open(0, ReadOptions()) as video:
        assert numbers_of(video.read([0, 11])) == [0, 11]  # far apart: each by itself
    assert first_error(tmp_path, fps=10, camera="side").endswith("no camera 'side'; it has: front, wrist")


def test_names_of_arrays_can_be_given_and_are_put_side_by_side(tmp_path):
    np.savez(
        tmp_path / "a.npz", film=numbered(6), arm=steps(6, 2, 1), hand=steps(6, 1, 2)[:, 0], speed=steps(6, 3, 3)
    )  # fmt: skip
    found = opened(tmp_path, fps=10, frames="film", actions=["arm", "hand"], states=["speed"])
    track = found.track(0)
    np.testing.assert_array_equal(track.actions, np.concatenate((steps(6, 2, 1), steps(6, 1, 2)), axis=1))
    np.testing.assert_array_equal(track.states, steps(6, 3, 3))
    none = opened(tmp_path, fps=10, frames="film", actions=["arm"], states=["none"])
    assert none.widths() == (2, 0)
    wrong = first_error(tmp_path, fps=10, frames="film", actions=["arms"])
    assert wrong == f"{tmp_path}/a.npz has no array 'arms' (actions); it has: film, arm, hand, speed"
    assert first_error(tmp_path, fps=10, frames="film") == (
        f"{tmp_path}/a.npz has no actions (looked for actions, action); its arrays: film, arm, hand, speed. "
        "Name them in trajectory.actions"
    )
    assert "has no array of frames and no video beside it (a.mp4); its arrays: film, arm" in first_error(tmp_path)


def test_a_video_beside_of_another_rate_than_the_actions(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(30), fps=10)
    times = np.arange(75) / 25
    np.savez(tmp_path / "a.npz", actions=times[:, None], states=times[:, None], action_times=times)
    episode = opened(tmp_path, state_rule="linear").episode(0, CLIP)
    seconds = np.array(numbers_of(episode.frames)) / 10
    np.testing.assert_allclose(seconds, np.arange(15) * 0.2)
    np.testing.assert_allclose(episode.states[:, 0], seconds, atol=1e-6)
    # an action that is its own time, held for 0.04 s: its mean over 0.2 s from t on is t + 0.1 - 0.02
    np.testing.assert_allclose(episode.actions[:, 0], seconds[:-1] + 0.08, atol=1e-6)
    (tmp_path / "a.npz").unlink()
    np.savez(tmp_path / "a.npz", actions=times[:, None], states=times[:, None])
    by_rate = opened(tmp_path, state_rule="linear", action_fps=25).episode(0, CLIP)
    np.testing.assert_allclose(by_rate.actions, episode.actions, atol=1e-6)
    np.testing.assert_allclose(by_rate.states, episode.states, atol=1e-6)
    assert "75 actions for 30 frames: it should have 29 or 30, or times of their own" in first_error(tmp_path)


@pytest.mark.parametrize("path", ["./x", "x", "x/", "x/sub/a.npz", "."])
def test_videos_beside_are_found_however_the_folder_is_written(tmp_path, monkeypatch, path):
    (tmp_path / "x/sub").mkdir(parents=True)
    write_video(tmp_path / "x/sub/a.mp4", numbered(8), fps=10)
    np.savez(tmp_path / "x/sub/a.npz", actions=steps(8, 2))
    monkeypatch.chdir(tmp_path)
    assert open_trajectories(path).length(0) == 8


def test_cameras_in_videos_beside(tmp_path):
    for camera, tint in (("left", 10), ("right", 90)):
        write_video(tmp_path / f"a.{camera}.mp4", numbered(8, tint=tint), fps=10)
    np.savez(tmp_path / "a.npz", actions=steps(8, 2))
    assert tint_of(opened(tmp_path, camera="right").read(0, [0], ReadOptions())) == 90
    assert first_error(tmp_path, camera="up").endswith("a.npz: there is no camera 'up'; there are: left, right")
    assert first_error(tmp_path).endswith("a.npz: names no camera; there are: left, right")


def test_times_in_the_file_count(tmp_path):
    times = np.array([0, 0.1, 0.2, 0.6, 0.7, 0.8, 0.9, 1.0])  # a pause of 0.4 s
    folder = write_npz(tmp_path, episodes=1, length=8, times=times)
    episode = opened(folder).episode(0, ClipConfig(num_frames=2, fps=10, crop_size=32))
    assert numbers_of(episode.frames) == [0, 1, 2, 2, 2, 2, 3, 4, 5, 6, 7]
    assert episode.actions[2:6, 0].tolist() == [2, 2, 2, 2]
    write_npz(tmp_path, episodes=1, length=8, times=times[:-1])
    assert first_error(folder).endswith("episode_00000.npz has 8 frames but 7 times of frames")
    write_npz(tmp_path, episodes=1, length=8, times=times[[0, 2, 1, 3, 4, 5, 6, 7]])
    assert "the times of its frames do not rise at step 2 (0.1)" in first_error(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": steps(7, 2)}, "has 7 actions for 20 frames: it should have 19 or 20"),
        ({"states": steps(18, 2)}, "has 18 states for 20 frames: it should have one for each"),
        ({"actions": np.where(np.arange(19) == 4, np.nan, 1.0)[:, None]}, "actions at step 4, column 0 are nan"),
        ({"states": np.where(steps(20, 2) == 7, np.inf, 1.0)}, "states at step 7, column 0 are inf"),
        ({"actions": np.zeros((19, 2, 2))}, "actions must be [steps, width], not [19, 2, 2]"),
        ({"actions": np.full((19, 1), "a")}, "actions 'actions' hold <U1, not numbers"),
        ({"frames": numbered(20).astype(np.float32)}, "frames must be uint8 [..., T, H, W, 3], not float32"),
        ({"frames": numbered(20)[..., 0]}, "frames must be uint8 [..., T, H, W, 3], not uint8 [20, 32, 48]"),
    ],
)
def test_bad_episodes_name_file_and_step(tmp_path, changes, message):
    error = first_error(write_npz(tmp_path, episodes=1, **changes))
    assert message in error
    assert f"{tmp_path}/episode_00000.npz" in error


def test_columns_of_angles_must_be_there(tmp_path):
    folder = write_npz(tmp_path, episodes=1)
    assert first_error(folder, angles=[5]).endswith("episode_00000.npz has 3 columns of states, but angles is [5]")
    write_npz(folder, episodes=1, states=None)
    assert "has no states, which action_rule state_difference needs" in first_error(
        folder, action_rule="state_difference"
    )


def test_files_that_are_no_arrays(tmp_path):
    (tmp_path / "a.npz").write_text("hello")
    assert first_error(tmp_path, fps=1).startswith(f"{tmp_path}/a.npz cannot be read as .npz: ")
    (tmp_path / "a.npz").rename(tmp_path / "a.h5")
    assert first_error(tmp_path, fps=1).startswith(f"{tmp_path}/a.h5 cannot be read as HDF5: ")
    (tmp_path / "a.h5").unlink()
    with pytest.raises(ConfigError, match=r"holds no episodes: looked for files of arrays \(\.h5, \.hdf5, \.npz\)"):
        opened(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no file of arrays \(\.h5, \.hdf5, \.npz\)"):
        opened(tmp_path, layout="episodes")
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        opened(tmp_path / "nowhere")
    assert "does not say its frame rate: set trajectory.fps" in first_error(write_npz(tmp_path / "x", 1, fps=None))
    (tmp_path / "x" / "trajectories.json").write_text(json.dumps({"fps": -1}))
    with pytest.raises(ConfigError, match="fps, if it is there, is a positive number"):
        opened(tmp_path / "x")


@pytest.mark.skipif(not BRIDGE.is_file(), reason="the shared data are not here")
def test_many_episodes_of_several_cameras_in_one_file():
    stored = np.load(BRIDGE)
    found = opened(BRIDGE, fps=5, camera="2")
    assert (len(found), found.widths()) == (25, (7, 7))
    episode = found.episode(7, CLIP)
    np.testing.assert_array_equal(episode.frames, stored["images"][7, 2])
    np.testing.assert_array_equal(episode.states, stored["states"][7])
    np.testing.assert_allclose(episode.actions, stored["actions"][7, :9], atol=1e-6)
    assert found.names[7].endswith("bridge_debug.npz[7]")
    with pytest.raises(ConfigError, match="images has no such camera; it has: 0, 1, 2"):
        opened(BRIDGE, fps=5, camera="3")


def test_many_episodes_of_different_lengths(tmp_path):
    frames = np.stack([numbered(10, tint=10 * k) for k in range(3)])
    np.savez(
        tmp_path / "a.npz", frames=frames, actions=np.stack([steps(9, 2, k) for k in range(3)]),
        states=np.stack([steps(10, 3, k) for k in range(3)]), lengths=np.array([10, 6, 8]), fps=10.0,
    )  # fmt: skip
    found = opened(tmp_path / "a.npz")
    assert [found.length(k) for k in range(3)] == [10, 6, 8]
    episode = found.episode(1, ClipConfig(num_frames=2, fps=10, crop_size=32))
    assert (numbers_of(episode.frames), tint_of(episode.frames)) == (list(range(6)), 10)
    np.testing.assert_allclose(episode.actions, steps(9, 2, 1)[:5], atol=1e-6)
    clip = found.cut(2, found.open(2, ReadOptions()), CLIP, ClipRequest(None, (1, 2)))
    assert numbers_of(clip.frames) == [1, 3, 5, 7]
    np.savez(tmp_path / "a.npz", frames=frames, actions=np.zeros((2, 9, 2)), fps=10.0)
    with pytest.raises(ConfigError, match=r"actions \[2, 9, 2\] do not belong to frames \[3, 10, 32, 48, 3\]"):
        opened(tmp_path / "a.npz")


def test_config_is_checked():
    with pytest.raises(ValueError, match="action_rule must be one of auto, mean, sum, last, state_difference, not 'x'"):
        TrajectoryConfig(action_rule="x")
    with pytest.raises(ValueError, match="fps must be positive, not 0"):
        TrajectoryConfig(fps=0)
    with pytest.raises(ValueError, match=r"euler must be the three columns of a rotation, not \[3\]"):
        TrajectoryConfig(euler=[3])
    with pytest.raises(ValueError, match="different columns of the states, counted from 0"):
        TrajectoryConfig(angles=[1, 1])
    with pytest.raises(ValueError, match="cannot be both in angles"):
        TrajectoryConfig(angles=[3], euler=[3, 4, 5])


@pytest.mark.parametrize(
    ("fps", "shown"), [([10.0, 10.0], "[10.0, 10.0]"), (0.0, "0.0"), ("ten", "'ten'"), (np.nan, "nan")]
)
def test_a_rate_in_the_file_that_is_none(tmp_path, fps, shown):
    error = first_error(write_npz(tmp_path, episodes=1, fps=None))
    assert error.endswith("does not say its frame rate: set trajectory.fps")
    file = tmp_path / "episode_00000.npz"
    np.savez(file, **{**dict(np.load(file)), "fps": np.array(fps)})
    assert first_error(tmp_path) == f"{file}: fps must be one positive number, not {shown}"


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"action_low": ["x", 1]}, "action_low must be a list of numbers, one for each column, not ['x', 1]"),
        ({"action_high": 1}, "action_high must be a list of numbers, one for each column, not 1"),
        ({"state_names": "xyz"}, "state_names must be a list of names, one for each column, not 'xyz'"),
    ],
)
def test_what_trajectories_json_says_is_checked(tmp_path, stated, message):
    (write_npz(tmp_path) / "trajectories.json").write_text(json.dumps({"fps": 10, **stated}))
    with pytest.raises(ConfigError) as error:
        opened(tmp_path)
    assert str(error.value) == f"{tmp_path}/trajectories.json: {message}"


def test_many_episodes_in_one_file_take_names_and_bounds_too(tmp_path):
    frames, actions = np.stack([numbered(6)] * 2), np.zeros((2, 5, 2))
    np.savez(tmp_path / "all.npz", frames=frames, actions=actions, states=np.zeros((2, 6, 1)))
    stated = {"fps": 10, "action_low": [-1, -2], "action_high": [1, 2], "state_names": ["x"]}
    (tmp_path / "trajectories.json").write_text(json.dumps(stated))
    found = opened(tmp_path / "all.npz")
    assert (found.state_names, found.action_low.tolist(), found.action_high.tolist()) == (("x",), [-1, -2], [1, 2])
    assert found.widths() == (2, 1)
