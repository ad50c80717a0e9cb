"""Batches, statistics and identity of sources of trajectories."""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_checks import assert_same, take
from made_trajectories import numbered, numbers_of, steps, tint_of, write_droid, write_lerobot3, write_npz
from support import write_clips

from jepa.config import ConfigError, from_dict
from jepa.data.loader import DataConfig, TrainLoader, eval_batches
from jepa.data.source_config import SourceConfig
from jepa.data.tar_writer import write_shards
from jepa.data.trajectories import statistics
from jepa.data.trajectories.config import TrajectoryConfig
from jepa.data.video import VideoError
from jepa.inputs import list_inputs
from jepa.types import Batch, ClipConfig

CLIP = ClipConfig(num_frames=4, fps=5.0, crop_size=32)


def source(path: Path, weight: float = 1.0, **trajectory: object) -> SourceConfig:
    return SourceConfig(path=str(path), weight=weight, trajectory=TrajectoryConfig(**trajectory))


def loader(
    *sources: SourceConfig, batch_size: int = 6, rank: int = 0, world_size: int = 1, clip: ClipConfig = CLIP,
    **options: object,
) -> TrainLoader:  # fmt: skip
    data = DataConfig(sources=list(sources), **{"workers": 0, **options})
    return TrainLoader(data, clip, (), batch_size, seed=5, rank=rank, world_size=world_size)


def check_rows(batch: Batch, length: int = 20) -> set[int]:
    """Every row of the batch against the files of ``write_npz``, and the frames with which the rows begin."""
    assert batch.actions is not None
    assert batch.states is not None
    assert batch.index is not None
    assert (batch.actions.dtype, batch.states.dtype) == (torch.float32, torch.float32)
    starts = set()
    for row, clip in enumerate(batch.clip.permute(0, 2, 3, 4, 1).numpy()):
        episode = int(batch.index[row])
        shown = numbers_of(clip)
        assert tint_of(clip) == 10 * episode
        assert shown == list(range(shown[0], shown[0] + 8, 2))
        pairs = steps(length + episode - 1, 2, episode)[shown[0] : shown[-1]].reshape(3, 2, 2)
        np.testing.assert_allclose(batch.actions[row], pairs.mean(axis=1), atol=1e-5)
        np.testing.assert_array_equal(batch.states[row], steps(length + episode, 3, 50 + episode)[shown])
        assert batch.start_s is not None
        assert float(batch.start_s[row]) == pytest.approx(shown[0] / 10)
        starts.add(shown[0])
    return starts


def test_rows_of_a_batch_are_those_of_the_files(tmp_path):
    made = loader(source(write_npz(tmp_path)))
    starts: set[int] = set()
    for batch in take(made, 8):
        assert batch.clip.shape == (6, 3, 4, 32, 48)
        assert batch.actions is not None
        assert batch.actions.shape == (6, 3, 2)
        starts |= check_rows(batch)
    assert len(starts) > 10  # windows begin anywhere


def test_workers_ranks_cache_and_resuming_do_not_change_the_batches(tmp_path):
    folder = source(write_npz(tmp_path))
    straight = take(loader(folder), 4)
    for options in ({"workers": 2}, {"cache_mb": 4}, {"cache_mb": 0.2}):
        for one, other in zip(straight, take(loader(folder, **options), 4), strict=True):
            assert_same(one, other)
    for workers in (0, 2):
        ranks = [take(loader(folder, rank=r, world_size=2, workers=workers), 2) for r in range(2)]
        for step in range(2):
            for name in ("clip", "actions", "states", "index"):
                joined = torch.cat([getattr(ranks[r][step], name) for r in range(2)])
                assert torch.equal(joined, getattr(straight[step], name)), name
    for one, other in zip(straight[2:], take(loader(folder), 2, start=2), strict=True):
        assert_same(one, other)
    copy = pickle.loads(pickle.dumps(loader(folder).dataset))
    assert_same(copy[0][0], straight[0])


