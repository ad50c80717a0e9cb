"""From the number of a sample to the item of a source: pure functions of (seed, number), so nothing needs replaying."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jepa.config import ConfigError

_BLOCK = 1024  # draws within which the sources' shares are exact


def stream(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for every different key."""
    return np.random.default_rng((seed, *key))


# the first number of a key tells the streams' purposes apart
ORDER, SHUFFLE, SAMPLE, MASKS, REPLACE, HOLDOUT, WINDOW = range(7)


class Lane(NamedTuple):
    """One of several equal parts of every epoch."""

    number: int = 0
    of: int = 1

    def bounds(self, size: int) -> tuple[int, int]:
        """First place of this part of ``size`` places, and the one after its last: parts differ by at most one."""
        return size * self.number // self.of, size * (self.number + 1) // self.of


class Order(Protocol):
    """A source's epochs: which item stands at a place of an epoch."""

    size: int

    def item(self, seed: int, source: int, epoch: int, lane: Lane, place: int) -> int:
        """The item at ``place`` of a lane's part of an epoch."""
        ...

    def neighbour(
        self, seed: int, source: int, epoch: int, lane: Lane, place: int, rng: np.random.Generator
    ) -> int | None:
        """A random item that is read about as easily at that place; None: any item is."""
        ...


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, source: int, size: int, epoch: int) -> NDArray[np.int64]:
    return stream(seed, SHUFFLE, source, epoch).permutation(size)


class FullOrder:
    """Every epoch in a random order of its own."""

    def __init__(self, size: int) -> None:
        self.size = size

    def item(self, seed: int, source: int, epoch: int, lane: Lane, place: int) -> int:
        return int(_permutation(seed, source, self.size, epoch)[lane.bounds(self.size)[0] + place])

    def neighbour(
        self, seed: int, source: int, epoch: int, lane: Lane, place: int, rng: np.random.Generator
    ) -> int | None:
        return None


class _Epoch(NamedTuple):
    """Shards end to end in an epoch's order: where each ends, and the first item of each."""

    ends: NDArray[np.int64]
    first_items: NDArray[np.int64]


class ShardOrder:
    """Every epoch: the shards in a random order, end to end, cut into one part per lane; within a part, the samples of
    ``window`` shards at a time in a random order. ``shard_sizes`` ``[S]``: the items' numbers run through the shards.

    At any time only about ``window`` shards per lane are in use, so that a stream needs to be fetched once an epoch.
    Memory is that of the shards' sizes and of a window's order, not of the items.
    """

    def __init__(self, shard_sizes: NDArray[np.int64], window: int) -> None:
        self.shard_sizes, self.window = np.asarray(shard_sizes, dtype=np.int64), window or len(shard_sizes)
        self.size = int(self.shard_sizes.sum())
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)
        self._cuts = functools.lru_cache(maxsize=64)(self._draw_cuts)
        self._within: dict[int, tuple[tuple[int, ...], NDArray[np.int32]]] = {}  # lane -> its last window's order

    def __reduce__(self) -> tuple[type[ShardOrder], tuple[NDArray[np.int64], int]]:
        return ShardOrder, (self.shard_sizes, self.window)

    def _draw_epoch(self, seed: int, source: int, epoch: int) -> _Epoch:
        order = stream(seed, SHUFFLE, source, epoch).permutation(len(self.shard_sizes))
        first_items = np.cumsum(self.shard_sizes) - self.shard_sizes
        return _Epoch(np.cumsum(self.shard_sizes[order]), first_items[order])

    def _draw_cuts(self, seed: int, source: int, epoch: int, lane: Lane) -> NDArray[np.int64]:
        """Where the windows of a lane's part begin, and where the last one ends."""
        first, last = lane.bounds(self.size)
        ends = self._epoch(seed, source, epoch).ends
        inside = ends[(ends > first) & (ends < last)]
        return np.concatenate(([first], inside[self.window - 1 :: self.window], [last]))

    def _shuffled(self, seed: int, source: int, epoch: int, lane: Lane, first: int, size: int) -> NDArray[np.int32]:
        key = (seed, source, epoch, lane.of, first, size)
        if self._within.get(lane.number, (None,))[0] != key:
            self._within[lane.number] = key, stream(seed, WINDOW, source, epoch, first).permutation(size).astype("i4")
        return self._within[lane.number][1]

    def _window(self, seed: int, source: int, epoch: int, lane: Lane, place: int) -> tuple[int, int, int]:
        """First position of the window, its size, and the place within it."""
        cuts = self._cuts(seed, source, epoch, lane)
        position = int(cuts[0]) + place
        number = int(np.searchsorted(cuts, position, side="right")) - 1
        return int(cuts[number]), int(cuts[number + 1] - cuts[number]), position - int(cuts[number])

    def _at(self, seed: int, source: int, epoch: int, position: int) -> int:
        ends, first_items = self._epoch(seed, source, epoch)
        shard = int(np.searchsorted(ends, position, side="right"))
        return int(first_items[shard]) + position - (int(ends[shard - 1]) if shard else 0)

    def item(self, seed: int, source: int, epoch: int, lane: Lane, place: int) -> int:
        first, size, within = self._window(seed, source, epoch, lane, place)
        order = self._shuffled(seed, source, epoch, lane, first, size)
        return self._at(seed, source, epoch, first + int(order[within]))

    def neighbour(
        self, seed: int, source: int, epoch: int, lane: Lane, place: int, rng: np.random.Generator
    ) -> int | None:
        """Another item of the same window: its shards are at hand."""
        first, size, _ = self._window(seed, source, epoch, lane, place)
        return self._at(seed, source, epoch, first + int(rng.integers(size)))


