"""From latents to pixels: cells and places, the token of a patch, clips put together again, other sizes, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.models.flow_decoder import FlowDecoder, FlowDecoderConfig
from jepa.models.pixel_decoder import (
    PixelDecoder,
    PixelDecoderConfig,
    cell_ids,
    out_grid,
    per_cell,
    place_ids,
    to_clip,
)
from jepa.models.tubelet import PatchEmbed
from jepa.types import TokenGrid

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4, "tubelet_size": 2}


def decoder(source: TokenGrid, out: TokenGrid, **changes: Any) -> PixelDecoder:
    torch.manual_seed(0)
    return PixelDecoder(PixelDecoderConfig(**{**SMALL, **changes}), 5, source, out)


@pytest.mark.parametrize(("source", "out"), [((2, 3, 4), (2, 3, 4)), ((1, 1, 1), (1, 3, 2)), ((2, 2, 3), (4, 5, 7))])
def test_the_cell_of_a_patch_holds_its_middle(source: tuple[int, int, int], out: tuple[int, int, int]) -> None:
    coarse, fine = TokenGrid(*source), TokenGrid(*out)
    found = cell_ids(coarse, fine, "cpu")
    for number, place in enumerate(fine.coordinates(fine.ids()).tolist()):
        t, h, w = (math.floor((k + 0.5) / n * cells) for k, n, cells in zip(place, fine, coarse, strict=True))
        assert found[number] == (t * coarse.h + h) * coarse.w + w
    if source == out:
        assert torch.equal(found, fine.ids())


def test_places_are_those_within_a_cell() -> None:
    same = TokenGrid(2, 3, 3)
    assert per_cell(same, same) == (1, 1, 1)
    assert not place_ids(same, same, TokenGrid(1, 1, 1), "cpu").any()
    source, out, native = TokenGrid(1, 1, 2), TokenGrid(1, 2, 4), TokenGrid(1, 2, 2)
    assert per_cell(source, out) == native
    assert place_ids(source, out, native, "cpu").tolist() == [0, 1, 0, 1, 2, 3, 2, 3]  # anew in every cell
    finer = place_ids(source, TokenGrid(1, 4, 8), native, "cpu").view(4, 8)
    assert finer[:, :4].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    uneven = place_ids(TokenGrid(1, 1, 5), TokenGrid(1, 1, 7), per_cell(TokenGrid(1, 1, 5), TokenGrid(1, 1, 7)), "cpu")
    cells = cell_ids(TokenGrid(1, 1, 5), TokenGrid(1, 1, 7), "cpu")
    assert len({*zip(cells.tolist(), uneven.tolist(), strict=True)}) == 7  # no two patches alike


def test_clips_are_put_together_as_they_were_cut() -> None:
    clip = torch.randn(2, 3, 4, 8, 12)
    config = PixelDecoderConfig(**SMALL)
    tubelets = PatchEmbed(3, 8, 4, 2).tubelets(clip)
    assert torch.equal(to_clip(tubelets, out_grid(config, (4, 8, 12)), config, 4), clip)
    assert torch.equal(to_clip(tubelets, out_grid(config, (4, 8, 12)), config, 3), clip[:, :, :3])


def test_a_patch_begins_as_its_latent_at_its_place() -> None:
    source, out = TokenGrid(1, 2, 2), TokenGrid(2, 4, 2)
    cells = decoder(source, out).cells
    latents = torch.randn(3, 4, 5)
    found = cells(latents, source, out)
    places = place_ids(source, out, cells.per_cell, "cpu").tolist()
    assert cells.per_cell == (2, 2, 1)
    assert cells.unfold is not None
    weights, biases = cells.unfold.weight.view(4, 24, 24), cells.unfold.bias.view(4, 24)
    for patch, cell in enumerate(cell_ids(source, out, "cpu").tolist()):
        place = places[patch]
        expected = cells.embed(latents[:, cell]) @ weights[place].T + biases[place] + cells.place[place]
        torch.testing.assert_close(found[:, patch], expected)
    same = decoder(source, source).cells
    assert torch.equal(same(latents, source, source), same.embed(latents))


def test_patches_of_one_latent_differ_and_rows_do_not_mix() -> None:
    made = decoder(TokenGrid(1, 1, 1), TokenGrid(1, 3, 3), tubelet_size=1)
    latents = torch.randn(4, 1, 5)
    clip = made(latents)
    assert clip.shape == (4, 3, 1, 12, 12)
    patches = clip[:, 0, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)
    assert torch.cdist(patches, patches)[:, ~torch.eye(9, dtype=torch.bool)].min() > 0.01
    torch.testing.assert_close(made(latents[2:3]), clip[2:3])
    assert (clip[0] - clip[1]).abs().max() > 0.1


def test_other_lengths_and_sizes() -> None:
    made = decoder(TokenGrid(2, 2, 2), TokenGrid(2, 4, 4))
    assert made.native_size == (4, 16, 16)
    assert made(torch.randn(2, 8, 5)).shape == (2, 3, 4, 16, 16)
    longer = made(torch.randn(2, 3 * 2 * 4, 5), (6, 16, 32), TokenGrid(3, 2, 4))
    assert longer.shape == (2, 3, 6, 16, 32)
    assert made(torch.randn(2, 4, 5), (1, 16, 16), TokenGrid(1, 2, 2)).shape == (2, 3, 1, 16, 16)
    # the same at every place: with latents alike and without attention's ends the size would not be seen at all
    for block in made.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)  # type: ignore[union-attr, arg-type]
    z = torch.randn(1, 1, 5)
    small, large = made(z.expand(1, 8, 5)), made(z.expand(1, 24, 5), (6, 16, 32), TokenGrid(3, 2, 4))
    torch.testing.assert_close(large, small[:, :, :2].repeat(1, 1, 3, 1, 2))


def test_every_parameter_gets_a_gradient() -> None:
    made = decoder(TokenGrid(1, 2, 2), TokenGrid(1, 4, 4))
    made(torch.randn(2, 4, 5)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())


@pytest.mark.parametrize("kind", [PixelDecoder, FlowDecoder])
def test_a_decoder_of_a_large_model_is_small(kind: type[Any]) -> None:
    """ViT-L has 303.9 M parameters; patches of 8 pixels and 1 frame over its cells of 16 pixels and 2 frames."""
    shape = {"embed_dim": 384, "depth": 8, "num_heads": 6, "patch_size": 8, "tubelet_size": 1}
    config = FlowDecoderConfig(**shape) if kind is FlowDecoder else PixelDecoderConfig(**shape)
    with torch.device("meta"):
        made = kind(config, 1024, TokenGrid(8, 16, 16), TokenGrid(16, 32, 32))
    assert sum(p.numel() for p in made.parameters()) < 30.39e6


def squares(where: Tensor) -> Tensor:
    """Pictures ``[B, 3, 1, 12, 12]`` of a bright square of 4 pixels whose corner is at ``where`` ``[B, 2]``."""
    pixel = torch.arange(12)
    rows, columns = ((pixel >= low[:, None]) & (pixel < low[:, None] + 4) for low in where.unbind(1))
    return (rows[:, :, None] & columns[:, None]).float()[:, None, None].expand(-1, 3, -1, -1, -1)


def test_it_learns_to_draw_where_one_latent_says() -> None:
    made = decoder(TokenGrid(1, 1, 1), TokenGrid(1, 3, 3), tubelet_size=1, depth=1)
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    corners = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    latents = F.pad(corners / 4 - 1.0, (0, 3))[:, None]
    errors = []
    for _ in range(120):
        error = F.mse_loss(made(latents), squares(corners))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[0] > 0.1
    assert errors[-1] < 0.05  # and 0.099 where the mean of all pictures is drawn


class Shown(torch.nn.Module):
    """In the place of a decoder's cells: keeps what these were shown."""

    def __init__(self, cells: torch.nn.Module) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, latents: Tensor, *grids: TokenGrid) -> Tensor:
        self.latents = latents
        tokens: Tensor = self.cells(latents, *grids)
        return tokens


