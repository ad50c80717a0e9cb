"""What every mask family shares: random numbers per sample, and ids of a fixed shape from sets of unequal size.

Masks are drawn in numpy, in the loader. A batch must be rectangular, while a union of random blocks covers a number
of cells that differs between samples. The number of targets is therefore chosen before any block is placed, and every
sample is brought to it without favouring any position: the nearest of a few candidate draws is taken, then surplus
cells are dropped, or missing ones added, at random.

Shape legend: B samples, K candidate draws, M blocks, P cells of the lattice.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from jepa.types import Mask, TokenGrid

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Seeds = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniforms(seeds: Seeds, stream: int, *shape: int) -> Floats:
    """Numbers in [0, 1), ``[B, *shape]``, that are a pure function of each sample's seed ``[B]`` and ``stream``.

    A counter-based generator (the SplitMix64 mixer), so that a rank builds its own rows of the global batch without
    drawing anybody else's. Different ``stream`` numbers give independent numbers for the same sample.
    """
    count = int(np.prod(shape, dtype=np.int64))
    counter = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)
    bits = seeds[:, None] + counter * _GOLDEN  # uint64 arithmetic wraps, as intended
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    bits = bits ^ (bits >> np.uint64(31))
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(len(seeds), *shape)


def between(low: float, high: float, share: Floats) -> Floats:
    """Map shares in [0, 1) linearly to [low, high)."""
    return low + (high - low) * share


def pick(score: Floats | Bools, count: int, noise: Floats) -> Bools:
    """The ``count`` cells per row of ``score`` ``[B, P]`` (whole numbers) that score highest, ties broken by ``noise``.

    ``noise`` ``[B, P]`` in [0, 1): every cell of the same score has the same chance.
    """
    best = np.argpartition(noise - score, count - 1, axis=1)[:, :count]
    chosen = np.zeros(score.shape, dtype=bool)
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen


def ids_of(chosen: Bools, grid: TokenGrid) -> torch.Tensor:
    """Sorted token ids, int64 ``[B, n]``, of boolean cells ``[B, P]`` with n chosen per row.

    ``P`` is either every token of ``grid`` or one time slice of it; a slice is repeated over all tubelets in time.
    """
    cells = np.nonzero(chosen)[1].reshape(len(chosen), -1)
    repeats = grid.size // chosen.shape[1]
    ids = np.arange(repeats)[:, None] * chosen.shape[1] + cells[:, None, :]
    return torch.from_numpy(ids.reshape(len(chosen), -1))


class MaskFamily:
    """One way of splitting the tokens of a grid into context and targets. Subclasses define ``build``."""

    def __init__(self, grid: TokenGrid) -> None:
        self.grid = grid

    def draw(self, rng: np.random.Generator, batch_size: int, rows: slice | list[int] | None = None) -> Mask:
        """Masks of one batch, or of the given ``rows`` of it.

        Args:
            rng: what the whole batch depends on; its state moves on by the same amount whatever ``rows`` is.
            batch_size: samples in the global batch, over all ranks.
            rows: the samples that are wanted here (``None``: all). The result equals those rows of the whole batch.
        """
        seeds = rng.integers(0, 2**64, size=batch_size + 1, dtype=np.uint64)
        return self.build(seeds[1:][rows or slice(None)], shared=seeds[:1])

    def build(self, seeds: Seeds, shared: Seeds) -> Mask:
        """Masks for samples with these seeds; ``shared`` ``[1]`` is for what the whole batch has in common."""
        raise AssertionError(f"{type(self).__name__} must define build")
