"""Scores of dense predictions from sums over the labelled pixels of whole images: padding and batches play no role.

K images, C classes. Sums of images add up, and every score is a function of their total.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DEPTH_SUMS = 4


def class_counts(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class that are right, labelled so, and predicted so: float64 ``[3, C]``. Classes int64 of any
    shape; labels below 0 are left out."""
    keep = labels >= 0
    mine, truth = predictions[keep], labels[keep]
    parts = (truth[mine == truth], truth, mine)
    return torch.stack([torch.bincount(part, minlength=num_classes) for part in parts]).cpu().double()


def class_iou(counts: Tensor) -> Tensor:
    """Intersection over union of every class, ``[..., 3, C]`` to ``[..., C]``; NaN for one that is neither labelled nor
    predicted anywhere."""
    right, labelled, predicted = counts.unbind(-2)
    return right / (labelled + predicted - right)


def mean_iou(counts: Tensor) -> Tensor:
    """Mean over the classes that occur, ``[..., 3, C]`` to ``[...]``."""
    return class_iou(counts).nanmean(dim=-1)


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Share of the labelled pixels that are right, ``[..., 3, C]`` to ``[...]``."""
    return counts[..., 0, :].sum(dim=-1) / counts[..., 1, :].sum(dim=-1)


def depth_sums(predictions: Tensor, depths: Tensor) -> Tensor:
    """Over the pixels whose depth in metres is no NaN: their number, squared errors, errors relative to the depth, and
    predictions within a factor of 1.25; float64 ``[4]``."""
    keep = ~depths.isnan()
    mine, truth = predictions[keep].cpu().double(), depths[keep].cpu().double()  # MPS has no float64
    ratio = torch.maximum(mine / truth, truth / mine)
    parts = ((mine - truth).square(), (mine - truth).abs() / truth, ((ratio < 1.25) & (mine > 0)).double())
    return torch.stack([torch.tensor(float(len(mine)), dtype=torch.float64), *(part.sum() for part in parts)])


def rmse(sums: Tensor) -> Tensor:
    """Root of the mean squared error over all pixels, in metres: ``[..., 4]`` to ``[...]``."""
    return (sums[..., 1] / sums[..., 0]).sqrt()


def bootstrap(sums: Tensor, score: Callable[[Tensor], Tensor], draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of ``score`` when the images of ``sums`` ``[K, ...]`` are drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(sums), (draws, len(sums)), generator=generator)
    times = torch.zeros(draws, len(sums), dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    scores = score((times @ sums.flatten(1)).unflatten(1, sums.shape[1:]))
    low, high = torch.nanquantile(scores, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
