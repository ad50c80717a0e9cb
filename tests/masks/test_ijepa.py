"""I-JEPA masks: M blocks to predict, a context of fixed size that never overlaps them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.config import ConfigError
from jepa.masks import IJepaConfig, build_masks
from jepa.types import TokenGrid


@pytest.mark.parametrize("grid", [TokenGrid(1, 14, 14), TokenGrid(1, 16, 10), TokenGrid(2, 8, 8)], ids=str)
def test_blocks_are_rectangles_apart_from_the_context(grid: TokenGrid) -> None:
    masks, rng = build_masks([IJepaConfig()], grid)[0], np.random.default_rng(0)
    for _ in range(8):
        mask = masks.draw(rng, 6)
        assert mask.target_ids.shape[:2] == (6, 4)
        assert mask.discarded == 0.0
        assert bool((mask.context_ids.diff(dim=1) > 0).all())
        place = grid.coordinates(mask.target_ids)  # [B, M, Nt, 3]
        extent = place.amax(dim=2) - place.amin(dim=2) + 1
        assert torch.equal(extent.prod(dim=-1), torch.full((6, 4), mask.target_ids.shape[2]))  # full boxes
        share = extent[0, 0, 1] * extent[0, 0, 2] / (grid.h * grid.w)
        assert 0.11 < share < 0.24
        for context, target in zip(mask.context_ids, mask.target_ids.flatten(1), strict=True):
            assert not set(context.tolist()) & set(target.tolist())


def test_context_and_target_rates_are_even_over_the_image() -> None:
    grid, batch_size = TokenGrid(1, 12, 12), 32
    masks, rng = build_masks([IJepaConfig()], grid)[0], np.random.default_rng(0)
    counts = torch.zeros(2, grid.size)
    for _ in range(200):
        mask = masks.draw(rng, batch_size)
        counts[0] += torch.bincount(mask.context_ids.flatten(), minlength=grid.size)
        counts[1] += torch.bincount(mask.target_ids.flatten(), minlength=grid.size)
    for count in counts.view(2, 12, 12):
        rows, columns = count.sum(1), count.sum(0)
        for side in (rows, columns):  # mirror images have equal rates; official draws never reach the last row
            torch.testing.assert_close(side, side.flip(0), rtol=0.05, atol=0)
        torch.testing.assert_close(rows[0] / rows.sum(), columns[0] / columns.sum(), rtol=0.25, atol=0)


def test_rows_are_slices_of_the_global_draw_and_rows_differ() -> None:
    masks = build_masks([IJepaConfig()], TokenGrid(1, 10, 10))[0]
    whole = masks.draw(np.random.default_rng(3), 8)
    part = masks.draw(np.random.default_rng(3), 8, rows=slice(3, 6))
    assert torch.equal(part.context_ids, whole.context_ids[3:6])
    assert torch.equal(part.target_ids, whole.target_ids[3:6])
    assert not torch.equal(whole.context_ids[0], whole.context_ids[1])


def test_targets_that_leave_no_context_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave no context on a 3x3 grid"):
        build_masks([IJepaConfig(num_targets=8, target_scale=(0.5, 0.6))], TokenGrid(1, 3, 3))
    with pytest.raises(ValueError, match="num_targets"):
        IJepaConfig(num_targets=0)
