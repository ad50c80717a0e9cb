"""Rotary positions over time, row and column (3D RoPE): one float32 table per forward, shared by all layers.

Source: RoFormer (arXiv 2104.09864), split over three axes as in V-JEPA 2 (arXiv 2506.09985, section 2.1). Here every
pair (x_2m, x_2m+1) turns by one angle, so a rotation keeps norms, and a score depends only on coordinate differences.
Shape legend: B batch, N tokens, H heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from jepa.types import TokenGrid


def axis_dim(head_dim: int) -> int:
    """Head dimensions turned per axis: 2*floor(floor(head_dim/3)/2); what is left of the head is not turned."""
    return 2 * (head_dim // 3 // 2)


def rope_table(grid: TokenGrid, ids: Tensor, head_dim: int) -> Tensor:
    """Rotations of tokens ``ids`` (int64 ``[B or 1, N]``): (cos, sin) pairs, float32 ``[B or 1, N, E/2, 2]``.

    Order t, h, w; omega_i = 10000^(-i/(d/2)), the same for every axis; the rest of the head has angle 0.
    """
    half = axis_dim(head_dim) // 2
    omega = 10000.0 ** (-torch.arange(half, device=ids.device, dtype=torch.float32) / half)
    angle = (grid.coordinates(ids)[..., None].float() * omega).flatten(-2)
    angle = torch.nn.functional.pad(angle, (0, head_dim // 2 - 3 * half))
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn ``x`` ``[B, N, H, E]`` by ``table`` ``[B or 1, N, E/2, 2]``; computed in float32, returned in x's dtype."""
    cos, sin = table[:, :, None].unbind(-1)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def rotate_qkv(qkv: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``qkv`` ``[B, N, 3, H, E]`` into q, k, v ``[B, N, H, E]`` with q and k turned by ``table``.

    On a CPU in eager mode one float32 complex product turns q and k together in a single pass over memory, and the
    result is float32. Elsewhere, and under ``torch.compile``, which fuses it, the spelled-out formula is used.
    """
    if torch.compiler.is_compiling() or qkv.device.type != "cpu":
        q, k, v = qkv.unbind(2)
        return rotate(q, table), rotate(k, table), v
    return _RotateQKV.apply(qkv.float(), table)


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


class _RotateQKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, qkv: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(table)
        turn = torch.view_as_complex(table)[:, :, None, None]
        q, k = torch.view_as_real(_complex(qkv[:, :, :2]) * turn).flatten(-2).unbind(2)
        return q, k, qkv[:, :, 2]

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors  # type: ignore[attr-defined]
        turn_back = torch.view_as_complex(table).conj().resolve_conj()[:, :, None]
        b, n, h, e = grads[0].shape
        grad = grads[0].new_empty(b, n, 3, h, e)
        for part in (0, 1):
            torch.mul(_complex(grads[part]), turn_back, out=_complex(grad[:, :, part]))
        grad[:, :, 2] = grads[2]
        return grad, None