@pytest.mark.parametrize("kind", [PixelDecoder, FlowDecoder])
def test_noise_of_a_level_of_its_own_for_every_row_in_training(kind: type[Any]) -> None:
    config = (FlowDecoderConfig if kind is FlowDecoder else PixelDecoderConfig)(**SMALL, latent_noise=0.7)
    torch.manual_seed(0)
    made = kind(config, 64, TokenGrid(1, 2, 2), TokenGrid(1, 2, 2))
    made.cells = Shown(made.cells)
    latents = torch.randn(4000, 4, 64)
    given = (torch.zeros(4000, 3, 1, 8, 8), torch.zeros(4000), latents) if kind is FlowDecoder else (latents,)
    with torch.no_grad():
        made(*given)
        noise = (made.cells.latents - latents).flatten(1)
        level = noise.std(dim=1)  # 256 numbers each: within 5 % of it
        assert level.square().mean().sqrt().item() == pytest.approx(0.7, rel=0.03)
        assert level.mean().item() == pytest.approx(0.7 * math.sqrt(2 / math.pi), rel=0.03)  # a half-normal's
        assert noise.mean().abs() < 0.01
        halves = noise[:, :128].std(dim=1), noise[:, 128:].std(dim=1)
        assert torch.corrcoef(torch.stack(halves))[0, 1] > 0.95
        before = torch.get_rng_state()
        made.eval()(*given)
        assert made.cells.latents is latents
        assert torch.equal(torch.get_rng_state(), before)


