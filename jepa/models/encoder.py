"""The encoder: a vision transformer over the tubelets of a clip (an image is a clip of one frame).

Shape legend: B batch, C channels, T frames, H/W pixels, N tokens, Nc context tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from jepa.config import suggest
from jepa.models.base import ClipEncoder
from jepa.models.layers import Block, Init, check_width, init_weights, run_block
from jepa.models.positions import SinCos
from jepa.models.rope import rope_table
from jepa.models.sizes import SIZES, Size
from jepa.models.tubelet import PatchEmbed
from jepa.types import ClipConfig, TokenGrid

Position = Literal["rope", "sincos"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Size by name from ``jepa.models.sizes``; ``embed_dim``, ``depth``, ``num_heads``, ``mlp_ratio`` override it.

    ``patch_size`` in pixels, ``tubelet_size`` in frames. ``activation_checkpointing`` trades a third more compute for
    memory that no longer grows with depth.
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
        if self.position not in ("rope", "sincos"):
            raise ValueError(f"position must be 'rope' or 'sincos', not {self.position!r}")
        check_width(*self.shape, self.position, "encoder")

    @property
    def shape(self) -> Size:
        """The size table's row with the overrides laid over it."""
        own = {name: getattr(self, name) for name in Size._fields}
        return SIZES[self.size]._replace(**{name: value for name, value in own.items() if value is not None})


class Encoder(ClipEncoder):
    """Clip ``[B, C, T, H, W]`` to tokens ``[B, N, D]``, or to the context tokens ``[B, Nc, D]`` alone.

    ``clip`` is the native clip: it fixes ``grid`` (an error names a crop or length that does not divide), but any
    size, duration and aspect ratio that the patches divide can be encoded.
    Source: V-JEPA 2 (arXiv 2506.09985, section 2.1); with ``position="sincos"`` V-JEPA (arXiv 2404.08471), and I-JEPA
    (arXiv 2301.08243) where the native clip is an image.
    """

    def __init__(self, config: EncoderConfig, clip: ClipConfig) -> None:
        super().__init__()
        self.config, self.clip = config, clip
        self.embed_dim, self.depth, num_heads, mlp_ratio = config.shape
        self.head_dim = self.embed_dim // num_heads
        self.patch_embed = PatchEmbed(config.in_channels, self.embed_dim, config.patch_size, config.tubelet_size)
        self.blocks = nn.ModuleList(Block(self.embed_dim, num_heads, mlp_ratio) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
        self.grid = self.grid_of((config.in_channels, clip.num_frames, clip.crop_size, clip.crop_size))
        self.positions = SinCos(self.grid, self.embed_dim) if config.position == "sincos" else None
        init_weights(self, self.blocks, config.init)

    def grid_of(self, clip_shape: Sequence[int]) -> TokenGrid:
        """Token grid of a clip of shape ``[..., C, T, H, W]``. Raises ``ValueError`` if patches do not divide it."""
        return self.patch_embed.grid_of(clip_shape)

    def forward(  # type: ignore[override]  # the base's overloads say which of the two it returns
        self, clip: Tensor, context_ids: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Encode ``clip`` (float ``[B, C, T, H, W]``, normalised).

        ``context_ids`` int64 ``[B, Nc]``: only these tokens are embedded and attend to each other.
        ``layers``: return, in this order, the outputs of these blocks (negative numbers count from the last), each
        after the final norm; blocks above the highest one are not run.
        """
        if layers is not None and not layers:
            raise ValueError("layers is empty; leave it out for the last block's output, or name at least one block")
        grid = self.grid_of(clip.shape)
        x = self.patch_embed(clip, context_ids)
        rope = None
        if self.positions is None:
            ids = grid.ids(clip.device)[None] if context_ids is None else context_ids
            rope = rope_table(grid, ids, self.head_dim)
        else:
            table = self.positions(grid)
            x = x + (table if context_ids is None else table[context_ids]).to(x.dtype)
        wanted = [self.depth - 1] if layers is None else [self.layer_number(layer) for layer in layers]
        recompute = self.config.activation_checkpointing and self.training
        outputs: dict[int, Tensor] = {}
        for number in range(max(wanted) + 1):
            x = run_block(self.blocks[number], x, rope, None, recompute)
            if number in wanted:
                outputs[number] = self.norm(x)
        return outputs[self.depth - 1] if layers is None else [outputs[number] for number in wanted]
