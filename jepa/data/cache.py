"""Decoded videos kept in memory, once for all loader workers of a process.

The cache is one anonymous shared mapping that forked workers inherit: whichever worker decodes a video first copies
it in, every other one reads it from there. Pages count only once touched, and no /dev/shm space is needed. When it is
full, it stays as it is (every epoch visits every video once, so replacing one video by another gains nothing).
Where workers are spawned instead of forked (macOS, Windows), every worker starts with an empty cache of its own.
"""

from __future__ import annotations

import mmap
import multiprocessing

import numpy as np
from numpy.typing import NDArray


class ClipCache:
    """Room for ``slots`` uint8 arrays of at most ``megabytes`` in all."""

    def __init__(self, slots: int, megabytes: float) -> None:
        self._slots, self._megabytes = slots, megabytes
        self._room = max(1, int(megabytes * 2**20))
        self._data = np.frombuffer(mmap.mmap(-1, self._room), dtype=np.uint8)
        # per slot: state (0 absent, 1 being copied, 2 present), offset, T, H, W, frames per 1000 s; the extra row holds
        # the bytes used
        self._table = np.frombuffer(mmap.mmap(-1, (slots + 1) * 48), dtype=np.int64).reshape(slots + 1, 6)
        self._lock = multiprocessing.Lock()

    def __reduce__(self) -> tuple[type[ClipCache], tuple[int, float]]:
        return ClipCache, (self._slots, self._megabytes)  # a spawned worker cannot share the mapping

    @property
    def used(self) -> int:
        """Bytes taken."""
        return int(self._table[-1, 0])

    def has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes fit."""
        return self.used + size <= self._room

    def get(self, slot: int) -> tuple[NDArray[np.uint8], float] | None:
        """The frames put under ``slot`` (a view ``[T, H, W, 3]``, not to be written to) and their rate, or None."""
        state, offset, *shape, rate = self._table[slot].tolist()
        if state != 2:
            return None
        size = shape[0] * shape[1] * shape[2] * 3
        return self._data[offset : offset + size].reshape(*shape, 3), rate / 1000

    def put(self, slot: int, frames: NDArray[np.uint8], fps: float) -> None:
        """Keep ``frames`` uint8 ``[T, H, W, 3]`` if there is room."""
        row = self._table[slot]
        with self._lock:
            start = self.used
            if row[0] != 0 or start + frames.size > self._room:
                return
            row[0] = 1
            self._table[-1, 0] = start + frames.size
        self._data[start : start + frames.size] = frames.reshape(-1)
        with self._lock:  # the lock also orders the copy before the mark on machines that reorder writes
            row[1:] = (start, *frames.shape[:3], round(fps * 1000))
            row[0] = 2

