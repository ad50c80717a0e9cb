"""The predictor: a narrow transformer that fills in the features of the tokens the context encoder did not see.

Shape legend: B batch, Nc context tokens, Nt target tokens, D encoder width, P predictor width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa.models.encoder import Position
from jepa.models.layers import Block, Init, check_width, init_weights, run_block
from jepa.models.linear import Linear
from jepa.models.positions import SinCos
from jepa.models.rope import rope_table
from jepa.types import TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """Width, depth, heads and MLP ratio of the predictor; the defaults are V-JEPA 2's."""

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    activation_checkpointing: bool = False
    init: Init = "trunc_normal"

    def __post_init__(self) -> None:
        check_width(self.embed_dim, self.depth, self.num_heads, self.mlp_ratio, "", "predictor")


class Predictor(nn.Module):
    """Context features and target positions to predicted target features, one learned mask token per mask family.

    Tokens may come in any order: attention does not see it, so nothing is sorted. The last block asks for the
    targets only, since its context outputs would be thrown away.
    Source: V-JEPA (arXiv 2404.08471, section 3.3), V-JEPA 2 (arXiv 2506.09985, section 2.1).
    """

    def __init__(
        self,
        config: PredictorConfig,
        encoder_dim: int,
        grid: TokenGrid,
        num_mask_tokens: int,
        position: Position = "rope",
    ) -> None:
        super().__init__()
        dim = config.embed_dim
        check_width(dim, config.depth, config.num_heads, config.mlp_ratio, position, "predictor")
        if num_mask_tokens < 1:
            raise ValueError(f"num_mask_tokens must be at least 1 (one per mask family), not {num_mask_tokens}")
        self.config, self.grid = config, grid
        self.predictor_embed = Linear(encoder_dim, dim)
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, dim)) for _ in range(num_mask_tokens))
        self.predictor_blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.positions = SinCos(grid, dim) if position == "sincos" else None
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.predictor_proj = Linear(dim, encoder_dim)
        init_weights(self, self.predictor_blocks, config.init)
        for token in self.mask_tokens:
            nn.init.trunc_normal_(token, std=0.02)

    def forward(
        self,
        context_tokens: Tensor,
        context_ids: Tensor,
        target_ids: Tensor,
        mask_token: int = 0,
        grid: TokenGrid | None = None,
    ) -> Tensor:
        """Predict the encoder's features at ``target_ids`` ``[B, Nt]`` from ``context_tokens`` ``[B, Nc, D]``.

        ``context_ids`` ``[B, Nc]`` says where the context lies. ``mask_token`` is the number of the mask family.
        ``grid`` is the clip's token grid where it is not the native one. Returns ``[B, Nt, D]``.
        """
        if not 0 <= mask_token < len(self.mask_tokens):
            raise ValueError(f"mask_token {mask_token} does not exist: the predictor has {len(self.mask_tokens)}")
        grid = self.grid if grid is None else grid
        context = self.predictor_embed(context_tokens)
        batch, num_targets = target_ids.shape
        targets = self.mask_tokens[mask_token].to(context.dtype).expand(batch, num_targets, -1)
        x = torch.cat((context, targets), dim=1)
        ids = torch.cat((context_ids, target_ids), dim=1)
        rope = None
        if self.positions is None:
            rope = rope_table(grid, ids, self.config.embed_dim // self.config.num_heads)
        else:
            x = x + self.positions(grid)[ids].to(x.dtype)
        recompute = self.config.activation_checkpointing and self.training
        last = len(self.predictor_blocks) - 1
        for number, block in enumerate(self.predictor_blocks):
            x = run_block(block, x, rope, num_targets if number == last else None, recompute)
        return self.predictor_proj(self.predictor_norm(x))
