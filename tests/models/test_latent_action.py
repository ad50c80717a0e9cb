"""Inverse dynamics sees two frames (or the past) and never a later one; the controller answers within the codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.models.latent_action import ControllerNet, ControllerNetConfig, InverseDynamics, InverseDynamicsConfig

FRAMES, TOKENS, WIDTH = 5, 3, 10
KINDS = [("joint", False), ("joint", True), ("factorised", False), ("factorised", True)]


def dynamics(attention: str = "joint", history: bool = False, **changes: Any) -> InverseDynamics:
    torch.manual_seed(0)
    config = InverseDynamicsConfig(
        **{"embed_dim": 24, "depth": 2, "num_heads": 2, "attention": attention, "history": history, **changes}
    )
    return InverseDynamics(config, WIDTH, TOKENS)


def latents(seed: int = 0) -> Tensor:
    return torch.randn(2, FRAMES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("attention", "history"), KINDS)
@torch.no_grad()
def test_what_an_action_depends_on(attention: str, history: bool) -> None:
    model, x = dynamics(attention, history), latents()
    whole = model(x)
    assert whole.shape == (2, FRAMES - 1, 24)
    for frame in range(FRAMES):
        other = x.clone()
        other[:, frame] = latents(1)[:, frame]
        changed = (model(other) != whole).any(dim=-1).all(dim=0)
        for action in range(FRAMES - 1):
            seen = frame <= action + 1 if history else frame in (action, action + 1)
            assert bool(changed[action]) == seen, (frame, action)


@pytest.mark.parametrize(("attention", "history"), KINDS)
@torch.no_grad()
def test_the_first_pair_by_itself(attention: str, history: bool) -> None:
    model, x = dynamics(attention, history), latents()
    torch.testing.assert_close(model(x[:, :2])[:, 0], model(x)[:, 0])
    rows = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(model(x), rows)
    assert not torch.allclose(rows[0], rows[1])
    if not history:
        torch.testing.assert_close(model(x[:, 2:4])[:, 0], model(x)[:, 2])
    assert not torch.allclose(model(x[:, :2].flip(1)), model(x[:, :2]))  # back is not forth


@torch.no_grad()
def test_pairs_equal_a_dense_mask() -> None:
    """The read-out of the second frame, with attention written out over all tokens of both frames."""
    model, x = dynamics(depth=1), latents()[:, :2]
    config = model.config
    change = torch.stack((torch.zeros_like(x[:, 0]), x[:, 1] - x[:, 0]), dim=1)
    tokens = model.embed(x) + model.change(change) + model.places
    place = torch.cat((model.readout.expand(2, 2, 1, -1), tokens), dim=2)
    angle = 10000.0 ** (-torch.arange(12) / 12)  # of frame 1; frame 0 has sines of 0
    time = torch.stack((torch.cat((torch.zeros(12), torch.ones(12))), torch.cat((angle.sin(), angle.cos()))))
    tokens = (place + time[:, None]).flatten(1, 2)
    block: Any = model.blocks[0]
    q, k, v = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, config.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    tokens = tokens + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
    tokens = tokens + block.mlp(block.norm2(tokens))
    torch.testing.assert_close(model(x)[:, 0], model.norm(tokens[:, 1 + TOKENS]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("attention", "history"), KINDS)
def test_the_change_alone(attention: str, history: bool) -> None:
    """What all frames have in common says nothing, and says something where frames themselves are seen."""
    x = latents()
    moved = x + torch.randn(x.shape[-2:])
    with torch.no_grad():
        model = dynamics(attention, history, change_only=True)
        torch.testing.assert_close(model(moved), model(x), atol=1e-5, rtol=1e-5)
        assert (model(x.roll(1, dims=1)) - model(x)).abs().max() > 1e-3
        assert (dynamics(attention, history)(moved) - dynamics(attention, history)(x)).abs().max() > 1e-3


@pytest.mark.parametrize("change_only", [False, True])
@pytest.mark.parametrize(("attention", "history"), KINDS)
def test_every_parameter_gets_gradient(attention: str, history: bool, change_only: bool) -> None:
    model = dynamics(attention, history, change_only=change_only)
    model(latents()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"between two frames, but clips have 1: raise clip\.num_frames"):
        dynamics()(latents()[:, :1])
    with pytest.raises(ValueError, match="built for 3 tokens of a frame, not 2"):
        dynamics()(latents()[:, :, :2])
    with pytest.raises(ValueError, match="embed_dim must be even, not 15"):
        InverseDynamicsConfig(embed_dim=15, num_heads=1)
    with pytest.raises(ValueError, match="hidden_dim and depth must be at least 1, not 0 and 2"):
        ControllerNetConfig(hidden_dim=0)


def test_a_controller_of_codes_answers_within_them() -> None:
    torch.manual_seed(0)
    net = ControllerNet(ControllerNetConfig(hidden_dim=16), WIDTH, 2, 3, num_codes=4)
    assert net.codes is not None
    net.codes.copy_(torch.randn(4, 3))
    frames, actions = torch.randn(6, TOKENS, WIDTH), torch.randn(6, 2, requires_grad=True)
    logits = net.outputs(frames, actions)
    answer = net(frames, actions)
    torch.testing.assert_close(answer, logits.softmax(dim=-1) @ net.codes)
    answer.sum().backward()
    assert actions.grad is not None
    assert actions.grad.any()
    wanted = net.codes[torch.tensor([0, 1, 2, 3, 0, 1])]
    known = F.cross_entropy(logits, torch.tensor([0, 1, 2, 3, 0, 1]))
    torch.testing.assert_close(net.loss(logits, wanted), known)


def test_a_controller_of_continuous_actions_is_scaled() -> None:
    torch.manual_seed(0)
    net = ControllerNet(ControllerNetConfig(hidden_dim=16, depth=1), WIDTH, 2, 3)
    net.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    net.std.copy_(torch.tensor([0.5, 1.0, 2.0]))
    frames, actions = torch.randn(6, 2, TOKENS, WIDTH), torch.randn(6, 2, 2)
    out = net.outputs(frames, actions)
    torch.testing.assert_close(out, net.pooled_outputs(frames.mean(dim=2), actions))
    torch.testing.assert_close(net(frames, actions), out * net.std + net.mean)
    wanted = torch.randn(6, 2, 3)
    torch.testing.assert_close(net.loss(out, wanted), ((out - (wanted - net.mean) / net.std) ** 2).mean())
