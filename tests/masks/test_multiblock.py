"""Multi-block masks: exact shapes, and rates that follow from the block geometry alone."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa.config import ConfigError
from jepa.masks import MaskFamily, MultiBlockConfig, build_masks
from jepa.types import Mask, TokenGrid

SHORT = MultiBlockConfig()
LONG = MultiBlockConfig(num_blocks=2, scale=(0.7, 0.7))
GRIDS = [TokenGrid(8, 14, 14), TokenGrid(4, 8, 8), TokenGrid(8, 16, 16)]


def family(config: MultiBlockConfig, grid: TokenGrid) -> MaskFamily:
    return build_masks([config], grid)[0]


def rates(config: MultiBlockConfig, grid: TokenGrid, draws: int, batch_size: int = 24) -> tuple[Tensor, Tensor, float]:
    """How often every token is target and context, ``[t, h, w]`` each, and the share of discarded tokens."""
    masks, rng = family(config, grid), np.random.default_rng(7)
    counts, discarded = torch.zeros(2, grid.size), 0.0
    for _ in range(draws):
        mask = masks.draw(rng, batch_size)
        for row, ids in enumerate((mask.target_ids, mask.context_ids)):
            counts[row] += torch.bincount(ids.flatten(), minlength=grid.size)
        discarded += mask.discarded / draws
    target, context = (counts / (draws * batch_size)).view(2, *grid)
    return target, context, discarded


def pure_geometry(config: MultiBlockConfig, grid: TokenGrid, draws: int) -> Tensor:
    """The share of draws in which a union of blocks covers each token: block by block, nothing trimmed."""
    rng, covered = random.Random(3), np.zeros(grid)
    for _ in range(draws):
        area = rng.uniform(*config.scale) * grid.h * grid.w
        ratio = rng.uniform(*config.aspect_ratio)
        tall = min(max(round(math.sqrt(area * ratio)), 1), grid.h)
        wide = min(max(round(math.sqrt(area / ratio)), 1), grid.w)
        long = min(max(round(rng.uniform(*config.duration) * grid.t), 1), grid.t)
        union = np.zeros(grid, dtype=bool)
        for _ in range(config.num_blocks):
            free = (grid.t - long, grid.h - tall, grid.w - wide)
            start, top, left = (rng.randint(0, last) for last in free)
            union[start : start + long, top : top + tall, left : left + wide] = True
        covered += union
    return torch.from_numpy(covered / draws).float()


@pytest.mark.parametrize("grid", [TokenGrid(4, 8, 8), TokenGrid(3, 12, 9), TokenGrid(2, 14, 14)], ids=str)
@pytest.mark.parametrize("config", [SHORT, LONG], ids=["short", "long"])
def test_rates_by_time_and_row_are_those_of_the_geometry(config: MultiBlockConfig, grid: TokenGrid) -> None:
    target, context, _ = rates(config, grid, draws=200)
    truth = pure_geometry(config, grid, draws=4000)
    assert torch.equal(target + context, torch.ones(grid))  # every token is one or the other
    torch.testing.assert_close(target.mean((1, 2)), target.mean().expand(grid.t), rtol=1e-5, atol=0)
    torch.testing.assert_close(target.mean((0, 2)), truth.mean((0, 2)), rtol=0.06, atol=0.01)
    torch.testing.assert_close(context.mean((0, 2)), 1 - truth.mean((0, 2)), rtol=0.08, atol=0.01)
    torch.testing.assert_close(target.mean((0, 1)), truth.mean((0, 1)), rtol=0.06, atol=0.01)


def test_rates_over_time_follow_blocks_that_do_not_last_for_the_whole_clip() -> None:
    config, grid = MultiBlockConfig(num_blocks=4, scale=(0.2, 0.4), duration=(0.4, 0.8)), TokenGrid(6, 6, 6)
    target, context, _ = rates(config, grid, draws=300, batch_size=16)
    truth = pure_geometry(config, grid, draws=4000)
    assert truth.mean((1, 2)).max() > 1.5 * truth.mean((1, 2)).min()  # geometry itself depends on time here
    torch.testing.assert_close(target.mean((1, 2)), truth.mean((1, 2)), rtol=0.08, atol=0.015)
    torch.testing.assert_close(context.mean((0, 2)), 1 - truth.mean((0, 2)), rtol=0.08, atol=0.015)


@pytest.mark.parametrize("config", [SHORT, LONG], ids=["short", "long"])
def test_reference_mode_starves_the_last_tubelets_and_rows(config: MultiBlockConfig) -> None:
    grid = TokenGrid(8, 14, 14)
    reference = MultiBlockConfig(num_blocks=config.num_blocks, scale=config.scale, reference=True)
    target, context, discarded = rates(reference, grid, draws=40)
    assert target[-1].mean() < 0.5 * target.mean()
    assert context[-1].mean() < 0.5 * context.mean()
    assert torch.allclose(target[0], target[1])  # the first tubelets are complete
    assert discarded > 0.08
    mask = family(reference, grid).draw(np.random.default_rng(0), 8)
    again = family(reference, grid).draw(np.random.default_rng(0), 8, rows=slice(2, 5))
    check_mask(mask, grid, complete=False)
    assert torch.equal(again.context_ids, mask.context_ids[2:5])
    assert torch.equal(again.target_ids, mask.target_ids[2:5])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("config", [SHORT, LONG], ids=["short", "long"])
def test_little_is_discarded_on_the_default_recipe(config: MultiBlockConfig, grid: TokenGrid) -> None:
    masks, rng = family(config, grid), np.random.default_rng(1)
    assert np.mean([masks.draw(rng, 24).discarded for _ in range(60)]) < 0.04


def check_mask(mask: Mask, grid: TokenGrid, complete: bool = True) -> None:
    both = torch.cat((mask.context_ids, mask.target_ids.flatten(1)), dim=1)
    assert both.dtype == torch.int64
    assert both.min() >= 0
    assert both.max() < grid.size
    ordered = both.sort(dim=1).values
    assert bool((ordered[:, 1:] > ordered[:, :-1]).all())  # distinct, context and target disjoint
    assert mask.context_ids.shape[1] > 0
    assert not complete or both.shape[1] == grid.size


@pytest.mark.parametrize(
    "grid", [*GRIDS, TokenGrid(1, 14, 14), TokenGrid(3, 6, 20), TokenGrid(2, 20, 6), TokenGrid(2, 4, 4)], ids=str
)
@pytest.mark.parametrize("levels", [1, 4])
def test_ids_are_distinct_disjoint_and_complete(grid: TokenGrid, levels: int) -> None:
    rng = np.random.default_rng(0)
    for config in (SHORT, LONG, MultiBlockConfig(duration=(0.5, 1.0))):
        config = MultiBlockConfig(
            num_blocks=config.num_blocks, scale=config.scale, duration=config.duration, levels=levels
        )
        for _ in range(4):
            check_mask(family(config, grid).draw(rng, 6), grid)


def test_targets_are_whole_columns_when_blocks_last_for_the_whole_clip() -> None:
    grid = TokenGrid(4, 8, 8)
    mask = family(SHORT, grid).draw(np.random.default_rng(0), 5)
    member = torch.zeros(5, grid.size).scatter_(1, mask.target_ids[:, 0], 1).view(5, *grid)
    assert torch.equal(member, member[:, :1].expand_as(member))
    assert len({tuple(row) for row in mask.target_ids[:, 0].tolist()}) == 5  # rows of a batch differ


def test_the_same_generator_gives_the_same_masks_for_any_number_of_ranks() -> None:
    masks = family(SHORT, TokenGrid(4, 8, 8))
    one, many = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(3):
        whole = masks.draw(one, 12)
        state = many.bit_generator.state
        parts = []
        for rank in range(3):
            many.bit_generator.state = state
            parts.append(masks.draw(many, 12, rows=slice(4 * rank, 4 * rank + 4)))
        assert torch.equal(torch.cat([part.target_ids for part in parts]), whole.target_ids)
        assert torch.equal(torch.cat([part.context_ids for part in parts]), whole.context_ids)
    assert one.bit_generator.state == many.bit_generator.state
    assert not torch.equal(masks.draw(np.random.default_rng(6), 12).target_ids, whole.target_ids)


def test_one_level_and_one_block_size_give_one_shape() -> None:
    config = MultiBlockConfig(aspect_ratio=(1.0, 1.0), levels=1)
    masks, rng = family(config, TokenGrid(4, 8, 8)), np.random.default_rng(0)
    assert len({masks.draw(rng, 4).context_ids.shape for _ in range(30)}) == 1


def test_a_grid_that_is_too_small_names_itself_and_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"2x2 grid and leave no context; use a larger crop_size"):
        build_masks([SHORT], TokenGrid(4, 2, 2))
    with pytest.raises(ConfigError, match="8x8 grid"):
        build_masks([MultiBlockConfig(num_blocks=8, scale=(0.9, 1.0))], TokenGrid(4, 8, 8))


@pytest.mark.parametrize(
    ("field", "value"), [("num_blocks", 0), ("levels", 0), ("scale", (0.5, 0.2)), ("scale", (0.5, 1.2)),
                         ("duration", (0.0, 1.0)), ("aspect_ratio", (-1.0, 1.0))],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        MultiBlockConfig(**{field: value})  # type: ignore[arg-type]