def test_what_stands_for_hidden_latents_gets_no_noise() -> None:
    torch.manual_seed(0)
    made = FlowDecoder(FlowDecoderConfig(**SMALL, latent_noise=0.7), 5, TokenGrid(1, 2, 2), TokenGrid(1, 2, 2))
    made.cells = shown = Shown(made.cells)  # type: ignore[assignment]
    hidden, latents = torch.tensor([True, False]), torch.randn(2, 4, 5)
    made(torch.zeros(2, 3, 1, 8, 8), torch.zeros(2), latents, None, hidden)
    assert torch.equal(shown.latents[0], made.null.expand(4, 5)), "one thing, which sampling shows as well"
    assert not torch.equal(shown.latents[1], latents[1])


def test_with_noise_in_training_what_is_a_little_off_is_decoded_better() -> None:
    """One number says whether a picture is dark or bright; it is never near the threshold but when predicted."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (256,), generator=generator) * 2.0 - 1
    latents = F.pad(sign[:, None], (0, 4))[:, None]
    pictures = sign[:, None, None, None, None].expand(-1, 3, 1, 4, 4)
    off = latents + torch.randn(latents.shape, generator=generator)
    errors = {}
    for noise in (0.0, 1.0):
        made = decoder(TokenGrid(1, 1, 1), TokenGrid(1, 1, 1), tubelet_size=1, depth=1, latent_noise=noise)
        optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
        for _ in range(200):
            optimizer.zero_grad()
            F.mse_loss(made(latents), pictures).backward()
            optimizer.step()
        with torch.no_grad():
            made.eval()
            errors[noise] = F.mse_loss(made(off), pictures).item(), F.mse_loss(made(latents), pictures).item()
    assert errors[1.0][0] < 0.8 * errors[0.0][0]
    assert errors[0.0][1] < errors[1.0][1] < 0.2  # the price


@pytest.mark.parametrize(("changes", "message"), [
    ({"latent_noise": -0.1}, "decoder.latent_noise must not be negative, but is -0.1"),
    ({"num_heads": 5}, "decoder: embed_dim 24 is not divisible by num_heads 5"),
    ({"patch_size": 0}, "decoder.patch_size must be at least 1, not 0"),
    ({"tubelet_size": -1}, "decoder.tubelet_size must be at least 1, not -1"),
    ({"num_heads": 6}, "decoder: rotary positions need an even head width of at least 6"),
])  # fmt: skip
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelDecoderConfig(**{**SMALL, **changes})


def test_refused() -> None:
    with pytest.raises(ValueError, match="2 output patches over the clip's rows are fewer than its 4 latents: lo"):
        decoder(TokenGrid(1, 4, 4), TokenGrid(1, 2, 4))
    with pytest.raises(ValueError, match=r"1 output patches over the clip's frames .* lower decoder.tubelet_size"):
        decoder(TokenGrid(2, 4, 4), TokenGrid(1, 4, 4))
    made = decoder(TokenGrid(1, 2, 2), TokenGrid(1, 4, 4))
    with pytest.raises(ValueError, match=r"latents must be \[B, N, 5\], not \[2, 4, 6\]"):
        made(torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match="a grid of 1 x 2 x 2 has 4 latents, not 3"):
        made(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"clip height 18 is not divisible by decoder.patch_size 4; use 16 or 20"):
        made(torch.zeros(2, 4, 5), (2, 18, 16))
    with pytest.raises(ValueError, match=r"clip length 3 is not divisible by decoder.tubelet_size 2; use 2 or 4"):
        made(torch.zeros(2, 4, 5), (3, 16, 16))
