"""A decoder for worlds whose latents are colours (``planning.toy``, ``colour_world``): what is decoded is known."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from colour_world import ColourModel
from planning.toy import ToyModel
from torch import Tensor

from jepa.models.world_model import Scaling, WorldConfig
from jepa.types import ClipConfig, TokenGrid


class Encoder:
    """Of any size."""

    def __init__(self, clip: ClipConfig) -> None:
        self.clip, self.grid = clip, TokenGrid(clip.num_frames, 1, 1)

    def grid_of(self, shape: Any) -> TokenGrid:
        return TokenGrid(shape[-3], 1, 1)


class Frozen(NamedTuple):
    encoder: Encoder


class ColourDecoder:
    """Latents ``[B, T, 2]`` are red and green; a generative one adds noise of 0.1 to each sample."""

    per_frame, latent_dim, path = True, 2, "painter"
    device = torch.device("cpu")

    def __init__(self, clip: ClipConfig, model: str = "toy", generative: bool = False) -> None:
        self.clip, self.model, self.generative, self.objective = clip, model, generative, Frozen(Encoder(clip))
        self.checked: list[str] = []

    def to(self, device: Any) -> ColourDecoder:
        return self

    def check(self, model: Any, name: str) -> None:
        self.checked.append(name)

    def to_pixels(self, clip: Tensor) -> Tensor:
        return clip.clamp(0, 1)

    def encode(self, clip: Tensor) -> Tensor:
        return clip.mean(dim=(3, 4)).transpose(1, 2)[..., :2]

    def decode(
        self, latents: Tensor, size: tuple[int, int, int], *, samples: int, steps: int, guidance: float,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        colours = torch.cat((latents, torch.zeros_like(latents[..., :1])), dim=-1).transpose(1, 2)
        clip = colours[:, None, :, :, None, None].expand(-1, samples, -1, *size)
        if not self.generative:
            return clip.clamp(0, 1)
        return (clip + 0.1 * torch.randn(samples, 1, 1, 1, 1, generator=generator)).clamp(0, 1)


class Colours(ColourModel):
    def __init__(self, gain: float = 1.0, state_dim: int = 0) -> None:
        super().__init__(gain, state_dim)
        self.config, self.scaling = WorldConfig(window=1), Scaling(2, 0)  # actions from -1 to 1


class Toy(ToyModel):
    def __init__(self) -> None:
        super().__init__()
        self.config, self.latent_dim = WorldConfig(window=1), 2
