"""Patch embedding: equals the convolution of the published layout, and embeds only what is asked for."""

import pytest
import torch

from jepa.models.tubelet import PatchEmbed, nearest_multiples
from jepa.types import TokenGrid


def test_equals_convolution() -> None:
    embed, clip = PatchEmbed(3, 24, 4, 2), torch.randn(2, 3, 6, 8, 12)
    assert embed.proj.weight.shape == (24, 3, 2, 4, 4)
    expected = embed.proj(clip).flatten(2).transpose(1, 2)
    assert embed.grid_of(clip.shape) == TokenGrid(3, 2, 3)
    torch.testing.assert_close(embed(clip), expected, rtol=1e-5, atol=1e-5)


def test_chosen_tokens_equal_those_of_the_whole() -> None:
    embed, clip = PatchEmbed(3, 24, 4, 2), torch.randn(2, 3, 6, 8, 12)
    ids = torch.stack([torch.randperm(18)[:5] for _ in range(2)])
    expected = embed(clip).gather(1, ids[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(embed(clip, ids), expected, rtol=1e-5, atol=1e-5)


def test_single_frame_fills_its_tubelet() -> None:
    embed, image = PatchEmbed(3, 24, 4, 2), torch.randn(2, 3, 1, 8, 8)
    assert embed.grid_of(image.shape) == TokenGrid(1, 2, 2)
    torch.testing.assert_close(embed(image), embed(image.repeat(1, 1, 2, 1, 1)))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 4, 225, 224), "height (crop_size) 225 is not divisible by patch_size 16; use 224 or 240"),
        ((3, 4, 224, 8), "width (crop_size) 8 is not divisible by patch_size 16; use 16"),
        ((3, 5, 32, 32), "(num_frames) 5 is not divisible by tubelet_size 2; use 4 or 6"),
        ((1, 4, 32, 32), "1 channels, but the encoder has in_channels 3"),
    ],
)
def test_bad_shapes_say_what_fits(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError) as error:
        PatchEmbed(3, 24, 16, 2).grid_of(shape)
    assert words in str(error.value)


def test_nearest_multiples() -> None:
    assert (nearest_multiples(225, 16), nearest_multiples(3, 16)) == ("224 or 240", "16")
