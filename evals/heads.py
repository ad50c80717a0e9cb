"""Many probe heads trained at once: every parameter carries a leading dimension G, one entry per head of the grid.

Shapes: G heads of the grid, B clips, N tokens, D width of the features, C classes, M attention heads of width E = D/M.
All heads start from the same values and see the same batches, so they differ only in learning rate and weight decay,
and each one ends where it would have ended if it had been trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Params = dict[str, Tensor]
Forward = Callable[[Params, Tensor], Tensor]


class Head(NamedTuple):
    """An architecture: the values ``start`` from which every head starts, ``forward`` of stacked parameters and
    standardised features ``[B, N, D]`` to logits ``[G, B, C]``, and about how many floats it keeps of each clip and
    head for the backward pass."""

    start: Params
    forward: Forward
    activations: int


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then half a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def linear_params(width: int, num_classes: int) -> Params:
    """One linear head, all zeros: the problem is convex."""
    return {"head.weight": torch.zeros(width, num_classes), "head.bias": torch.zeros(num_classes)}


def linear_forward(params: Params, x: Tensor) -> Tensor:
    """Pooled features ``[B, D]`` to logits ``[G, B, C]``."""
    return torch.einsum("bd,gdc->gbc", x, params["head.weight"]) + params["head.bias"][:, None]


def linear_head(width: int, num_classes: int) -> Head:
    """Softmax regression on clips of one token."""
    return Head(linear_params(width, num_classes), _linear_token, width + 3 * num_classes)


def _linear_token(params: Params, x: Tensor) -> Tensor:
    return linear_forward(params, x[:, 0])


def attentive_params(width: int, num_classes: int, seed: int, mlp_ratio: int = 4) -> Params:
    """One attentive head: a learnt query, one cross-attention block with its MLP, a linear classifier.

    The probe of V-JEPA (arXiv 2404.08471, section 4 and appendix) at depth 1, weights normal with a standard
    deviation of one over the square root of the fan-in, so that narrow features start at the same scale as wide ones.
    """
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * (gain / math.sqrt(rows))

    hidden = mlp_ratio * width
    return {
        "query": torch.randn(width, generator=generator) * 0.02,
        "q.weight": weight(width, width),
        "q.bias": torch.zeros(width),
        "k.weight": weight(width, width),
        "v.weight": weight(width, width),
        "v.bias": torch.zeros(width),
        "proj.weight": weight(width, width),
        "proj.bias": torch.zeros(width),
        "norm.scale": torch.ones(width),
        "norm.bias": torch.zeros(width),
        "fc1.weight": weight(width, hidden),
        "fc1.bias": torch.zeros(hidden),
        "fc2.weight": weight(hidden, width, gain=0.1),
        "fc2.bias": torch.zeros(width),
        "head.weight": weight(width, num_classes, gain=0.1),
        "head.bias": torch.zeros(num_classes),
    }


def attentive_forward(params: Params, x: Tensor, num_heads: int) -> Tensor:
    """Standardised tokens ``[B, N, D]`` to logits ``[G, B, C]``.

    The block has one query only, so its products are re-associated: ``q . (W_k x_n) = (W_k^T q) . x_n`` and
    ``sum_n a_n (W_v x_n) = W_v sum_n a_n x_n``. The function and its gradients are those of ordinary cross-attention,
    but no D x D product runs per token, which makes a grid of G heads cost about as much as one ordinary head.
    (A key bias would shift every logit alike and is left out.)
    """
    heads, width, each = params["query"].shape[0], x.shape[-1], x.shape[-1] // num_heads
    query = params["query"][:, None]  # [G, 1, D]
    q = torch.baddbmm(params["q.bias"][:, None], query, params["q.weight"])  # [G, 1, D]
    keys = params["k.weight"].unflatten(-1, (num_heads, each))  # [G, D, M, E]
    directions = torch.einsum("gme,gdme->gmd", q.view(heads, num_heads, each), keys) / math.sqrt(each)
    logits = directions.reshape(1, -1, width) @ x.transpose(1, 2)  # [B, G*M, N]
    pooled = logits.softmax(dim=-1) @ x  # [B, G*M, D]
    pooled = pooled.transpose(0, 1)  # [G*M, B, D]
    values = params["v.weight"].unflatten(-1, (num_heads, each)).transpose(1, 2).reshape(-1, width, each)
    attended = torch.bmm(pooled, values).unflatten(0, (heads, num_heads))  # [G, M, B, E]
    attended = attended.permute(0, 2, 1, 3).flatten(2) + params["v.bias"][:, None]  # [G, B, D]
    y = query + _affine(params, "proj", attended)
    normed = F.layer_norm(y, (width,)) * params["norm.scale"][:, None] + params["norm.bias"][:, None]
    y = y + _affine(params, "fc2", F.gelu(_affine(params, "fc1", normed)))
    return _affine(params, "head", y)


def _affine(params: Params, name: str, x: Tensor) -> Tensor:
    return torch.baddbmm(params[f"{name}.bias"][:, None], x, params[f"{name}.weight"])


class HeadAdamW:
    """AdamW (arXiv 1711.05101) on stacked parameters with a learning rate and a weight decay of its own per head.

    ``params`` hold a leading G; ``learning_rates`` and ``weight_decays`` are ``[G]``. Only ``*.weight`` decays.
    """

    def __init__(
        self,
        params: Params,
        learning_rates: Tensor,
        weight_decays: Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.params, self.betas, self.eps = params, betas, eps
        self.learning_rates, self.weight_decays = learning_rates, weight_decays
        self.first = {name: torch.zeros_like(p) for name, p in params.items()}
        self.second = {name: torch.zeros_like(p) for name, p in params.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, progress_scale: float) -> None:
        """One update from ``.grad``; every learning rate is multiplied by ``progress_scale`` (the schedule)."""
        self.steps += 1
        (beta1, beta2), rates = self.betas, self.learning_rates * progress_scale
        for name, p in self.params.items():
            assert p.grad is not None
            shape = (-1, *[1] * (p.dim() - 1))
            if name.endswith(".weight"):
                p.mul_((1 - rates * self.weight_decays).view(shape))
            first = self.first[name].lerp_(p.grad, 1 - beta1)
            second = self.second[name].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            scale = (second / (1 - beta2**self.steps)).sqrt_().add_(self.eps)
            p.sub_(first / scale * (rates / (1 - beta1**self.steps)).view(shape))
            p.grad = None
