"""From latents to pixels: a small transformer with one token per output patch, trained on a frozen model's latents.

Every output patch begins as the latents of the cell that it lies in, and as its place within that cell: where a frame
is one latent, that is all that tells patches apart. Where cells and patches agree, the token is the latent itself.
Patches then see each other under rotary positions. Both are relative, so other lengths and sizes decode as well.

Shape legend: B batch, N latents, D width of a latent, M output patches, E width of the decoder, C channels, T frames,
H/W pixels, t/h/w grid, P pixel values of a patch: C x tubelet_size x patch_size x patch_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.models.layers import Block, Init, check_width, init_weights
from jepa.models.linear import Linear
from jepa.models.positions import sincos_1d
from jepa.models.recompute import Recomputing, run_block
from jepa.models.rope import rope_table
from jepa.models.tubelet import nearest_multiples
from jepa.types import TokenGrid

Size = tuple[int, int, int]  # of a clip: frames, rows and columns of pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelDecoderConfig:
    """Width, depth, heads and MLP ratio of the decoder. ``patch_size`` (pixels) and ``tubelet_size`` (frames) are those
    of an output patch: no coarser than the latents' cells, and finer where a cell is large."""

    kind: Literal["deterministic"] = "deterministic"
    embed_dim: int = 192
    depth: int = 4
    num_heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 16
    tubelet_size: int = 2
    init: Init = "xavier"

    def __post_init__(self) -> None:
        check_width(self.embed_dim, self.depth, self.num_heads, self.mlp_ratio, "rope", "decoder")
        for name in ("patch_size", "tubelet_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoder.{name} must be at least 1, not {getattr(self, name)}")


class CellEmbed(nn.Module):
    """Latents ``[B, N, D]`` to one token per output patch, ``[B, M, E]``.

    A token is W z + (1 + V z) * U p, z being the latents of its cell and p its place there: the product lets one latent
    say different things at different places, which a sum could not before the first MLP. ``source`` and ``out`` are the
    native grids.
    """

    native_places: Tensor

    def __init__(self, latent_dim: int, dim: int, source: TokenGrid, out: TokenGrid) -> None:
        super().__init__()
        self.source, self.out = source, out
        self.content, self.gain = Linear(latent_dim, dim), Linear(latent_dim, dim)
        places = cell_places(source, out, self.per_cell, dim)
        self.register_buffer("native_places", places, persistent=False)
        self.place = Linear(places.shape[-1], dim)

    @property
    def per_cell(self) -> tuple[float, float, float]:
        """Patches per cell and axis of the native grids."""
        t, h, w = (fine / coarse for fine, coarse in zip(self.out, self.source, strict=True))
        return t, h, w

    def forward(self, latents: Tensor, source: TokenGrid, out: TokenGrid) -> Tensor:
        """``source``: grid of the N latents. ``out``: that of the M patches."""
        cells = cell_ids(source, out, latents.device)
        places = self.native_places
        if (source, out) != (self.source, self.out):
            places = cell_places(source, out, self.per_cell, self.gain.out_features).to(latents.device)
        place = self.place(places.to(self.place.weight.dtype))
        return self.content(latents)[:, cells] + (1 + self.gain(latents)[:, cells]) * place


