"""Many probe heads trained at once: every parameter carries a leading dimension G, one entry per head of the grid.

Shapes: G heads of the grid, B clips, N tokens, D width of the features, C classes.
All heads start from the same values and see the same batches, so they differ only in learning rate and weight decay,
and each one ends where it would have ended if it had been trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
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


def stack(start: Params, count: int, device: torch.device) -> Params:
    """Parameters of ``count`` heads that all start from the same values."""
    return {name: p.to(device)[None].repeat(count, *[1] * p.dim()).requires_grad_() for name, p in start.items()}


class HeadAdamW:
    """AdamW (arXiv 1711.05101) on stacked parameters with a learning rate and a weight decay of its own per head.

    ``params`` hold a leading G; ``learning_rates`` and ``weight_decays`` are ``[G]``. Only matrices named ``*.weight``
    decay.
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
            if name.endswith(".weight") and p.dim() == 3:
                p.mul_((1 - rates * self.weight_decays).view(shape))
            first = self.first[name].lerp_(p.grad, 1 - beta1)
            second = self.second[name].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            scale = (second / (1 - beta2**self.steps)).sqrt_().add_(self.eps)
            p.sub_(first / scale * (rates / (1 - beta1**self.steps)).view(shape))
            p.grad = None
