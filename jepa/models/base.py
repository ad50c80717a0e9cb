"""What every frozen encoder looks like from outside: ours, a published one, or a backbone of another library.

Shape legend: B batch, C channels, T frames, H/W pixels, N tokens, Nc context tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import Tensor, nn

from jepa.types import ClipConfig, TokenGrid


class ClipEncoder(nn.Module):
    """Float clips ``[B, C, T, H, W]``, normalised as ``clip`` says, to tokens ``[B, N, D]``.

    ``clip``: the native clip (how frames are chosen, resized and normalised). ``grid``: the token grid of that clip.
    ``depth``: number of blocks that ``layers`` can name.
    """

    clip: ClipConfig
    grid: TokenGrid
    embed_dim: int
    depth: int

    def grid_of(self, clip_shape: Sequence[int]) -> TokenGrid:
        """Token grid of a clip of shape ``[..., C, T, H, W]``. Raises ``ValueError`` if patches do not divide it."""
        raise AssertionError(f"{type(self).__name__} must define grid_of")

    @overload
    def forward(self, clip: Tensor, context_ids: Tensor | None = None, layers: None = None) -> Tensor: ...
    @overload
    def forward(self, clip: Tensor, context_ids: Tensor | None, layers: Sequence[int]) -> list[Tensor]: ...
    @overload
    def forward(self, clip: Tensor, context_ids: Tensor | None = None, *, layers: Sequence[int]) -> list[Tensor]: ...

    def forward(
        self, clip: Tensor, context_ids: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """``context_ids`` int64 ``[B, Nc]``: only these tokens. ``layers``: the outputs of these blocks, each ``[B, N,
        D]``, in this order (negative numbers count from the last)."""
        raise AssertionError(f"{type(self).__name__} must define forward")

    def layer_number(self, layer: int) -> int:
        """``layer`` counted from the first block. Raises ``ValueError`` for a block that does not exist."""
        if not -self.depth <= layer < self.depth:
            raise ValueError(f"layers names block {layer}, but the encoder has blocks 0 to {self.depth - 1}")
        return layer % self.depth
