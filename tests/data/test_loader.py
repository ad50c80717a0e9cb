"""Batches: the same for any number of workers and ranks, resumable, and honest about bad files."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_checks import assert_same, take

from jepa.config import ConfigError
from jepa.data.batches import Failure, collate
from jepa.data.loader import DataConfig, TrainLoader, eval_batches, eval_options, open_data
from jepa.data.sources import RawClip, SourceConfig, open_source
from jepa.data.video import VideoError
from jepa.masks import MultiBlockConfig, build_masks
from jepa.types import ClipConfig, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=10, crop_size=32, short_side=40)
MASKS = build_masks([MultiBlockConfig()], TokenGrid(2, 8, 8))


def loader(folder: Path, batch_size: int = 8, rank: int = 0, world_size: int = 1, **options: object) -> TrainLoader:
    data = DataConfig(sources=[SourceConfig(path=str(folder))], **{"workers": 0, **options})
    return TrainLoader(data, CLIP, MASKS, batch_size, seed=5, rank=rank, world_size=world_size)


def test_batches_have_the_promised_shapes_and_content(video_folder, frame_numbers):
    batch = take(loader(video_folder), 1)[0]
    assert batch.clip.shape == (8, 3, 4, 40, 60)
    assert batch.clip.dtype == torch.uint8
    assert batch.size.tolist() == [[40, 60]] * 8
    assert len(batch.masks) == 1
    assert batch.masks[0].context_ids.shape[0] == 8
    assert len(set(batch.index.tolist())) == 8  # no video twice within an epoch
    assert len(set(batch.augment_seed.tolist())) == 8
    for clip, start, end in zip(batch.clip, batch.start_s, batch.end_s, strict=True):
        assert frame_numbers(clip.permute(1, 2, 3, 0).numpy())[0] == round(float(start) * 10)
        assert float(end - start) == pytest.approx(0.4)


def test_workers_and_cache_do_not_change_the_batches(video_folder):
    straight = take(loader(video_folder), 4)
    for options in ({"workers": 1}, {"workers": 2}, {"cache_mb": 8}, {"workers": 2, "cache_mb": 8}, {"cache_mb": 0.5}):
        for one, other in zip(straight, take(loader(video_folder, **options), 4), strict=True):
            assert_same(one, other)


def test_a_spawned_worker_would_make_the_same_batches(video_folder):
    source = loader(video_folder, cache_mb=8)
    straight = take(source, 2)
    copy = pickle.loads(pickle.dumps(source.dataset))
    for step in range(2):
        assert_same(copy[step][0], straight[step])


def test_ranks_share_the_global_batch(video_folder):
    whole = take(loader(video_folder), 2)
    ranks = [take(loader(video_folder, rank=r, world_size=2), 2) for r in range(2)]
    for step in range(2):
        parts = [ranks[r][step] for r in range(2)]
        for name in ("clip", "label", "index", "start_s", "augment_seed"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole[step], name)), name
        for name in ("context_ids", "target_ids"):
            joined = torch.cat([getattr(p.masks[0], name) for p in parts])
            assert torch.equal(joined, getattr(whole[step].masks[0], name))
    with pytest.raises(ConfigError, match="batch_size 8 must be a positive multiple of the 3 processes"):
        loader(video_folder, world_size=3)


def test_resuming_gives_the_batches_of_running_through(video_folder):
    first = loader(video_folder)
    straight = take(first, 5)
    assert first.state_dict()["step"] == 5
    stopped = loader(video_folder)
    take(stopped, 3)
    resumed = loader(video_folder)
    start = resumed.load_state_dict(stopped.state_dict())
    assert start == 3
    for one, other in zip(straight[3:], take(resumed, 2, start), strict=True):
        assert_same(one, other)


def test_another_seed_gives_other_batches_and_a_changed_folder_cannot_resume(video_folder, tmp_path):
    source = loader(video_folder)
    other = TrainLoader(source.data, CLIP, MASKS, 8, seed=6)
    assert take(source, 1)[0].index.tolist() != take(other, 1)[0].index.tolist()
    with pytest.raises(ConfigError, match="seed was 5, now 6"):
        other.load_state_dict(source.state_dict())
    copy = shutil.copytree(video_folder, tmp_path / "copy")
    assert loader(copy).load_state_dict(source.state_dict()) == 1  # moving the folder is no change
    (copy / "left" / "01.mp4").unlink()
    with pytest.raises(ConfigError, match="sources have changed"):
        loader(copy).load_state_dict(source.state_dict())


def test_several_clips_of_a_video_are_neighbours(video_folder):
    batch = take(loader(video_folder, clips_per_video=2), 1)[0]
    pairs = batch.index.view(4, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert bool((batch.start_s.view(4, 2)[:, 0] <= batch.start_s.view(4, 2)[:, 1]).all())


@pytest.fixture
def spoiled(video_folder, tmp_path) -> Path:
    """Twelve good videos, an empty one and a text file called .mp4."""
    folder = shutil.copytree(video_folder, tmp_path / "spoiled")
    (folder / "left" / "98.mp4").touch()
    (folder / "left" / "99.mp4").write_text("hello")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_replaced_counted_and_named_once(spoiled, caplog, workers):
    source = loader(spoiled, max_failed=0.2, workers=workers)
    with caplog.at_level(logging.WARNING, "jepa"):
        batches = take(source, 8)
    assert {len(b.clip) for b in batches} == {8}
    assert sum(b.skipped for b in batches) >= 8
    assert sorted(Path(p).name for p in source.failed) == ["98.mp4", "99.mp4"]
    named = [r.message for r in caplog.records if "98.mp4" in r.message]
    assert len(named) == 1
    assert "is empty (0 bytes)" in named[0]
    for one, other in zip(batches, take(loader(spoiled, max_failed=0.2), 8), strict=True):
        assert_same(one, other)  # replacements are part of the same sequence


def test_too_many_bad_files_stop_the_run(spoiled):
    for workers in (0, 1):
        with pytest.raises(VideoError, match=r"[12] of 14 files cannot be decoded, more than the share 0.05") as caught:
            take(loader(spoiled, workers=workers), 8)
        assert "\n" not in str(caught.value)


def test_only_bad_files_end_with_a_message_instead_of_a_search_without_end(tmp_path):
    (tmp_path / "a.mp4").touch()
    for workers in (0, 1):
        with pytest.raises(VideoError, match=r"in a row cannot be used.*a\.mp4 is empty"):
            take(loader(tmp_path, max_failed=1.0, workers=workers), 1)


def test_short_videos_skip_loop_hold(video_folder):
    long_clip = ClipConfig(num_frames=30, fps=10, crop_size=32, short_side=40)
    for rule in ("hold", "loop", "skip"):
        data = DataConfig(sources=[SourceConfig(path=str(video_folder))], workers=0, short_video=rule, max_failed=0.0)
        batches = take(TrainLoader(data, long_clip, [], 6), 4)
        lengths = {20 + 2 * int(Path(p).stem) for b in batches for i in b.index for p in [_path(data, int(i))]}
        assert (min(lengths) >= 30) == (rule == "skip")
        assert (sum(b.skipped for b in batches) > 0) == (rule == "skip")


def _path(data: DataConfig, index: int) -> str:
    return open_source(data.sources[0]).paths[index]


def test_sources_mix_by_weight(video_folder, tmp_path):
    np.save(tmp_path / "clips.npy", np.zeros((3, 6, 40, 60, 3), dtype=np.uint8))
    sources = [SourceConfig(path=str(video_folder)), SourceConfig(path=str(tmp_path / "clips.npy"), weight=3.0)]
    data = DataConfig(sources=sources, workers=0)
    batches = take(TrainLoader(data, CLIP, [], 64), 4)
    share = float(torch.cat([b.index for b in batches]).ge(12).float().mean())
    assert share == pytest.approx(0.75, abs=0.08)


def test_mixed_sources_share_class_ids(tmp_path):
    clips = np.zeros((2, 6, 40, 60, 3), dtype=np.uint8)
    for name, labels in (("a", ["cat", "owl"]), ("b", ["owl", "bee"])):
        np.savez(tmp_path / f"{name}.npz", clips=clips, labels=np.array(labels))
    sources = [SourceConfig(path=str(tmp_path / f"{name}.npz")) for name in "ab"]
    train, held = open_data(DataConfig(sources=sources, validation=sources[1:]), CLIP)
    assert [s.class_names for s in (*train, *held)] == [("bee", "cat", "owl")] * 3
    assert [s.labels.tolist() for s in (*train, *held)] == [[1, 2], [2, 0], [2, 0]]


def test_holdout_keeps_videos_out_of_training(video_folder):
    data = DataConfig(sources=[SourceConfig(path=str(video_folder))], holdout=4, workers=0)
    train, held = open_data(data, CLIP)
    assert (len(train[0]), len(held[0])) == (8, 4)
    assert not set(train[0].paths) & set(held[0].paths)
    assert open_data(data, CLIP)[1][0].paths == held[0].paths
    assert len(open_data(dataclasses.replace(data, validation=data.sources), CLIP)[1][0]) == 12
    with pytest.raises(ConfigError, match="holdout 12 leaves nothing"):
        open_data(dataclasses.replace(data, holdout=12), CLIP)


def test_a_limit_takes_nested_parts_of_what_is_not_held_out(video_folder):
    data = DataConfig(sources=[SourceConfig(path=str(video_folder))], holdout=4, workers=0)
    rest = set(open_data(data, CLIP)[0][0].paths)
    kept = []
    for limit in (1, 3, len(rest)):
        (train,), (held,) = open_data(dataclasses.replace(data, limit=limit), CLIP)
        assert len(train) == limit
        assert held.paths == open_data(data, CLIP)[1][0].paths
        kept.append(set(train.paths))
    assert kept[0] < kept[1] < kept[2] == rest
    given = dataclasses.replace(data, holdout=0, validation=data.sources, limit=2)
    assert [len(sources[0]) for sources in open_data(given, CLIP)] == [2, 12]
    for limit, message in (
        (9, "limit 9 is more than the 8 videos that there are to train on"),
        (0, "limit must be at least 1 video, not 0: leave it out for all"),
    ):
        with pytest.raises(ValueError) as error:
            open_data(dataclasses.replace(data, limit=limit), CLIP)
        assert str(error.value) == message
    two = dataclasses.replace(data, sources=[*data.sources, *data.sources], limit=1)
    with pytest.raises(ConfigError, match=r"limit 1 leaves nothing of .*: raise it or remove the source"):
        open_data(two, CLIP)


def test_eval_batches_are_ordered_complete_and_repeatable(spoiled):
    source = open_source(SourceConfig(path=str(spoiled)), eval_options(CLIP))
    failures: list[Failure] = []
    batches = list(eval_batches(source, CLIP, 5, segments=2, failures=failures))
    assert [len(b.clip) for b in batches] == [5, 5, 5, 5, 4]
    index = torch.cat([b.index for b in batches]).tolist()
    bad = {i for i, p in enumerate(source.paths) if Path(p).stem in ("98", "99")}
    assert index == [i for i in range(14) if i not in bad for _ in range(2)]
    assert sorted(Path(f.path).stem for f in failures) == ["98", "99"]
    again = list(eval_batches([source], CLIP, 5, segments=2, workers=1, failures=[]))
    for one, other in zip(batches, again, strict=True):
        assert_same(one, other)
    with pytest.raises(VideoError, match=r"98\.mp4"):
        list(eval_batches(source, CLIP, 5))


def test_collate_pads_at_the_bottom_and_the_right():
    clips = [RawClip(np.full((2, h, w, 3), 9, dtype=np.uint8), 0.0, 1.0, -1) for h, w in ((4, 6), (5, 3))]
    batch = collate(clips, [0, 1], [0, 0])
    assert batch.clip.shape == (2, 3, 2, 5, 6)
    assert batch.size.tolist() == [[4, 6], [5, 3]]
    assert batch.clip[0, :, :, :4, :6].eq(9).all()
    assert int(batch.clip[0].sum()) == 9 * 3 * 2 * 24
    assert int(batch.clip[1].sum()) == 9 * 3 * 2 * 15


def test_config_names_what_is_wrong():
    good = [SourceConfig(path="x")]
    for name, value in (("workers", -1), ("max_failed", 1.5), ("clips_per_video", 0), ("cache_mb", -1)):
        with pytest.raises(ValueError, match=name):
            DataConfig(sources=good, **{name: value})
    with pytest.raises(ValueError, match="sources must name"):
        DataConfig(sources=[])