class PixelDecoder(Recomputing):
    """Latents ``[B, N, D]`` to the clip ``[B, C, T, H, W]`` that they most likely come from, in the scale of the clips
    that the model eats (normalised).

    ``source``: the grid of the latents of a native clip; ``out``: the grid of its patches.
    """

    def __init__(
        self, config: PixelDecoderConfig, latent_dim: int, source: TokenGrid, out: TokenGrid, channels: int = 3
    ) -> None:
        super().__init__()
        check_grids(source, out)
        self.config, self.latent_dim, self.source, self.out, self.channels = config, latent_dim, source, out, channels
        dim = config.embed_dim
        self.cells = CellEmbed(latent_dim, dim, source, out)
        self.blocks = nn.ModuleList(Block(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = Linear(dim, channels * config.tubelet_size * config.patch_size**2)
        init_weights(self, self.blocks, config.init)

    def forward(self, latents: Tensor, size: Size | None = None, source: TokenGrid | None = None) -> Tensor:
        """``size``: frames, rows and columns of the clip; ``source``: the latents' grid (None: the native ones).

        Raises ``ValueError`` for latents of another width or number, and for a size that patches do not divide.
        """
        size, source, out = self.grids(latents, size, source)
        x = self.cells(latents, source, out)
        rope = rope_table(out, out.ids(x.device)[None], self.config.embed_dim // self.config.num_heads)
        for block in self.blocks:
            x = run_block(block, x, rope, None, self.recompute_now)
        return to_clip(self.proj(self.norm(x)), out, self.config, size[0])

    def grids(
        self, latents: Tensor, size: Size | None, source: TokenGrid | None
    ) -> tuple[Size, TokenGrid, TokenGrid]:  # fmt: skip
        """What ``forward`` was asked for, filled in and checked: the size, the grids of latents and of patches."""
        size = self.native_size if size is None else size
        source = self.source if source is None else source
        out = out_grid(self.config, size)
        check_grids(source, out)
        if latents.dim() != 3 or latents.shape[2] != self.latent_dim:
            raise ValueError(f"latents must be [B, N, {self.latent_dim}], not {list(latents.shape)}")
        if latents.shape[1] != source.size:
            sides = " x ".join(map(str, source))
            raise ValueError(f"a grid of {sides} has {source.size} latents, not {latents.shape[1]}")
        return size, source, out

    @property
    def native_size(self) -> Size:
        """Frames, rows and columns of the native clip."""
        return native_size(self.config, self.out)


def native_size(config: PixelDecoderConfig, out: TokenGrid) -> Size:
    """Frames, rows and columns of a clip whose patches have the grid ``out``."""
    return out.t * config.tubelet_size, out.h * config.patch_size, out.w * config.patch_size


def out_grid(config: PixelDecoderConfig, size: Size) -> TokenGrid:
    """Grid of the output patches of a clip of ``size``; a single frame is one tubelet. Raises ``ValueError`` naming the
    side that patches do not divide."""
    frames, height, width = size
    patch, tubelet = config.patch_size, config.tubelet_size
    sides = (("height", height, "patch_size", patch), ("width", width, "patch_size", patch))
    checked = sides if frames == 1 else (("length", frames, "tubelet_size", tubelet), *sides)
    for name, value, key, step in checked:
        if value < 1 or value % step:
            raise ValueError(
                f"clip {name} {value} is not divisible by decoder.{key} {step}; use {nearest_multiples(value, step)}"
            )
    return TokenGrid(max(1, frames // tubelet), height // patch, width // patch)


def check_grids(source: TokenGrid, out: TokenGrid) -> None:
    """Raise ``ValueError`` where output patches are coarser than the latents: some of these would go unseen."""
    for name, cells, patches in zip(("frames", "rows", "columns"), source, out, strict=True):
        if patches < cells:
            key = "tubelet_size" if name == "frames" else "patch_size"
            raise ValueError(
                f"{patches} output patches over the clip's {name} are fewer than its {cells} latents: lower "
                f"decoder.{key}"
            )


def cell_ids(source: TokenGrid, out: TokenGrid, device: torch.device | str) -> Tensor:
    """The cell of ``source`` that the middle of every patch of ``out`` lies in: ids, int64 ``[M]``."""
    # whole numbers throughout: (k + 1/2) / patches * cells, doubled
    t, h, w = (
        (2 * torch.arange(patches, device=device) + 1) * cells // (2 * patches)
        for patches, cells in zip(out, source, strict=True)
    )
    return ((t[:, None, None] * source.h + h[:, None]) * source.w + w).flatten()


def cell_places(source: TokenGrid, out: TokenGrid, per_cell: tuple[float, float, float], dim: int) -> Tensor:
    """Where every patch of ``out`` lies within its cell of ``source``: sine-cosine ``[M, 6 * ceil(dim / 6)]``, float32,
    on the CPU.

    Counted in patches of the native grids, ``per_cell`` of which a cell holds: cells of the same size have the same
    places in a clip of any size, and the patches of a cell that is cut finer are spread over its extent.
    """
    axes = []
    for patches, cells, extent in zip(out, source, per_cell, strict=True):
        middle = (torch.arange(patches, device="cpu", dtype=torch.float64) + 0.5) * cells / patches
        place = (middle - middle.floor()) * extent - 0.5
        axes.append(sincos_1d(place, 2 * math.ceil(dim / 6)))
    t, h, w = axes
    grids = (t[:, None, None], h[None, :, None], w[None, None, :])
    return torch.cat([axis.expand(*out, -1) for axis in grids], dim=-1).flatten(0, 2)


def to_clip(values: Tensor, grid: TokenGrid, config: PixelDecoderConfig, frames: int) -> Tensor:
    """Pixel values ``[B, M, P]`` of all patches to the clip ``[B, C, T, H, W]``, of which the first ``frames``; the
    inverse of ``PatchEmbed.tubelets``."""
    patch, tubelet = config.patch_size, config.tubelet_size
    patches = values.unflatten(1, tuple(grid)).unflatten(-1, (-1, tubelet, patch, patch))  # [B, t, h, w, C, pt, p, p]
    clip = patches.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return clip[:, :, :frames]
