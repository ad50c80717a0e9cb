"""Random tubes: an exact share of the patches, hidden at every time, all patches alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.config import ConfigError
from jepa.masks import TubeConfig, build_masks
from jepa.types import TokenGrid


def test_an_exact_share_is_hidden_for_the_whole_clip_at_even_rates() -> None:
    grid, batch_size = TokenGrid(3, 6, 8), 50
    masks, rng = build_masks([TubeConfig(ratio=0.75)], grid)[0], np.random.default_rng(0)
    count = torch.zeros(grid.size)
    for _ in range(40):
        mask = masks.draw(rng, batch_size)
        assert mask.target_ids.shape == (batch_size, 1, 3 * 36)
        assert mask.context_ids.shape == (batch_size, 3 * 12)
        both = torch.cat((mask.context_ids, mask.target_ids[:, 0]), dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(grid.size).expand_as(both))
        count += torch.bincount(mask.target_ids.flatten(), minlength=grid.size)
    assert torch.equal(count.view(3, 48)[0], count.view(3, 48)[2])
    assert (count / (40 * batch_size) - 0.75).abs().max() < 0.04  # four standard deviations


def test_rows_are_slices_of_the_global_draw() -> None:
    masks = build_masks([TubeConfig()], TokenGrid(2, 8, 8))[0]
    whole, part = (masks.draw(np.random.default_rng(1), 6, rows=rows) for rows in (None, slice(4, 6)))
    assert torch.equal(part.target_ids, whole.target_ids[4:6])


def test_a_ratio_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="2x2 grid leaves no context"):
        build_masks([TubeConfig(ratio=0.9)], TokenGrid(4, 2, 2))
    with pytest.raises(ValueError, match="ratio"):
        TubeConfig(ratio=1.0)
