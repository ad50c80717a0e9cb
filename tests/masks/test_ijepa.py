"""I-JEPA masks: M blocks to predict, a context of fixed size that never overlaps them."""

from __future__ import annotations

import math
import random

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


def pure_geometry(side: int, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts of targets and of context over the rows of a square image: block by block, nothing trimmed."""
    rng = random.Random(3)
    target, context = np.zeros(side), np.zeros(side)
    for _ in range(draws):
        area, ratio = rng.uniform(0.15, 0.2) * side * side, rng.uniform(0.75, 1.5)
        tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        covered = np.zeros((side, side))
        for _ in range(4):
            top, left = rng.randint(0, side - tall), rng.randint(0, side - wide)
            covered[top : top + tall, left : left + wide] += 1
        large = round(math.sqrt(rng.uniform(0.85, 1.0) * side * side))
        top, left = rng.randint(0, side - large), rng.randint(0, side - large)
        block = np.zeros((side, side))
        block[top : top + large, left : left + large] = 1
        target += covered.sum(axis=1)
        context += (block * (covered == 0)).sum(axis=1)
    return torch.from_numpy(target).float(), torch.from_numpy(context).float()


def test_context_and_target_rates_by_row_are_those_of_the_geometry() -> None:
    grid = TokenGrid(1, 14, 14)
    masks, rng = build_masks([IJepaConfig()], grid)[0], np.random.default_rng(0)
    counts = torch.zeros(2, grid.size)
    for _ in range(300):
        mask = masks.draw(rng, 32)
        counts[0] += torch.bincount(mask.target_ids.flatten(), minlength=grid.size)
        counts[1] += torch.bincount(mask.context_ids.flatten(), minlength=grid.size)
    for count, truth in zip(counts.view(2, 14, 14), pure_geometry(14, 6000), strict=True):
        rows = count.sum(dim=1)
        torch.testing.assert_close(rows, rows.flip(0), rtol=0.05, atol=0)  # the first and the last row alike
        folded, expected = rows + rows.flip(0), truth + truth.flip(0)
        # sampling leaves about 2 % at the edges, measured over repeats; choosing targets by what they leave gave 4-10 %
        torch.testing.assert_close(folded / folded.sum(), expected / expected.sum(), rtol=0.05, atol=0)


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
