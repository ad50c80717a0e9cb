"""What the action predictor remembers of the steps behind it: rotated keys and values, in pages of whole steps.

Pages are never written to again: a memory can be gone on from any number of times, gradients flow through it, and the
pages of one context serve any number of samples, which share them instead of each having a copy.

Shape legend: B batch, n tokens of a page, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Page(NamedTuple):
    """Keys and values ``[B, n, H, E]`` (or ``[1, n, H, E]``: of all rows) of ``steps`` steps, n / steps tokens each."""

    k: Tensor
    v: Tensor
    steps: int

    def last(self, steps: int) -> Page:
        """The last ``steps`` steps; a copy, so that the others' memory is free."""
        first = self.k.shape[1] // self.steps * (self.steps - steps)
        return Page(self.k[:, first:].clone(), self.v[:, first:].clone(), steps)


Pages = tuple[Page, ...]  # of one block, oldest first


def joined(pages: Pages, batch: int) -> tuple[Tensor, Tensor]:
    """Keys and values ``[batch, n, H, E]`` of all pages; those that are shared are copied for this moment only."""
    keys = [page.k.expand(batch, -1, -1, -1) for page in pages]
    values = [page.v.expand(batch, -1, -1, -1) for page in pages]
    return (keys[0], values[0]) if len(pages) == 1 else (torch.cat(keys, dim=1), torch.cat(values, dim=1))


@dataclass(frozen=True, slots=True)
class Cache:
    """``blocks``: the pages of every block. ``seen``: how many steps there were, whether or not they are kept.
    ``batch``: rows of what comes next."""

    blocks: tuple[Pages, ...]
    seen: int
    batch: int

    @property
    def kept(self) -> int:
        """Steps whose keys and values are kept."""
        return sum(page.steps for page in self.blocks[0]) if self.blocks else 0

    @property
    def num_bytes(self) -> int:
        """Memory of all pages."""
        return sum(
            x.untyped_storage().nbytes() for pages in self.blocks for page in pages for x in (page.k, page.v)
        )

    def repeat(self, samples: int) -> Cache:
        """For ``samples`` rows that share what one row has seen. Raises ``ValueError`` if there are more rows."""
        if self.batch != 1:
            raise ValueError(f"a memory of 1 row can be repeated, not one of {self.batch}")
        return replace(self, batch=samples)

    def trimmed(self, steps: int) -> Cache:
        """Only the last ``steps`` steps are kept."""
        return replace(self, blocks=tuple(_last_steps(pages, steps) for pages in self.blocks))


def _last_steps(pages: Pages, steps: int) -> Pages:
    kept: list[Page] = []
    for page in reversed(pages):
        if steps == 0:
            break
        part = page if page.steps <= steps else page.last(steps)
        steps -= part.steps
        kept.append(part)
    return tuple(reversed(kept))
