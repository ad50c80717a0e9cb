"""Matrix products and attention that stay fast in bf16 on a CPU without bf16 instructions.

There PyTorch's bf16 matrix products run on plain loops, many times slower than its fp32 ones (``benchmarks/encode.py``
prints both; the products of a backward pass suffer most). So on such a CPU the operands are rounded to bf16, as
everywhere, but multiplied by the fp32 kernels, which is what bf16 hardware does too: bf16 in, fp32 accumulation, bf16
out. Attention among few tokens is computed in fp32 on every CPU: with bf16 kernels its backward pass is still 1.3
(256 tokens) to 5 times (64) slower than in fp32, and only from about 500 on faster. Everywhere else these functions are
PyTorch's own.

Shape legend: B batch, N tokens, Nq queries, H heads, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CPU_HAS_BF16: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()

FEW_TOKENS = 512  # below so many keys attention is computed in fp32


def _bf16_on_cpu(x: Tensor) -> bool:
    """Whether a product with ``x`` is asked for in bf16 on a CPU."""
    if x.device.type != "cpu":
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return autocast or x.dtype == torch.bfloat16


def emulates_bf16(x: Tensor) -> bool:
    """Whether a product with ``x`` is asked for in bf16 on a CPU that has no bf16 kernels."""
    return not CPU_HAS_BF16 and _bf16_on_cpu(x)


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``: ``[..., in]`` to ``[..., out]``."""
    if not emulates_bf16(x):
        return F.linear(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        bias = None if bias is None else bias.float()
        return F.linear(_rounded(x), _rounded(weight), bias).to(torch.bfloat16)


class Linear(nn.Linear):
    """``nn.Linear`` by way of ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        return linear(x, self.weight, self.bias)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of q ``[B, Nq, H, E]`` to k and v ``[B, N, H, E]``; returns ``[B, Nq, H, E]``."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if not (_bf16_on_cpu(q) and (not CPU_HAS_BF16 or k.shape[2] < FEW_TOKENS)):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).transpose(1, 2)


def attend_steps(
    q: Tensor, k: Tensor, v: Tensor, steps: int, window: int | None = None, length: int | None = None
) -> Tensor:
    """Block-causal attention: the tokens of a step see their own step and all earlier ones; ``[B, Nq, H, E]``.

    ``q`` is ``steps`` equal parts; ``k`` and ``v`` are these steps, of ``length`` tokens each (default: as many as ask
    in ``q``), and may begin with earlier ones. ``window``: only so many steps are seen, their own among them. Step by
    step, so that no N x N mask exists: memory grows with N alone.
    """
    asking = q.shape[1] // steps
    if asking * steps != q.shape[1]:
        raise ValueError(f"{q.shape[1]} tokens are not {steps} equal steps")
    length, mixed = length or asking, []
    for step in range(steps):
        end = k.shape[1] - (steps - 1 - step) * length
        first = 0 if window is None else max(0, end - window * length)
        mixed.append(attend(q[:, step * asking : (step + 1) * asking], k[:, first:end], v[:, first:end]))
    return mixed[0] if steps == 1 else torch.cat(mixed, dim=1)
