"""Scores of pairs: which of two is the higher, how sure one can be of the share, and AUROC. N pairs, S scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pairs_right(lower: Floats, higher: Floats) -> Floats:
    """``[N]``: 1 where ``higher`` ``[N]`` is above ``lower`` ``[N]``, 0 where it is below, a half where they tie."""
    return np.where(higher == lower, 0.5, (higher > lower).astype(np.float64))


def auroc(negatives: Floats, positives: Floats) -> float:
    """Chance that a positive drawn at random is above a negative drawn at random; ties count half.

    The area under the ROC curve, as the Mann-Whitney statistic (Hanley and McNeil, Radiology 1982). Infinite scores
    are allowed; NaN is not.
    """
    values = np.concatenate((negatives, positives))
    assert not np.isnan(values).any(), "scores without NaN"
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # the mean rank of those that tie, counted from 1
    wins = ranks[len(negatives) :].sum() - len(positives) * (len(positives) + 1) / 2
    return float(wins / (len(negatives) * len(positives)))


def bootstrap_interval(
    right: Floats, scenes: Sequence[str], draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of ``right`` ``[N]`` when scenes are drawn with replacement, all pairs of a scene
    together: they are not independent (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""
    _, place = np.unique(np.asarray(scenes), return_inverse=True)
    sums, counts = np.bincount(place, weights=right), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def binomial_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share of ``count`` independent tries (E. B. Wilson, JASA 1927); ``z`` for 95 %."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
