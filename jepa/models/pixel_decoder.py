"""From latents to pixels: a small transformer with one token per output patch, trained on a frozen model's latents.

Every output patch begins as a projection of the latents of the cell that it lies in, one for each place within a cell:
where a frame is one latent, that is what tells patches apart; where cells and patches agree, the token is the latent
itself, projected. Patches then see each other under rotary positions. Both are relative, so other lengths and sizes
decode as well.

Shape legend: B batch, N latents, D width of a latent, M output patches, E width of the decoder, C channels, T frames,
H/W pixels, t/h/w grid, P pixel values of a patch: C x tubelet_size x patch_size x patch_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.models.layers import Block, Init, check_width, init_weights
from jepa.models.linear import Linear
from jepa.models.recompute import Recomputing, run_block
from jepa.models.rope import rope_table
from jepa.models.tubelet import nearest_multiples
from jepa.types import TokenGrid

Size = tuple[int, int, int]  # of a clip: frames, rows and columns of pixels
LARGE = 250_000_000  # parameters of an encoder from which on a decoder is held to a tenth of it: ViT-L has 304 M


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelDecoderConfig:
    """Width, depth, heads and MLP ratio of the decoder. ``patch_size`` (pixels) and ``tubelet_size`` (frames) are those
    of an output patch: no coarser than the latents' cells, and finer where a cell is large.

    ``latent_noise``: in training, latents get Gaussian noise whose deviation is drawn for every row, as the absolute
    value of a normal number of this deviation (arXiv 2510.11690, noise-augmented decoding; latents of an encoder are
    layer-normed, so 1 is their own size). What a predictor expects lies beside what an encoder gives, and a decoder
    that has only seen the latter draws it badly; the price is a few details of the latter. 0: none.
    """

    kind: Literal["deterministic"] = "deterministic"
    embed_dim: int = 192
    depth: int = 4
    num_heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 16
    tubelet_size: int = 2
    latent_noise: float = 0.0
    init: Init = "xavier"

    def __post_init__(self) -> None:
        check_width(self.embed_dim, self.depth, self.num_heads, self.mlp_ratio, "rope", "decoder")
        for name in ("patch_size", "tubelet_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoder.{name} must be at least 1, not {getattr(self, name)}")
        if self.latent_noise < 0:
            raise ValueError(f"decoder.latent_noise must not be negative, but is {self.latent_noise:g}")


class CellEmbed(nn.Module):
    """Latents ``[B, N, D]`` to one token per output patch, ``[B, M, E]``. ``source`` and ``out`` are the native grids.

    Where a cell holds several patches, each place in it has its own projection, as in a transposed convolution: from
    one latent per frame a decoder learns where things are many times faster than with places that are added to it.
    """

    def __init__(self, latent_dim: int, dim: int, source: TokenGrid, out: TokenGrid) -> None:
        super().__init__()
        self.per_cell = per_cell(source, out)
        self.embed = Linear(latent_dim, dim)
        self.unfold = None
        if self.per_cell.size > 1:
            self.unfold = Linear(dim, self.per_cell.size * dim)
            self.place = nn.Parameter(torch.empty(self.per_cell.size, dim))

    def init(self, kind: Init) -> None:
        """Weights of places, each as if it were alone; and what tells places apart before anything is learned."""
        if self.unfold is None:
            return
        if kind == "xavier":
            for weight in self.unfold.weight.data.chunk(self.per_cell.size):
                nn.init.xavier_uniform_(weight)
        nn.init.normal_(self.place, std=0.5)

    def forward(self, latents: Tensor, source: TokenGrid, out: TokenGrid) -> Tensor:
        """``source``: grid of the N latents. ``out``: that of the M patches."""
        cells, places = cell_ids(source, out, latents.device), place_ids(source, out, self.per_cell, latents.device)
        x = self.embed(latents)
        if self.unfold is None:
            return x[:, cells]
        x = self.unfold(x).unflatten(2, (self.per_cell.size, -1)) + self.place
        return x[:, cells, places]


class PatchDecoder(Recomputing):
    """What decoders have in common: tokens of output patches made of latents, blocks, and pixels at their end.

    ``source``: the grid of the latents of a native clip; ``out``: the grid of its patches.
    """

    block: type[Block] = Block

    def __init__(
        self, config: PixelDecoderConfig, latent_dim: int, source: TokenGrid, out: TokenGrid, channels: int = 3
    ) -> None:
        super().__init__()
        check_grids(source, out)
        self.config, self.latent_dim, self.source, self.out, self.channels = config, latent_dim, source, out, channels
        dim = config.embed_dim
        self.cells = CellEmbed(latent_dim, dim, source, out)
        self.blocks = nn.ModuleList(self.block(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = Linear(dim, channels * config.tubelet_size * config.patch_size**2)
        self.init()

    def init(self) -> None:
        """Fresh weights."""
        init_weights(self, self.blocks, self.config.init)
        self.cells.init(self.config.init)

    def with_noise(self, latents: Tensor) -> Tensor:
        """``latents`` ``[B, N, D]`` as the decoder is shown them: in training with ``latent_noise``."""
        if not (self.training and self.config.latent_noise):
            return latents
        level = self.config.latent_noise * torch.randn(len(latents), 1, 1, device=latents.device).abs()
        return latents + level * torch.randn_like(latents)

    def rope(self, out: TokenGrid, device: torch.device) -> Tensor:
        """The rotary table of the patches of ``out``."""
        return rope_table(out, out.ids(device)[None], self.config.embed_dim // self.config.num_heads)

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
        config, out = self.config, self.out
        return out.t * config.tubelet_size, out.h * config.patch_size, out.w * config.patch_size


class PixelDecoder(PatchDecoder):
    """Latents ``[B, N, D]`` to the one clip ``[B, C, T, H, W]`` that fits them best, in the scale of the clips that the
    model eats (normalised). What latents do not say comes out blurred."""

    def forward(self, latents: Tensor, size: Size | None = None, source: TokenGrid | None = None) -> Tensor:
        """``size``: frames, rows and columns of the clip; ``source``: the latents' grid (None: the native ones).

        Raises ``ValueError`` for latents of another width or number, and for a size that patches do not divide.
        """
        size, source, out = self.grids(latents, size, source)
        x = self.cells(self.with_noise(latents), source, out)
        rope = self.rope(out, x.device)
        for block in self.blocks:
            x = run_block(block, x, rope, None, self.recompute_now)
        return to_clip(self.proj(self.norm(x)), out, self.config, size[0])


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


def check_share(decoder: nn.Module, encoder: nn.Module) -> None:
    """Raise ``ValueError`` for a decoder that has more than a tenth of the parameters of a large encoder (ViT-L and
    up): it could learn what the latents do not hold. Small encoders have decoders of any size."""
    own, other = (sum(p.numel() for p in part.parameters()) for part in (decoder, encoder))
    if other >= LARGE and own > other / 10:
        raise ValueError(
            f"the decoder has {own / 1e6:.0f} M parameters, more than a tenth of the encoder's {other / 1e6:.0f} M: "
            "lower its embed_dim or depth"
        )


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


def per_cell(source: TokenGrid, out: TokenGrid) -> TokenGrid:
    """How many patches of ``out`` a cell of ``source`` holds at most, over time, rows and columns."""
    return TokenGrid(*(-(-patches // cells) for patches, cells in zip(out, source, strict=True)))


def place_ids(source: TokenGrid, out: TokenGrid, native: TokenGrid, device: torch.device | str) -> Tensor:
    """Where within its cell of ``source`` the middle of every patch of ``out`` lies: ids of the ``native`` places that
    a cell is divided into, int64 ``[M]``.

    Cells of the same size have the same places in a clip of any size; the patches of a cell that is cut otherwise than
    the native ones take the place that they lie in.
    """
    t, h, w = (
        (2 * torch.arange(patches, device=device) + 1) * cells % (2 * patches) * places // (2 * patches)
        for patches, cells, places in zip(out, source, native, strict=True)
    )
    return ((t[:, None, None] * native.h + h[:, None]) * native.w + w).flatten()


def to_clip(values: Tensor, grid: TokenGrid, config: PixelDecoderConfig, frames: int) -> Tensor:
    """Pixel values ``[B, M, P]`` of all patches to the clip ``[B, C, T, H, W]``, of which the first ``frames``; the
    inverse of ``PatchEmbed.tubelets``."""
    patch, tubelet = config.patch_size, config.tubelet_size
    patches = values.unflatten(1, tuple(grid)).unflatten(-1, (-1, tubelet, patch, patch))  # [B, t, h, w, C, pt, p, p]
    clip = patches.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return clip[:, :, :frames]
