"""Scores of rankings: average precision and recall. Equal scores share a rank: the order of files plays no role.

G gallery clips, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def average_precision(scores: Iterable[Floats], positives: Floats, total: int | None = None) -> float:
    """Mean over the ``total`` positives (None: all are in ``positives``) of the precision at the score of each.

    ``scores``: those of all candidates, in any number of parts of any shape; ``positives``: those of the right ones
    among them. All candidates of one score are accepted together: the sum of precision times gained recall over
    thresholds. Parts are read once, and only counts are kept. Over the candidates of all queries at once this is the
    micro-AP of copy detection (M. Douze et al., arXiv 2106.09672, section 3.3); of a single query, its AP.
    """
    values, gained = np.unique(positives, return_counts=True)
    above = np.zeros(len(values) + 1)  # candidates by how many of the values they reach
    for part in scores:
        above += np.bincount(np.searchsorted(values, part.ravel(), side="right"), minlength=len(values) + 1)
    seen = np.cumsum(above[::-1])[::-1][1:]  # candidates that score at least this much
    found = np.cumsum(gained[::-1])[::-1]
    return float((gained * found / seen).sum() / (len(positives) if total is None else total))


def recall_at(scores: Floats, relevant: NDArray[np.bool_], k: int) -> float:
    """Whether the ``k`` best of ``scores`` ``[G]`` hold a ``relevant`` one (1 or 0); where several share the k-th
    place, the chance of it when they are drawn at random."""
    if k >= len(scores):
        return float(relevant.any())
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    better, tied = scores > last, scores == last
    if relevant[better].any():
        return 1.0
    places, group, good = k - int(better.sum()), int(tied.sum()), int(relevant[tied].sum())
    return 1.0 - math.comb(group - good, places) / math.comb(group, places)


def cosines(queries: NDArray[Any], gallery: NDArray[Any]) -> Floats:
    """``[Q, D]`` and ``[G, D]`` to ``[Q, G]``, rounded to 1e-6, so that equal vectors tie on every machine. A vector of
    length zero has cosine 0 with all others."""
    sides = []
    for vectors in (queries.astype(np.float64), gallery.astype(np.float64)):
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        sides.append(vectors / np.where(length > 0, length, 1))
    return (sides[0] @ sides[1].T).round(6)