class Mixture:
    """Endless order over several sources: every source without replacement, epoch after epoch, in given shares.

    ``clips_per_video`` consecutive samples come from the same item. The rows of a batch of ``batch_size`` are cut into
    ``lanes`` equal parts; each goes through a part of its own of every source's epochs.
    """

    def __init__(
        self, orders: Sequence[Order], weights: Sequence[float], seed: int, clips_per_video: int = 1,
        batch_size: int = 1, lanes: int = 1,
    ) -> None:  # fmt: skip
        assert len(orders) == len(weights)
        self.orders, self.seed, self.clips_per_video = list(orders), seed, clips_per_video
        self.batch_size, self.lanes = batch_size, lanes
        if min(order.size for order in orders) < lanes:
            raise ConfigError(f"lanes {lanes}: every source needs at least as many items")
        if batch_size % lanes or (lanes > 1 and (batch_size // lanes) % clips_per_video):
            raise ConfigError(
                f"batch_size {batch_size} must be a multiple of lanes x clips_per_video = {lanes} x {clips_per_video}"
            )
        self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        exact = self.shares * _BLOCK
        self._counts = np.floor(exact).astype(np.int64)
        surplus = np.argsort(self._counts - exact, kind="stable")[: _BLOCK - self._counts.sum()]  # largest remainders
        self._counts[surplus] += 1
        if self._counts.min() == 0:
            raise ConfigError(f"source {int(self._counts.argmin())} has less than 1/{_BLOCK} of the weight: raise it")
        self._order = functools.lru_cache(maxsize=2 * lanes)(self._draw_order)

    def __reduce__(self) -> tuple[type[Mixture], tuple[list[Order], list[float], int, int, int, int]]:
        return Mixture, (
            self.orders, self.shares.tolist(), self.seed, self.clips_per_video, self.batch_size, self.lanes
        )  # fmt: skip

    def _draw_order(self, block: int, lane: int) -> NDArray[np.int64]:
        sources = np.repeat(np.arange(len(self.orders)), self._counts)
        return stream(self.seed, ORDER, block, *((lane,) if lane else ())).permutation(sources)

    def _draw(self, position: int) -> tuple[int, int, Lane, int, int]:
        """Sample ``position`` as (source, epoch, lane, place in it, number of the clip)."""
        step, row = divmod(position, self.batch_size)
        rows = self.batch_size // self.lanes
        lane = Lane(row // rows, self.lanes)
        draw, clip_number = divmod(step * rows + row % rows, self.clips_per_video)
        block, place = divmod(draw, _BLOCK)
        order = self._order(block, lane.number)
        source = int(order[place])
        before = block * int(self._counts[source]) + int(np.count_nonzero(order[:place] == source))
        first, last = lane.bounds(self.orders[source].size)
        epoch, place = divmod(before, last - first)
        return source, epoch, lane, place, clip_number

    def locate(self, position: int) -> tuple[int, int, int]:
        """Sample ``position`` as (source, item, number of the clip among the item's ``clips_per_video``)."""
        source, epoch, lane, place, clip_number = self._draw(position)
        return source, self.orders[source].item(self.seed, source, epoch, lane, place), clip_number

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """The (source, item) that stands in for sample ``position`` when what was drawn cannot be used."""
        rng = stream(self.seed, REPLACE, position, attempt)
        source, epoch, lane, place, _ = self._draw(position)
        near = self.orders[source].neighbour(self.seed, source, epoch, lane, place, rng) if attempt < 20 else None
        if near is not None:
            return source, near
        source = int(rng.choice(len(self.orders), p=self.shares))
        return source, int(rng.integers(self.orders[source].size))
