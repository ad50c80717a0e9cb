"""What of a frame's tokens a world model predicts: all of them, some averages, one projection, or key points.

Shape legend: B batch, C channels, T frames, h/w cells, E width of a token, n latent tokens per frame, D width of a
latent, K key points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.models.base import ClipEncoder
from jepa.models.linear import Linear
from jepa.types import ClipConfig, TokenGrid

_PIXELS_AT_ONCE = 64 * 224 * 224  # frames go through a frozen encoder in chunks: memory stays bounded


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentConfig:
    """What of a frame's tokens is predicted. ``pool``: "none" (every token), "mean" (one), or [rows, columns] of
    averaged tokens, or "flat" (one, a projection of all tokens side by side, so that it knows where each was), or
    "keypoints" (one: where each of ``dim`` learned features is, row and column, as the mean place of a softmax over the
    cells; Finn et al., arXiv 1509.06113, section IV).
    ``dim``: a learned projection to so many numbers, for an encoder that is trained along. ``layer_norm``: of every
    latent, and of every prediction (V-JEPA 2-AC: yes)."""

    pool: Literal["none", "mean", "flat", "keypoints"] | tuple[int, int] = "none"
    dim: int | None = None
    layer_norm: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.pool, str) and min(self.pool) < 1:
            raise ValueError(f"pool must be a word or [rows, columns] of at least 1, not {list(self.pool)}")
        if self.dim is not None and self.dim < 1:
            raise ValueError(f"dim must be at least 1, or left out for the encoder's width, not {self.dim}")
        if self.pool == "flat" and self.dim is None:
            raise ValueError("pool 'flat' is a learned projection of all tokens: give it a dim, such as 32")
        if self.pool == "keypoints" and (self.dim is None or self.layer_norm):
            raise ValueError("pool 'keypoints' gives places: give it a dim (how many, such as 3) and layer_norm false")


class LatentHead(nn.Module):
    """Tokens of frames ``[B, h*w, E]`` to latents ``[B, n, D]``; ``grid`` is theirs, with one step in time."""

    def __init__(self, config: LatentConfig, encoder_dim: int, cells: TokenGrid) -> None:
        super().__init__()
        self.config, self.cells = config, TokenGrid(1, cells.h, cells.w)
        self.grid = self.cells
        if config.pool != "none":
            rows, columns = (1, 1) if isinstance(config.pool, str) else config.pool
            if rows > cells.h or columns > cells.w:
                raise ValueError(f"latent.pool {rows} x {columns} is finer than the encoder's {cells.h} x {cells.w}")
            self.grid = TokenGrid(1, rows, columns)
        self.dim = config.dim or encoder_dim
        self.proj = None
        if config.pool == "keypoints":
            self.dim *= 2
        if config.dim is not None:
            self.proj = Linear(encoder_dim * (self.cells.size if config.pool == "flat" else 1), config.dim)
            nn.init.xavier_uniform_(self.proj.weight)
            nn.init.zeros_(self.proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, h*w, E]`` to ``[B, n, D]``."""
        if self.config.pool == "keypoints":
            assert self.proj is not None
            shares = self.proj(tokens).float().softmax(dim=1)  # [B, h*w, K]
            return (shares.transpose(1, 2) @ _places(self.cells, tokens.device)).flatten(1)[:, None]
        if self.config.pool == "flat":
            tokens = tokens.flatten(1)[:, None]
        elif self.grid != self.cells:
            maps = tokens.transpose(1, 2).unflatten(2, (self.cells.h, self.cells.w))
            tokens = F.adaptive_avg_pool2d(maps, (self.grid.h, self.grid.w)).flatten(2).transpose(1, 2)
        return self.norm(tokens if self.proj is None else self.proj(tokens))

    def norm(self, latents: Tensor) -> Tensor:
        """The layer norm alone, in fp32, where there is one: of latents and of predictions ``[..., D]``."""
        return F.layer_norm(latents.float(), (latents.shape[-1],)) if self.config.layer_norm else latents.float()


def encode_frames(encoder: ClipEncoder, frames: Tensor, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Frames ``[B, C, T, H, W]``, each by itself, to the encoder's tokens, or ``head``'s latents ``[B, T, n, D]``; in
    chunks, unless gradients are wanted."""
    if frames.dim() != 5 or not frames.is_floating_point():
        given = f"{str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}"
        raise ValueError(f"frames must be float [B, C, T, H, W], not {given}")
    images = frames.transpose(1, 2).flatten(0, 1)[:, :, None]  # [B*T, C, 1, H, W]
    count = max(1, _PIXELS_AT_ONCE // images[0, 0].numel())
    parts = [images] if torch.is_grad_enabled() else images.split(count)
    latents = [encoder(part) if head is None else head(encoder(part)) for part in parts]
    return torch.cat(latents).unflatten(0, (len(frames), frames.shape[2]))


def head_for(config: LatentConfig, encoder: ClipEncoder, clip: ClipConfig, channels: int = 3) -> LatentHead:
    """The head for frames of ``clip``'s size, with fresh weights."""
    return LatentHead(config, encoder.embed_dim, encoder.grid_of((channels, 1, clip.crop_size, clip.crop_size)))


def _places(cells: TokenGrid, device: torch.device) -> Tensor:
    """Row and column of every cell ``[h*w, 2]``, from -3^0.5 to 3^0.5 (0 where there is one): what may be anywhere
    between the outermost cells then has variance 1, as a regularizer asks for."""
    ends = [3**0.5 if count > 1 else 0.0 for count in (cells.h, cells.w)]
    rows, columns = (
        torch.linspace(-end, end, count, device=device) for end, count in zip(ends, (cells.h, cells.w), strict=True)
    )
    return torch.cartesian_prod(rows, columns)
