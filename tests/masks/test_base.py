"""Random numbers per sample, and picking a fixed number of cells."""

from __future__ import annotations

import numpy as np

from jepa.masks.base import ids_of, pick, uniforms
from jepa.types import TokenGrid


def test_uniforms_are_uniform_independent_and_a_function_of_the_seed() -> None:
    seeds = np.random.default_rng(0).integers(0, 2**64, size=500, dtype=np.uint64)
    drawn = uniforms(seeds, 3, 4, 25)
    assert drawn.shape == (500, 4, 25)
    assert np.array_equal(drawn[7:9], uniforms(seeds[7:9], 3, 4, 25))
    assert abs(drawn.mean() - 0.5) < 0.005
    assert abs(drawn.var() - 1 / 12) < 0.002
    assert np.histogram(drawn, bins=10, range=(0, 1))[0].std() < 0.03 * drawn.size / 10
    for other in (uniforms(seeds, 4, 4, 25), np.roll(drawn, 1, axis=0), np.roll(drawn, 1, axis=2)):
        assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.02


def test_pick_takes_the_best_scores_and_breaks_ties_evenly() -> None:
    rng = np.random.default_rng(0)
    score = np.tile([2.0, 2.0, 1.0, 1.0, 1.0, 0.0], (6000, 1))
    chosen = pick(score, 3, rng.random(score.shape))
    assert np.array_equal(chosen.sum(axis=1), np.full(6000, 3))
    rates = chosen.mean(axis=0)
    assert rates[:2].tolist() == [1.0, 1.0]
    assert rates[5] == 0.0
    assert np.abs(rates[2:5] - 1 / 3).max() < 0.03


def test_ids_of_a_slice_repeat_over_time() -> None:
    chosen = np.array([[False, True, False, True]])
    assert ids_of(chosen, TokenGrid(3, 2, 2)).tolist() == [[1, 3, 5, 7, 9, 11]]
