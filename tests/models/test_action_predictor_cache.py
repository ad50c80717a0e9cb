"""Step by step from memory is the same as all at once; and what the memory costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jepa.models.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.models.linear import attend, attend_steps
from jepa.models.memory import Cache
from jepa.models.rope import RopeConfig
from jepa.types import TokenGrid

GRID = TokenGrid(1, 2, 3)
ROPES = {
    "tiled": RopeConfig(frequencies="tiled", base_grid=2, spread="cells"),
    "interleaved": RopeConfig(frequencies="interleaved"),
}


def predictor(rope: str = "interleaved", state_dim: int = 5, **changes: Any) -> ActionPredictor:
    torch.manual_seed(0)
    config = ActionPredictorConfig(
        embed_dim=24, depth=3, num_heads=2, action_dim=3, state_dim=state_dim, init="xavier", **changes
    )
    return ActionPredictor(config, 16, GRID, ROPES[rope])


def inputs(steps: int, batch: int = 2, state_dim: int = 5) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(1)
    states = torch.randn(batch, steps, state_dim) if state_dim else None
    return torch.randn(batch, steps, 6, 16), torch.randn(batch, steps, 3), states


def by_steps(
    model: ActionPredictor, latents: Tensor, actions: Tensor, states: Tensor | None, sizes: list[int],
    window: int | None = None,
) -> tuple[Tensor, Cache]:  # fmt: skip
    """Predictions ``[B, T, n, D]`` of parts of ``sizes`` steps, one after the other."""
    cache, parts, start = None, [], 0
    for size in sizes:
        rows = slice(start, start + size)
        known = None if states is None else states[:, rows]
        found, cache = model.extend(cache, latents[:, rows].flatten(1, 2), actions[:, rows], known, window=window)
        parts.append(found.unflatten(1, (size, -1)))
        start += size
    assert cache is not None
    return torch.cat(parts, dim=1), cache


@pytest.mark.parametrize("rope", list(ROPES))
@pytest.mark.parametrize("state_dim", [0, 5])
@torch.no_grad()
def test_cached_equals_uncached(rope: str, state_dim: int) -> None:
    model, (latents, actions, states) = predictor(rope, state_dim), inputs(7, state_dim=state_dim)
    whole = model(latents.flatten(1, 2), actions, states).unflatten(1, (7, -1))
    for sizes in ([1] * 7, [4, 1, 1, 1], [2, 3, 2]):
        found, cache = by_steps(model, latents, actions, states, sizes)
        assert (found - whole).abs().max() < 1e-5
        assert (cache.seen, cache.kept) == (7, 7)


@pytest.mark.parametrize("rope", list(ROPES))
@torch.no_grad()
def test_a_window_forgets_and_equals_the_uncached_window(rope: str) -> None:
    model, (latents, actions, states) = predictor(rope), inputs(9)
    whole = model(latents.flatten(1, 2), actions, states, window=3).unflatten(1, (9, -1))
    everything = model(latents.flatten(1, 2), actions, states).unflatten(1, (9, -1))
    assert (whole - everything)[:, :3].abs().max() < 1e-6
    assert (whole - everything)[:, 3:].abs().amax(dim=(0, 2, 3)).min() > 1e-3
    for sizes in ([1] * 9, [5, 1, 1, 2]):
        found, cache = by_steps(model, latents, actions, states, sizes, window=3)
        assert (found - whole).abs().max() < 1e-5
        assert (cache.seen, cache.kept) == (9, 2)


def test_gradients_flow_through_the_memory() -> None:
    gradients = []
    for cached in (False, True):
        model, (latents, actions, states) = predictor(), inputs(4)
        latents.requires_grad_()
        if cached:
            found, _ = by_steps(model, latents, actions, states, [1, 1, 1, 1])
        else:
            found = model(latents.flatten(1, 2), actions, states).unflatten(1, (4, -1))
        found[:, -1].square().sum().backward()
        assert latents.grad is not None
        gradients.append([latents.grad, *(p.grad for p in model.parameters())])
    for plain, stepped in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, stepped, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputing_a_cached_step_gives_the_same_gradients(recompute: str) -> None:
    gradients = []
    for kind in ("none", recompute):
        model, (latents, actions, states) = predictor(), inputs(3)
        model.recompute = kind  # type: ignore[assignment]
        by_steps(model.train(), latents, actions, states, [2, 1])[0].square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@torch.no_grad()
def test_samples_share_what_one_row_has_seen() -> None:
    model, (latents, actions, states) = predictor(), inputs(6, batch=1)
    assert states is not None
    _, cache = model.extend(None, latents[:, :5].flatten(1, 2), actions[:, :5], states[:, :5])
    many = cache.repeat(50)
    assert many.num_bytes == cache.num_bytes
    own = torch.randn(50, 1, 3)
    rows = (latents[:, 5].expand(50, -1, -1), own, states[:, 5:].expand(50, -1, -1))
    found, longer = model.extend(many, *rows)
    for row in (0, 49):
        chosen = torch.cat((actions[:, :5], own[row : row + 1]), dim=1)
        slow = model(latents.flatten(1, 2), chosen, states)[:, -6:]
        assert (found[row] - slow[0]).abs().max() < 1e-5
    step_bytes = 2 * 3 * 8 * 24 * 4  # keys and values of 3 blocks: 2 + 6 tokens of 24 numbers
    assert cache.num_bytes == 5 * step_bytes
    assert longer.num_bytes == (5 + 50) * step_bytes
    with pytest.raises(ValueError, match="a memory of 1 row can be repeated, not one of 50"):
        longer.repeat(2)
    with pytest.raises(ValueError, match="a memory of 50 rows cannot be extended by 1"):
        model.extend(longer, latents[:, 5], actions[:, 5:], states[:, 5:])


@torch.no_grad()
def test_memory_grows_with_the_steps_kept() -> None:
    model, (latents, actions, states) = predictor(), inputs(12)
    sizes = {}
    for window in (None, 4):
        cache, sizes[window] = None, []
        for step in range(12):
            known = None if states is None else states[:, step : step + 1]
            _, cache = model.extend(cache, latents[:, step], actions[:, step : step + 1], known, window=window)
            sizes[window].append(cache.num_bytes)
    unit = sizes[None][0]
    assert sizes[None] == [unit * n for n in range(1, 13)]
    assert sizes[4] == [unit * min(n, 3) for n in range(1, 13)]


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))])
        return out


def test_no_square_mask_of_512_frames() -> None:
    frames, cells = 512, 4
    config = ActionPredictorConfig(embed_dim=12, depth=1, num_heads=2, action_dim=2, state_dim=0)
    model = ActionPredictor(config, 8, TokenGrid(1, 2, 2), RopeConfig())
    tokens = frames * (cells + 1)
    with Largest() as seen:
        model(torch.randn(1, frames * cells, 8), torch.randn(1, frames, 2)).square().mean().backward()
    assert seen.numel < 100 * tokens  # the widest is the MLP's 48 numbers per token; a square would be 2560 per token


@torch.no_grad()
def test_windowed_steps_equal_a_dense_mask() -> None:
    q, k, v = torch.randn(3, 2, 12, 2, 8).unbind(0)
    step = torch.arange(12) // 3
    behind = step[:, None] - step[None]
    mask = (behind >= 0) & (behind < 2)
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    slow = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(attend_steps(q, k, v, 4, window=2), slow)
    torch.testing.assert_close(attend_steps(q[:, 6:], k, v, 2, window=2), slow[:, 6:])
    torch.testing.assert_close(attend_steps(q[:, 9:], k, v, 1), attend(q[:, 9:], k, v))


def test_widths_are_checked() -> None:
    with pytest.raises(ValueError, match="action_dim None and state_dim 2 must be known"):
        ActionPredictor(ActionPredictorConfig(embed_dim=24, num_heads=2, state_dim=2), 16, GRID, RopeConfig())
    with pytest.raises(ValueError, match="action_dim must be at least 1, not 0"):
        ActionPredictorConfig(action_dim=0)
    with pytest.raises(ValueError, match="extrinsics_dim must be at least 1, not 0"):
        ActionPredictorConfig(use_extrinsics=True)
    latents, actions, states = inputs(2)
    with pytest.raises(ValueError, match=r"trained with states: give states \[B, T, 5\]"):
        predictor()(latents.flatten(1, 2), actions)
    with pytest.raises(ValueError, match="trained without states"):
        predictor(state_dim=0)(latents.flatten(1, 2), actions, states)
    with pytest.raises(ValueError, match=r"actions must be \[B, T, 3\], not \[2, 3\]"):
        predictor()(latents.flatten(1, 2), actions[:, 0], states)
    assert not any("state" in name for name, _ in predictor(state_dim=0).named_parameters())
