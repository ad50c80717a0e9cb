"""k-means finds what scikit-learn finds, is the same at every call, and fills empty clusters."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans

from jepa.objectives.kmeans import kmeans, nearest


def test_as_good_as_scikit_learn() -> None:
    torch.manual_seed(0)
    points = torch.cat([torch.randn(40, 3) + 8 * torch.randn(3) for _ in range(5)])
    found = kmeans(points, 5)
    known = KMeans(5, n_init=10, random_state=0).fit(points.numpy())
    assert float(found.inertia) == pytest.approx(known.inertia_ / len(points), rel=1e-4)
    assert torch.equal(found.ids, nearest(points, found.centres))
    again = kmeans(points, 5)
    assert torch.equal(found.centres, again.centres)


def test_every_cluster_has_a_vector() -> None:
    few = torch.tensor([[0.0], [0.0], [0.0], [1.0], [5.0]])
    found = kmeans(few, 3)
    assert sorted(found.centres.flatten().tolist()) == [0, 1, 5]
    assert float(found.inertia) == 0
    same = kmeans(torch.ones(6, 2), 3)  # fewer different vectors than centres
    assert torch.equal(same.centres, torch.ones(3, 2))


def test_refused() -> None:
    with pytest.raises(ValueError, match="2 vectors do not make 3 clusters"):
        kmeans(torch.zeros(2, 2), 3)
    with pytest.raises(ValueError, match="k-means needs finite vectors"):
        kmeans(torch.tensor([[0.0], [float("nan")]]), 1)
