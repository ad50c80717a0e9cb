"""The predictor: a narrow transformer that fills in the features of the tokens the context encoder did not see.

Shape legend: B batch, Nc context tokens, Nt target tokens, L levels, D encoder width, P predictor width, O output.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.models.encoder import Position
from jepa.models.layers import Block, Init, MlpKind, check_width, init_weights
from jepa.models.linear import Linear
from jepa.models.positions import build_positions
from jepa.models.recompute import Recomputing, run_block
from jepa.models.rope import DEFAULT_ROPE, RopeConfig, rope_table
from jepa.types import TokenGrid

log = logging.getLogger("jepa")

Modality = Literal["video", "image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """Width, depth, heads and MLP ratio of the predictor; the defaults are V-JEPA 2's.

    V-JEPA 2.1: ``levels`` of the encoder side by side are what it reads and predicts (with more than one they are
    mixed by two layers); ``out_dim`` is the width of what it predicts where that is not levels x encoder width (a
    teacher of another size); ``context_head`` predicts at the context's places, too; ``modality_embedding`` as in the
    encoder.
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp: MlpKind = "gelu"
    levels: int = 1
    out_dim: int | None = None
    context_head: bool = False
    modality_embedding: bool = False
    activation_checkpointing: bool = False
    init: Init = "trunc_normal"

    def __post_init__(self) -> None:
        check_width(self.embed_dim, self.depth, self.num_heads, self.mlp_ratio, "", "predictor")
        if self.levels < 1:
            raise ValueError(f"predictor.levels must be at least 1, not {self.levels}")


class Predictor(Recomputing):
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
        rope: RopeConfig = DEFAULT_ROPE,
    ) -> None:
        super().__init__()
        dim = config.embed_dim
        check_width(dim, config.depth, config.num_heads, config.mlp_ratio, position, "predictor")
        if num_mask_tokens < 1:
            raise ValueError(f"num_mask_tokens must be at least 1 (one per mask family), not {num_mask_tokens}")
        self.config, self.grid, self.rope = config, grid, rope
        self.recompute = "full" if config.activation_checkpointing else "none"
        self.in_dim = encoder_dim * config.levels
        self.out_dim = config.out_dim or self.in_dim
        self.predictor_embed = _embed(config.levels, encoder_dim, dim)
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, dim)) for _ in range(num_mask_tokens))
        if config.modality_embedding:
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, dim))
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.predictor_blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, config.mlp) for _ in range(config.depth)
        )
        self.positions = build_positions(position, grid, dim)
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.predictor_proj = Linear(dim, self.out_dim)
        self.predictor_proj_context = Linear(dim, self.out_dim) if config.context_head else None
        init_weights(self, self.predictor_blocks, config.init)
        for token in self.mask_tokens:
            nn.init.trunc_normal_(token, std=0.02)
        self._untrained: set[int] = set()

    def note_untrained(self) -> list[int]:
        """Look for mask tokens that are all zero, as they were before training; using one will be pointed out.

        Called when weights have been loaded, because asking at every forward would stall a GPU. Returns their numbers.
        """
        self._untrained = {k for k, token in enumerate(self.mask_tokens) if not bool(token.detach().any())}
        return sorted(self._untrained)

    def forward(
        self,
        context_tokens: Tensor,
        context_ids: Tensor,
        target_ids: Tensor,
        mask_token: int = 0,
        grid: TokenGrid | None = None,
        modality: Modality = "video",
    ) -> Tensor:
        """Predict the encoder's features at ``target_ids`` ``[B, Nt]`` from ``context_tokens`` ``[B, Nc, L*D]``.

        ``context_ids`` ``[B, Nc]`` says where the context lies. ``mask_token`` is the number of the mask family.
        ``grid`` is the clip's token grid where it is not the native one. Returns ``[B, Nt, O]``, O being D unless the
        configuration says otherwise.
        """
        x = self._blocks(context_tokens, context_ids, target_ids, mask_token, grid, modality, targets_only=True)
        return self.predictor_proj(self.predictor_norm(x))

    def forward_dense(
        self,
        context_tokens: Tensor,
        context_ids: Tensor,
        target_ids: Tensor,
        mask_token: int = 0,
        grid: TokenGrid | None = None,
        modality: Modality = "video",
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the predictions at the context's own places beside: ``[B, Nt, O]`` and ``[B, Nc, O]``.

        Needs ``context_head`` (V-JEPA 2.1's dense loss).
        """
        if self.predictor_proj_context is None:
            raise ValueError("this predictor has no context_head: it predicts hidden places only")
        x = self._blocks(context_tokens, context_ids, target_ids, mask_token, grid, modality, targets_only=False)
        x = self.predictor_norm(x)
        num_context = context_ids.shape[1]
        return self.predictor_proj(x[:, num_context:]), self.predictor_proj_context(x[:, :num_context])

    def _blocks(
        self, context_tokens: Tensor, context_ids: Tensor, target_ids: Tensor, mask_token: int, grid: TokenGrid | None,
        modality: Modality, targets_only: bool,
    ) -> Tensor:  # fmt: skip
        """Context and mask tokens through the blocks: ``[B, Nt, P]`` or, with the context first, ``[B, Nc+Nt, P]``."""
        self._check(context_tokens, mask_token, modality)
        grid = self.grid if grid is None else grid
        grid.check(context_ids, "context_ids")
        grid.check(target_ids, "target_ids")
        context = self.predictor_embed(context_tokens)
        batch, num_targets = target_ids.shape
        targets = self.mask_tokens[mask_token].to(context.dtype).expand(batch, num_targets, -1)
        x = torch.cat((context, targets), dim=1)
        ids = torch.cat((context_ids, target_ids), dim=1)
        rope = None
        if self.positions is None:
            rope = rope_table(grid, ids, self.config.embed_dim // self.config.num_heads, self.rope)
        else:
            x = x + self.positions(grid)[ids].to(x.dtype)
        if self.config.modality_embedding:
            x = x + (self.img_mod_embed if modality == "image" else self.video_mod_embed).to(x.dtype)
        last = len(self.predictor_blocks) - 1
        for number, block in enumerate(self.predictor_blocks):
            queries = num_targets if targets_only and number == last else None
            x = run_block(block, x, rope, queries, self.recompute_now)
        return x

    def _check(self, context_tokens: Tensor, mask_token: int, modality: str) -> None:
        if not 0 <= mask_token < len(self.mask_tokens):
            raise ValueError(f"mask_token {mask_token} does not exist: the predictor has {len(self.mask_tokens)}")
        if modality not in ("video", "image"):
            raise ValueError(f"modality must be 'video' or 'image', not {modality!r}")
        if context_tokens.shape[-1] != self.in_dim:
            levels = "" if self.config.levels == 1 else f" ({self.config.levels} levels of the encoder side by side)"
            raise ValueError(f"context tokens must be {self.in_dim} wide{levels}, not {context_tokens.shape[-1]}")
        if mask_token in self._untrained and not torch.compiler.is_compiling():
            self._untrained.discard(mask_token)  # said once
            trained = [k for k, token in enumerate(self.mask_tokens) if bool(token.detach().any())]
            log.warning(
                "mask token %d is all zero: it was never trained, so its predictions mean little; trained: %s",
                mask_token, ", ".join(map(str, trained)) or "none",
            )  # fmt: skip


def _embed(levels: int, encoder_dim: int, dim: int) -> nn.Module:
    if levels == 1:
        return Linear(encoder_dim, dim)
    return nn.Sequential(Linear(levels * encoder_dim, encoder_dim), nn.GELU(), Linear(encoder_dim, dim))
