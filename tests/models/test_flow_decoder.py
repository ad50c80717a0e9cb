"""The flow decoder: what following a known flow gives, adaptive norms, hidden latents, guidance, and that what latents
leave open is sampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.models.flow_decoder import AdaptiveBlock, FlowDecoder, FlowDecoderConfig, between, follow, time_features
from jepa.models.layers import Block
from jepa.models.positions import sincos_1d
from jepa.models.rope import rope_table
from jepa.types import TokenGrid

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4, "tubelet_size": 2}
CELLS, PATCHES = TokenGrid(1, 2, 2), TokenGrid(1, 4, 4)


def decoder(**changes: Any) -> FlowDecoder:
    torch.manual_seed(0)
    return FlowDecoder(FlowDecoderConfig(**{**SMALL, **changes}), 5, CELLS, PATCHES)


def stirred(**changes: Any) -> FlowDecoder:
    """With random weights where they begin as zeros."""
    made = decoder(**changes)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


MEAN, SPREAD = 0.7, 0.4


def of_gaussian(x: Tensor, time: float) -> Tensor:
    """What is expected of x_t where clips are Gaussian: conditioning of two Gaussians."""
    gain = time * SPREAD**2 / (time**2 * SPREAD**2 + (1 - time) ** 2)
    return MEAN + gain * (x - time * MEAN)


def test_gaussian_noise_becomes_a_gaussian() -> None:
    noise = torch.randn(1000, dtype=torch.float64)
    exact = MEAN + SPREAD * noise  # what lies so many deviations out stays there along the flow

    def error(steps: int, solver: Any) -> float:
        return float((follow(of_gaussian, noise, steps, solver) - exact).abs().max())

    assert error(200, "heun") < 2e-4
    for steps in (40, 80):
        assert error(steps, "euler") / error(2 * steps, "euler") == pytest.approx(2, abs=0.15)
        assert error(steps, "heun") / error(2 * steps, "heun") == pytest.approx(4, abs=0.6)
    torch.testing.assert_close(follow(of_gaussian, noise, 1), of_gaussian(noise, 0.0))
    torch.testing.assert_close(follow(of_gaussian, noise, 1, "heun"), of_gaussian(noise, 0.0))
    with pytest.raises(ValueError, match="solver must be one of euler, heun, in 1 step or more, not 'rk4' in 3"):
        follow(of_gaussian, noise, 3, "rk4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not 'euler' in 0"):
        follow(of_gaussian, noise, 0)


def test_time_features_and_the_line() -> None:
    time = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(time_features(time, 64), sincos_1d(1000 * time, 64), atol=2e-4, rtol=0.0)
    noise, clip = torch.randn(2, 3, 2, 4, 4)[:, None], torch.randn(2, 3, 2, 4, 4)[:, None]
    line = between(noise, clip, torch.tensor([0.0, 0.25]))
    assert torch.equal(line[0], noise[0])
    torch.testing.assert_close(line[1], 0.75 * noise[1] + 0.25 * clip[1])


def test_an_adaptive_block_begins_as_the_identity_and_is_a_modulated_block() -> None:
    made = decoder()
    x, condition = torch.randn(2, 16, 24), torch.randn(2, 24)
    rope = rope_table(PATCHES, PATCHES.ids()[None], 12)
    assert all(torch.equal(block(x, rope, condition=condition), x) for block in made.blocks)
    block = stirred().blocks[0]
    assert isinstance(block, AdaptiveBlock)
    plain = Block(24, 2, 4.0)  # the same, row by row: the norms' weights say scale and shift, the gates go to the ends
    for row in range(2):
        made_of = block.modulation(F.silu(condition[row])).chunk(6)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (part.detach() for part in made_of)
        state = {k: v.clone() for k, v in block.state_dict().items() if not k.startswith("modulation")}
        state |= {"norm1.weight": 1 + scale, "norm1.bias": shift}
        state |= {"norm2.weight": 1 + mlp_scale, "norm2.bias": mlp_shift}
        for name, by in (("attn.proj", gate), ("mlp.fc2", mlp_gate)):
            state[f"{name}.weight"] = by[:, None] * state[f"{name}.weight"]
            state[f"{name}.bias"] = by * state[f"{name}.bias"]
        plain.load_state_dict(state)
        found = block(x, rope, condition=condition)[row]
        torch.testing.assert_close(found, plain(x[row : row + 1], rope)[0], atol=1e-5, rtol=1e-4)


def test_the_loss_of_an_untrained_decoder() -> None:
    made, clip, latents = decoder(time_mean=1.0, time_std=2.0), torch.randn(64, 3, 2, 16, 16), torch.randn(64, 4, 5)
    torch.manual_seed(5)
    loss = made.loss(clip, latents)
    torch.manual_seed(5)
    time = torch.sigmoid(1.0 + 2.0 * torch.randn(64))
    assert (time > 0.95).any()
    weight = 1 / torch.where(time > 0.95, 0.05, 1 - time) ** 2
    torch.testing.assert_close(loss, (clip.square().mean(dim=(1, 2, 3, 4)) * weight).mean())  # it expects 0


def test_every_parameter_gets_a_gradient() -> None:
    made = stirred(drop=0.5)
    torch.manual_seed(0)
    made.loss(torch.randn(8, 3, 2, 16, 16), torch.randn(8, 4, 5)).backward()
    idle = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_hidden_latents_are_not_seen() -> None:
    made, noised, time = stirred(), torch.randn(3, 3, 2, 16, 16), torch.rand(3)
    one, other = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    hidden = torch.tensor([True, False, True])
    first, second = (made(noised, time, latents, hidden=hidden) for latents in (one, other))
    assert torch.equal(first[hidden], second[hidden])
    assert (first[1] - second[1]).abs().max() > 1e-3
    torch.testing.assert_close(first[1], made(noised, time, one)[1])
    null = made.null.detach().expand(3, 4, 5)
    torch.testing.assert_close(first[hidden], made(noised, time, null)[hidden])


def test_guidance_goes_from_without_to_with_and_beyond() -> None:
    made, noise, latents = stirred(), torch.randn(2, 3, 2, 16, 16), torch.randn(2, 4, 5)
    known = made(noise, torch.zeros(2), latents)
    unknown = made(noise, torch.zeros(2), made.null.detach().expand(2, 4, 5))
    for weight in (0.0, 0.5, 1.0, 3.0):
        found = made.sample(latents, noise, steps=1, guidance=weight)
        torch.testing.assert_close(found, (unknown + weight * (known - unknown)).detach(), atol=1e-4, rtol=1e-4)
    assert not torch.equal(made.sample(latents, noise, 4), made.sample(latents, noise, 4, solver="heun"))


def test_what_latents_leave_open_is_sampled() -> None:
    """Pictures of one brightness: its size is known from the latent, its sign is not. The mean would be grey."""
    torch.manual_seed(0)
    config = FlowDecoderConfig(embed_dim=32, depth=1, num_heads=2, patch_size=2, tubelet_size=1, drop=0.2)
    made = FlowDecoder(config, 1, TokenGrid(1, 1, 1), TokenGrid(1, 1, 1), channels=1)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(400):
        size = torch.rand(128, 1, 1) + 0.5
        sign = torch.randint(2, (128,)) * 2.0 - 1
        clip = (sign * size.flatten()).view(-1, 1, 1, 1, 1).expand(-1, 1, 1, 2, 2)
        loss = made.loss(clip, 2 * size - 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for size in (0.7, 1.3):
        drawn = made.sample(torch.full((200, 1, 1), 2 * size - 2), torch.randn(200, 1, 1, 2, 2), steps=16)
        brightness = drawn.mean(dim=(1, 2, 3, 4))
        assert 0.3 < (brightness > 0).float().mean() < 0.7
        assert (brightness.abs() - size).abs().median() < 0.12
        assert brightness.abs().median() == pytest.approx(size, abs=0.12)


@pytest.mark.parametrize(("changes", "message"), [
    ({"drop": 1.0}, r"decoder.drop must be a share in \[0, 1\), not 1"),
    ({"time_std": 0.0}, "decoder.time_std must be positive, not 0"),
    ({"patch_size": 0}, "decoder.patch_size must be at least 1, not 0"),
])  # fmt: skip
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowDecoderConfig(**{**SMALL, **changes})


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"latents must be \[B, N, 5\], not \[2, 4, 6\]"):
        decoder()(torch.zeros(2, 3, 2, 16, 16), torch.zeros(2), torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match=r"clip width 18 is not divisible by decoder.patch_size 4"):
        decoder().sample(torch.zeros(2, 4, 5), torch.zeros(2, 3, 2, 16, 18))
