"""Exponential moving average of weights: the target encoder follows the context encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.sharding import local, total_norm


def _pairs(target: nn.Module, online: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    followers: list[Tensor] = list(target.parameters())
    leaders = [p.detach() for p in online.parameters()]
    assert len(followers) == len(leaders), "target and online network differ"
    return followers, leaders


@torch.no_grad()
def update_ema(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """``target = momentum * target + (1 - momentum) * online``, in place, for every parameter.

    Parameters must be fp32: with momentum near 1 the increments vanish in 16 bits. Where both are cut over processes,
    each moves its own shards, and nothing is exchanged.
    """
    followers, leaders = _pairs(target, online)
    torch._foreach_lerp_([local(f) for f in followers], [local(p) for p in leaders], 1.0 - momentum)


@torch.no_grad()
def ema_distance(target: nn.Module, online: nn.Module) -> Tensor:
    """Euclidean distance between the two sets of weights, relative to the norm of ``online``; a scalar."""
    followers, leaders = _pairs(target, online)
    return total_norm(torch._foreach_sub(followers, leaders)) / total_norm(leaders)
