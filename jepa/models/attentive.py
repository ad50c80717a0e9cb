"""Attentive probes as they were published: learned queries ask all tokens by cross-attention, linear layers answer.

Shape legend: B batch, N tokens, Q queries, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jepa.models.layers import Block, Mlp, check_width
from jepa.models.linear import Linear, attend

PROBE_EPS = 1e-5  # of every layer norm in the published probes; their transformers port has 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentiveConfig:
    """``depth``: self-attention blocks plus the one of cross-attention (V-JEPA 1, V-JEPA 2 4).

    One linear layer ``num_classes`` wide on the vectors of ``num_queries`` queries side by side; or, for action
    anticipation, one query and one layer for each entry of ``classifiers`` (name to number of classes, in the order of
    the queries). ``norm_eps``: of every norm.
    """

    embed_dim: int
    num_heads: int
    depth: int = 1
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    classifiers: dict[str, int] = field(default_factory=dict)
    norm_eps: float = PROBE_EPS
    num_queries: int = 1

    def __post_init__(self) -> None:
        check_width(self.embed_dim, self.depth, self.num_heads, self.mlp_ratio, "", "attentive probe")
        if (self.num_classes is None) == (not self.classifiers):
            raise ValueError("an attentive probe needs num_classes or classifiers, and not both")
        if self.num_queries < 1 or (self.classifiers and self.num_queries != 1):
            raise ValueError(f"num_queries must be at least 1, and 1 beside classifiers, not {self.num_queries}")


class CrossAttention(nn.Module):
    """Queries ``[B, Q, D]`` ask tokens ``[B, N, D]``; without an output projection, as published."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q = self.q(queries).unflatten(-1, (self.num_heads, -1))
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return attend(q, k, v).flatten(2)


class CrossAttentionBlock(nn.Module):
    """Cross-attention on normed tokens, then the MLP, both with a residual from the queries."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.xattn = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """Tokens ``[B, N, D]`` to one vector per query ``[B, Q, D]``. Source: V-JEPA (arXiv 2404.08471, section 3.4)."""

    def __init__(self, config: AttentiveConfig) -> None:
        super().__init__()
        dim, heads, num_queries = config.embed_dim, config.num_heads, len(config.classifiers) or config.num_queries
        self.query_tokens = nn.Parameter(torch.empty(1, num_queries, dim))
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        self.cross_attention_block = CrossAttentionBlock(dim, heads, config.mlp_ratio, config.norm_eps)
        self.blocks = nn.ModuleList(
            Block(dim, heads, config.mlp_ratio, norm_eps=config.norm_eps) for _ in range(config.depth - 1)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, None)
        return self.cross_attention_block(self.query_tokens.expand(tokens.shape[0], -1, -1), tokens)


class AttentiveProbe(nn.Module):
    """Tokens ``[B, N, D]`` to logits ``[B, K]``; ``pooler`` alone gives the vectors ``[B, Q, D]``."""

    def __init__(self, config: AttentiveConfig) -> None:
        super().__init__()
        self.config = config
        self.pooler = AttentivePooler(config)
        if config.num_classes is not None:
            self.linear = Linear(config.embed_dim * config.num_queries, config.num_classes)
        else:
            self.classifiers = nn.ModuleDict(
                {name: Linear(config.embed_dim, classes) for name, classes in config.classifiers.items()}
            )

    def forward(self, tokens: Tensor) -> Tensor | Mapping[str, Tensor]:
        """Logits ``[B, K]``, or with ``classifiers`` a dict of them by name."""
        if tokens.shape[-1] != self.config.embed_dim:
            raise ValueError(f"this probe takes tokens {self.config.embed_dim} wide, not {tokens.shape[-1]}")
        pooled = self.pooler(tokens)
        if self.config.num_classes is not None:
            return self.linear(pooled.flatten(1))
        return {name: layer(pooled[:, k]) for k, (name, layer) in enumerate(self.classifiers.items())}
