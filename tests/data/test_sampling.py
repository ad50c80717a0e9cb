"""Which frames a clip takes."""

from __future__ import annotations

import numpy as np
import pytest

from jepa.data.sampling import ShortVideoError, frame_indices, frame_spacing
from jepa.types import ClipConfig


def test_spacing_of_the_three_ways_to_choose_frames():
    assert frame_spacing(30, ClipConfig(num_frames=16, fps=10)) == 3
    assert frame_spacing(30, ClipConfig(num_frames=16, frame_step=4)) == 4
    assert frame_spacing(30, ClipConfig(num_frames=16, duration_s=2)) == 30 * 2 / 16
    assert frame_spacing(None, ClipConfig(num_frames=16, fps=10)) == 1
    assert frame_spacing(25, ClipConfig(num_frames=1)) == 1


def test_centre_clip_and_its_times():
    choice = frame_indices(100, 10.0, ClipConfig(num_frames=4, frame_step=2))
    assert choice.indices.tolist() == [47, 49, 51, 53]
    assert choice.start_s == pytest.approx(4.7)
    assert choice.end_s == pytest.approx(5.5)


def test_rates_that_do_not_divide_keep_the_true_pace():
    choice = frame_indices(100, 25.0, ClipConfig(num_frames=8, fps=10), np.random.default_rng(0))
    assert (choice.indices - choice.indices[0]).tolist() == [0, 2, 5, 7, 10, 12, 15, 17]
    slow = frame_indices(100, 5.0, ClipConfig(num_frames=4, fps=10))
    assert (slow.indices - slow.indices[0]).tolist() == [0, 0, 1, 1]


def test_random_starts_reach_both_ends_and_stay_inside():
    clip = ClipConfig(num_frames=4, frame_step=1)
    starts = {int(frame_indices(7, 10.0, clip, np.random.default_rng(s)).indices[0]) for s in range(100)}
    assert starts == {0, 1, 2, 3}


def test_segments_spread_over_the_video():
    clip = ClipConfig(num_frames=4, frame_step=1)
    starts = [int(frame_indices(104, 10.0, clip, None, (k, 4)).indices[0]) for k in range(4)]
    assert starts == [12, 37, 63, 88]
    for k in range(4):
        drawn = [frame_indices(104, 10.0, clip, np.random.default_rng(s), (k, 4)).indices[0] for s in range(200)]
        assert 101 * k / 4 - 1 <= min(drawn) <= max(drawn) <= 101 * (k + 1) / 4


def test_spans_restrict_or_centre():
    clip = ClipConfig(num_frames=4, frame_step=1)
    for s in range(50):
        inside = frame_indices(100, 10.0, clip, np.random.default_rng(s), span_s=(2.0, 3.0))
        assert inside.indices[0] >= 20
        assert inside.indices[-1] < 30
    centred = frame_indices(100, 10.0, clip, span_s=(2.0, 2.2), where="centred")
    assert centred.indices.tolist() == [19, 20, 21, 22]
    assert frame_indices(100, 10.0, clip, span_s=(0.0, 0.1), where="centred").indices.tolist() == [0, 1, 2, 3]
    last = frame_indices(100, 10.0, clip, span_s=(9.8, float("inf")), where="centred")
    assert last.indices.tolist() == [96, 97, 98, 99]
    assert frame_indices(100, 10.0, clip, span_s=(9.9, 30.0)).indices.tolist() == [99, 99, 99, 99]


def test_short_video_rules():
    clip = ClipConfig(num_frames=6, frame_step=1)
    assert frame_indices(4, 10.0, clip, short_video="hold").indices.tolist() == [0, 1, 2, 3, 3, 3]
    assert frame_indices(4, 10.0, clip, short_video="loop").indices.tolist() == [0, 1, 2, 3, 0, 1]
    with pytest.raises(ShortVideoError, match=r"b\.mp4 has 4 usable frames, the clip needs 6"):
        frame_indices(4, 10.0, clip, short_video="skip", name="b.mp4")
    assert frame_indices(6, 10.0, clip, short_video="skip").indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert frame_indices(4, 10.0, clip, span_s=(0.2, 0.4)).indices.tolist() == [2, 3, 3, 3, 3, 3]


def test_clips_that_end_where_their_span_ends():
    """Frames before an event and none of it: 20 frames per second, 5 frames at 10 per second, until 3.0 s."""
    clip = ClipConfig(num_frames=5, fps=10.0, crop_size=16)
    for rng in (None, np.random.default_rng(0)):
        last = frame_indices(200, 20.0, clip, rng, span_s=(0.0, 3.0), where="ending")
        assert last.indices.tolist() == [51, 53, 55, 57, 59]  # frame 60 is the one at 3.0 s
    several = [frame_indices(200, 20.0, clip, None, (k, 3), (0.0, 3.0), "ending").indices for k in range(3)]
    assert [int(i[-1]) for i in several] == [25, 42, 59]
    short = frame_indices(200, 20.0, clip, span_s=(0.0, 0.2), where="ending")  # 4 frames there, 9 needed: hold
    assert short.indices.tolist() == [0, 2, 3, 3, 3]
    assert frame_indices(200, 20.0, clip, span_s=(0.0, -1.0), where="ending").indices.tolist() == [0] * 5
    over = frame_indices(200, 20.0, clip, span_s=(9.8, 99.0), where="ending")
    assert over.indices.tolist() == [196, 198, 199, 199, 199]
