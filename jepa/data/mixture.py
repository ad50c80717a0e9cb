"""From the number of a sample to the item of a source: pure functions of (seed, number), so nothing needs replaying."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jepa.config import ConfigError

_BLOCK = 1024  # draws within which the sources' shares are exact


def stream(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for every different key."""
    return np.random.default_rng((seed, *key))


# the first number of a key tells the streams' purposes apart
ORDER, SHUFFLE, SAMPLE, MASKS, REPLACE, HOLDOUT = range(6)


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, source: int, size: int, epoch: int) -> NDArray[np.int64]:
    return stream(seed, SHUFFLE, source, epoch).permutation(size)


class Mixture:
    """Endless order over several sources: every source without replacement, epoch after epoch, in given shares.

    ``clips_per_video`` consecutive samples come from the same item.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, clips_per_video: int = 1) -> None:
        assert len(sizes) == len(weights)
        assert min(sizes) > 0
        self.sizes, self.seed, self.clips_per_video = list(sizes), seed, clips_per_video
        self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        exact = self.shares * _BLOCK
        self._counts = np.floor(exact).astype(np.int64)
        surplus = np.argsort(self._counts - exact, kind="stable")[: _BLOCK - self._counts.sum()]  # largest remainders
        self._counts[surplus] += 1
        if self._counts.min() == 0:
            raise ConfigError(f"source {int(self._counts.argmin())} has less than 1/{_BLOCK} of the weight: raise it")
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def __reduce__(self) -> tuple[type[Mixture], tuple[list[int], list[float], int, int]]:
        return Mixture, (self.sizes, self.shares.tolist(), self.seed, self.clips_per_video)

    def _draw_order(self, block: int) -> NDArray[np.int64]:
        sources = np.repeat(np.arange(len(self.sizes)), self._counts)
        return stream(self.seed, ORDER, block).permutation(sources)

    def locate(self, position: int) -> tuple[int, int, int]:
        """Sample ``position`` as (source, item, number of the clip among the item's ``clips_per_video``)."""
        draw, clip_number = divmod(position, self.clips_per_video)
        block, place = divmod(draw, _BLOCK)
        order = self._order(block)
        source = int(order[place])
        before = block * int(self._counts[source]) + int(np.count_nonzero(order[:place] == source))
        epoch, place = divmod(before, self.sizes[source])
        item = _permutation(self.seed, source, self.sizes[source], epoch)[place]
        return source, int(item), clip_number

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """The (source, item) that stands in for sample ``position`` when what was drawn cannot be used."""
        rng = stream(self.seed, REPLACE, position, attempt)
        source = int(rng.choice(len(self.sizes), p=self.shares))
        return source, int(rng.integers(self.sizes[source]))
