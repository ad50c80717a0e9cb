"""Activation checkpointing: what a backward pass computes again instead of finding it kept.

Per block, ``full`` keeps the input alone (Chen et al., arXiv 1604.06174): about a third more compute. ``selective``
keeps the results of matrix products and attention as well and computes norms, activation functions, rotations and
casts again: nearly no compute, and still less memory than ``none``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]
T = TypeVar("T")


def _kept_operators() -> list[Any]:
    """Matrix products and fused attention; a name that this version of torch does not have is left out."""
    products = ("mm", "addmm", "bmm", "baddbmm", "linear", "_scaled_mm", "_addmm_activation")
    attention = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    names = (*products, *(f"_scaled_dot_product_{kind}" for kind in attention))
    return [getattr(torch.ops.aten, name).default for name in names if hasattr(torch.ops.aten, name)]


_KEPT = _kept_operators()


def run_block(
    block: nn.Module,
    x: Tensor,
    rope: Tensor | None,
    num_queries: int | None,
    recompute: Recompute,
    steps: int | None = None,
    window: int | None = None,
) -> Tensor:
    """``block(x, rope, num_queries, steps, window)``, keeping for its backward pass what ``recompute`` says."""
    return run(block, recompute, x, rope, num_queries, steps, window)


def run(call: Callable[..., T], recompute: Recompute, x: Tensor, *rest: Any) -> T:
    """``call(x, *rest)`` of a block, keeping for its backward pass what ``recompute`` says."""
    if recompute == "none" or not torch.is_grad_enabled():
        return call(x, *rest)
    # Blocks draw no random numbers, so no generator's state is kept.
    again = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if recompute == "selective":
        again = functools.partial(again, context_fn=functools.partial(create_selective_checkpoint_contexts, _KEPT))
        if torch.is_autocast_enabled(x.device.type) and not torch.compiler.is_compiling():
            return again(_casting_anew, call, x, *rest)
    return again(call, x, *rest)


def _casting_anew(call: Callable[..., T], x: Tensor, *rest: Any) -> T:
    """``call`` without autocast's memory of weights that it has cast before: what is computed again must be the same
    operators in the same order, and a second pass (another mask family) would find its weights cast already."""
    kind = x.device.type
    with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False):
        return call(x, *rest)


class Recomputing(nn.Module):
    """A module with transformer blocks. ``recompute`` is read in training mode only."""

    recompute: Recompute = "none"

    @property
    def recompute_now(self) -> Recompute:
        """What ``run_block`` is told."""
        return self.recompute if self.training else "none"


def set_recompute(model: nn.Module, recompute: Recompute) -> None:
    """Choose for all of ``model``; "none" leaves parts as their own configuration has them."""
    for module in model.modules():
        if isinstance(module, Recomputing) and recompute != "none":
            module.recompute = recompute
