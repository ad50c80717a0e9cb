"""Clip to tokens: cut into tubelets, keep the wanted ones, and only those go through the linear embedding.

Shape legend: B batch, C channels, T frames, H/W pixels, t/h/w token grid, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.models.linear import linear
from jepa.types import TokenGrid


def nearest_multiples(value: int, divisor: int) -> str:
    """``"208 or 224"``: the multiples of ``divisor`` on both sides of ``value``."""
    low = value // divisor * divisor
    return f"{low} or {low + divisor}" if low else str(divisor)


class PatchEmbed(nn.Module):
    """Linear embedding of tubelets of ``tubelet_size`` frames by ``patch_size`` x ``patch_size`` pixels.

    The weight is kept in the layout of the published checkpoints, a 3D convolution ``(D, C, pt, p, p)`` whose stride
    equals its kernel; the convolution itself is never run: a matrix product over the kept tubelets is the same.
    """

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int, tubelet_size: int) -> None:
        super().__init__()
        self.in_channels, self.patch_size, self.tubelet_size = in_channels, patch_size, tubelet_size
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, embed_dim, kernel_size=kernel, stride=kernel)

    def grid_of(self, shape: Sequence[int]) -> TokenGrid:
        """Token grid of a clip of shape ``[..., C, T, H, W]``. Raises ``ValueError`` naming the side that is wrong."""
        channels, frames, height, width = shape[-4:]
        p, pt = self.patch_size, self.tubelet_size
        if channels != self.in_channels:
            raise ValueError(f"clip has {channels} channels, but the encoder has in_channels {self.in_channels}")
        for name, side in (("height", height), ("width", width)):
            if side % p or side == 0:
                raise ValueError(
                    f"clip {name} (crop_size) {side} is not divisible by patch_size {p}; "
                    f"use {nearest_multiples(side, p)}"
                )
        if frames != 1 and (frames % pt or frames == 0):
            raise ValueError(
                f"clip length (num_frames) {frames} is not divisible by tubelet_size {pt}; "
                f"use {nearest_multiples(frames, pt)}"
            )
        return TokenGrid(max(1, frames // pt), height // p, width // p)

    def forward(self, clip: Tensor, ids: Tensor | None = None) -> Tensor:
        """Clip ``[B, C, T, H, W]`` to all tokens ``[B, N, D]``, or to those of ``ids`` ``[B, Nc]``."""
        return linear(self.tubelets(clip, ids), self.proj.weight.flatten(1), self.proj.bias)

    def tubelets(self, clip: Tensor, ids: Tensor | None = None) -> Tensor:
        """Pixels ``[B, N or Nc, C*pt*p*p]`` of all tubelets, or of those of ``ids`` ``[B, Nc]``; channels come first.

        A single frame (T=1) is repeated to fill its tubelet.
        """
        grid = self.grid_of(clip.shape)
        if clip.shape[2] == 1:
            clip = clip.expand(-1, -1, self.tubelet_size, -1, -1)
        p = self.patch_size
        patches = clip.unflatten(4, (grid.w, p)).unflatten(3, (grid.h, p)).unflatten(2, (grid.t, self.tubelet_size))
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7)  # [B, t, h, w, C, pt, p, p]
        if ids is None:
            return patches.flatten(4).flatten(1, 3)
        time, row, column = grid.coordinates(ids).unbind(-1)
        rows_of_batch = torch.arange(clip.shape[0], device=clip.device)[:, None]
        return patches[rows_of_batch, time, row, column].flatten(2)
