"""Frames, actions and states by time, against slower ways to say the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jepa.data.sampling import ShortVideoError
from jepa.data.trajectories.timeline import (
    Rules,
    Track,
    choose_window,
    cut,
    interval_actions,
    spacing_s,
    states_at,
    usable_s,
    whole,
)  # fmt: skip
from jepa.types import ClipConfig

RNG = np.random.default_rng(0)


def track(fps: float = 10.0, frames: int = 30, hz: float = 25.0, rows: int = 75, width: int = 3) -> Track:
    """Video at ``fps``, actions and states at ``hz``."""
    values = RNG.normal(size=(rows, width)).astype(np.float32)
    times = np.arange(rows + 1) / hz
    states = np.stack((times[:-1], np.sin(times[:-1]), np.arange(rows)), axis=1).astype(np.float32)
    return Track(
        name="a.npz", frame_times=np.arange(frames) / fps, action_edges=times, actions=values,
        state_times=times[:-1], states=states,
    )  # fmt: skip


def irregular(rows: int = 40) -> Track:
    """Actions of uneven lengths."""
    edges = np.concatenate(([0], np.cumsum(RNG.uniform(0.01, 0.2, rows))))
    return Track(
        name="a", frame_times=np.arange(0, edges[-1], 0.1), action_edges=edges,
        actions=RNG.normal(size=(rows, 2)).astype(np.float32),
    )  # fmt: skip


def by_hand(track: Track, begin: float, end: float, rule: str) -> np.ndarray:
    """The action of an interval, action by action."""
    assert track.action_edges is not None
    assert track.actions is not None
    total, weight = np.zeros(track.actions.shape[1]), 0.0
    for k, action in enumerate(track.actions.astype(float)):
        low, high = track.action_edges[k], track.action_edges[k + 1]
        overlap = max(0.0, min(high, end) - max(low, begin))
        total += action * (overlap / (high - low) if rule == "sum" else overlap)
        weight += overlap
    return total if rule == "sum" else total / weight


@pytest.mark.parametrize("rule", ["mean", "sum"])
@pytest.mark.parametrize("made", [irregular, track])
def test_the_action_of_an_interval_is_that_of_a_loop_over_actions(rule, made):
    episode = made()
    instants = 0.313 + np.arange(9) * 0.217
    found = interval_actions(episode, Rules(action=rule), instants)
    for k, row in enumerate(found):
        np.testing.assert_allclose(row, by_hand(episode, instants[k], instants[k + 1], rule), atol=1e-9)


def test_the_mean_is_that_of_the_action_on_a_fine_grid():
    episode = irregular()
    assert episode.action_edges is not None
    assert episode.actions is not None
    instants = np.array([0.2, 0.75, 1.9])
    found = interval_actions(episode, Rules(), instants)
    for k in range(2):
        fine = np.linspace(instants[k], instants[k + 1], 200_001)[:-1]
        in_force = episode.actions[np.searchsorted(episode.action_edges, fine, side="right") - 1]
        np.testing.assert_allclose(found[k], in_force.mean(axis=0, dtype=np.float64), atol=1e-3)


def test_intervals_of_whole_actions_have_their_mean_sum_and_last():
    episode = track(fps=10, frames=21, hz=10, rows=20)
    assert episode.actions is not None
    instants = np.arange(5) * 0.4
    groups = episode.actions[:16].reshape(4, 4, 3).astype(np.float64)
    np.testing.assert_allclose(interval_actions(episode, Rules(action="mean"), instants), groups.mean(1), atol=1e-9)
    np.testing.assert_allclose(interval_actions(episode, Rules(action="sum"), instants), groups.sum(1), atol=1e-9)
    np.testing.assert_array_equal(interval_actions(episode, Rules(action="last"), instants), groups[:, -1])


def test_video_at_10_fps_and_actions_at_25_hz_align_by_time():
    episode = track()
    clip = ClipConfig(num_frames=4, fps=5.0, crop_size=32)
    window = choose_window(episode, Rules(state="linear"), clip)
    assert np.diff(window.indices).tolist() == [2, 2, 2]  # 0.2 s apart in a video of 10 fps
    times = window.indices / 10
    np.testing.assert_allclose(window.instants, times)
    assert window.states is not None
    np.testing.assert_allclose(window.states[:, 0], times, atol=1e-6)  # the first state is its own time
    np.testing.assert_allclose(window.states[:, 1], np.sin(times), atol=1e-3)
    assert episode.actions is not None
    for k in range(3):  # five actions of 0.04 s in an interval, from number 25 t on
        rows = episode.actions[round(25 * times[k]) : round(25 * times[k]) + 5] if times[k] * 25 % 1 < 1e-6 else None
        expected = by_hand(episode, times[k], times[k + 1], "mean") if rows is None else rows.mean(axis=0)
        np.testing.assert_allclose(window.actions[k], expected, atol=1e-5)
    assert (window.start_s, window.end_s) == (times[0], pytest.approx(times[0] + 0.8))


def test_frames_are_those_on_screen():
    episode = track(fps=10)
    window = cut(episode, Rules(), np.array([0.0, 0.099, 0.1, 0.3333, 0.95]), 1.0)
    assert window.indices.tolist() == [0, 1, 1, 3, 9]  # 0.099: within the slack of a clock
    assert cut(episode, Rules(), np.array([0.09]), 1.0).indices.tolist() == [0]


def test_the_nearest_state_and_angles_between_two():
    episode = Track(
        name="a", frame_times=np.arange(5.0), state_times=np.arange(5.0),
        states=np.array([[0, 3.0], [1, -3.0], [2, -2.0], [3, 0.0], [4, 1.0]], dtype=np.float32),
    )  # fmt: skip
    nearest = states_at(episode, Rules(), np.array([0.4, 0.6, 4.3]))
    assert nearest is not None
    assert nearest[:, 0].tolist() == [0, 1, 4]
    between = states_at(episode, Rules(state="linear", angles=(1,)), np.array([0.5, 1.5]))
    assert between is not None
    np.testing.assert_allclose(between, [[0.5, np.pi], [1.5, -2.5]])  # through pi, not through 0


def test_state_differences_take_the_short_way_and_compose_rotations():
    states = RNG.uniform(-3, 3, (6, 7)).astype(np.float32)
    episode = Track(name="a", frame_times=np.arange(6.0), state_times=np.arange(6.0), states=states)
    instants = np.arange(6.0)
    plain = cut(episode, Rules(action="state_difference"), instants, 6.0).actions
    np.testing.assert_allclose(plain, np.diff(states, axis=0), atol=1e-6)
    angle = cut(episode, Rules(action="state_difference", angles=(6,)), instants, 6.0).actions
    assert (np.abs(angle[:, 6]) <= np.pi).all()
    np.testing.assert_allclose(np.cos(angle[:, 6]), np.cos(plain[:, 6]), atol=1e-5)
    turned = cut(episode, Rules(action="state_difference", euler=(3, 4, 5)), instants, 6.0).actions
    turns = Rotation.from_euler("xyz", states[:, 3:6].astype(float))
    np.testing.assert_allclose(turned[:, 3:6], (turns[1:] * turns[:-1].inv()).as_euler("xyz"), atol=1e-5)
    np.testing.assert_allclose(turned[:, [0, 1, 2, 6]], plain[:, [0, 1, 2, 6]])


def test_windows_begin_at_every_frame_from_which_they_fit_equally_often():
    episode, clip = track(fps=10, frames=12, hz=10, rows=12), ClipConfig(num_frames=4, frame_step=2, crop_size=32)
    rng = np.random.default_rng(0)
    starts = [int(choose_window(episode, Rules(), clip, rng).indices[0]) for _ in range(3000)]
    counts = np.bincount(starts, minlength=6)
    assert len(counts) == 6  # frame 5 + 6 is the last one, number 11
    assert counts.min() > 400
    spread = [choose_window(episode, Rules(), clip, None, (k, 3)).indices[0] for k in range(3)]
    assert [int(s) for s in spread] == [1, 3, 5]
    again = [int(choose_window(episode, Rules(), clip, np.random.default_rng(0)).indices[0]) for _ in range(2)]
    assert again[0] == again[1]


def test_windows_stay_where_actions_and_states_are_known():
    episode = track(fps=10, frames=30, hz=25, rows=40)  # 1.6 s of actions, 2.9 s of video
    assert usable_s(episode, Rules())[1] == pytest.approx(1.58 + 0.005)  # half a state beyond the last one, and slack
    clip = ClipConfig(num_frames=3, fps=10, crop_size=32)
    rng = np.random.default_rng(0)
    last = max(int(choose_window(episode, Rules(), clip, rng).indices[-1]) for _ in range(300))
    assert last == 15


def test_a_short_episode_says_how_short():
    clip = ClipConfig(num_frames=16, fps=4, crop_size=32)
    with pytest.raises(ShortVideoError, match=r"a\.npz has 2\.9 s of frames with actions, the clip needs 3\.75 s"):
        choose_window(track(), Rules(state="nearest"), clip)


def test_a_whole_episode_at_the_clips_rate():
    found = whole(track(), Rules(), ClipConfig(num_frames=2, fps=5, crop_size=32))
    assert found.indices.tolist() == list(range(0, 30, 2))
    assert found.actions.shape == (14, 3)
    assert found.states is not None
    assert found.states.shape == (15, 3)


def test_spacing_of_every_kind_of_clip():
    episode = track(fps=10)
    assert spacing_s(episode, ClipConfig(fps=4, num_frames=2)) == 0.25
    assert spacing_s(episode, ClipConfig(frame_step=3, num_frames=2)) == pytest.approx(0.3)
    assert spacing_s(episode, ClipConfig(duration_s=2, num_frames=8)) == 0.25
