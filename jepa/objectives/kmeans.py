"""k-means on small sets of vectors, the same on every process.

Shape legend: N vectors, K centres, Z width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clusters(NamedTuple):
    """``centres`` ``[K, Z]``, the centre of every vector (``ids`` int64 ``[N]``) and the mean squared distance."""

    centres: Tensor
    ids: Tensor
    inertia: Tensor


def nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of ``centres`` ``[K, Z]`` to every vector of ``[..., Z]``: int64 ``[...]``."""
    return torch.cdist(vectors.flatten(0, -2), centres).argmin(dim=1).view(vectors.shape[:-1])


@torch.no_grad()
def kmeans(vectors: Tensor, count: int, seed: int = 0, restarts: int = 4, iterations: int = 50) -> Clusters:
    """``count`` clusters of ``vectors`` ``[N, Z]``: the best of several starts of Lloyd's algorithm.

    Starts are drawn by squared distance (k-means++, Arthur and Vassilvitskii 2007) from a generator of ``seed``; a
    centre that loses all its vectors takes the one farthest from its own. Computed on the CPU in float64.
    Raises ``ValueError`` for fewer vectors than centres, or vectors that are not finite.
    """
    if count < 1 or len(vectors) < count:
        raise ValueError(f"{len(vectors)} vectors do not make {count} clusters")
    if not bool(vectors.isfinite().all()):
        raise ValueError("k-means needs finite vectors")
    points = vectors.detach().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    runs = [_lloyd(points, _start(points, count, generator), iterations) for _ in range(restarts)]
    best = min(runs, key=lambda run: float(run.inertia))
    return Clusters(best.centres.to(vectors), best.ids.to(vectors.device), best.inertia.to(vectors))


def _start(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(len(points), (1,), generator=generator)
    for _ in range(count - 1):
        distance = torch.cdist(points, points[chosen]).amin(dim=1).square()
        if float(distance.sum()) == 0.0:  # fewer different vectors than centres
            distance = torch.ones_like(distance)
        chosen = torch.cat((chosen, torch.multinomial(distance, 1, generator=generator)))
    return points[chosen]


def _lloyd(points: Tensor, centres: Tensor, iterations: int) -> Clusters:
    ids = nearest(points, centres)
    for _ in range(iterations):
        sizes = torch.bincount(ids, minlength=len(centres))
        centres = torch.zeros_like(centres).index_add_(0, ids, points) / sizes.clamp(min=1)[:, None]
        for empty in (sizes == 0).nonzero().flatten().tolist():
            apart = (points - centres[ids]).square().sum(dim=1)
            farthest = int(apart.argmax())
            centres[empty], ids[farthest] = points[farthest], empty
        moved = nearest(points, centres)
        if torch.equal(moved, ids):
            break
        ids = moved
    return Clusters(centres, ids, (points - centres[ids]).square().sum(dim=1).mean())
