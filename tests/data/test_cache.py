"""Decoded videos in memory: returned unchanged, never more than the budget, shared with forked workers."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest

from jepa.data.cache import ClipCache


def picture(value: int, frames: int = 4) -> np.ndarray:
    return np.full((frames, 10, 20, 3), value, dtype=np.uint8)


def test_what_goes_in_comes_out_until_the_budget_is_spent():
    cache = ClipCache(5, megabytes=6000 / 2**20)
    assert cache.get(0) is None
    cache.put(0, picture(7), 29.97)
    frames, fps = cache.get(0)
    assert np.array_equal(frames, picture(7))
    assert fps == pytest.approx(29.97)
    cache.put(1, picture(8, frames=6), 10.0)  # 2400 + 3600 bytes: full to the last one
    assert cache.used == 6000
    assert not cache.has_room(1)
    cache.put(2, picture(9), 10.0)
    assert cache.get(2) is None
    cache.put(0, picture(1), 10.0)  # the first copy stays
    assert cache.get(0)[0][0, 0, 0, 0] == 7


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="workers are spawned here")
def test_forked_workers_share_it():
    cache = ClipCache(3, megabytes=1)
    worker = multiprocessing.get_context("fork").Process(target=cache.put, args=(1, picture(5), 10.0))
    worker.start()
    worker.join()
    assert np.array_equal(cache.get(1)[0], picture(5))


def test_a_spawned_worker_starts_empty():
    cache = ClipCache(3, megabytes=1)
    cache.put(0, picture(5), 10.0)
    assert pickle.loads(pickle.dumps(cache)).get(0) is None
