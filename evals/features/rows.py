"""Features of many clips, in memory or memory-mapped from disk, taken a few clips at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """K clips, R views of each (crops or augmentations), N tokens per view, D wide.

    ``blocks``: tensors ``[k, R, N, D]`` of the stored clips one after the other, memory-mapped or not, all of one
    floating-point type and on one device. ``index`` int64 ``[K]`` (CPU): which stored clips, in which order.
    ``columns``: which part of the stored width is seen.
    """

    blocks: Sequence[Tensor]
    index: Tensor
    columns: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        if not self.blocks or any(block.dim() != 4 for block in self.blocks):
            raise ValueError("rows need at least one block [k, R, N, D]")

    @classmethod
    def of(cls, features: Tensor | Rows) -> Rows:
        """Rows of a tensor ``[K, R, N, D]``, of tokens ``[K, N, D]`` or of vectors ``[K, D]``; Rows stay as they are.
        """
        if isinstance(features, Rows):
            return features
        if features.dim() not in (2, 3, 4):
            raise ValueError(f"features must be [K, D], [K, N, D] or [K, R, N, D], not {tuple(features.shape)}")
        whole = features[:, None] if features.dim() == 3 else features
        whole = whole[:, None, None] if features.dim() == 2 else whole
        return cls((whole,), torch.arange(len(whole)))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(K, R, N, D)."""
        _, views, tokens, width = self.blocks[0].shape
        return len(self), views, tokens, len(range(width)[self.columns])

    @property
    def device(self) -> torch.device:
        return self.blocks[0].device

    @property
    def nbytes(self) -> int:
        """Of what ``gather`` would make of all clips."""
        clips, views, tokens, width = self.shape
        return clips * views * tokens * width * self.blocks[0].element_size()

    def take(self, rows: Tensor) -> Rows:
        """Only these clips (int64 or bool), in this order."""
        return replace(self, index=self.index[rows.cpu()])

    def part(self, first: int, last: int) -> Rows:
        """Only the columns ``first`` to ``last`` (excluded) of these columns."""
        width = self.blocks[0].shape[-1]
        own = range(width)[self.columns][first:last]
        return replace(self, columns=slice(own.start, own.stop))

    def gather(self, rows: Tensor, view: Tensor | None = None) -> Tensor:
        """Clips ``rows`` (int64 ``[B]``): all views ``[B, R, N, D]``, or of each the one in ``view`` (int64 ``[B]``),
        ``[B, N, D]``. Reads no more than that."""
        stored = self.index[rows.cpu()]
        if len(self.blocks) == 1:
            return self._read(0, stored, view)
        ends = torch.tensor([len(block) for block in self.blocks]).cumsum(0)
        place = torch.searchsorted(ends, stored, right=True)
        out: Tensor | None = None
        for number in place.unique().tolist():
            here = (place == number).nonzero().flatten()
            start = int(ends[number]) - len(self.blocks[number])
            part = self._read(number, stored[here] - start, None if view is None else view[here.to(view.device)])
            if out is None:
                out = part.new_empty(len(stored), *part.shape[1:])
            out[here.to(out.device)] = part
        assert out is not None, "gather needs at least one row"
        return out

    def _read(self, number: int, rows: Tensor, view: Tensor | None) -> Tensor:
        block = self.blocks[number]
        rows = rows.to(block.device)
        found = block[rows] if view is None else block[rows, view.to(block.device)]
        return found[..., self.columns]

    @property
    def draws(self) -> int:
        """How many different ``view`` numbers ``gather`` and ``stream`` know of a clip."""
        return self.shape[1]

    def stream(self, plan: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """``gather(rows, view)`` for every pair of ``plan``, in order: one batch of a training step after the other."""
        for rows, view in plan:
            yield self.gather(rows, view)

    def pieces(self, groups: Iterable[Tensor]) -> Iterator[Tensor]:
        """``gather(rows)`` for every one of ``groups``, in order."""
        for rows in groups:
            yield self.gather(rows)

    def chunks(self, size: int = 256) -> Iterator[Tensor]:
        """All clips in order, ``[<=size, R, N, D]`` at a time."""
        return self.pieces(torch.arange(len(self)).split(size))