def test_several_layouts_in_one_run(tmp_path):
    write_droid(tmp_path / "droid/a")
    same = {"action_rule": "state_difference", "states": ["action", "observation.state", "observation.state"]}
    lerobot = source(write_lerobot3(tmp_path / "lerobot"), weight=3, **same)
    clip = ClipConfig(num_frames=3, fps=5.0, crop_size=32)
    made = loader(lerobot, source(tmp_path / "droid"), batch_size=8, clip=clip)
    batches = take(made, 4)
    assert all(b.actions is not None and b.actions.shape == (8, 2, 7) for b in batches)
    assert {int(i) for b in batches if b.index is not None for i in b.index} == {0, 1, 2, 3}
    assert made.statistics().action_mean.shape == (7,)


def test_statistics_are_those_of_all_steps_at_the_clips_rate(tmp_path):
    one, two = write_npz(tmp_path / "one", 2), write_npz(tmp_path / "two", 1, length=30)
    found = loader(source(one), source(two)).statistics()
    actions, states = [], []
    for episode, length in ((0, 20), (1, 21), (0, 30)):
        rows = steps(length - 1, 2, episode)
        actions += [rows[k : k + 2].mean(axis=0) for k in range(0, length - 2, 2)]
        states += list(steps(length, 3, 50 + episode)[::2])
    np.testing.assert_allclose(found.action_mean, np.mean(actions, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.action_std, np.std(actions, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.action_low, np.min(actions, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.action_high, np.max(actions, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.state_mean, np.mean(states, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.state_std, np.std(states, axis=0), rtol=1e-5)
    again = loader(source(one), source(two)).statistics()
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_episodes_held_out_are_not_in_the_statistics_nor_in_the_batches(tmp_path):
    made = loader(source(write_npz(tmp_path, 4)), holdout=2)
    kept, held = made.sources[0].episodes(), made.validation[0].episodes()
    assert sorted(kept + held) == [0, 1, 2, 3]
    rows = [steps(19 + k, 2, k)[: 2 * ((19 + k) // 2)].reshape(-1, 2, 2).mean(1) for k in kept]
    np.testing.assert_allclose(made.statistics().action_mean, np.concatenate(rows).mean(axis=0), rtol=1e-5)
    tints = {tint_of(c.numpy()) for b in take(made, 3) for c in b.clip.permute(0, 2, 3, 4, 1)}
    assert tints == {10 * k for k in kept}
    batches = list(eval_batches(made.validation, CLIP, 3, segments=2))
    assert [len(b.clip) for b in batches] == [3, 1]
    first = batches[0]
    assert first.actions is not None
    shown = numbers_of(first.clip[0].permute(1, 2, 3, 0).numpy())
    expected = steps(19 + held[0], 2, held[0])[shown[0] : shown[-1]].reshape(3, 2, 2).mean(axis=1)
    np.testing.assert_allclose(first.actions[0], expected, atol=1e-5)
    for one, other in zip(batches, eval_batches(made.validation, CLIP, 3, segments=2, workers=1), strict=True):
        assert_same(one, other)


def test_a_column_that_never_changes_and_bounds_that_the_data_state(tmp_path, caplog):
    write_npz(tmp_path, actions=None)
    for file in tmp_path.glob("*.npz"):
        arrays = dict(np.load(file))
        arrays["actions"] = np.stack((steps(len(arrays["frames"]), 1)[:, 0], np.full(len(arrays["frames"]), 0.5)), 1)
        np.savez(file, **arrays)
    meta = {"fps": 10, "action_low": [-3, 0], "action_high": [99, 1]}
    (tmp_path / "trajectories.json").write_text(json.dumps(meta))
    with caplog.at_level(logging.WARNING, "jepa"):
        found = loader(source(tmp_path)).statistics()
    assert found.action_std[1] == 1
    assert "actions: column 1 is always 0.5; its standard deviation is set to 1" in caplog.text
    assert (found.action_low.tolist(), found.action_high.tolist()) == ([-3, 0], [99, 1])
    summed = loader(source(tmp_path, action_rule="sum")).statistics()
    assert summed.action_low[1] == pytest.approx(1.0)  # two actions in an interval: not one of the stated ones
    (tmp_path / "trajectories.json").write_text(json.dumps({**meta, "action_low": [0]}))
    with pytest.raises(ConfigError, match=r"states bounds of actions \[0\.0\], but its actions have 2 columns"):
        loader(source(tmp_path)).statistics()


def test_actions_without_states(tmp_path):
    made = loader(source(write_npz(tmp_path, states=None)))
    batch = take(made, 1)[0]
    assert (batch.states, made.statistics().state_mean.shape) == (None, (0,))


def test_sources_must_be_of_one_width_and_have_actions(tmp_path):
    write_npz(tmp_path / "one")
    write_npz(tmp_path / "two", states=None)
    write_npz(tmp_path / "three", length=20, episodes=1, actions=steps(19, 3))
    with pytest.raises(ConfigError, match=r"three has actions of width 3, but .*one of width 2: a run takes"):
        loader(source(tmp_path / "one"), source(tmp_path / "three"))
    with pytest.raises(ConfigError, match=r"two has states of width 0, but .*one of width 3"):
        loader(source(tmp_path / "one"), validation=[source(tmp_path / "two")])
    clips = SourceConfig(path=str(write_clips(tmp_path / "clips.npz")))
    with pytest.raises(ConfigError, match=r"clips\.npz has no actions: if it holds recorded episodes, give it 'traj"):
        loader(source(tmp_path / "one"), clips).statistics()
    with pytest.raises(ValueError, match="label_column has no meaning with trajectory"):
        SourceConfig(path="x", label_column="y", trajectory=TrajectoryConfig())
    with pytest.raises(ConfigError, match=r"fps 5\.0 is for arrays and pictures: for episodes set trajectory\.fps"):
        from_dict(SourceConfig, {"path": "x", "fps": 5, "trajectory": {}})


def test_short_episodes_are_left_out_and_counted(tmp_path, caplog):
    write_npz(tmp_path, 3)
    np.savez(tmp_path / "episode_00001.npz", **dict(np.load(write_npz(tmp_path / "x", 1, 5) / "episode_00000.npz")))
    shutil.rmtree(tmp_path / "x")
    made = loader(source(tmp_path), max_failed=0.0)
    with caplog.at_level(logging.INFO, "jepa"):
        batches = take(made, 3)
        found = made.statistics()
    assert sum(b.skipped for b in batches) >= 3
    assert made.failed == {}
    said = [r.message for r in caplog.records if "left out (short_video: skip)" in r.message]
    assert len(said) == 1
    assert "episode_00001.npz has 0.4 s of frames with actions, the clip needs 0.6 s (4 frames 0.2 s apart)" in said[0]
    assert torch.equal(found.action_mean, loader(source(_without(tmp_path, 1))).statistics().action_mean)
    long = ClipConfig(num_frames=32, fps=5.0, crop_size=32)
    with pytest.raises(ConfigError, match=r"no episode that could be used, the first because: .*the clip needs 32"):
        loader(source(tmp_path), clip=long).statistics()
    with pytest.raises(VideoError, match=r"50 videos drawn in a row cannot be used, the last because: .*needs 6\.2 s"):
        take(loader(source(tmp_path), clip=long), 1)


def _without(folder: Path, number: int) -> Path:
    (folder / f"episode_{number:05d}.npz").unlink()
    return folder


def test_an_episode_with_actions_that_are_not_finite_stops_the_run_before_it_begins(tmp_path, caplog):
    write_npz(tmp_path, 3)
    arrays = dict(np.load(tmp_path / "episode_00002.npz"))
    arrays["actions"][7, 1] = np.nan
    np.savez(tmp_path / "episode_00002.npz", **arrays)
    with pytest.raises(VideoError, match=r"1 of 3 files cannot be .*episode_00002\.npz: actions at step 7, column 1"):
        loader(source(tmp_path)).statistics()
    made = loader(source(tmp_path), max_failed=0.5)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "jepa"):
        made.statistics()
        batches = take(made, 3)
    assert list(made.failed) == [str(tmp_path / "episode_00002.npz")]
    assert caplog.text.count("skipped, cannot be decoded") == 1
    assert sum(b.skipped for b in batches) > 0
    for batch in batches:
        check_rows(batch)


def test_resuming_notices_changed_data(tmp_path):
    write_npz(tmp_path / "a")
    first = loader(source(tmp_path / "a"))
    state = first.state_dict()
    moved = shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert loader(source(moved)).load_state_dict(state) == 0
    changes = ({"camera": None, "action_rule": "last"}, {"state_rule": "linear"}, {"fps": 10.0})
    prints = {loader(source(moved, **change)).fingerprint for change in changes}
    assert len(prints | {first.fingerprint}) == 4
    write_npz(moved, episodes=1, length=19)  # one episode was recorded anew
    with pytest.raises(ConfigError, match="the data sources have changed since"):
        loader(source(moved)).load_state_dict(state)


def test_a_wrong_source_is_an_error_before_training(tmp_path):
    write_npz(tmp_path)
    with pytest.raises(ConfigError, match=r"data source .*: .*00000\.npz has no array 'hand' \(actions\); it has"):
        loader(source(tmp_path, actions=["hand"]))
    with pytest.raises(ConfigError, match="did you mean 'camera'"):
        from_dict(SourceConfig, {"path": "x", "trajectory": {"camra": "a"}})


def test_encoding_tells_changed_episodes_and_shards_refuse_them(tmp_path):
    write_npz(tmp_path, 2)
    videos = list_inputs(source(tmp_path), CLIP)
    sizes = [[path.stat().st_size] for path in sorted(tmp_path.glob("*.npz"))]
    assert [video.identity() for video in videos] == sizes
    with pytest.raises(ConfigError, match="episodes cannot be written as shards"):
        write_shards([source(tmp_path)], tmp_path / "shards")


def test_statistics_of_a_very_long_source_look_at_episodes_spread_over_it(tmp_path, monkeypatch):
    made = loader(source(write_npz(tmp_path, 5)))
    monkeypatch.setattr(statistics, "MOST", 2)
    rows = [steps(19 + k, 2, k)[: 2 * ((19 + k) // 2)].reshape(-1, 2, 2).mean(1) for k in (0, 2)]
    np.testing.assert_allclose(made.statistics().action_mean, np.concatenate(rows).mean(axis=0), rtol=1e-5)


def test_an_episode_of_another_width_is_left_out_as_any_other_bad_one(tmp_path):
    write_npz(tmp_path / "wide", 4)
    np.savez(tmp_path / "wide" / "episode_00002.npz", frames=numbered(22), actions=steps(21, 3), states=steps(22, 3))
    made = loader(source(tmp_path / "wide"), max_failed=0.5)
    batches = take(made, 4)
    assert {batch.actions.shape for batch in batches} == {(6, 3, 2)}
    assert sum(batch.skipped for batch in batches) >= 4
    reason = f"{tmp_path}/wide/episode_00002.npz has actions of width 3, other episodes of 2"
    assert list(made.failed.values()) == [reason]
    write_npz(tmp_path / "without", 4)
    np.savez(tmp_path / "without" / "episode_00001.npz", frames=numbered(21), actions=steps(20, 2))
    made = loader(source(tmp_path / "without"), max_failed=0.5)
    assert {batch.states.shape for batch in take(made, 4)} == {(6, 4, 3)}
    reason = f"{tmp_path}/without/episode_00001.npz has states of width 0, other episodes of 3"
    assert list(made.failed.values()) == [reason]


def test_states_of_different_names_do_not_mix(tmp_path):
    def write(name: str, names: list[str] | None) -> SourceConfig:
        folder = write_npz(tmp_path / name)
        (folder / "trajectories.json").write_text(json.dumps({"fps": 10, "state_names": names}))
        return source(folder)

    one, other, silent = write("one", ["x", "y", "z"]), write("other", ["y", "x", "z"]), write("silent", None)
    take(loader(one, silent, one), 1)
    message = re.escape(
        f"data source {tmp_path}/other has states y, x, z, but {tmp_path}/one has x, y, z: a run takes states of one "
        "kind (name them alike in trajectories.json or meta/info.json, or choose columns with trajectory.states)"
    )
    with pytest.raises(ConfigError, match=message):
        loader(silent, one, other)
    with pytest.raises(ConfigError, match=message):
        loader(one, validation=[other])
    take(loader(source(tmp_path / "one", states=["none"]), source(tmp_path / "other", states=["none"])), 1)
    message = f"data source {tmp_path}/few names 2 columns of states (x, y), but its states have 3: name each of them"
    with pytest.raises(ConfigError, match=re.escape(message)):
        loader(write("few", ["x", "y"]))
