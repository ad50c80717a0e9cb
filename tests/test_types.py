"""The shared containers."""

from __future__ import annotations

import pytest
import torch

from jepa.config import from_dict, to_dict
from jepa.types import Batch, ClipConfig, Mask, TokenGrid


def test_coordinates_are_time_row_column():
    grid = TokenGrid(2, 3, 4)
    coordinates = grid.coordinates(grid.ids())
    assert grid.size == 24
    expected = [[t, r, c] for t in range(2) for r in range(3) for c in range(4)]
    assert coordinates.tolist() == expected
    assert grid.coordinates(torch.tensor([[23, 0]])).tolist() == [[[1, 2, 3], [0, 0, 0]]]


def test_batch_chunks_and_moves_everything_that_belongs_together():
    ids = torch.arange(4)
    mask = Mask(ids[:, None], ids[:, None, None], 0.1)
    times = torch.arange(4, dtype=torch.float64)
    batch = Batch(clip=ids.view(4, 1, 1, 1, 1), masks=[mask], label=ids, start_s=times).to("cpu")
    first, second = batch.chunk(2)
    assert second.clip.flatten().tolist() == second.label.tolist() == [2, 3]
    assert second.masks[0].context_ids.flatten().tolist() == [2, 3]
    assert second.masks[0].discarded == 0.1
    assert second.start_s.tolist() == [2.0, 3.0]
    assert first.size is None
    with pytest.raises(ValueError, match="4 clips does not split into 3"):
        batch.chunk(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 8}, "set exactly one of fps, frame_step, duration_s .*none"),
        ({"num_frames": 8, "fps": 4, "frame_step": 2}, "fps, frame_step"),
        ({"num_frames": 8, "fps": -1}, "fps must be positive"),
        ({"num_frames": 0, "fps": 1}, "at least 1"),
        ({"num_frames": 1, "crop_size": 64, "short_side": 32}, "short_side 32 must not be smaller"),
        ({"num_frames": 1, "std": (0.0, 1.0, 1.0)}, "std must be positive"),
        ({"num_frames": 1, "fit": "squash"}, "fit must be one of crop, keep, stretch, not 'squash'"),
        ({"num_frames": 1, "interpolation": "nearest"}, "interpolation must be one of bilinear, bicubic"),
        ({"num_frames": 1, "crop_size": 64, "short_side": 80, "fit": "keep"}, "short_side 80 has no meaning with fit"),
    ],
)
def test_clip_config_refuses_what_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        ClipConfig(**settings)


def test_a_clip_config_of_an_older_checkpoint_gets_the_defaults():
    stored = to_dict(ClipConfig(num_frames=1, crop_size=64))
    del stored["fit"], stored["interpolation"]
    clip = from_dict(ClipConfig, stored)
    assert (clip.fit, clip.interpolation) == ("crop", "bilinear")
