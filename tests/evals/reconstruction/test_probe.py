"""Decoders as probes: what they are given, that they learn, and how large they may be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import small_encoder
from torch import nn

from evals.features.harness import FeatureSet
from evals.features.rows import Rows
from evals.reconstruction.probe import build_decoder, decode, descend, draw_rows, fit_decoder, latents_of, pooled
from evals.reconstruction.shown import Shown
from evals.task_configs import ReconstructionTask
from jepa.config import ConfigError
from jepa.distributed import Run
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import ClipConfig, TokenGrid

CPU = Run(torch.device("cpu"), "fp32")
GRID = TokenGrid(2, 2, 4)
CLIP = ClipConfig(num_frames=4, fps=10.0, crop_size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
TASK = ReconstructionTask(steps=60, batch_size=8, embed_dim=24, depth=1, num_heads=2, learning_rate=3e-3)


def features(count: int = 8) -> FeatureSet:
    """Two blocks, 6 and 10 wide, side by side."""
    tokens = torch.randn(count, 1, GRID.size, 16, generator=torch.Generator().manual_seed(0))
    vectors = torch.zeros(count, 1, 1, 16)
    return FeatureSet(torch.arange(count), Rows.of(tokens), Rows.of(vectors), GRID, (1, 4), (6, 10))


def colours(found: FeatureSet) -> Shown:
    """Clips whose patches of 2 frames and 8 x 8 pixels have the colour that three numbers of a normed token say."""
    assert found.tokens is not None
    values = latents_of(found, (1,))(torch.arange(8))[..., :3].sigmoid()
    cells = values.unflatten(1, tuple(GRID)).repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    pixels = (cells * 255).round().byte()
    return Shown(pixels, found.items, [f"{k}.mp4" for k in range(8)], CLIP, {})


def test_latents_are_normed_block_by_block() -> None:
    found = features()
    assert found.tokens is not None
    rows = torch.tensor([5, 0])
    raw = found.tokens.gather(rows)[:, 0].double().numpy()
    both = latents_of(found, (1, 4))
    assert (both.dim, both.grid) == (16, GRID)
    for part in (slice(0, 6), slice(6, 16)):
        own = raw[..., part]
        expected = (own - own.mean(-1, keepdims=True)) / np.sqrt(own.var(-1, keepdims=True) + 1e-5)
        assert np.allclose(both(rows)[..., part].numpy(), expected, atol=1e-5)
    assert torch.equal(latents_of(found, (4,))(rows), both(rows)[..., 6:])
    assert torch.equal(latents_of(found, (4, 1))(rows), torch.cat((both(rows)[..., 6:], both(rows)[..., :6]), dim=-1))


def test_pools_are_means_of_squares_of_tokens() -> None:
    tokens = torch.randn(3, GRID.size, 5, generator=torch.Generator().manual_seed(1))
    found = pooled(tokens, GRID, 2)
    assert found.shape == (3, 2 * 1 * 2, 5)
    cells = tokens.unflatten(1, tuple(GRID))
    assert torch.allclose(found[:, 3], cells[:, 1, :, 2:].mean(dim=(1, 2)), atol=1e-6)
    assert pooled(tokens, GRID, 1) is tokens
    assert latents_of(features(), (1,), 2).grid == TokenGrid(2, 1, 2)
    with pytest.raises(ConfigError, match=r"reconstruction\.pools: 3 does not divide a grid of 2 x 4 tokens"):
        latents_of(features(), None, 3)


def test_a_decoder_learns_what_latents_say_and_nothing_else_changes() -> None:
    found = features()
    assert found.tokens is not None
    shown, latents, before = colours(found), latents_of(found, (1,)), found.tokens.blocks[0].clone()
    decoder = build_decoder(TASK, small_encoder(), latents, shown)
    assert (decoder.config.patch_size, decoder.config.tubelet_size) == (8, 2)
    first = decode(decoder, latents, shown, TASK, CPU)
    fit_decoder(decoder, latents, shown, TASK, CPU)
    made = decode(decoder, latents, shown, TASK, CPU)
    errors = [(part.float() - shown.pixels.float()).abs().mean() for part in (first, made)]
    assert errors[1] < 0.4 * errors[0]
    assert torch.equal(found.tokens.blocks[0], before)
    assert not any(p.requires_grad for p in decoder.parameters())
    again = build_decoder(TASK, small_encoder(), latents, shown)
    fit_decoder(again, latents, shown, TASK, CPU)
    assert torch.equal(decode(again, latents, shown, TASK, CPU), made), "the same seed, the same decoder"
    noisy = [build_decoder(replace(TASK, latent_noise=0.5), small_encoder(), latents, shown) for _ in range(2)]
    for one in noisy:
        fit_decoder(one, latents, shown, TASK, CPU)
    blurred = [decode(one, latents, shown, TASK, CPU) for one in noisy]
    assert torch.equal(blurred[0], blurred[1]), "the same noise"
    assert not torch.equal(blurred[0], made)


def test_a_decoder_is_at_most_a_tenth_of_a_large_encoder() -> None:
    with torch.device("meta"):  # its size without its memory
        large = Encoder(EncoderConfig(size="vit_large"), CLIP)
    shown, latents = colours(features()), latents_of(features(), (1,))
    assert build_decoder(TASK, large, latents, shown).latent_dim == 6
    wide = ReconstructionTask(embed_dim=768, depth=5, num_heads=6)
    message = r"reconstruction: the decoder has 36 M parameters, more than a tenth of the encoder's 304 M: lower its em"
    with pytest.raises(ConfigError, match=message):
        build_decoder(wide, large, latents, shown)
    assert build_decoder(wide, small_encoder(), latents, shown).latent_dim == 6, "small encoders are not held to it"


def test_every_clip_is_seen_before_one_is_seen_twice() -> None:
    rows = draw_rows(10, 3, 7)
    for start in (0, 3, 6):
        seen = torch.cat([rows(start + step) for step in range(3)]).tolist()
        assert len(set(seen)) == 9
    assert not torch.equal(torch.cat([rows(k) for k in range(3)]), torch.cat([rows(k) for k in range(3, 6)]))
    assert sorted(draw_rows(4, 16, 0)(5).tolist()) == [0, 1, 2, 3]


def test_a_loss_that_is_no_number_stops_the_eval() -> None:
    module = nn.Linear(2, 2)
    given, wanted = torch.eye(2), torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    first, last = descend(module, lambda step: (module(given) - wanted).square().mean(), 200, 0.03)
    assert last < 0.01 * first
    with pytest.raises(ValueError, match="the loss of a probe is not finite"):
        descend(module, lambda step: module(given).mean() * float("nan"), 2, 0.03)
