"""The encoder: a vision transformer over the tubelets of a clip (an image is a clip of one frame).

Shape legend: B batch, C channels, T frames, H/W pixels, N tokens, Nc context tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from jepa.config import suggest
from jepa.models.base import ClipEncoder
from jepa.models.layers import Block, Init, MlpKind, check_width, init_weights
from jepa.models.positions import build_positions
from jepa.models.recompute import Recomputing, run_block
from jepa.models.rope import RopeConfig, rope_table
from jepa.models.sizes import SIZES, Size
from jepa.models.tubelet import PatchEmbed
from jepa.types import ClipConfig, TokenGrid

Position = Literal["rope", "sincos", "table"]
POSITIONS = get_args(Position)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Size by name from ``jepa.models.sizes``; ``embed_dim``, ``depth``, ``num_heads``, ``mlp_ratio`` override it.

    ``patch_size`` in pixels, ``tubelet_size`` in frames. ``position``: "rope" (see ``rope``), "sincos" (computed), or
    "table" (stored, as published I-JEPA and V-JEPA have it). ``activation_checkpointing``: as
    ``train.activation_checkpointing`` "full", for the encoder alone.

    V-JEPA 2.1: ``levels`` are the blocks (counted from 0) whose outputs have a norm of their own, the last block among
    them; ``image_tokenizer`` embeds clips of one frame by weights of their own; ``modality_embedding`` adds a learned
    vector to all tokens of an image, another one to those of a video.
    """

    size: str = "vit_nano"
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    patch_size: int = 16
    tubelet_size: int = 2
    in_channels: int = 3
    position: Position = "rope"
    rope: RopeConfig = field(default_factory=RopeConfig)
    mlp: MlpKind = "gelu"
    levels: tuple[int, ...] = ()
    image_tokenizer: bool = False
    modality_embedding: bool = False
    activation_checkpointing: bool = False
    init: Init = "trunc_normal"

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size {self.size!r} is not in the table{suggest(self.size, SIZES)}")
        if min(self.patch_size, self.tubelet_size, self.in_channels) < 1:
            raise ValueError(
                f"patch_size {self.patch_size}, tubelet_size {self.tubelet_size} and in_channels {self.in_channels} "
                "must be at least 1"
            )
        if self.position not in POSITIONS:
            raise ValueError(f"position must be one of {', '.join(POSITIONS)}, not {self.position!r}")
        check_width(*self.shape, self.position, "encoder")
        last = self.shape.depth - 1
        if self.levels and (list(self.levels) != sorted(set(self.levels)) or min(self.levels) < 0):
            raise ValueError(f"levels must be different blocks in ascending order, counted from 0, not {self.levels}")
        if self.levels and self.levels[-1] != last:
            raise ValueError(f"the last of levels must be the last block, {last}, not {self.levels[-1]}")

    @property
    def shape(self) -> Size:
        """The size table's row with the overrides laid over it."""
        own = {name: getattr(self, name) for name in Size._fields}
        return SIZES[self.size]._replace(**{name: value for name, value in own.items() if value is not None})


class Encoder(ClipEncoder, Recomputing):
    """Clip ``[B, C, T, H, W]`` to tokens ``[B, N, D]``, or to the context tokens ``[B, Nc, D]`` alone.

    ``clip`` is the native clip: it fixes ``grid`` (an error names a crop or length that does not divide), but any
    size, duration and aspect ratio that the patches divide can be encoded.
    Source: V-JEPA 2 (arXiv 2506.09985, section 2.1); with sine-cosine positions V-JEPA (arXiv 2404.08471), and I-JEPA
    (arXiv 2301.08243) where the native clip is an image.
    """

    def __init__(self, config: EncoderConfig, clip: ClipConfig) -> None:
        super().__init__()
        self.config, self.clip = config, clip
        self.recompute = "full" if config.activation_checkpointing else "none"
        self.embed_dim, self.depth, num_heads, mlp_ratio = config.shape
        dim = self.embed_dim
        self.head_dim = dim // num_heads
        self.patch_embed = PatchEmbed(config.in_channels, dim, config.patch_size, config.tubelet_size)
        self.patch_embed_img = None
        if config.image_tokenizer:
            self.patch_embed_img = PatchEmbed(config.in_channels, dim, config.patch_size, 1)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, config.mlp) for _ in range(self.depth))
        if config.levels:
            self.norms_block = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in config.levels)
        else:
            self.norm = nn.LayerNorm(dim, eps=1e-6)
        if config.modality_embedding:
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, dim))
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.grid = self.grid_of((config.in_channels, clip.num_frames, clip.crop_size, clip.crop_size))
        self.positions = build_positions(config.position, self.grid, dim)
        init_weights(self, self.blocks, config.init)

    def grid_of(self, clip_shape: Sequence[int]) -> TokenGrid:
        """Token grid of a clip of shape ``[..., C, T, H, W]``. Raises ``ValueError`` if patches do not divide it."""
        return self.patch_embed.grid_of(clip_shape)

    def norm_of(self, number: int) -> nn.Module:
        """The norm for the output of block ``number``: the final one, or with levels that of the next level up."""
        if not self.config.levels:
            return self.norm
        return self.norms_block[next(i for i, level in enumerate(self.config.levels) if number <= level)]

    def forward(  # type: ignore[override]  # the base's overloads say which of the two it returns
        self, clip: Tensor, context_ids: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Encode ``clip`` (float ``[B, C, T, H, W]``, normalised).

        ``context_ids`` int64 ``[B, Nc]``: only these tokens are embedded and attend to each other.
        ``layers``: return, in this order, the outputs of these blocks (negative numbers count from the last), each
        after its norm (``norm_of``); blocks above the highest one are not run.
        """
        if layers is not None and not layers:
            raise ValueError("layers is empty; leave it out for the last block's output, or name at least one block")
        if clip.dim() != 5 or not clip.is_floating_point():
            given = f"{str(clip.dtype).removeprefix('torch.')} {list(clip.shape)}"
            raise ValueError(f"clip must be float [B, C, T, H, W] (an image has T = 1), not {given}")
        grid = self.grid_of(clip.shape)
        if context_ids is not None:
            grid.check(context_ids, "context_ids")
        x, rope = self._embed(clip, context_ids, grid)
        wanted = [self.depth - 1] if layers is None else [self.layer_number(layer) for layer in layers]
        outputs: dict[int, Tensor] = {}
        for number in range(max(wanted) + 1):
            x = run_block(self.blocks[number], x, rope, None, self.recompute_now)
            if number in wanted:
                outputs[number] = self.norm_of(number)(x)
        return outputs[self.depth - 1] if layers is None else [outputs[number] for number in wanted]

    def _embed(self, clip: Tensor, context_ids: Tensor | None, grid: TokenGrid) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[B, N or Nc, D]`` with their modality and position, and the rotary table where there is one."""
        image = clip.shape[2] == 1
        embed = self.patch_embed_img if image and self.patch_embed_img is not None else self.patch_embed
        x = embed(clip, context_ids)
        if self.config.modality_embedding:
            x = x + (self.img_mod_embed if image else self.video_mod_embed).to(x.dtype)
        if self.positions is None:
            ids = grid.ids(clip.device)[None] if context_ids is None else context_ids
            return x, rope_table(grid, ids, self.head_dim, self.config.rope)
        table = self.positions(grid)
        return x + (table if context_ids is None else table[context_ids]).to(x.dtype), None
