"""Transformer blocks: pre-norm attention with rotary positions, and the MLP.

Shape legend: B batch, N tokens, Nq queries, D width, H heads, E head width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.models.linear import Linear, attend, attend_steps, linear
from jepa.models.memory import Page, Pages, joined
from jepa.models.rope import rotate, rotate_qkv

Init = Literal["trunc_normal", "xavier"]
MlpKind = Literal["gelu", "swiglu", "swiglu_full"]  # swiglu_full: not cut to two thirds of the hidden width
MLP_KINDS = get_args(MlpKind)


class Attention(nn.Module):
    """Multi-head self-attention, ``[B, N, D]`` to ``[B, Nq, D]``.

    ``steps``: the tokens are so many equal parts in time, and none sees a later part, or, with ``window``, one that is
    so many parts back. ``num_queries``: only the last so many tokens (of every step) ask.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(
        self, x: Tensor, rope: Tensor | None, num_queries: int | None = None, steps: int | None = None,
        window: int | None = None,
    ) -> Tensor:  # fmt: skip
        q, k, v, dtype = self._all(x, rope) if num_queries is None else self._last(x, rope, num_queries, steps or 1)
        mixed = attend(q, k, v) if steps is None else attend_steps(q, k, v, steps, window, x.shape[1] // steps)
        return self.proj(mixed.flatten(2).to(dtype))

    def extend(
        self, x: Tensor, rope: Tensor | None, steps: int, past: Pages, window: int | None,
        num_queries: int | None = None,
    ) -> tuple[Tensor, Page]:  # fmt: skip
        """``forward`` of the ``steps`` steps ``x`` that follow those of ``past``; also their own keys and values."""
        q, k, v, dtype = self._all(x, rope) if num_queries is None else self._last(x, rope, num_queries, steps)
        page = Page(k.contiguous(), v.contiguous(), steps)  # views would keep the memory of q as well
        mixed = attend_steps(q, *joined((*past, page), len(x)), steps, window, x.shape[1] // steps)
        return self.proj(mixed.flatten(2).to(dtype)), page

    def _all(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
        """Queries, keys and values ``[B, N, H, E]`` of all tokens, and the type that attention is to be put out in."""
        qkv = self.qkv(x)
        dtype = qkv.dtype
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.unbind(2) if rope is None else rotate_qkv(qkv, rope)
        return q, k, v, dtype

    def _last(
        self, x: Tensor, rope: Tensor | None, num_queries: int, steps: int
    ) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
        """As ``_all``, but with queries ``[B, steps * num_queries, H, E]`` of the last tokens of every step."""
        dim = x.shape[-1]
        q = linear(last_tokens(x, num_queries, steps), self.qkv.weight[:dim], self.qkv.bias[:dim])
        kv = linear(x, self.qkv.weight[dim:], self.qkv.bias[dim:])
        dtype = kv.dtype
        q = q.unflatten(-1, (self.num_heads, -1))
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if rope is not None:
            q, k = rotate(q, last_tokens(rope, num_queries, steps)), rotate(k, rope)
        return q, k, v, dtype


def last_tokens(x: Tensor, count: int, steps: int) -> Tensor:
    """The last ``count`` tokens of each of ``steps`` equal parts of ``x`` ``[B, N, ...]``."""
    return x[:, -count:] if steps == 1 else x.unflatten(1, (steps, -1))[:, :, -count:].flatten(1, 2)


class Mlp(nn.Module):
    """Two linear layers with exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """Gated MLP (arXiv 2002.05202): ``fc3(silu(fc1(x)) * fc2(x))``.

    ``wide``: two thirds of ``hidden_dim``, rounded up to a multiple of 8, which keeps the parameters of ``Mlp``.
    """

    def __init__(self, dim: int, hidden_dim: int, wide: bool) -> None:
        super().__init__()
        if wide:
            hidden_dim = -(-(2 * hidden_dim // 3) // 8) * 8
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(dim, hidden_dim)
        self.fc3 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


class Block(nn.Module):
    """Pre-norm transformer block, ``[B, N, D]`` to ``[B, Nq, D]``; the arguments are those of ``Attention``."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, mlp: MlpKind = "gelu", norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = build_mlp(dim, mlp_ratio, mlp)

    def forward(
        self, x: Tensor, rope: Tensor | None, num_queries: int | None = None, steps: int | None = None,
        window: int | None = None,
    ) -> Tensor:  # fmt: skip
        residual = x if num_queries is None else last_tokens(x, num_queries, steps or 1)
        x = residual + self.attn(self.norm1(x), rope, num_queries, steps, window)
        return x + self.mlp(self.norm2(x))

    def extend(
        self, x: Tensor, rope: Tensor | None, steps: int, past: Pages, window: int | None,
        num_queries: int | None = None,
    ) -> tuple[Tensor, Page]:  # fmt: skip
        """``forward`` of the steps that follow those of ``past`` (``jepa.models.memory``), and their own page."""
        residual = x if num_queries is None else last_tokens(x, num_queries, steps)
        mixed, page = self.attn.extend(self.norm1(x), rope, steps, past, window, num_queries)
        x = residual + mixed
        return x + self.mlp(self.norm2(x)), page


def build_mlp(dim: int, mlp_ratio: float, kind: MlpKind) -> Mlp | SwiGlu:
    """The block's MLP. Raises ``ValueError`` for an unknown kind."""
    hidden = round(dim * mlp_ratio)
    if kind not in MLP_KINDS:
        raise ValueError(f"mlp {kind!r} is unknown; known: {', '.join(MLP_KINDS)}")
    return Mlp(dim, hidden) if kind == "gelu" else SwiGlu(dim, hidden, wide=kind == "swiglu")


def init_weights(model: nn.Module, blocks: nn.ModuleList, kind: Init = "trunc_normal") -> None:
    """Random weights, zero biases.

    ``trunc_normal``: standard deviation 0.02, and layer n's two output projections divided by sqrt(2n), as I-JEPA
    (arXiv 2301.08243, appendix A) and its successors. ``xavier``: uniform with variance 2 / (fan_in + fan_out), as MAE
    (arXiv 2111.06377, appendix A). At a width of 1024 the two are close; a width of 128 calls for a standard deviation
    of 0.09, and with 0.02 its blocks are nearly the identity for the first hundreds of steps.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            if kind == "xavier":
                nn.init.xavier_uniform_(module.weight.data.flatten(1))
            else:
                nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if kind == "xavier":
        return
    with torch.no_grad():
        for number, block in enumerate(blocks, start=1):
            assert isinstance(block, Block)
            block.attn.proj.weight.div_((2.0 * number) ** 0.5)
            last = block.mlp.fc2 if isinstance(block.mlp, Mlp) else block.mlp.fc3
            last.weight.div_((2.0 * number) ** 0.5)


def check_width(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, position: str, owner: str) -> None:
    """Raise ``ValueError`` naming the field when a transformer of this shape cannot be built."""
    if embed_dim < 1 or depth < 1 or num_heads < 1 or mlp_ratio <= 0:
        raise ValueError(
            f"{owner}: embed_dim {embed_dim}, depth {depth}, num_heads {num_heads} and mlp_ratio {mlp_ratio} "
            "must all be positive"
        )
    if embed_dim % num_heads:
        raise ValueError(
            f"{owner}: embed_dim {embed_dim} is not divisible by num_heads {num_heads}; use a multiple of it"
        )
    head_dim = embed_dim // num_heads
    if position == "rope" and (head_dim < 6 or head_dim % 2):
        raise ValueError(
            f"{owner}: rotary positions need an even head width of at least 6, but embed_dim {embed_dim} over "
            f"num_heads {num_heads} gives {head_dim}"
        )
    if position in ("sincos", "table") and embed_dim % 4:
        raise ValueError(f"{owner}: sine-cosine positions need embed_dim divisible by 4, not {embed_dim}")
