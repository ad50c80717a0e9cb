"""Floating-point operations of the models, counted from their shapes: a multiply-add is two.

Matrix products and attention count; norms, activation functions and positions, a per cent or less, do not. A backward
pass costs two forward passes (one for the gradient of the weights, one for that of the inputs), and what activation
checkpointing computes again is not counted: these are the operations that training needs, as in PaLM's model FLOP
utilisation (arXiv 2204.02311, appendix B).

Shape legend: N tokens, Nq queries, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from jepa.models.encoder import Encoder
from jepa.models.layers import Block
from jepa.models.predictor import Predictor

TRAINED = 3  # forward, gradient of the weights, gradient of the inputs


class Work(NamedTuple):
    """What a batch costs. ``flops``: forward and backward. ``tokens``: those that go through encoders (context and
    target); the predictor's, which is narrower, are in ``flops`` only."""

    flops: float
    tokens: int


def linear_flops(module: nn.Module, tokens: int) -> float:
    """All linear layers of ``module``, each on ``tokens`` tokens."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return 2.0 * tokens * sum(m.in_features * m.out_features for m in layers)


def block_flops(block: Block, tokens: int, queries: int | None = None) -> float:
    """One block on ``tokens`` tokens; ``queries``: only so many of them ask, and leave the block."""
    queries = tokens if queries is None else queries
    dim = block.attn.proj.in_features
    keys_values = 2.0 * tokens * 2 * dim * dim
    asking = 2.0 * queries * dim * dim + linear_flops(block.attn.proj, queries) + linear_flops(block.mlp, queries)
    return keys_values + asking + 4.0 * queries * tokens * dim


def blocks_flops(blocks: nn.ModuleList, tokens: int, last_queries: int | None = None) -> float:
    """A stack of blocks; only ``last_queries`` tokens leave the last one."""
    *first, last = [block for block in blocks if isinstance(block, Block)]
    return sum(block_flops(block, tokens) for block in first) + block_flops(last, tokens, last_queries)


def patch_flops(encoder: Encoder, tokens: int) -> float:
    """The patch embedding of ``tokens`` tokens."""
    proj = encoder.patch_embed.proj
    return 2.0 * tokens * proj.in_channels * proj.out_channels * math.prod(proj.kernel_size)


def encoder_flops(encoder: Encoder, tokens: int, *, trained: bool) -> float:
    """One clip of which ``tokens`` tokens are encoded. ``trained``: with the backward pass, which ends at the patches:
    pixels need no gradient."""
    patches, blocks = patch_flops(encoder, tokens), blocks_flops(encoder.blocks, tokens)
    return (TRAINED - 1) * patches + TRAINED * blocks if trained else patches + blocks


def predictor_flops(predictor: Predictor, context: int, targets: int) -> float:
    """One row of ``context`` and ``targets`` tokens, forward and backward."""
    ends = linear_flops(predictor.predictor_embed, context) + linear_flops(predictor.predictor_proj, targets)
    return TRAINED * (ends + blocks_flops(predictor.predictor_blocks, context + targets, targets))
