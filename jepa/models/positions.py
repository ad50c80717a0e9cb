"""Fixed sine-cosine positions, computed from token coordinates; and stored tables, as published models have them.

Shape legend: N tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.types import TokenGrid


def sincos_1d(position: Tensor, dim: int) -> Tensor:
    """Positions ``[...]`` to ``[..., dim]``, ``[sin | cos]`` with omega_i = 10000^(-i / (dim/2)), float32.

    Source: Attention is all you need (arXiv 1706.03762), section 3.5, sines first.
    """
    half = dim // 2
    omega = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=position.device) / half)
    angle = position.double()[..., None] * omega
    return torch.cat((angle.sin(), angle.cos()), dim=-1).float()


def sincos_positions(grid: TokenGrid, native: TokenGrid, dim: int) -> Tensor:
    """Positions of every token of ``grid``, float32 ``[grid.size, dim]``, on the CPU (float64 inside, which MPS lacks).

    A clip: ``[t | h | w]``, each of 2*ceil(dim/6) values, cut to ``dim`` (V-JEPA's uniform power, arXiv 2404.08471).
    An image model (``native.t`` 1): ``[w | h]``, half the width each (I-JEPA, arXiv 2301.08243). Where ``grid`` is not
    the grid that the model was built for (``native``), its cells are spread over the same extent, as the published
    models do when they interpolate their tables.
    """
    coordinates = grid.coordinates(grid.ids("cpu")).double()
    scale = torch.tensor([n / g for n, g in zip(native, grid, strict=True)], dtype=torch.float64, device="cpu")
    t, h, w = ((coordinates + 0.5) * scale - 0.5).unbind(-1)
    if native.t == 1:
        parts = [sincos_1d(w, dim // 2), sincos_1d(h, dim // 2)]
    else:
        parts = [sincos_1d(axis, 2 * math.ceil(dim / 6)) for axis in (t, h, w)]
    return torch.cat(parts, dim=-1)[:, :dim]


class SinCos(nn.Module):
    """The table of ``sincos_positions``, kept for the native grid (not in the state dict) and computed for others."""

    table: Tensor

    def __init__(self, native: TokenGrid, dim: int) -> None:
        super().__init__()
        self.native, self.dim = native, dim
        self.register_buffer("table", sincos_positions(native, native, dim), persistent=False)

    def forward(self, grid: TokenGrid) -> Tensor:
        """Positions of every token of ``grid``, float32 ``[grid.size, dim]``."""
        if grid == self.native:
            return self.table
        return sincos_positions(grid, self.native, self.dim).to(self.table.device)


class PositionTable(nn.Module):
    """A stored table ``[native.size, dim]`` (in the state dict), which starts as ``sincos_positions``.

    For another grid the table itself is interpolated, as I-JEPA (bicubic) and V-JEPA (trilinear) do with theirs; of a
    shorter clip on the native rows and columns the first tubelets' positions are taken, as V-JEPA does. High
    frequencies are damped by interpolation, so this differs from ``SinCos`` off the native grid.
    """

    table: Tensor

    def __init__(self, native: TokenGrid, dim: int) -> None:
        super().__init__()
        self.native = native
        self.register_buffer("table", sincos_positions(native, native, dim))

    def forward(self, grid: TokenGrid) -> Tensor:
        """Positions of every token of ``grid``, float32 ``[grid.size, dim]``."""
        native = self.native
        if grid == native:
            return self.table
        if grid.h == native.h and grid.w == native.w and grid.t < native.t:
            return self.table[: grid.size]
        table = self.table.unflatten(0, tuple(native)).permute(3, 0, 1, 2)[None]  # [1, D, t, h, w]
        if native.t == 1:  # an image model: the same positions in every frame
            flat = F.interpolate(table[:, :, 0], size=(grid.h, grid.w), mode="bicubic")
            table = flat[:, :, None].expand(-1, -1, grid.t, -1, -1)
        else:
            table = F.interpolate(table, size=tuple(grid), mode="trilinear")
        return table[0].permute(1, 2, 3, 0).flatten(0, 2)


def build_positions(position: str, native: TokenGrid, dim: int) -> SinCos | PositionTable | None:
    """The module for "sincos" or "table"; rotary positions need none."""
    if position == "rope":
        return None
    return SinCos(native, dim) if position == "sincos" else PositionTable(native, dim)
