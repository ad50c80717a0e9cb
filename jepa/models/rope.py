"""Rotary positions over time, row and column (3D RoPE): one float32 table per forward, shared by all layers.

Source: RoFormer (arXiv 2104.09864), split over three axes as in V-JEPA 2 (arXiv 2506.09985, section 2.1). A head's
dimensions come in pairs (x_2m, x_2m+1). With *interleaved* frequencies every pair turns by one angle, so a rotation
keeps norms, and a score depends only on coordinate differences. The published V-JEPA 2 models *tile* the frequencies
instead: the two halves of a pair use different ones, and neither property holds. What a model was trained with is part
of its configuration (``RopeConfig``).

Shape legend: B batch, N tokens, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from jepa.types import TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """``frequencies``: see the module's text. ``base_grid``: rows and columns of any grid are spread over the extent of
    so many cells a side, ``corners`` matching the first and last cell (V-JEPA 2.1), ``cells`` their outer edges
    (V-JEPA 2-AC). ``None``: cell k lies at k whatever the grid.
    """

    frequencies: Literal["interleaved", "tiled"] = "interleaved"
    base_grid: int | None = None
    spread: Literal["corners", "cells"] = "corners"

    def __post_init__(self) -> None:
        if self.frequencies not in ("interleaved", "tiled"):
            raise ValueError(f"rope.frequencies must be 'interleaved' or 'tiled', not {self.frequencies!r}")
        if self.spread not in ("corners", "cells"):
            raise ValueError(f"rope.spread must be 'corners' or 'cells', not {self.spread!r}")
        if self.base_grid is not None and self.base_grid < 2:
            raise ValueError(f"rope.base_grid must be at least 2 cells a side, not {self.base_grid}")

    def scale(self, cells: int) -> float:
        """Distance between neighbouring rows or columns of a grid with so many ``cells`` on that side."""
        if self.base_grid is None or cells == 1:
            return 1.0
        return self.base_grid / cells if self.spread == "cells" else (self.base_grid - 1) / (cells - 1)


DEFAULT_ROPE = RopeConfig()


def axis_dim(head_dim: int) -> int:
    """Head dimensions turned per axis: 2*floor(floor(head_dim/3)/2); what is left of the head is not turned."""
    return 2 * (head_dim // 3 // 2)


def rope_table(grid: TokenGrid, ids: Tensor, head_dim: int, config: RopeConfig = DEFAULT_ROPE) -> Tensor:
    """(cos, sin) of tokens ``ids`` (int64 ``[B or 1, N]``), as ``coordinate_table`` gives them."""
    coordinates = grid.coordinates(ids).float()
    if config.base_grid is not None:
        coordinates = coordinates * coordinates.new_tensor([1.0, config.scale(grid.h), config.scale(grid.w)])
    return coordinate_table(coordinates, head_dim, config.frequencies)


def coordinate_table(coordinates: Tensor, head_dim: int, frequencies: str) -> Tensor:
    """(cos, sin) for coordinates (t, h, w), float32 ``[B or 1, N, 3]``.

    Order t, h, w; omega_i = 10000^(-i/(d/2)), the same for every axis; the rest of the head has angle 0. Interleaved:
    one angle per pair, ``[B or 1, N, E/2, 2]``. Tiled: one per dimension, dimension j of an axis using omega of
    j mod d/2, ``[B or 1, N, 2, E]``.
    """
    half = axis_dim(head_dim) // 2
    omega = 10000.0 ** (-torch.arange(half, device=coordinates.device, dtype=torch.float32) / half)
    width = head_dim // 2
    if frequencies == "tiled":
        omega, width = omega.repeat(2), head_dim
    angle = (coordinates[..., None] * omega).flatten(-2)
    angle = torch.nn.functional.pad(angle, (0, width - angle.shape[-1]))
    return torch.stack((angle.cos(), angle.sin()), dim=-2 if frequencies == "tiled" else -1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn ``x`` ``[B, N, H, E]`` by ``table`` (of either kind); computed in float32, returned in x's dtype."""
    if is_tiled(table, x.shape[-1]):
        return _rotate_tiled(x.float(), table[:, :, None]).to(x.dtype)
    cos, sin = table[:, :, None].unbind(-1)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def is_tiled(table: Tensor, head_dim: int) -> bool:
    """Whether a table holds tiled frequencies."""
    return table.shape[-2:] == (2, head_dim)


def _rotate_tiled(x: Tensor, table: Tensor) -> Tensor:
    """``x`` float32 ``[..., E]`` turned by ``table`` ``[..., 2, E]``: x cos + (-x_2m+1, x_2m) sin."""
    cos, sin = table.unbind(-2)
    if _spelled_out(x):
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        quarter_turn = torch.stack((-odd, even), dim=-1).flatten(-2)
    else:  # the same by one pass over memory, ten times as fast
        quarter_turn = torch.view_as_real(_complex(x) * 1j).flatten(-2)
    return torch.addcmul(x * cos, quarter_turn, sin)


def _spelled_out(x: Tensor) -> bool:
    """Whether complex products are to be avoided: compilers fuse the plain formula, and not every device has them."""
    return torch.compiler.is_compiling() or x.device.type != "cpu"


def rotate_qkv(qkv: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``qkv`` ``[B, N, 3, H, E]`` into q, k, v ``[B, N, H, E]`` with q and k turned by ``table``.

    On a CPU in eager mode float32 complex products turn q and k together in few passes over memory, and the result is
    float32. Elsewhere, and under ``torch.compile``, which fuses it, the spelled-out formula is used.
    """
    if _spelled_out(qkv):
        q, k, v = qkv.unbind(2)
        return rotate(q, table), rotate(k, table), v
    if is_tiled(table, qkv.shape[-1]):
        qkv = qkv.float()
        q, k = _rotate_tiled(qkv[:, :, :2], table[:, :, None, None]).unbind(2)
        return q, k, qkv[:, :, 2]
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
            torch.mul(_complex(grads[part].contiguous()), turn_back, out=_complex(grad[:, :, part]))
        grad[:, :, 2] = grads[2]
        return grad, None
