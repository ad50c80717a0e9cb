"""Causal masks: no target precedes the context."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.config import ConfigError
from jepa.masks import CausalConfig, build_masks
from jepa.types import TokenGrid


@pytest.mark.parametrize("horizon", [None, 2])
def test_every_target_comes_after_every_context_token(horizon: int | None) -> None:
    grid = TokenGrid(8, 4, 6)
    masks = build_masks([CausalConfig(context=(0.25, 0.75), horizon=horizon)], grid)[0]
    seen, rng = set(), np.random.default_rng(0)
    for _ in range(40):
        mask = masks.draw(rng, 3)
        last = grid.coordinates(mask.context_ids)[..., 0].max()
        times = grid.coordinates(mask.target_ids)[..., 0]
        assert times.min() == last + 1
        assert times.max() == (7 if horizon is None else min(last + 2, 7))
        assert mask.context_ids.shape[1] == (last + 1) * 24
        seen.add(int(last) + 1)
    assert seen == {2, 3, 4, 5, 6}


def test_the_split_is_the_same_for_any_rows() -> None:
    masks = build_masks([CausalConfig(context=(0.1, 0.9))], TokenGrid(8, 2, 2))[0]
    for seed in range(10):
        whole = masks.draw(np.random.default_rng(seed), 4)
        part = masks.draw(np.random.default_rng(seed), 4, rows=slice(3, 4))
        assert torch.equal(part.context_ids, whole.context_ids[3:])


def test_one_tubelet_has_no_future() -> None:
    with pytest.raises(ConfigError, match="at least 2 tubelets"):
        build_masks([CausalConfig()], TokenGrid(1, 8, 8))
    with pytest.raises(ValueError, match="horizon"):
        CausalConfig(horizon=0)
