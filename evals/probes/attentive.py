"""A grid of attentive probes as one computation: the function is ``jepa.models.attentive.AttentiveProbe``.

The published probes (V-JEPA, arXiv 2404.08471, one block; V-JEPA 2, arXiv 2506.09985, four) with stacked parameters.
Written out, not ``vmap``ped, for the sake of the cross-attention, whose products are re-associated here, and because
PyTorch's fused attention has no batching rule on the CPU. Tests hold the two against each other.

Shapes: G heads of the grid, B clips, N tokens, D width, Q queries, M attention heads of width E = D/M, C classes.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evals.probes.heads import Head, Params
from evals.probes.preprocess import pool_cells
from jepa.models.attentive import AttentiveConfig, AttentiveProbe
from jepa.types import TokenGrid

_SMALL = ("attn.proj.weight", "mlp.fc2.weight", "linear.weight")  # what a branch adds at the start: little


def attentive_head(config: AttentiveConfig, tokens: int, seed: int) -> Head:
    """The head of a grid: named and shaped as ``AttentiveProbe(config)``, which it becomes by ``load_state_dict``.

    Weights are normal with a standard deviation of one over the square root of the fan-in, so that narrow features
    start at the same scale as wide ones (a tenth of that for the last layers); queries with one of 0.02.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AttentiveProbe(config).named_parameters()}
    start: Params = {}
    for name, shape in shapes.items():
        if name == "pooler.query_tokens":
            start[name] = torch.randn(shape, generator=generator) * 0.02
        elif len(shape) == 2:
            gain = 0.1 if name.endswith(_SMALL) else 1.0
            start[name] = torch.randn(shape, generator=generator) * (gain / math.sqrt(shape[1]))
        else:
            start[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    width, asked = config.embed_dim, config.num_queries * config.num_heads
    blocks = (config.depth - 1) * round(tokens * width * (15 + 2 * config.mlp_ratio))
    kept = blocks + asked * (3 * tokens + 3 * width) + round(config.num_queries * width * (8 + 2 * config.mlp_ratio))
    return Head(start, functools.partial(attentive_forward, config=config), kept)


class FittedProbe(nn.Module):
    """A head of a grid on its own: the standardiser in front (``mean``, ``inverse``), then ``probe``.

    Takes tokens ``[B, N, D]`` as the encoder gives them, and averages those of a whole ``grid`` as ``pool`` says before
    anything else; other numbers of tokens stay as they are. A call gives logits ``[B, C]``; ``pool`` the vectors of the
    queries ``[B, Q, D]``, so that ``jepa.encode(..., pool="attentive", probe=head)`` works.
    """

    mean: Tensor
    inverse: Tensor

    def __init__(
        self, config: AttentiveConfig, params: Params, standard: tuple[Tensor, Tensor],
        grid: TokenGrid | None = None, token_pool: tuple[int, int, int] = (1, 1, 1),
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid, self.token_pool = grid, token_pool
        for name, value in zip(("mean", "inverse"), standard, strict=True):
            self.register_buffer(name, value.detach().cpu().clone())
        self.probe = AttentiveProbe(config)
        self.probe.load_state_dict(params)
        self.eval().requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.probe(self._ready(tokens))
        assert isinstance(logits, Tensor)
        return logits

    def pool(self, tokens: Tensor) -> Tensor:
        """The vectors that the linear layer reads."""
        return self.probe.pooler(self._ready(tokens))

    def _ready(self, tokens: Tensor) -> Tensor:
        if self.token_pool != (1, 1, 1) and self.grid is not None and tokens.shape[1] == self.grid.size:
            t, h, w = (size // factor for size, factor in zip(self.grid, self.token_pool, strict=True))
            tokens = pool_cells(tokens, self.grid, (t, h, w))
        return (tokens.float() - self.mean) * self.inverse


def attentive_forward(params: Params, x: Tensor, config: AttentiveConfig) -> Tensor:
    """Tokens ``[B, N, D]`` to logits ``[G, B, C]``."""
    tokens = x[None]  # one for all heads, until a block makes them different
    for number in range(config.depth - 1):
        tokens = _block(params, f"pooler.blocks.{number}", tokens, config)
    pooled = _pool(params, tokens, config)
    return torch.baddbmm(params["linear.bias"][:, None], pooled.flatten(2), params["linear.weight"].mT)


def _block(params: Params, name: str, x: Tensor, config: AttentiveConfig) -> Tensor:
    """Self-attention and its MLP on tokens ``[1 or G, B, N, D]``: ``[G, B, N, D]``."""
    qkv = _linear(params, f"{name}.attn.qkv", _norm(params, f"{name}.norm1", x, config))
    heads = qkv.unflatten(-1, (3, config.num_heads, -1)).flatten(0, 1)  # [G*B, N, 3, M, E]
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).unflatten(0, qkv.shape[:2])
    x = x + _linear(params, f"{name}.attn.proj", mixed)
    return x + _mlp(params, name, x, config)


def _pool(params: Params, x: Tensor, config: AttentiveConfig) -> Tensor:
    """Cross-attention of the queries to tokens ``[1 or G, B, N, D]``, and its MLP: ``[G, B, Q, D]``.

    There are few queries and many tokens, so the products are re-associated: ``q . (W_k x_n) = (W_k^T q) . x_n`` and
    ``sum_n a_n (W_v x_n) = W_v sum_n a_n x_n``. No D x D product runs per token, and where all heads see the same
    tokens a grid costs about as much as one ordinary head. The norm's scale and bias move to either side of the sum
    (the weights a_n sum to 1). Biases of keys shift all logits of a query alike and drop out: they keep their start.
    """
    name, heads = "pooler.cross_attention_block", config.num_heads
    shared, width = x.shape[0], config.embed_dim
    queries = params["pooler.query_tokens"][:, 0]  # [G, Q, D]
    grid, asked = len(queries), config.num_queries * heads
    scale, shift = params[f"{name}.norm1.weight"], params[f"{name}.norm1.bias"]  # [G, D]
    keys, values = params[f"{name}.xattn.kv.weight"].unflatten(1, (2, heads, -1)).unbind(1)  # [G, M, E, D]
    q = _linear(params, f"{name}.xattn.q", queries[:, None])[:, 0].unflatten(-1, (heads, -1))  # [G, Q, M, E]
    directions = torch.einsum("gqme,gmed->gqmd", q, keys) * scale[:, None, None] / math.sqrt(width // heads)
    tokens = F.layer_norm(x, (width,), eps=config.norm_eps)
    logits = directions.reshape(shared, 1, -1, width) @ tokens.mT  # [1 or G, B, G*Q*M or Q*M, N]
    found = (logits.softmax(dim=-1) @ tokens).unflatten(2, (grid // shared, asked)).transpose(1, 2).flatten(0, 1)
    found = found * scale[:, None, None] + shift[:, None, None]  # [G, B, Q*M, D]
    found = found.unflatten(2, (config.num_queries, heads))
    attended = torch.einsum("gbqmd,gmed->gbqme", found, values).flatten(3)
    y = queries[:, None] + attended + params[f"{name}.xattn.kv.bias"][:, None, None, width:]
    return y + _mlp(params, name, y, config)


def _mlp(params: Params, name: str, x: Tensor, config: AttentiveConfig) -> Tensor:
    hidden = F.gelu(_linear(params, f"{name}.mlp.fc1", _norm(params, f"{name}.norm2", x, config)))
    return _linear(params, f"{name}.mlp.fc2", hidden)


def _norm(params: Params, name: str, x: Tensor, config: AttentiveConfig) -> Tensor:
    weight, bias = (params[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:], eps=config.norm_eps), weight)


def _linear(params: Params, name: str, x: Tensor) -> Tensor:
    """``[G, B, N, in]`` to ``[G, B, N, out]``."""
    found = torch.baddbmm(params[f"{name}.bias"][:, None], x.flatten(1, 2), params[f"{name}.weight"].mT)
    return found.unflatten(1, x.shape[1:3])
